"""What the API says about prices and costs. Money is text with all its digits, never a binary fraction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from broker.accounting.schemas import Source
from broker.costs.pricing import ANY, Resource
from broker.text import RequestModel, one_line


def _exact(value: object) -> object:
    """A number with a point was a binary fraction before anybody looked: as text it is exact."""
    if isinstance(value, float):
        raise PydanticCustomError("inexact_amount", 'Write the amount as text, "0.05": a number is rounded')
    return value


Amount = Annotated[Decimal, BeforeValidator(_exact), Field(ge=0, max_digits=18, decimal_places=6)]
Part = Annotated[
    str, StringConstraints(min_length=1, max_length=64, strip_whitespace=True), AfterValidator(one_line)
]


class PriceRequest(RequestModel):
    """A price from a day on. What is not named of its place is anything (`*`)."""

    resource: Resource = Field(description="What an hour of it costs")
    amount: Amount | None = Field(
        description="Per hour, at most six digits after the point; `0` is free; null: the place has no price "
        "of its own any more, that of a wider one holds"
    )
    valid_from: date = Field(description="First day (UTC) on which it holds", ge=date(1990, 1, 1))
    cluster: Part = ANY
    partition: Part = ANY
    qos: Part = ANY
    gpu_type: Part = Field(ANY, description="Of `gpu_hour` alone")


Why = Annotated[
    str, StringConstraints(min_length=1, max_length=500, strip_whitespace=True), AfterValidator(one_line)
]


class PriceCorrection(RequestModel):
    """What a price should have been from its first day on."""

    amount: Amount | None = Field(
        description="Per hour, as in a price; null: the place should have had no price of its own from "
        "that day on, that of a wider one holds"
    )
    why: Why = Field(description="Kept, and told with the costs of all days on which the wrong one held")


class PriceView(BaseModel):
    """A price. `state`: `holds`, will hold (`future`), did (`past`), or was `withdrawn`: holds for no day."""

    id: str
    resource: Resource
    cluster: str
    partition: str
    qos: str
    gpu_type: str
    amount: Decimal | None
    currency: str
    valid_from: date
    valid_until: date | None = Field(description="First day on which another one holds for the same place")
    state: Literal["future", "holds", "past", "withdrawn"]
    created_at: datetime
    created_by: str
    withdrawn_at: datetime | None
    withdrawn_by: str | None
    withdrawn_why: str | None
    corrects: str | None = Field(description="The withdrawn price that it stands in the place of")
    corrected_by: str | None = Field(description="Of a withdrawn one: the price entered in its place")


class PriceList(BaseModel):
    """The prices, by resource, then the wider before the narrower, then by date."""

    currency: str = Field(description="The one that holds (setting `costs.currency`)")
    items: Sequence[PriceView]


class CorrectedPrice(BaseModel):
    """A price that had begun to hold and was corrected: these costs differ from what was told before."""

    price: str = Field(description="The wrong one")
    resource: Resource
    cluster: str
    partition: str
    qos: str
    gpu_type: str
    held_from: date
    held_until: date = Field(
        description="First day on which another one held for the same place, or after the correction"
    )
    was: Decimal | None = Field(description="Null: the place had no price of its own")
    now: Decimal | None = Field(description="What was entered in its place; null: no price of its own")
    corrected_by: str | None = Field(
        description="The price entered in its place; null: it was withdrawn, and that of before or of "
        "a wider place holds, if there is one"
    )
    at: datetime
    by: str
    why: str


class CostLine(BaseModel):
    """One line of costs. An amount is rounded once, here; null: nothing in it has a price."""

    key: dict[str, str]
    amount: Decimal | None = Field(description="To be paid")
    faults: Decimal | None = Field(
        description="Of it: attempts that the cluster ended (node failure, preemption)"
    )
    exempt: Decimal | None = Field(description="Not in it: attempts that are not charged")
    hours: dict[str, float] = Field(description="Hours in it, by resource; of memory GiB hours")
    unpriced: dict[str, float] = Field(description="Hours not in it, because no price holds for them")


class CostEstimate(BaseModel):
    """What a run costs if each component runs once, to the end of its time limit, at today's prices.

    Prices that name a partition, QOS or GPU type that only Slurm chooses are not in it.
    """

    currency: str
    amount: Decimal | None = Field(description="Null: nothing in it has a price, or billing units have one")
    hours: dict[str, float] = Field(description="Hours in the amount, by resource")
    unpriced: dict[str, float] = Field(description="Hours that no price holds for")


class CostView(BaseModel):
    """Costs of a period. `total` is exact and rounded once: the same however it is split."""

    currency: str
    since: date
    until: date = Field(description="The first day (UTC) that is not in it any more")
    by: Sequence[str]
    filters: dict[str, str]
    scope: str = Field(description="Whose use: `all`, `tenant NAME` or `user NAME`")
    lines: Sequence[CostLine]
    left_out: int = Field(description="Lines beyond `limit`; they are in `total`")
    total: CostLine
    rounding: Decimal | None = Field(
        description="The total's amount less those of all lines, those beyond `limit` too: each is rounded "
        "by itself"
    )
    corrections: Sequence[CorrectedPrice] = Field(
        description="Prices of this period that were corrected after they had begun to hold, in the order in "
        "which they were: why an answer from before differs"
    )
    sources: Sequence[Source]


class JobCost(CostLine):
    """What one attempt of a job of a run costs. `key` has `component`, `attempt`, `job` and `state`."""

    started_at: datetime | None
    counted_to: datetime | None = Field(description="Its end, or up to when its use is counted")


class RunCost(BaseModel):
    """What a run costs: every attempt of every job, requeues too, as accounting has them."""

    run_id: str
    currency: str
    complete: bool = Field(description="All its jobs are in accounting, and ended")
    jobs: Sequence[JobCost]
    total: CostLine
    rounding: Decimal | None = Field(
        description="The total's amount less those of all jobs: each is rounded by itself"
    )
    corrections: Sequence[CorrectedPrice] = Field(
        description="Prices of what it used that were corrected after they had begun to hold"
    )
    sources: Sequence[Source]
