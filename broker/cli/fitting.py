"""Tables that fit a terminal: bars give way first, then text folds between words; a word is broken last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

BAR: Final = 24
"""Cells of the longest bar."""
_LEAST_BAR: Final = 6
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
    """A table without frills that shares out the width there is."""

    def __init__(self, titles: Sequence[str], rows: Sequence[Sequence[Text | Bar]]) -> None:
        self._titles, self._rows = titles, rows
        columns = list(zip_longest(*rows, fillvalue=Text("")))[: len(titles)]
        self._wanted = [
            _wanted(title.rstrip(">"), cells) for title, cells in zip(titles, columns, strict=True)
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
        room = options.max_width - _GAP * (len(self._titles) - 1)
        for title, width in zip(self._titles, fitted(self._wanted, room), strict=True):
            side = "right" if title.endswith(">") else "left"
            grid.add_column(title.rstrip(">"), justify=side, overflow="fold", width=width)  # type: ignore[arg-type]
        for row in self._rows:
            grid.add_row(*row)
        yield grid


def fitted(wanted: Sequence[tuple[int, int]], room: int) -> list[int]:
    """Widths of columns that want (least, most) cells in a room of so many.

    As many as possible get their most, the widest give way; below their least only where the room is too
    small for that of all.

    >>> fitted([(4, 4), (6, 24), (5, 30)], 80), fitted([(4, 4), (6, 24), (5, 30)], 30)
    ([4, 24, 30], [4, 13, 13])
    >>> fitted([(20, 20), (6, 24)], 30), fitted([(20, 20), (6, 24)], 20)
    ([20, 10], [14, 6])
    """
    cap = max((least for least, _ in wanted), default=0)
    while cap > 1 and sum(min(least, cap) for least, _ in wanted) > room:
        cap -= 1
    wanted = [(min(least, cap), most) for least, most in wanted]
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


def _wanted(title: str, cells: Sequence[Text | Bar]) -> tuple[int, int]:
    """The least that breaks no word of a column, and what shows all of it in one row."""
    texts = [title, *(one.plain for one in cells if isinstance(one, Text))]
    bars = [one for one in cells if isinstance(one, Bar)]
    most = max(map(cell_len, texts))
    least = max((min(_LONG, cell_len(word)) for text in texts for word in text.split()), default=1)
    return max(least, _LEAST_BAR * bool(bars), 1), max(most, BAR * bool(bars), 1)
