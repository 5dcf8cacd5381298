"""What the API says about approvals."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

from broker.pipelines.schemas import NeedsApproval
from broker.quotas.schemas import QuotaView
from broker.runs.schemas import RunView
from broker.runs.states import RunState
from broker.text import RequestModel

Verdict = Literal["approved", "rejected", "expired"]
MAX_COMMENT = 2000


def _says_something(comment: str) -> str:
    if not comment.strip():
        raise PydanticCustomError("comment_required", "say why: the requester reads it")
    return comment.strip()


class Approve(RequestModel):
    """Let it run. `plan_hash`: decide only about exactly this, as the review showed it."""

    comment: str = Field("", max_length=MAX_COMMENT)
    plan_hash: str | None = Field(None, max_length=80, description="`plan_hash` of the review")


class Reject(RequestModel):
    """Don't let it run; the requester reads why."""

    comment: Annotated[str, AfterValidator(_says_something)] = Field(max_length=MAX_COMMENT)


class DecisionView(BaseModel):
    """A decision. `expired`: nobody decided in time."""

    decision: Verdict
    attempt: int
    plan_hash: str | None
    comment: str
    decided_by: str | None = Field(description="User name; null: the broker itself")
    decided_at: datetime


class ApprovalSummary(BaseModel):
    """A run that needs, or needed, a decision."""

    run_id: str
    number: int
    name: str
    kind: Literal["normal", "test"]
    tenant: str
    requester: str
    cluster: str
    state: RunState
    state_ko: str
    approval: Literal["pending", "approved", "rejected"]
    needs_approval: list[NeedsApproval]
    test_run_ref: str | None
    requested_at: datetime
    expires_at: datetime | None = Field(description="Until when it can be decided; null once it was")
    decision: DecisionView | None = Field(description="The newest one")


class ComponentView(BaseModel):
    """A component against the thresholds."""

    component: str
    gpu_type: str | None
    gpu_count: int
    memory_mib: int
    cpus: int | None
    time_s: int | None
    over: list[Literal["gpu_count", "memory_mib"]] = Field(description="The thresholds that it reaches")


class Requester(BaseModel):
    """Who asked."""

    username: str
    display_name: str
    role: str
    tenant: str
    approved_before: int = Field(description="Earlier requests that were approved")
    rejected_before: int


class TestOutcome(BaseModel):
    """How the referenced test run went."""

    run_id: str
    number: int
    state: RunState
    pipeline_version: int
    ended_at: datetime | None
    duration_s: int | None
    error: str | None
    metrics: dict[str, dict[str, Any]] = Field(description="`metrics.json` by component")


class Change(BaseModel):
    """Something that is not as it was tested. Components are told apart by their names, not their places."""

    pointer: str = Field(description="`/components/NAME/…`; `/resolved/…` is what names stood for")
    tested: Any = Field(description="null: was not there")
    requested: Any


class CompiledView(BaseModel):
    """A component as it was compiled, exactly."""

    component: str
    name: str
    depends_on: list[str]
    sbatch_args: list[str]
    script: str


class Review(BaseModel):
    """All there is to know before deciding."""

    run: RunView
    requester: Requester
    thresholds: dict[str, int] = Field(description="gpu_count, memory_mib: as they are now")
    components: list[ComponentView]
    spec: dict[str, Any] = Field(description="What runs: the stored spec with the overrides applied")
    plan_hash: str | None = Field(description="What an approval is bound to; null: still being compiled")
    jobs: list[CompiledView] = Field(description="What was submitted, held")
    tenant_usage: QuotaView
    test_run: TestOutcome | None
    changes: list[Change] | None = Field(description="Against the test run; null: it names none")
    differences: list[str] = Field(description="Why the last release was refused: what Slurm held instead")
    requested_at: datetime
    expires_at: datetime | None
    decisions: list[DecisionView] = Field(description="Newest first")
    may_decide: bool = Field(description="Whether you may, now")
    why_not: str | None
