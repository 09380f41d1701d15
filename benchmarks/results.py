"""Result files: raw samples with the machine and the artifact they were measured on."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from artifact.manifest import MANIFEST, open_artifact, sha256
from benchmarks.machine import describe_machine

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """One run of one benchmark. Every row has its raw samples; what tables show is computed from them."""

    benchmark: str
    created: str
    machine: Mapping[str, Any]
    manifest_sha256: str
    parameters: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    @classmethod
    def new(cls, benchmark: str, model_folder: Path, parameters: Mapping[str, Any], rows: Iterable[Any]) -> Result:
        """A result measured just now, on this machine, with the version in use."""
        return cls(
            benchmark=benchmark,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=describe_machine(),
            manifest_sha256=sha256(Path(open_artifact(model_folder).folder, MANIFEST)),
            parameters=parameters,
            rows=list(rows),
        )

    def with_parameter(self, name: str, value: Any) -> Result:
        """The same with one parameter more."""
        return replace(self, parameters={**self.parameters, name: value})

    @classmethod
    def read(cls, path: Path) -> Result:
        return cls(**json.loads(path.read_text("utf-8")))

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_lines(asdict(self)) + "\n", "utf-8")


def _lines(value: Any, depth: int = 0) -> str:
    """JSON whose differences can be read: each row with its samples, parameter and fact of a machine is a line."""
    if depth == 2 or not value or not isinstance(value, dict | list):
        return json.dumps(value)
    if isinstance(value, dict):
        items = [f"{json.dumps(name)}: {_lines(each, depth + 1)}" for name, each in value.items()]
    else:
        items = [_lines(each, depth + 1) for each in value]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return first + ",".join(f"\n{' ' * depth} {item}" for item in items) + f"\n{' ' * depth}{last}"


@dataclass(frozen=True)
class Figures:
    """A table's cells, for a terminal or for Markdown alike."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

    def show(self) -> None:
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE)
        for index, name in enumerate(self.header):
            table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        console = Console()
        if not console.is_terminal:
            console = Console(width=260)  # files and pipes have no width to keep to
        console.print(table)


def tables(figures: Figures | list[Figures]) -> list[Figures]:
    """What a benchmark's `figures` gives, as a list."""
    return [figures] if isinstance(figures, Figures) else figures


def noise(name: str, samples: Sequence[float]) -> str | None:
    """A warning if the middle four fifths of a row's samples scatter over 30 % of the median, or None."""
    low, *_, high = statistics.quantiles(samples, n=10)
    middle = statistics.median(samples)
    if high - low <= 0.3 * middle:
        return None
    return f"warning: {name}: the median is {middle:.4g} s, but samples range from {low:.4g} to {high:.4g} s"
