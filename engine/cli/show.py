"""What the commands show on a terminal: a title, a progress bar, small tables (rich)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

__all__ = ["Screen"]


class Screen:
    """Standard output. Without a terminal the same words come without colour and bars."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)

    def title(self, name: str, text: str) -> None:
        """The headline."""
        self._console.print(Text.assemble((name, "bold"), ": ", text))

    def line(self, text: str) -> None:
        """One plain line."""
        self._console.print(Text(text), soft_wrap=True)

    def done(self, text: str) -> None:
        """One thing that was accomplished."""
        self._console.print(Text.assemble(("  ok ", "green"), text), soft_wrap=True)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar; call the result with the number done so far."""
        if not self._console.is_terminal:
            last = [0]

            def quiet(done: int) -> None:
                last[0] = done

            yield quiet
            self._console.print(f"  ok {what}: {last[0]:,} of {total:,}")
            return
        columns = (TextColumn(f"  {what:<11}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)

    def table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Names and what is to be said of them."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in rows:
            table.add_row(f"  {name}", Text(text))
        self._console.print()
        self._console.print(Text(title, style="bold"))
        self._console.print(table)

    def commands(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Commands to type, each with its purpose; never wrapped, so that they can be copied."""
        self._console.print()
        self._console.print(Text(title, style="bold"))
        width = max(len(command) for command, _ in rows)
        for command, purpose in rows:
            text = Text.assemble("  ", (command.ljust(width), "green"), f"  # {purpose}")
            self._console.print(text, soft_wrap=True)
