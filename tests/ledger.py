"""What tests of the GPU-hour ledger share: accounting that tells what it is given, a clock, and runs."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from broker.context import Context
from broker.hosts import Completed
from broker.identity import Principal, Role
from broker.quotas.periods import bounds
from broker.runs.ledger import reserve_or_hold
from broker.runs.schemas import RunRequest
from broker.runs.service import create_run
from broker.runs.states import Phase
from broker.runs.tables import RunHoldRow, RunRow
from broker.runs.views import attempt_jobs
from broker.spec import Overrides
from broker.spec.overrides import ResourceChange
from tests.api_support import SPEC, Api
from tests.harness.sacct import Row

MONTH = "2026-11"
BEGIN, END = bounds(MONTH)


@dataclass
class Accounting:
    """A host on which `sacct` answers with the rows that are there by now."""

    rows: list[Row] = field(default_factory=list)
    asked: int = 0
    name: str = "sacct"

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        options = dict(word.split("=", 1) for word in argv if word.startswith("--"))
        fields = argv[list(argv).index("-o") + 1].split(",")
        wanted = {int(number) for number in options["--jobs"].split(",")}
        self.asked += 1
        lines = [row.text(fields, options["--delimiter"]) for row in self.rows if row.job_id in wanted]
        return Completed(0, "".join(f"{line}\n" for line in lines).encode(), b"")


def person(ctx: Context) -> Principal:
    """A person with a pipeline of one component with GPUs, in a tenant of their own."""
    api, name = Api(ctx), f"ann-{secrets.token_hex(4)}"
    user_id = api.add(name, tenant=name)
    document = SPEC | {"components": [SPEC["components"][1]], "workflow": []}
    assert api.store(name, document).status_code == 201
    return Principal(user_id, name, Role.RESEARCHER, name)


@dataclass
class Clock:
    """The simulated time."""

    now: datetime

    def __call__(self) -> datetime:
        return self.now


NUMBERS = iter(range(1000, 10**6))


def asked(ctx: Context, ann: Principal, gpu_count: int = 2) -> str:
    """A run of so many GPUs for two hours, submitted, with no hold left but perhaps the quota's; its id."""
    overrides = Overrides(all=ResourceChange(gpu_count=gpu_count))
    run_id = create_run(ctx, ann, RunRequest(pipeline="digits", overrides=overrides)).id
    with ctx.db.write() as session:
        run = session.get_one(RunRow, run_id)
        session.delete(session.get_one(RunHoldRow, (run_id, "submission")))
        run.phase = Phase.RELEASING
        reserve_or_hold(ctx, session, run, attempt_jobs(session, run_id, 1))
    return run_id
