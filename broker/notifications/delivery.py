"""What follows from a try to deliver. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

_FACTOR = 4
_LONGEST_WISH_S = 24 * 3600.0
_ERROR = 500


class DeliveryState(StrEnum):
    """How far a delivery has come."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one try went. `error` None: the receiver took it.

    `status` is HTTP's where there is one, `retry_after_s` the receiver's own wish, `gone` that it never wants
    anything again (410), `unwanted` that there is nobody to send to any more.
    """

    error: str | None = None
    status: int | None = None
    retry_after_s: float | None = None
    gone: bool = False
    unwanted: bool = False


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long a delivery is tried."""

    max_tries: int
    first_pause_s: float
    longest_pause_s: float

    def pause_s(self, tries: int, chance: float) -> float:
        """The pause after the given number of failed tries; `chance` in [0, 1) spreads it by up to a tenth.

        >>> [Patience(9, 5, 3600).pause_s(tries, 0) for tries in (1, 2, 3, 4, 5, 6, 500)]
        [5.0, 20.0, 80.0, 320.0, 1280.0, 3600.0, 3600.0]
        """
        grown = self.first_pause_s * float(_FACTOR ** min(tries - 1, 30))
        return min(grown, self.longest_pause_s) * (1 + chance / 10)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a delivery: `next_try_at` only while it is pending."""

    state: DeliveryState
    next_try_at: datetime | None
    error: str | None


def decide(outcome: Outcome, tries: int, patience: Patience, now: datetime, chance: float) -> Verdict:
    """The state after a try, and when the next one is due."""
    error = outcome.error[:_ERROR] if outcome.error else None
    if error is None:
        return Verdict(DeliveryState.DELIVERED, None, None)
    if outcome.unwanted:
        return Verdict(DeliveryState.SKIPPED, None, error)
    if outcome.gone or tries >= patience.max_tries:
        return Verdict(DeliveryState.DEAD, None, error)
    pause = max(patience.pause_s(tries, chance), min(outcome.retry_after_s or 0.0, _LONGEST_WISH_S))
    return Verdict(DeliveryState.PENDING, now + timedelta(seconds=pause), error)
