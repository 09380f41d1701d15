"""The README's figures: some of the report's tables."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.report import SECTIONS, stored
from benchmarks.results import FOLDER, tables

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks: begin, written by python -m benchmarks report -->", "<!-- benchmarks: end -->"
SHOWN = ("Cold start of the", "Latency", "Throughput", "Memory", "Cost", "Lambda's part", "Load")
"""How the titles of the README's tables begin, beside the quality on pairs that people scored."""


def section(folder: Path = FOLDER) -> str:
    """The Markdown between the marks of the README, from the results that are there."""
    results = stored(folder)
    parts = []
    for name, result in results.items():
        if name not in SECTIONS:
            continue
        for table in tables(SECTIONS[name].figures(result)):
            if table.title.startswith(SHOWN) or "Spearman" in table.header:
                parts += [f"**{table.title}**", table.markdown()]
    if "throughput" in results:
        machine = results["throughput"].machine
        parts.append(
            f"Measured on {machine['cpus']} CPUs of type {machine['cpu']} ({', '.join(machine['cpu_features'])}), "
            f"Python {machine['python']}, onnxruntime {machine['packages']['onnxruntime']}, "
            f"torch {machine['packages']['torch']}. All tables, plots and how each figure is measured: "
            "[docs/benchmarks.md](docs/benchmarks.md). Raw samples: `benchmarks/results/`."
        )
    return "\n\n".join(parts)


def updated(text: str) -> str:
    """The README with its generated part made anew.

    Raises ValueError if the marks are not there.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md has no part between {BEGIN!r} and {END!r}")
    return pattern.sub(lambda _: f"{BEGIN}\n\n{section()}\n\n{END}", text)
