"""What a report looks like in a terminal: bars, figures, headings, notes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from broker.cli.fitting import BAR, Bar
from broker.cli.output import harmless, table, when
from broker.cli.report_words import DEFINITION, JOB_HEADS, TITLE, WORDS, Language

_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_TEXTS: Final = ("text", "date", "time")
"""Units of figures that are no numbers."""
_WHOLE: Final = {"began": "!"}
"""Dimensions whose values people copy into a filter, and that are one long word: never cut."""
_ESSENTIAL: Final = 3
"""So many figures are shown however narrow the terminal is; numbers after them may be left out."""


def bar(value: float | str | None, largest: float, cells: int = BAR) -> str:
    """A bar of eighths of a cell; anything above nothing is seen. What is no number has none.

    >>> bar(1, 1) == "█" * BAR, bar(0, 1), bar(None, 1), bar(1e-9, 1), bar("2026-11-30", 1)
    (True, '', '', '▏', '')
    >>> bar(math.inf, 0) == bar(math.inf, 3) == "█" * BAR
    True
    """
    if value == math.inf:
        return "█" * cells
    if not value or isinstance(value, str) or value < 0 or largest <= 0:
        return ""
    eighths = max(1, round(cells * 8 * min(value / largest, 1)))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def drawn_bar(value: float | str | None, largest: float) -> Bar:
    """The bar as a cell of a table; it becomes shorter where the terminal is narrow."""
    return Bar(lambda cells: bar(value, largest, cells), style="cyan")


def figure(value: float | str | None, unit: str) -> str:
    """A figure for people; unknown is a question mark, never 0.

    >>> figure(None, "h"), figure(0.4567, "ratio"), figure(5400, "s"), figure(1234.56, "h"), figure(3, "jobs")
    ('?', '45.7 %', '1.5 h', '1,234.6', '3')
    >>> figure("2026-11-30", "date"), figure("bad fan", "text"), figure(None, "text")
    ('2026-11-30', 'bad fan', '')
    >>> figure(0.02, "h"), figure(0.0001, "h"), figure(0, "h")
    ('0.02', '<0.01', '0.0')
    >>> figure(3, "count"), figure(0.12345, "count"), figure(98765.4, "count")
    ('3', '0.1235', '98,765')
    >>> figure(math.inf, "count")
    '∞'
    """
    if unit == "time" and isinstance(value, str):
        return when(value)
    if value is None or isinstance(value, str):
        return value or ("" if unit == "text" else "?")
    if value == math.inf:
        return "∞"
    if unit == "ratio":
        return f"{100 * value:.1f} %"
    if unit == "s":
        scale, word = next(
            (scale, word)
            for scale, word in ((86_400, "d"), (3600, "h"), (60, "min"), (0, "s"))
            if value >= scale
        )
        return f"{value / (scale or 1):.3g} {word}"
    if unit == "count" and value % 1 and abs(value) < 1000:
        return f"{value:.4g}"
    if unit in ("jobs", "count"):
        return f"{value:,.0f}"
    if 0 < value < 0.995:  # little is not nothing
        return f"{value:.2f}" if value >= 0.005 else "<0.01"
    return f"{value:,.1f}"


def list_view(items: Sequence[dict[str, Any]]) -> RenderableType:
    """Which reports there are, and their figures."""
    rows = (
        (
            one["name"],
            one["title"],
            one["title_ko"],
            ", ".join(measure["name"] for measure in one["measures"]),
        )
        for one in items
    )
    return table(("REPORT", "WHAT", "", "FIGURES"), rows, empty="No reports")


def jobs_view(items: Sequence[dict[str, Any]], lang: Language, *, more: bool) -> RenderableType:
    """The jobs behind a report; `more`: there are others."""
    rows = (
        (
            one["job_id"],
            one["user"],
            one["tenant"],
            one["partition"],
            one["state"],
            when(one["submitted_at"]),
            figure(one["wait_s"], "s"),
            figure(one["slowdown"], "count"),
            figure(one["core_hours"], "h"),
            figure(one["gpu_hours"], "h"),
            figure(one["cpu_efficiency"], "ratio"),
            figure(one["memory_efficiency"], "ratio"),
            one["advice"],
        )
        for one in items
    )
    parts = [table(JOB_HEADS[lang], rows, empty=WORDS[lang]["no_jobs"])]
    if more:
        parts.append(Text(WORDS[lang]["newest"].format(len(items)), style="bright_black"))
    return Group(*parts)


def report_view(found: dict[str, Any], sort: str | None, explain: bool, lang: Language) -> RenderableType:
    """A report; bars show the figure that orders it. `explain`: with what each figure means."""
    report = found["report"]
    measures = _told_once(report["measures"], lang)
    first = sort or measures[0]["name"]
    order = next(one for one in report["measures"] if one["name"] == first)
    sizes = [_value(line, order) for line in found["lines"]]
    largest = max((size for size in sizes if isinstance(size, int | float) and size < math.inf), default=0)
    names = {
        name: {one["value"]: one[TITLE[lang]] for one in values} for name, values in report["values"].items()
    }
    rows = [
        (
            *(_key(name, line["key"][name], names.get(name, {})) for name in found["by"]),
            drawn_bar(size, largest),
            *_figures(line, measures),
        )
        for line, size in zip(found["lines"], sizes, strict=True)
    ]
    shown = zip(_figures(found["total"], measures), measures, strict=True)
    numbers = ["" if one["unit"] in _TEXTS else text for text, one in shown]
    if rows and set(numbers) - {"", "?"}:
        blank = [""] * (len(found["by"]) - 1)
        rows.append((Text(WORDS[lang]["total"], style="bold"), *blank, Text(), *numbers))
    heads = (
        *(f"{name.upper()}{_WHOLE.get(name, '')}" for name in found["by"]),
        "",
        *_heads(measures, first, lang),
    )
    parts: list[RenderableType] = [
        Text(harmless(headline(report[TITLE[lang]], found, lang, now=report["now"])), style="bold"),
        table(heads, rows, empty=WORDS[lang]["empty"]),
    ]
    if explain:
        rows_ = ((one[TITLE[lang]], one[DEFINITION[lang]]) for one in measures)
        parts.append(table((WORDS[lang]["figure"], WORDS[lang]["meaning"]), rows_, empty=""))
    return Group(*parts, Text(harmless("\n".join(age_notes(found, lang))), style="bright_black"))


def _told_once(measures: Sequence[dict[str, Any]], lang: Language) -> list[dict[str, Any]]:
    """The figures without those that say another one in the other language (`why` and `why_ko`)."""
    names = {one["name"] for one in measures}
    english = {name for name in names if f"{name}_ko" in names}
    other = english if lang == "ko" else {f"{name}_ko" for name in english}
    return [one for one in measures if one["name"] not in other]


def _heads(measures: Sequence[dict[str, Any]], first: str, lang: Language) -> list[str]:
    """The figures' headings. Where there is no room, numbers give way, the last one first; words, and what
    orders the lines, stay.
    """
    return [
        _head(one, lang) + "?" * (at >= _ESSENTIAL and one["unit"] != "text" and one["name"] != first)
        for at, one in enumerate(measures)
    ]


def _head(measure: dict[str, Any], lang: Language) -> str:
    """A figure's heading, with its unit where nothing else says it; numbers stand to the right."""
    title, unit = measure[TITLE[lang]].upper(), measure["unit"]
    told = f" ({unit})" if unit in ("h", "GiB h") and WORDS[lang]["hour"] not in title else ""
    return f"{title}{told}{'' if unit in _TEXTS else '>'}"


