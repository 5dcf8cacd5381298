"""Whether a job leaves GPUs idle that it holds (GC-03). Pure.

Each GPU of a start of a job is followed by itself: of eight that one process uses one of, seven idle. Its
looks (means since the look before) are added up in spans; a window of `SPANS` of them decides. A GPU idles
when every span of a whole window was looked at, the mean over it lies below the threshold, and that of the
last spans as well: whoever has just begun to compute is not told that nothing happens. It is busy again when
the last spans rise clearly above it. A span without a look is unknown, and nothing idles that was not
measured: a job that has just begun, a slice (MIG), a GPU whose node is silent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Final

from broker.resources.usage import JobUse, Source

SPANS: Final = 6
"""Spans of a window; the last one and the one that is under way say what happens now."""
RISE: Final = 1.5
"""Busy again is what is so many times the threshold: at the edge nobody is told this and that."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Idle: below `below` per cent on the mean of `count` spans of `width_s` seconds each."""

    below: float
    width_s: float
    count: int

    @classmethod
    def of(cls, after_s: float, below: float, interval_s: float) -> Rule | None:
        """With looks every `interval_s`: a span is long enough to hold one. None: nobody asked for it.

        >>> Rule.of(1800, 5, 60), Rule.of(300, 5, 60.0), Rule.of(0, 5, 60)
        (Rule(below=5, width_s=300.0, count=6), Rule(below=5, width_s=120.0, count=3), None)
        """
        if after_s <= 0:
            return None
        width = max(after_s / SPANS, 2 * interval_s)
        return cls(below, width, math.ceil(after_s / width))

    @property
    def over_s(self) -> float:
        """How long a window is."""
        return self.count * self.width_s


@dataclass(frozen=True, slots=True)
class Track:
    """How busy one GPU was: by number of the span the sum of its looks (per cent) and how many there were.

    `worth`: GPUs that it stands for; what Slurm gathers is one figure for all of a job.
    """

    spans: Mapping[int, tuple[float, int]]
    idle: bool = False
    worth: int = 1

    def mean(self, first: int) -> float | None:
        """Per cent, since the span `first`; None: nobody looked."""
        found = [span for number, span in self.spans.items() if number >= first]
        looks = sum(n for _, n in found)
        return sum(total for total, _ in found) / looks if looks else None

    def gapless(self, span: int) -> bool:
        """Whether it was looked at in each span from its first one on to before this one."""
        return all(number in self.spans for number in range(min(self.spans), span))


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a job stands: `idle` of the `measured` GPUs idle, of `allocated`.

    `percent`: the mean of those that idle over the window; where none does, of all in the last spans.
    `settled`: no other is about to idle as well, so that what is told now is told whole; one that is seen
    with gaps is not waited for.
    """

    idle: int
    measured: int
    allocated: int
    percent: float | None
    settled: bool


class News(Enum):
    """What follows from a standing."""

    IDLE = "gpu_idle"
    CHANGED = "changed"
    BUSY = "gpu_busy"
    FORGOTTEN = "forgotten"


def follow(
    before: Mapping[str, Track], looks: Mapping[str, Track], span: int, rule: Rule, *, told: bool
) -> dict[str, Track]:
    """The tracks after one look in the span `span`; what nobody saw for a whole window is left out.

    `looks`: of each GPU that was seen a track of this one look (`looks_of`). `told`: that the job leaves GPUs
    idle is known; until then a GPU at the edge does not count as one.
    """
    after = {}
    for name in sorted({*before, *looks}):
        track = before.get(name, Track({}))
        kept = {n: sums for n, sums in track.spans.items() if n >= span - rule.count}
        if name in looks:
            total, seen = kept.get(span, (0.0, 0))
            more, looked = looks[name].spans[span]
            kept[span] = total + more, seen + looked
        if kept:
            worth = looks[name].worth if name in looks else track.worth
            after[name] = _judged(Track(kept, track.idle and told, worth), span, rule)
    return after


def _judged(track: Track, span: int, rule: Rule) -> Track:
    now, whole = track.mean(span - 1), track.mean(span - rule.count)
    if track.idle:
        idle = now is None or now < RISE * rule.below
    else:
        seen = all(number in track.spans for number in range(span - rule.count, span))
        idle = seen and now is not None and whole is not None and max(now, whole) < rule.below
    return Track(track.spans, idle, track.worth)


def standing(tracks: Mapping[str, Track], span: int, rule: Rule, allocated: int) -> Standing:
    """What the tracks of a job say together."""
    idle = [track for track in tracks.values() if track.idle]
    others = [track for track in tracks.values() if not track.idle]
    shown = _mean(idle, span - rule.count) if idle else _mean(others, span - 1)
    coming = [track for track in others if (now := track.mean(span - 1)) is not None and now < rule.below]
    # where another source takes over, a GPU has two tracks until the window is past
    return Standing(
        idle=min(sum(track.worth for track in idle), allocated),
        measured=min(sum(track.worth for track in tracks.values()), allocated),
        allocated=allocated,
        percent=None if shown is None else round(shown, 2),
        settled=not any(track.gapless(span) for track in coming),
    )


def _mean(tracks: Iterable[Track], first: int) -> float | None:
    """Over GPUs, each with the same weight."""
    known = [(mean, track.worth) for track in tracks if (mean := track.mean(first)) is not None]
    return sum(mean * worth for mean, worth in known) / sum(w for _, w in known) if known else None


def news(told: Mapping[str, Any] | None, now: Standing | None) -> News | None:
    """What is to be told, once: `told` is what was (`JobRow.gpu_idle`), None for nothing.

    That work goes on is only said of all that was measured when it was told that it does not; what can't be
    measured any more is forgotten without a word.
    """
    if told is None:
        return News.IDLE if now is not None and now.idle and now.settled else None
    if now is None or (not now.idle and now.measured < told["measured"]):
        return News.FORGOTTEN
    if not now.idle:
        return News.BUSY
    return None if now.idle == told["gpus"] else News.CHANGED


def looks_of(use: JobUse | None, span: int, allocated: int) -> dict[str, Track]:
    """What one look knows of each GPU of a job; none of what nobody measured.

    A GPU keeps its name whoever measures it, DCGM or the job's own sampler.
    """
    return {
        f"{gpu.node}/{gpu.uuid or gpu.index}": Track(
            {span: (gpu.util, 1)}, worth=allocated if gpu.source is Source.SLURM else 1
        )
        for gpu in (use.gpus if use is not None else ())
        if gpu.util is not None
    }


def span_at(first_at: datetime, now: datetime, rule: Rule) -> int:
    """The number of the span that is under way; the first look at the start of a job began the first."""
    return max(0, int((now - first_at) / timedelta(seconds=rule.width_s)))


def as_json(tracks: Mapping[str, Track], rule: Rule) -> dict[str, Any]:
    """The tracks as they are kept with the job."""
    gpus = {
        name: {"idle": t.idle, "worth": t.worth, "spans": [[n, *sums] for n, sums in t.spans.items()]}
        for name, t in tracks.items()
    }
    return {"width_s": rule.width_s, "gpus": gpus}


def from_json(stored: Mapping[str, Any] | None, rule: Rule) -> dict[str, Track]:
    """… and read again; after another setting they begin anew."""
    if stored is None or stored["width_s"] != rule.width_s:
        return {}
    return {
        name: Track({n: (total, looks) for n, total, looks in one["spans"]}, one["idle"], one["worth"])
        for name, one in stored["gpus"].items()
    }
