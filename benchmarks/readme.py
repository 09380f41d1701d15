"""The README's figures, generated from the stored results."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import ablation, cold_start, latency, quality, throughput
from benchmarks.results import FOLDER, Result

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks: begin, written by python -m benchmarks readme -->", "<!-- benchmarks: end -->"
BENCHMARKS = {
    "cold-start": cold_start.figures,
    "latency": latency.figures,
    "throughput": throughput.figures,
    "quality": quality.figures,
    "ablation": ablation.figures,
}


def section() -> str:
    """The Markdown between the marks of the README."""
    results = {name: Result.read(FOLDER / f"{name}.json") for name in BENCHMARKS}
    machine = results["throughput"].machine
    parts = [
        f"Measured on {machine['cpus']} CPUs of type {machine['cpu']} ({', '.join(machine['cpu_features'])}), "
        f"Python {machine['python']}, onnxruntime {machine['packages']['onnxruntime']}, "
        f"torch {machine['packages']['torch']}. Raw samples are in `benchmarks/results/`."
    ]
    for name, figures in BENCHMARKS.items():
        table = figures(results[name])
        parts += [f"**{table.title}**", table.markdown()]
    return "\n\n".join(parts)


def updated(text: str) -> str:
    """The README with its generated part made anew.

    Raises ValueError if the marks are not there.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md has no part between {BEGIN!r} and {END!r}")
    return pattern.sub(lambda _: f"{BEGIN}\n\n{section()}\n\n{END}", text)
