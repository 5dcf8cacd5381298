"""When a run is likely to end, from its graph and what its components still take. Pure.

What runs has an expected end (`expected`). What waits starts when Slurm estimates it to, or once all that it
waits for has ended, and then takes as long as in its earlier runs. What nobody knows, above all how long
something waits in the queue, makes of an end the earliest that there can be, and is told with the components
that make it so (`Gap`). Time limits bound the end only of what has started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Literal

from pydantic import BaseModel, Field

from broker.runs.expected import TEXTS, Allowance, ExpectedEnd, Left, Start, StartSource
from broker.runs.states import JobState

NAMED = 3
"""Components that a sentence names; how many more there are, it counts."""
RunKind = Literal["likely", "not_before", "at_latest", "unknown"]


class GapCode(StrEnum):
    """What keeps an end from being known, or from being a good one."""

    QUEUE = "queue"
    HELD = "held"
    NOT_SUBMITTED = "not_submitted"
    NO_HISTORY = "no_history"
    WORK_DONE = "work_done"
    ONLY_LIMIT = "only_limit"
    MORE_STARTS = "more_starts"
    STOPPED = "stopped"
    TOO_SHORT = "too_short"


_GAPS: Final[Mapping[GapCode, tuple[str, str]]] = {
    GapCode.QUEUE: (
        "How long it waits in the queue is not known: {}.",
        "대기열에서 얼마나 기다릴지 알 수 없음: {}.",
    ),
    GapCode.HELD: ("It is held, nothing says until when: {}.", "보류 중이며 언제 풀릴지 알 수 없음: {}."),
    GapCode.NOT_SUBMITTED: ("It is not submitted to Slurm yet: {}.", "아직 Slurm에 제출되지 않음: {}."),
    GapCode.NO_HISTORY: (
        "No earlier run with such resources says how long it takes: {}.",
        "같은 자원으로 실행한 기록이 없어 얼마나 걸릴지 알 수 없음: {}.",
    ),
    GapCode.WORK_DONE: (
        "How much of its work earlier starts have done is not known: {}.",
        "이전 실행에서 얼마나 진행되었는지 알 수 없음: {}.",
    ),
    GapCode.ONLY_LIMIT: (
        "Nothing but its time limit says when it ends: {}.",
        "시간 제한 외에는 언제 끝날지 알 수 없음: {}.",
    ),
    GapCode.MORE_STARTS: (
        "It needs more starts, and how long it waits for them is not known: {}.",
        "다시 시작해야 하며 얼마나 기다릴지 알 수 없음: {}.",
    ),
    GapCode.STOPPED: (
        "In its present state nothing says when it goes on: {}.",
        "현재 상태에서는 언제 계속될지 알 수 없음: {}.",
    ),
    GapCode.TOO_SHORT: (
        "The time that it asked for is not enough, and the run will fail of it: {}.",
        "요청한 시간이 부족하여 실행이 실패할 것으로 예상됨: {}.",
    ),
}
"""Each in English and Korean, in the order in which they are told."""
_RUN_TEXTS: Final[Mapping[RunKind, tuple[str, str]]] = {
    "likely": TEXTS["likely"],
    "not_before": (
        "It is not expected to end before this time.",
        "이 시각 전에는 끝나지 않을 것으로 예상됩니다.",
    ),
    "at_latest": (
        "It ends at this time at the latest: all of it has started, and Slurm ends it then.",
        "모두 시작되었으므로 늦어도 이 시각에는 Slurm이 끝냅니다.",
    ),
    "unknown": ("Nothing says when it ends.", "언제 끝날지 알 수 없습니다."),
}


class Gap(BaseModel):
    """Why an end is not known exactly, and which components make it so."""

    code: GapCode
    components: list[str]
    text: str
    text_ko: str


class RunEnd(BaseModel):
    """When the last component of a run is likely to end; its results are stored after that."""

    at: datetime | None = Field(description="What it is, `kind` says; null: unknown")
    kind: RunKind = Field(
        description="What `at` is: when it is likely to end; the earliest by what is known, where something "
        "has to wait and nobody knows how long, or nothing says how long it takes; its limit, where all of "
        "it has started and nothing else is known"
    )
    earliest: datetime | None = Field(description="It is not expected to end before; null: nothing says")
    latest: datetime | None = Field(description="Slurm ends it by then; null: something has yet to start")
    path: list[str] = Field(
        description="The components that its end waits for, by what is known; each starts after the one "
        "before"
    )
    gaps: list[Gap] = Field(
        description="Why nothing more exact is known, and components whose time is too short"
    )
    text: str
    text_ko: str


@dataclass(frozen=True, slots=True)
class Part:
    """A component that has not ended.

    `waits_for`: components whose end it waits for, parents first; those that have ended may be among them.
    `end`: of what runs. `left`: what it takes from its next start on; None: not known. `held`: by the broker
    or in Slurm. `restarts`: how often Slurm has started it again.
    """

    component: str
    state: JobState
    waits_for: tuple[str, ...]
    allowed: Allowance
    end: ExpectedEnd | None = None
    left: Left | None = None
    start: Start | None = None
    held: bool = False
    restarts: int = 0

    @property
    def kept_back(self) -> bool:
        """Whether somebody has to let it go before it can start: Slurm estimates that of nothing held."""
        return self.held or self.state in _HELD


@dataclass(frozen=True, slots=True)
class Span:
    """When something ends: at `low` at the earliest by what is known, and likely then if it is `sure`; at
    `high` at the latest, None: nobody knows.
    """

    low: datetime
    sure: bool
    high: datetime | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """The expected ends of the components that have not ended, by name, and of the run (None: it has)."""

    ends: Mapping[str, ExpectedEnd]
    run: RunEnd | None


@dataclass(frozen=True, slots=True)
class _Found:
    """`after`: the component whose end it starts with."""

    span: Span
    end: ExpectedEnd | None
    gaps: tuple[GapCode, ...]
    after: str | None = None


@dataclass(frozen=True, slots=True)
class _Begin:
    """When a component starts at the earliest, for `sure` if that is told; `source` None: now."""

    at: datetime
    sure: bool
    source: StartSource | None = None
    after: str | None = None


def last_of(spans: Sequence[Span]) -> Span:
    """When the last of several has ended; whichever surely ends before another one does decides nothing."""
    low = max(span.low for span in spans)
    highs = [span.high for span in spans if span.high is not None]
    return Span(
        low,
        all(span.sure or _over_by(span, low) for span in spans),
        max(highs) if len(highs) == len(spans) else None,
    )


def _over_by(span: Span, moment: datetime) -> bool:
    return span.high is not None and span.high <= moment


def forecast(parts: Sequence[Part], now: datetime) -> Forecast:
    """The ends of components, each after those that it waits for, and of their run."""
    found: dict[str, _Found] = {}
    for part in parts:
        found[part.component] = _started(part, now) or _waiting(part, found, now)
    ends = {name: one.end for name, one in found.items() if one.end is not None}
    return Forecast(ends, _run_end(found, now) if found else None)


def _started(part: Part, now: datetime) -> _Found | None:
    """What holds its nodes, or can't be told about; None: it waits for its start, or is about to."""
    if (end := part.end) is not None and end.at is not None:
        short = (GapCode.TOO_SHORT,) if end.enough_time is False else ()
        high = None if end.another_start or short or end.limit is None else max(end.limit, end.at, now)
        if end.kind == "likely":
            return _Found(Span(end.at, True, high), end, short)
        if end.kind == "not_before":
            return _Found(Span(end.at, False), end, (GapCode.MORE_STARTS, *short))
        return _Found(Span(now, False, high), end, (GapCode.ONLY_LIMIT,))
    if part.state in _ENDING:
        return _Found(Span(now, True, now), None, ())
    return None if part.state in _WAITING else _Found(Span(now, False), None, (GapCode.STOPPED,))


