"""Tables for the screen that stay legible at any width."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

LEAST_TEXT = 24
"""Characters below which a column of sentences is not worth reading."""


@dataclass
class FittingTable:
    """A table, or, where the screen is too narrow for whole numbers and words, one block of lines per row.

    Attributes:
        title: Above it.
        headings: Of the columns; the first names the row.
        text: Headings of columns that hold sentences and may be wrapped; numbers never are.
        left: Headings of further columns that are aligned to the left.
        rows: The cells of each row, with its style.
    """

    title: str
    headings: Sequence[str]
    text: Collection[str] = ()
    left: Collection[str] = ()
    rows: list[tuple[tuple[str, ...], str]] = field(default_factory=list)

    def add_row(self, *cells: str, style: str = "") -> None:
        """Add a row; cells are shown as they are, without markup."""
        self.rows.append((cells, style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render for the width at hand."""
        yield from self._table() if self._least_width() <= options.max_width else self._blocks()

    def _least_width(self) -> int:
        widths = []
        for place, heading in enumerate(self.headings):
            longest = max((cell_len(cells[place]) for cells, _ in self.rows), default=0)
            widths.append(max(cell_len(heading), min(longest, LEAST_TEXT) if heading in self.text else longest))
        return sum(widths) + 3 * len(widths) + 1

    def _table(self) -> Iterator[Table]:
        table = Table(title=self.title, title_justify="left")
        for place, heading in enumerate(self.headings):
            words = place == 0 or heading in self.text or heading in self.left
            wrapped = heading in self.text
            table.add_column(Text(heading), justify="left" if words else "right", no_wrap=not wrapped, overflow="fold")
        for cells, style in self.rows:
            table.add_row(*map(Text, cells), style=style or None)
        yield table

    def _blocks(self) -> Iterator[Text | Padding]:
        yield Text(self.title, style="italic")
        for (name, *cells), style in self.rows:
            yield Text(f"{self.headings[0]} {name}".strip(), style=f"bold {style}".strip(), overflow="fold")
            block = Table.grid(padding=(0, 2, 0, 0))
            block.add_column(no_wrap=True, min_width=max(map(cell_len, self.headings[1:])))
            block.add_column(overflow="fold")
            for heading, cell in zip(self.headings[1:], cells, strict=True):
                if cell not in ("", "-"):
                    block.add_row(Text(heading, style="dim"), Text(cell, style=style))
            yield Padding(block, (0, 0, 0, 2))


def number(value: float, digits: int = 2, *, signed: bool = False) -> str:
    """A number as it is printed everywhere: two digits after the point, a minus as long as a plus, none before 0."""
    text = f"{value:+z.{digits}f}" if signed else f"{value:z.{digits}f}"
    return text.replace("-", "−")
