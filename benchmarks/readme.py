"""The README's figures: what the report has in dozens of tables, in two small ones and a few lines."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import cost, cycles
from benchmarks.contenders import CONTENDERS, REFERENCE
from benchmarks.instructions import UNRESTRICTED
from benchmarks.report import Results, file_name, stored
from benchmarks.results import FOLDER, Figures

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks: begin, written by python -m benchmarks report -->", "<!-- benchmarks: end -->"

COLUMNS = {"avx2": "AVX2", None: "AVX-512 VNNI"}
"""What the speeds are of: results kept to AVX2, and those with all that the measuring CPU has."""
SHORT = 8
"""Tokens of the short text."""


def section(folder: Path = FOLDER) -> str:
    """The Markdown between the marks of the README, from the results that are there."""
    results = stored(folder)
    made = [_speed(results), _quality(results), _lines(results), _measured_on(results)]
    return "\n\n".join(part for part in made if part)


def updated(text: str) -> str:
    """The README with its generated part made anew.

    Raises ValueError if the marks are not there.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md has no part between {BEGIN!r} and {END!r}")
    return pattern.sub(lambda _: f"{BEGIN}\n\n{section()}\n\n{END}", text)


def _speed(results: Results) -> str:
    rates: dict[tuple[str, str | None], str] = {}
    short: dict[tuple[str, str | None], str] = {}
    for kept_to in COLUMNS:
        if result := results.get(file_name("throughput", kept_to)):
            for row in _of(result.rows, threads=1):
                if "batch" not in row:
                    rate = result.parameters["tokens"] / statistics.median(row["seconds"])
                    rates[row["contender"], kept_to] = f"{rate:,.0f}"
        if result := results.get(file_name("latency", kept_to)):
            for row in _of(result.rows, tokens=SHORT, path="library"):
                short[row["contender"], kept_to] = f"{statistics.median(row['seconds']) * 1000:.2f}"
    if not rates:
        return ""
    names = [name for name in CONTENDERS if any((name, kept_to) in rates for kept_to in COLUMNS)]
    header = [f"tokens/s, {title}" for title in COLUMNS.values()]
    header += [f"one short text, ms, {title}" for title in COLUMNS.values()]
    table = Figures(
        "Speed of one core on texts of mixed length",
        ["", *header],
        [
            [
                CONTENDERS[name].title + ("*" if name in UNRESTRICTED else ""),
                *(rates.get((name, kept_to), "") for kept_to in COLUMNS),
                *(short.get((name, kept_to), "") for kept_to in COLUMNS),
            ]
            for name in names
        ],
    )
    note = "\\* onnxruntime's own operators and FBGEMM cannot be kept to AVX2: with AVX-512 in both columns."
    return f"**{table.title}**\n\n{table.markdown()}\n\n{note}"


def _quality(results: Results) -> str:
    if not (result := results.get("quality")):
        return ""
    rows = [row for row in result.rows if "spearman" in row and row["contender"] != REFERENCE]
    nearest = {row["contender"]: f"{row['kept_of_ten']:.4f}" for row in result.rows if "kept_of_ten" in row}
    table = Figures(
        "Nearness to sentence-transformers' float32 vectors, pairs of STS Benchmark's dev set; share of the ten "
        "nearest passages kept",
        ["", "MB", "cosine, mean", "1st percentile", "minimum", "Spearman", "nearest"],
        [
            [
                CONTENDERS[row["contender"]].title,
                f"{result.parameters['bytes'][row['contender']] / 1e6:.0f}",
                *(f"{row[name]:.5f}" for name in ("mean_cosine", "p1_cosine", "min_cosine")),
                f"{row['spearman']:.4f}",
                nearest.get(row["contender"], ""),
            ]
            for row in rows
        ],
    )
    return f"**{table.title}**\n\n{table.markdown()}" if rows else ""


def _lines(results: Results) -> str:
    """A sentence for each further subject."""
    found = []
    if result := results.get("cold-start"):
        function = _of(result.rows, mode="function", files="page cache")
        torch = _of(result.rows, mode="library", contender=REFERENCE)
        if function and torch:
            ours, theirs = (1000 * statistics.median(row["seconds"]) for row in (function[0], torch[0]))
            found.append(
                f"- **Cold start**: {ours:,.0f} ms from the start of the function's process to its first answer; "
                f"sentence-transformers needs {theirs:,.0f} ms to its first vector."
            )
    if result := results.get("memory"):
        works = [row["memory_mb"] for row in result.rows if row.get("works")]
        peaks = [row["peak_memory_mb"] for row in result.rows if row.get("measure") == "peak"]
        if works and peaks:
            found.append(
                f"- **Memory**: {peaks[0]:.0f} MB for one short text; {min(works)} MB are enough for the largest "
                "requests."
            )
    if (result := results.get(file_name("cost", "avx2"))) and result.rows:
        (row,) = _of(result.rows, memory_mb=cost.MONTH_MEMORY_MB)
        prices = []
        for cpu, architecture in cost.PROCESSORS.items():
            bulk, short = (cost.seconds(result, row, what, cpu) for what in ("corpus", "short"))
            if bulk is not None and short is not None:
                given, price = result.parameters, cost.PRICES[f"lambda_{architecture}_gb_second"]
                tokens = cost.dollars_per_billion_tokens(
                    bulk, given["requests"], given["tokens"], row["memory_mb"], price
                )
                million = cost.dollars_per_million_requests(short, row["memory_mb"], price)
                where = f"modelled {cycles.PROCESSORS[cpu].title}" if cpu else "this machine's core with AVX2"
                prices.append(f"${tokens:.2f} and ${million:.2f} at the speed of {where}")
        openai = cost.PRICES["openai_text_embedding_3_small_million"] * 1000
        found.append(
            f"- **Cost** of a billion tokens, and of a million requests of one short text, at {row['memory_mb']:,} MB: "
            f"{', '.join(prices)}; OpenAI's text-embedding-3-small costs ${openai:.2f} a billion."
        )
    if result := results.get("load"):
        (run,) = _of(result.rows, measure="run")
        found.append(
            f"- **Load**: of {result.parameters['requests']:,} mixed requests over {result.parameters['connections']} "
            f"connections {run['right']:,} were answered as documented, every vector right to the bit."
        )
    return "\n".join(found)


def _measured_on(results: Results) -> str:
    if not (result := results.get("throughput")):
        return ""
    machine = result.machine
    return (
        f"Measured on {machine['cpus']} CPUs of type {machine['cpu']} ({', '.join(machine['cpu_features'])}), "
        f"Python {machine['python']}, onnxruntime {machine['packages']['onnxruntime']}, "
        f"torch {machine['packages']['torch']}. AWS promises AVX2 for Lambda's x86_64, so that is the column to plan "
        "with; its arm64, Graviton2, is modelled in the report and not measured. All tables, plots and how each figure "
        "is measured: [docs/benchmarks.md](docs/benchmarks.md). "
        "Raw samples: `benchmarks/results/`."
    )


def _of(rows: Iterable[Mapping[str, Any]], **values: object) -> Sequence[Mapping[str, Any]]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in values.items())]