def _waiting(part: Part, found: Mapping[str, _Found], now: datetime) -> _Found:
    """What starts when Slurm says, or some time after what it waits for has ended."""
    begin = _begin(part, found, now)
    gaps = [] if begin.sure else [_why_it_waits(part, begin)]
    left, more, enough = part.left, None, None
    span = Span(begin.at, False)
    if left is None:
        gaps.append(GapCode.WORK_DONE if _goes_on(part) else GapCode.NO_HISTORY)
    else:
        more, enough = part.allowed.more_starts(left.seconds), part.allowed.enough_for(left.seconds)
        gaps += [GapCode.MORE_STARTS] * bool(more) + [GapCode.TOO_SHORT] * (enough is False)
        span = Span(begin.at + timedelta(seconds=left.seconds), begin.sure and not more)
    kind = _kind(span, now)
    end = ExpectedEnd(
        at=None if kind == "unknown" else span.low,
        kind=kind,
        source=left.source if left is not None else None,
        runs=left.runs if left is not None else None,
        starts_at=begin.at if begin.source is not None else None,
        start_source=begin.source,
        limit=None,
        another_start=part.allowed.another,
        more_starts=more,
        enough_time=enough,
        **_texts(kind, [_gap(code, [part.component]) for code in gaps]),
    )
    return _Found(span, end, tuple(gaps), begin.after)