def _key(name: str, value: str, names: Mapping[str, str]) -> str:
    """What a line is about, as a filter takes it; where that says little, in words too: a size is a power of
    two, and `names` are those that the report brings.

    >>> _key("size", "0", {}), _key("size", "5", {}), _key("user", "kim", {})
    ('0 (1 CPU)', '5 (32–63 CPUs)', 'kim')
    >>> _key("wait", "1-6h", {"1-6h": "1 to 6 hours"})
    '1-6h (1 to 6 hours)'
    """
    if value in names:
        return f"{value} ({names[value]})"
    if name != "size" or not value.isdecimal():
        return value
    return f"{value} ({f'{2 ** int(value)}–{2 ** (int(value) + 1) - 1} CPUs' if int(value) else '1 CPU'})"


def _figures(line: dict[str, Any], measures: list[dict[str, Any]]) -> list[str]:
    """The figures; with of how many jobs (or hours) they are known where that is not all. Hours are the same
    for all of a line's figures: they are told once.
    """
    shown, told = [], ""
    for one in measures:
        text, known = figure(_value(line, one), one["unit"]), line["coverage"].get(one["name"])
        if known and 0 < known["with_data"] < known["of"]:
            hours = "" if known["counted"] == "jobs" else " h"
            share = f" (of {known['with_data']}/{known['of']}{hours})"
            text += "" if hours and share == told else share
            told = share
        shown.append(text)
    return shown


def _value(line: dict[str, Any], measure: dict[str, Any]) -> float | str | None:
    """A figure of a line; JSON carries an infinite number as text."""
    value: float | str | None = line["values"][measure["name"]]
    return float(value) if isinstance(value, str) and measure["unit"] not in _TEXTS else value


def headline(title: str, found: dict[str, Any], lang: Language, *, now: bool = False) -> str:
    """What it is, of which period (or how it stands `now`), and whose."""
    words = WORDS[lang]
    period = words["now"] if now else words["period"].format(found["since"], found["until"])
    whose, _, name = found["scope"].partition(" ")
    return f"{title}, {period}, {f'{words[whose]} {name}'.strip()}"


def _age(seconds: float) -> str:
    """How long ago, as exactly as one wants to know.

    >>> _age(0.07), _age(65.2), _age(700), _age(90_000)
    ('0 s', '65 s', '12 min', '25 h')
    """
    scale, word = next(
        (scale, word)
        for scale, word, least in ((86_400, "d", 2), (3600, "h", 2), (60, "min", 2), (1, "s", 0))
        if seconds >= scale * least
    )
    return f"{seconds / scale:.0f} {word}"


def age_notes(found: dict[str, Any], lang: Language = "en") -> list[str]:
    """What is not shown, and up to when each cluster's accounting was read."""
    words, notes = WORDS[lang], []
    for one in found["sources"]:
        age = (datetime.now(UTC) - datetime.fromisoformat(one["complete_until"])).total_seconds()
        late = words["late"] if one["trouble"] else ""
        notes.append(words["age"].format(cluster=one["cluster"], age=_age(max(age, 0))) + late)
    more = [words["more"].format(found["left_out"])] if found["left_out"] else []
    return more + (notes or [words["unread"]])
