"""What an administrator's wish for a run means for each of its waiting jobs, and whether it came true. Pure.

Slurm's rules (scontrol(1); verified on 22.05, 24.11 and 26.05): an explicit priority is refused for a held
job, is lost by a release, and switches off age, fair share and nice. So a level is a nice value, which works
at any time; a number waits for the release; giving a job back to the scheduler is a release of a job that is
not held.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

from broker.slurm import Result, ResultKind, changes
from broker.slurm.changes import Adjusted, Change, Shown

WishKind = Literal["level", "number", "before", "after", "scheduler"]
MAX_NUMBER: Final = 4_000_000_000
"""Below Slurm's own limit (NO_VAL, 2³² - 2); 0 would be a hold."""
AGEING: Final = 100
"""How much further a run is moved when the other one has caught up by ageing: not again at every poll."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted. `nice` is that of the run's level; `number` is set where the priority is explicit."""

    kind: WishKind
    nice: int
    number: int | None = None

    @property
    def explicit(self) -> bool:
        """Whether jobs get a number of their own instead of the scheduler's."""
        return self.kind in {"number", "before", "after"}


class Outcome(StrEnum):
    """What became of a wish for one job."""

    APPLIED = "applied"
    STARTED = "started"
    """It had started meanwhile: it is left alone."""
    ENDED = "ended"
    HELD = "held"
    """Slurm holds it, so an explicit priority has to wait."""
    REFUSED = "refused"
    DIFFERS = "differs"
    """Slurm took the change, and shows something else."""
    UNREAD = "unread"
    """Slurm took the change; what it showed afterwards could not be read without doubt."""
    UNKNOWN = "unknown"


def steps(wish: Wish, job_id: int, *, held: bool, frozen: bool) -> list[Change]:
    """The changes of one job. An explicit priority is not for held jobs: the caller waits for their release.

    `frozen`: it has an explicit priority now. Never releases a job that is held.
    """
    if wish.explicit:
        assert wish.number is not None and not held
        return [changes.update(job_id, {"Priority": str(wish.number)})]
    unfreeze = [changes.release(job_id)] if not held and (frozen or wish.kind == "scheduler") else []
    return [*unfreeze, changes.update(job_id, {"Nice": str(wish.nice)})]


def fulfilled(wish: Wish, priority: int, nice: int) -> bool:
    """Whether a waiting job stands as wished."""
    return priority == wish.number if wish.explicit else nice == wish.nice


def outcome(wish: Wish, result: Result, after: Shown | None) -> Outcome:
    """What became of it, by what Slurm answered and by what it showed afterwards; the latter decides."""
    if after is not None and not after.state.pending:
        return Outcome.ENDED if after.state.finished else Outcome.STARTED
    if after is not None and fulfilled(wish, after.priority, after.nice):
        return Outcome.APPLIED
    match result.kind:
        case ResultKind.DONE if after is None:
            return Outcome.UNREAD
        case ResultKind.DONE:
            return Outcome.DIFFERS
        case ResultKind.NOT_FOUND | ResultKind.FINISHED:
            return Outcome.ENDED
        case ResultKind.HELD:
            return Outcome.HELD
        case ResultKind.UNREACHABLE | ResultKind.OUTCOME_UNKNOWN:
            return Outcome.UNKNOWN
        case _:
            return Outcome.REFUSED


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a wish as a whole. `again`: it has to be tried again, for `message`'s reason."""

    jobs: tuple[dict[str, Any], ...]
    done: bool
    again: bool
    message: str


def verdict(wish: Wish, components: Mapping[int, str], adjusted: Adjusted) -> Verdict:
    """Put together what became of every job; `components` by job id, in the order to show."""
    jobs: list[dict[str, Any]] = []
    for job_id, component in components.items():
        result, before, after = (
            adjusted.results[job_id],
            adjusted.before.get(job_id),
            adjusted.after.get(job_id),
        )
        jobs.append(
            {
                "component": component,
                "slurm_job_id": job_id,
                "outcome": outcome(wish, result, after).value,
                "before": _numbers(before),
                "after": _numbers(after),
                "answer": result.message,
            }
        )
    outcomes = [job["outcome"] for job in jobs]
    bad = not {Outcome.REFUSED, Outcome.DIFFERS}.isdisjoint(outcomes)
    again = not {Outcome.UNKNOWN, Outcome.HELD}.isdisjoint(outcomes)
    words = {str(job["answer"]) for job in jobs if job["answer"] and job["outcome"] != Outcome.APPLIED}
    counts = ", ".join(f"{outcomes.count(each)} {each}" for each in Outcome if each in outcomes)
    message = "; ".join([counts, *sorted(words)[:3]])
    return Verdict(tuple(jobs), done=not bad and not again, again=again and not bad, message=message)


def remember(tried: Iterable[Mapping[str, Any]], jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The jobs of a try with what earlier tries saw before them: those may have had their effect."""
    first = {job["component"]: job["before"] for job in tried if job["before"] is not None}
    return [{**job, "before": first.get(job["component"], job["before"])} for job in jobs]


def _numbers(shown: Shown | None) -> dict[str, int] | None:
    return {"priority": shown.priority, "nice": shown.nice} if shown else None


def beside(kind: WishKind, others: Sequence[int], *, again: bool = False) -> int | None:
    """The number that puts a run before or after another, whose waiting jobs have the priorities `others`.

    None: nothing of the other waits, or there is no number left below it. `again`: the other has moved past.
    """
    margin = AGEING if again else 1
    if not others:
        return None
    if kind == "before":
        return min(MAX_NUMBER, max(others) + margin)
    return max(1, min(others) - margin) if min(others) > 1 else None


def overtaken(kind: WishKind, number: int, others: Sequence[int]) -> bool:
    """Whether the other run no longer stands where it was asked to, with its waiting jobs' priorities."""
    if not others:
        return False
    return max(others) >= number if kind == "before" else min(others) <= number