def _begin(part: Part, found: Mapping[str, _Found], now: datetime) -> _Begin:
    """When it starts at the earliest: by Slurm's estimate, at the next try, or after what it waits for."""
    spans = {name: found[name].span for name in part.waits_for if name in found}
    told = _told(part, now)
    if spans:
        after = _last(spans)
        last = spans[after]
        if told is None or last.low >= told.at:
            return _Begin(max(last.low, now), False, "components" if last.low > now else None, after)
    if told is not None:
        return _Begin(told.at, told.source == "slurm" and not spans, told.source)
    return _Begin(now, part.state in _STARTING and not spans)


def _told(part: Part, now: datetime) -> Start | None:
    """The start that is told, if it is still to come; of what is held, Slurm estimated it before."""
    start = part.start
    if start is None or start.at <= now or (start.source == "slurm" and part.kept_back):
        return None
    return start


def _goes_on(part: Part) -> bool:
    """Whether its next start goes on from where another one left it."""
    return part.restarts > 0 and part.allowed.start_s is not None


def _why_it_waits(part: Part, begin: _Begin) -> GapCode:
    if part.state is JobState.INTENDED:
        return GapCode.NOT_SUBMITTED
    return GapCode.HELD if begin.after is None and part.kept_back else GapCode.QUEUE


def _last(spans: dict[str, Span]) -> str:
    """Which of components, parents first, ends last; at one time that which may follow the others."""
    return max(reversed(spans), key=lambda name: spans[name].low)


def _kind(span: Span, now: datetime) -> Literal["likely", "not_before", "unknown"]:
    if span.sure:
        return "likely"
    return "not_before" if span.low > now else "unknown"


def _run_end(found: Mapping[str, _Found], now: datetime) -> RunEnd:
    span = last_of([one.span for one in found.values()])
    limited = span.high is not None and not span.sure
    kind: RunKind = "at_latest" if limited else _kind(span, now)
    gaps = _gaps(found, span.low)
    return RunEnd(
        at=span.high if limited else None if kind == "unknown" else span.low,
        kind=kind,
        earliest=span.low if span.sure or span.low > now else None,
        latest=span.high,
        path=_path(found),
        gaps=gaps,
        **_texts(kind, gaps),
    )


def _gaps(found: Mapping[str, _Found], end: datetime) -> list[Gap]:
    """What keeps the end of the run from being known, each with its components; what is over before the end
    of another one in any case does not.
    """
    names: dict[GapCode, list[str]] = {}
    for name, one in found.items():
        for code in one.gaps:
            if code is GapCode.TOO_SHORT or not (one.span.sure or _over_by(one.span, end)):
                names.setdefault(code, []).append(name)
    return [_gap(code, names[code]) for code in GapCode if code in names]


def _path(found: Mapping[str, _Found]) -> list[str]:
    """The components that the last end waits for, in the order in which they run."""
    name: str | None = _last({name: one.span for name, one in found.items()})
    path: list[str] = []
    while name is not None:
        path.append(name)
        name = found[name].after
    return path[::-1]


def _gap(code: GapCode, components: list[str]) -> Gap:
    text, text_ko = _GAPS[code]
    named, more = ", ".join(components[:NAMED]), len(components) - NAMED
    return Gap(
        code=code,
        components=components,
        text=text.format(f"{named} and {more} more" if more > 0 else named),
        text_ko=text_ko.format(f"{named} 외 {more}개" if more > 0 else named),
    )


def _texts(kind: RunKind, gaps: Sequence[Gap]) -> dict[str, str]:
    text, text_ko = _RUN_TEXTS[kind]
    return {
        "text": " ".join([text, *(gap.text for gap in gaps)]),
        "text_ko": " ".join([text_ko, *(gap.text_ko for gap in gaps)]),
    }


_HELD = frozenset({JobState.REQUEUE_HOLD, JobState.SPECIAL_EXIT, JobState.RESV_DEL_HOLD})
_STARTING = frozenset({JobState.CONFIGURING, JobState.POWER_UP_NODE, JobState.EXPEDITING})
_WAITING = _HELD | _STARTING | {JobState.INTENDED, JobState.PENDING, JobState.REQUEUED, JobState.REQUEUE_FED}
_ENDING = frozenset({JobState.COMPLETING, JobState.STAGE_OUT})
