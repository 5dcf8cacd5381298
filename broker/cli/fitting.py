"""Tables that fit a terminal: bars give way first, then text folds between words, then columns are left out
that may be; a word is cut last, with an ellipsis, and those of the first column, of columns that matter most
and numbers after all others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, OverflowMethod, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

BAR: Final = 24
"""Cells of the longest bar."""
_LEAST_BAR: Final = 6
_LEAST_WORD: Final = 6
"""Cells of a word that is cut, before a whole column or number is."""
_SHORTENED: Final = 12
"""Cells of a word that is cut before a column is left out."""
_WORD: Final = re.compile(r"[\d.,]+ (?:%|[A-Za-z]{1,3})(?!\S)|\S+")
"""A word; a number and its unit (`11.5 %`, `1.5 h`, `2 GiB`) are one."""
_MARKS: Final = ">?!="
_GAP: Final = 2
"""Cells between two columns."""
_LONG: Final = 24
"""Cells of the longest word that has a claim to stay whole: the id of a run has 20."""


class Bar:
    """A bar as wide as its column: `draw` makes it for a number of cells (one row, never folded)."""

    def __init__(self, draw: Callable[[int], str], style: str = "") -> None:
        self._draw, self._style = draw, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self._draw(min(BAR, options.max_width)), style=self._style, no_wrap=True, end="")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(_LEAST_BAR, cell_len(self._draw(BAR)))


class Fitted:
    """A table without frills that shares out the width there is.

    A title may end in marks: `>` aligns right, `?` lets the column be left out where there is no room (the
    last such first), `!` goes on in the next row with a word that is too long, and cuts none: people copy it,
    `=` matters most: other columns give way first.
    """

    def __init__(self, titles: Sequence[str], rows: Sequence[Sequence[Text | Bar]]) -> None:
        self._titles = [title.rstrip(_MARKS) for title in titles]
        self._marks = [title[len(name) :] for title, name in zip(titles, self._titles, strict=True)]
        self._columns = list(zip_longest(*rows, fillvalue=Text("")))[: len(titles)]
        columns = list(zip(self._titles, self._columns, strict=True))
        self._wanted = [_wanted(title, cells) for title, cells in columns]
        self._texts = [
            (least, max(least, _wanted("", cells)[1]))
            for (least, _), (_, cells) in zip(self._wanted, columns, strict=True)
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, left_out = self._kept(options.max_width)
        grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
        room, firm = options.max_width - _GAP * (len(shown) - 1), [self._firm(at) for at in shown]
        # Titles fold before a text does: they get what is left when all texts have theirs.
        widths = fitted([self._texts[at] for at in shown], room, firm)
        if sum(widths) < room:
            wanted = [(width, self._wanted[at][1]) for width, at in zip(widths, shown, strict=True)]
            widths = fitted(wanted, room)
        for at, width in zip(shown, widths, strict=True):
            side: JustifyMethod = "right" if ">" in self._marks[at] else "left"
            overflow: OverflowMethod = "fold" if at == 0 or "!" in self._marks[at] else "ellipsis"
            grid.add_column(self._titles[at], justify=side, overflow=overflow, width=width)
        for row in zip(*(self._columns[at] for at in shown), strict=True):
            grid.add_row(*row)
        yield grid
        if left_out:
            names = ", ".join(self._titles[at] for at in left_out)
            yield Text(f"Left out for want of width: {names}", style="bright_black")

    def _firm(self, at: int) -> bool:
        return at == 0 or not {">", "="}.isdisjoint(self._marks[at])

    def _kept(self, width: int) -> tuple[list[int], list[int]]:
        """The columns that are shown, and those that are left out: not for a long word's sake."""
        shown, left_out = list(range(len(self._titles))), list[int]()
        leasts = [
            least if self._firm(at) else min(least, _SHORTENED) for at, (least, _) in enumerate(self._wanted)
        ]
        for at in reversed(shown.copy()):
            if sum(leasts[one] + _GAP for one in shown) - _GAP > width and "?" in self._marks[at]:
                shown.remove(at)
                left_out.insert(0, at)
        return shown, left_out


def fitted(wanted: Sequence[tuple[int, int]], room: int, firm: Sequence[bool] = ()) -> list[int]:
    """Widths of columns that want (least, most) cells in a room of so many.

    As many as possible get their most, the widest give way; below their least only where the room is too
    small for that of all, and those that are `firm` after the others.

    >>> fitted([(4, 4), (6, 24), (5, 30)], 80), fitted([(4, 4), (6, 24), (5, 30)], 30)
    ([4, 24, 30], [4, 13, 13])
    >>> fitted([(20, 20), (6, 24)], 30), fitted([(20, 20), (6, 24)], 20)
    ([20, 10], [14, 6])
    >>> fitted([(20, 20), (16, 24)], 30, firm=[True, False])
    [20, 10]
    """
    leasts = [least for least, _ in wanted]
    if any(firm):
        leasts = _capped(leasts, room, firm, _LEAST_WORD)
    leasts = _capped(leasts, room, [False] * len(leasts), 1)
    wanted = [(least, most) for least, (_, most) in zip(leasts, wanted, strict=True)]
    level = max((most for _, most in wanted), default=0)

    def widths() -> list[int]:
        return [min(most, max(least, level)) for least, most in wanted]

    while level > 1 and sum(widths()) > room:
        level -= 1
    found, spare = widths(), room - sum(widths())
    for at, (_, most) in enumerate(wanted):
        if spare > 0 and level <= found[at] < most:
            found[at], spare = found[at] + 1, spare - 1
    return found


def _capped(leasts: Sequence[int], room: int, firm: Sequence[bool], floor: int) -> list[int]:
    """The least widths, those that are not `firm` cut to one that lets all have room, not below `floor`."""
    cap = max(leasts, default=0)

    def cut() -> list[int]:
        return [least if keep else min(least, cap) for least, keep in zip(leasts, firm, strict=True)]

    while cap > floor and sum(cut()) > room:
        cap -= 1
    return cut()


def _wanted(title: str, cells: Sequence[Text | Bar]) -> tuple[int, int]:
    """The least that breaks no word of a column, and what shows all of it in one row."""
    texts = [title, *(one.plain for one in cells if isinstance(one, Text))]
    bars = [one for one in cells if isinstance(one, Bar)]
    most = max(map(cell_len, texts))
    least = max((min(_LONG, cell_len(word)) for text in texts for word in _WORD.findall(text)), default=1)
    return max(least, _LEAST_BAR * bool(bars), 1), max(most, BAR * bool(bars), 1)
