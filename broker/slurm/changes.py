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
from broker.slurm.states import SlurmState, parse_state

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


@dataclass(frozen=True, slots=True)
class Shown:
    """What `scontrol show job` says of a job. `priority` 0: held."""

    state: SlurmState
    reason: str
    priority: int
    nice: int


@dataclass(frozen=True, slots=True)
class Adjusted:
    """What came of changes, and the jobs as Slurm showed them before and after; one it did not show, or not
    unmistakably, is absent.
    """

    results: Mapping[int, Result]
    before: Mapping[int, Shown] = field(default_factory=dict)
    after: Mapping[int, Shown] = field(default_factory=dict)


@dataclass(frozen=True)
class Adjust(Command[Adjusted]):
    """Changes of waiting jobs, read back: one `scontrol` that shows the jobs, changes them, shows them again.

    Before each record stands a line that `scontrol show hostnames` was asked to print (it expands names
    without asking anybody): what follows belongs to that job. Names and comments are their owner's text and
    may look like fields; a record in which the fields stand twice is not believed.
    """

    changes: tuple[Change, ...]
    mark: str = field(default_factory=lambda: f"m{secrets.token_hex(6)}x")
    program = "scontrol"
    readonly = False

    @override
    def args(self) -> list[str]:
        return ["-o"]

    @property
    def ids(self) -> tuple[int, ...]:
        """The jobs concerned, each once."""
        return tuple(dict.fromkeys(change.job_id for change in self.changes))

    @property
    @override
    def stdin(self) -> bytes:
        before, after = (
            "".join(f"show hostnames {self.mark}{when}{job_id}\nshow job {job_id}\n" for job_id in self.ids)
            for when in ("b", "a")
        )
        return f"{before}{self.mark}\n".encode() + self._control.stdin + after.encode()

    @property
    def _control(self) -> Control:
        return Control(self.changes, f"@{self.mark}-")

    @override
    def parse(self, done: Completed) -> Adjusted:
        # What the first look complained of (a job that is gone) is no complaint about a change.
        said = decoded(done.stderr).splitlines(keepends=True)
        start = next(
            (n + 1 for n, line in enumerate(said) if re.search(rf"{self.mark}\s*$", line)), len(said)
        )
        results = self._control.parse(Completed(done.rc, b"", "".join(said[start:]).encode()))
        shown = self._shown(decoded(done.stdout))
        return Adjusted(results, *({n: shown[w, n] for n in self.ids if (w, n) in shown} for w in "ba"))

    def _shown(self, text: str) -> dict[tuple[str, int], Shown]:
        marks = re.split(rf"^{self.mark}([ba])(\d+)[ \t]*$", text, flags=re.MULTILINE)
        found: dict[tuple[str, int], Shown] = {}
        for when, job_id, record in zip(marks[1::3], marks[2::3], marks[3::3], strict=True):
            fields = _SHOWN.findall(record)
            if len(fields) == 1 and re.search(rf"^JobId={job_id} ", record, re.MULTILINE):
                priority, nice, state, reason = fields[0]
                found[when, int(job_id)] = Shown(parse_state(state), reason, int(priority), int(nice))
        return found


_SHOWN = re.compile(
    r" UserId=\S+\(\d+\) GroupId=\S+\(\d+\) MCS_label=\S* Priority=(\d+) Nice=(-?\d+) Account=\S* QOS=\S*"
    r"(?: WCKey=\S*)? JobState=([A-Z_]+) Reason=(\S*) Dependency="
)
"""The fields of one record in their order (src/api/job_info.c: the same from 22.05 to 26.05)."""


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
