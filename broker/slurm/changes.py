"""Changes to jobs: one `scontrol` fed on standard input, `scancel` for lists of ids.

`scontrol` goes on past a change that fails, but its words differ from change to change and do not always name
the job. So after each change stands a line that is no command, made of letters nobody could know: `scontrol`
complains of it on the same stream, and what it said between two of these belongs to one change. A change
without its mark was perhaps not reached: its outcome is unknown.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from typing_extensions import override

from broker.errors import InvalidRequest
from broker.hosts import Completed
from broker.slurm.command import DONE, Command, Result, ResultKind, complaint, decoded, judged

_FIELD = re.compile(r"[A-Za-z][A-Za-z_]{0,63}")


@dataclass(frozen=True, slots=True)
class Change:
    """One change to one job: the line that `scontrol` reads."""

    job_id: int
    line: str


def hold(job_id: int) -> Change:
    """By root, an Administrator or an Operator an administrator's hold, which the owner can't release."""
    return Change(job_id, f"hold {job_id}")


def release(job_id: int) -> Change:
    """Lift any hold; releasing a job that has none is no error."""
    return Change(job_id, f"release {job_id}")


def requeue(job_id: int) -> Change:
    """Start it again from the top, under the same id."""
    return Change(job_id, f"requeue {job_id}")


def update(job_id: int, fields: Mapping[str, str]) -> Change:
    """Set fields (scontrol(1), JOBS - SPECIFICATIONS FOR UPDATE COMMAND); all of them or none.

    "" empties a field; a field that is not named stays as it is.
    """
    if not fields:
        raise InvalidRequest(f"job {job_id}: an update without a field changes nothing")
    assignments = (_assignment(name, value) for name, value in fields.items())
    return Change(job_id, " ".join([f"update JobId={job_id}", *assignments]))


def _assignment(name: str, value: str) -> str:
    if not _FIELD.fullmatch(name):
        raise InvalidRequest(f"{name!r} is no field of a job")
    if any(not char.isprintable() for char in value) or '"' in value or "\\" in value:
        raise InvalidRequest(f"{name}: scontrol takes no control character, backslash or double quote")
    return f'{name}="{value}"' if re.search(r"[\s']", value) else f"{name}={value}"


@dataclass(frozen=True)
class Control(Command[dict[int, Result]]):
    """`scontrol` with changes on its standard input, in their order; a result for each job.

    Several changes of one job: its result is the first that is not `DONE`.
    """

    changes: tuple[Change, ...]
    mark: str = field(default_factory=lambda: f"@{secrets.token_hex(6)}-")
    program = "scontrol"
    readonly = False

    @override
    def args(self) -> list[str]:
        return []

    @property
    @override
    def stdin(self) -> bytes:
        return "".join(f"{c.line}\n{self.mark}{n}\n" for n, c in enumerate(self.changes)).encode()

    @override
    def parse(self, done: Completed) -> dict[int, Result]:
        if done.rc == 127:
            raise complaint(self.program, done)
        said: list[str] = []
        results: dict[int, Result] = {}
        answered = 0
        for line in decoded(done.stderr).splitlines():
            found = re.search(re.escape(self.mark) + r"(\d+)", line)
            if found is None:
                said.append(line.strip())
            elif int(found[1]) == answered < len(self.changes):
                _note(results, self.changes[answered].job_id, judged("; ".join(said)) if said else DONE)
                answered, said = answered + 1, []
        lost = Result(
            ResultKind.OUTCOME_UNKNOWN, "; ".join(said) or "scontrol ended before it came to this change"
        )
        for change in self.changes[answered:]:
            _note(results, change.job_id, lost)
        return results


def _note(results: dict[int, Result], job_id: int, result: Result) -> None:
    if results.get(job_id, DONE) == DONE:
        results[job_id] = result


@dataclass(frozen=True)
class Cancel(Command[dict[int, Result]]):
    """`scancel` for many jobs. It is silent on ids that it does not know: read the queue afterwards."""

    ids: tuple[int, ...]
    program = "scancel"
    readonly = False

    @override
    def args(self) -> list[str]:
        return [str(job_id) for job_id in self.ids]

    @override
    def parse(self, done: Completed) -> dict[int, Result]:
        """Results of the jobs it complained of; a complaint that names no job is one about all."""
        if done.rc == 127:
            raise complaint(self.program, done)
        results: dict[int, Result] = {}
        for line in decoded(done.stderr).splitlines():
            named = re.search(r"job id (\d+)", line)
            concerned: Sequence[int] = [int(named[1])] if named else self.ids
            for job_id in concerned:
                if "error" in line:
                    _note(results, job_id, judged(line.strip()))
        return results
