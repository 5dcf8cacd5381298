"""Why a job waits, in one plain sentence. Pure.

Slurm's word (`slurm_reasons`) is the last thing that is looked at: what the broker itself knows comes first,
because it names the person or the component that is waited for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from broker.queueing.slurm_reasons import Why, of_slurm, reason_word


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is known of a job that waits.

    `reason`: Slurm's word, "" or None where it has said none. `waits_for`: components of its run that have
    not completed. `holds`: kind (`approval`, `quota`, `admin`, `submission`) → why. `in_slurm`: it has a job
    id. `ahead`: jobs of this queue that come before it. `restarts`: how often Slurm has put it back.
    """

    reason: str | None
    waits_for: Sequence[str] = ()
    holds: Mapping[str, str] = field(default_factory=dict)
    in_slurm: bool = True
    trouble: str | None = None
    ahead: int = 0
    restarts: int = 0


NAMED_COMPONENTS: Final = 3
"""Components that a sentence names; of more it tells how many."""


def explain(waiting: Waiting) -> Why:
    """The first that applies: trouble, holds of the broker, components before it, Slurm's reason."""
    if not waiting.in_slurm:
        return _not_in_slurm(waiting)
    for kind, sentence in _HOLDS.items():
        if kind in waiting.holds:
            return _held(kind, sentence, waiting.holds[kind])
    word = reason_word(waiting.reason)
    if word in {"Dependency", "DependencyNeverSatisfied"} and waiting.waits_for:
        return _dependency(word, waiting.waits_for)
    if word == "Priority" and waiting.ahead:
        return Why(
            "priority",
            f"Work with a higher priority comes first: {waiting.ahead} job(s) of this queue are before it.",
            f"우선순위가 더 높은 작업이 먼저입니다. 이 대기열에서 {waiting.ahead}개가 앞에 있습니다.",
        )
    if word == "BeginTime" and waiting.restarts:
        return Why(
            "requeued",
            f"It was put back into the queue (start no. {waiting.restarts + 1}); Slurm pauses before it "
            "starts again.",
            f"대기열로 되돌려졌습니다({waiting.restarts + 1}번째 시작). 잠시 쉰 뒤 다시 시작합니다.",
        )
    return of_slurm(waiting.reason)


def _not_in_slurm(waiting: Waiting) -> Why:
    if waiting.trouble:
        return Why(
            "trouble",
            f"The broker could not submit it yet and goes on trying: {waiting.trouble}",
            f"아직 제출하지 못해 계속 시도하고 있습니다: {waiting.trouble}",
        )
    return Why("submitting", "The broker is just submitting it.", "지금 제출하고 있습니다.")


_HOLDS: Final = {
    "approval": ("It waits for an administrator's approval", "관리자의 승인을 기다립니다"),
    "quota": (
        "The tenant's quota is used up; it goes on by itself when there is room",
        "테넌트의 할당량을 다 써서 여유가 생기면 저절로 진행됩니다",
    ),
    "admin": ("An administrator holds it", "관리자가 보류했습니다"),
    "submission": ("Slurm has it, and it is about to be released", "Slurm에 제출되었고 곧 풀립니다"),
}
"""Kinds of holds in the order in which they are told, and what they say."""


def _held(kind: str, sentence: tuple[str, str], reason: str) -> Why:
    because = f": {reason}" if reason and kind != "submission" else ""
    return Why(
        "submitting" if kind == "submission" else kind,
        f"{sentence[0]}{because}.",
        f"{sentence[1]}{because}.",
    )


def _dependency(word: str, waits_for: Sequence[str]) -> Why:
    named = ", ".join(waits_for[:NAMED_COMPONENTS])
    more = len(waits_for) - NAMED_COMPONENTS
    en = f"{named} and {more} more" if more > 0 else named
    ko = f"{named} 외 {more}개" if more > 0 else named
    if word == "Dependency":
        return Why("dependency", f"It waits for {en} to complete.", f"먼저 끝나야 할 작업이 있습니다: {ko}.")
    return Why(
        "dependency_failed",
        f"It can't start any more: {en} did not complete.",
        f"더는 시작할 수 없습니다. 완료되지 않은 작업: {ko}.",
    )
