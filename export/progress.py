"""Shows the steps: a live line with a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Advance = Callable[[int, int], None]


class Steps:
    """Numbers and times the steps of a program.

    >>> steps = Steps(total=1)
    >>> with steps.step("count") as advance:
    ...     advance(1, 1)
    [1/1] count
    """

    def __init__(self, total: int) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._total = total
        self._done = 0

    @contextmanager
    def step(self, title: str, live: bool = True) -> Iterator[Advance]:
        """Announce a step; yields a function to call with the number of items done and of all items.

        `live=False` is for steps whose own tools draw on the terminal.
        """
        self._done += 1
        label = f"[{self._done}/{self._total}] {title}"
        if not (self.console.is_terminal and live):
            print(label, flush=True)
            yield lambda done, total: None
            return
        started = time.monotonic()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(label.replace("[", r"\["), total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
        print(f"{label} ({time.monotonic() - started:.1f} s)", flush=True)
