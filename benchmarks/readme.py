"""The README's figures: the report's dozens of tables in a few lines, a plot and one table."""

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
"""Columns of speeds: results limited to AVX2, and those with all that the measuring CPU has."""
OURS = "int8"
SHORT = 8
"""Tokens of the short text."""


def section(folder: Path = FOLDER) -> str:
    """The Markdown between the marks of the README, from the results that are there."""
    results = stored(folder)
    made = [_lines(results), _plot(results), _table(results), _measured_on(results)]
    return "\n\n".join(part for part in made if part)


def updated(text: str) -> str:
    """The README with its generated part replaced.

    Raises ValueError if the marks are not there.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md has no part between {BEGIN!r} and {END!r}")
    return pattern.sub(lambda _: f"{BEGIN}\n\n{section()}\n\n{END}", text)


def _rates(results: Results) -> dict[tuple[str, str | None], float]:
    """Tokens per second on the corpus, by contender and by the instructions it was limited to."""
    return {
        (row["contender"], kept_to): result.parameters["tokens"] / statistics.median(row["seconds"])
        for kept_to in COLUMNS
        if (result := results.get(file_name("throughput", kept_to)))
        for row in _of(result.rows, threads=1)
        if "batch" not in row
    }


def _short(results: Results) -> dict[tuple[str, str | None], float]:
    """Milliseconds for one short text, by the same."""
    return {
        (row["contender"], kept_to): statistics.median(row["seconds"]) * 1000
        for kept_to in COLUMNS
        if (result := results.get(file_name("latency", kept_to)))
        for row in _of(result.rows, tokens=SHORT, path="library")
    }


def _nearness(results: Results) -> dict[str, dict[str, Any]]:
    """The quality of each contender on STS dev, with the share of the ten nearest that it keeps."""
    found: dict[str, dict[str, Any]] = {}
    for row in results["quality"].rows if "quality" in results else []:
        if "spearman" in row or "kept_of_ten" in row:
            found.setdefault(row["contender"], {}).update(
                {name: row[name] for name in ("spearman", "kept_of_ten") if name in row},
                **({name: row[name] for name in ("mean_cosine", "min_cosine")} if "spearman" in row else {}),
            )
    return found


def _table(results: Results) -> str:
    rates, short, near = _rates(results), _short(results), _nearness(results)
    sizes = results["quality"].parameters["bytes"] if "quality" in results else {}
    names = [name for name in CONTENDERS if name in near or any((name, kept_to) in rates for kept_to in COLUMNS)]
    if not names:
        return ""

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    table = Figures(
        "One core on texts of mixed length; cosine to sentence-transformers' float32 vectors on the pairs of STS "
        "Benchmark's dev set; share of the ten nearest passages kept",
        [
            "",
            *(f"tokens/s, {title}" for title in COLUMNS.values()),
            *(f"short text, ms, {title}" for title in COLUMNS.values()),
            *("MB", "cosine, mean", "minimum", "nearest"),
        ],
        [
            [
                CONTENDERS[name].title + ("*" if name in UNRESTRICTED else ""),
                *(cell(rates.get((name, kept_to)), ",.0f") for kept_to in COLUMNS),
                *(cell(short.get((name, kept_to)), ".2f") for kept_to in COLUMNS),
                cell(sizes[name] / 1e6 if name in sizes else None, ".0f"),
                *(
                    cell(None if name == REFERENCE else near.get(name, {}).get(field), form)
                    for field, form in (("mean_cosine", ".5f"), ("min_cosine", ".5f"), ("kept_of_ten", ".3f"))
                ),
            ]
            for name in names
        ],
    )
    note = "\\* With AVX-512 in both columns: onnxruntime's own operators and FBGEMM cannot be limited to AVX2."
    return f"**{table.title}**\n\n{table.markdown()}\n\n{note}"


def _plot(results: Results) -> str:
    return "![Tokens per second by contender](docs/benchmarks/throughput.svg)" if "throughput" in results else ""


def _lines(results: Results) -> str:
    """A sentence for each subject."""
    subjects = {
        "Speed": _speed,
        "Accuracy": _quality,
        "Cold start": _cold_start,
        "Memory": _memory,
        "Cost": _cost,
        "Load": _load,
    }
    return "\n".join(f"- **{title}**: {line}" for title, tell in subjects.items() if (line := tell(results)))


def _speed(results: Results) -> str:
    rates = _rates(results)
    found = [
        f"{rates[OURS, kept_to]:,.0f} tokens/s of one core with {title}, "
        f"{rates[OURS, kept_to] / rates[REFERENCE, kept_to]:.1f} times sentence-transformers on torch"
        for kept_to, title in COLUMNS.items()
        if {(OURS, kept_to), (REFERENCE, kept_to)} <= set(rates)
    ]
    return "; ".join(found) + "." if found else ""


def _quality(results: Results) -> str:
    ours = _nearness(results).get(OURS, {})
    if not {"mean_cosine", "kept_of_ten"} <= set(ours):
        return ""
    return (
        f"INT8 vectors have a mean cosine of {ours['mean_cosine']:.4f} to the float32 ones, at least "
        f"{ours['min_cosine']:.4f}, and find {ours['kept_of_ten']:.1%} of their ten nearest passages."
    )


def _cold_start(results: Results) -> str:
    """Cold start of the function, in each column that is measured, and of torch."""
    found = [
        f"{1000 * statistics.median(row['seconds']):,.0f} ms with {title}"
        for kept_to, title in COLUMNS.items()
        if (result := results.get(file_name("cold-start", kept_to)))
        for row in _of(result.rows, mode="function", files="page cache")
    ]
    rows = results["cold-start"].rows if "cold-start" in results else []
    torch = _of(rows, mode="library", contender=REFERENCE)
    if not (found and torch):
        return ""
    theirs = 1000 * statistics.median(torch[0]["seconds"])
    return (
        f"{', '.join(found)}, from the start of the function's process to its first answer; sentence-transformers "
        f"needs {theirs:,.0f} ms to its first vector."
    )


def _memory(results: Results) -> str:
    rows = results["memory"].rows if "memory" in results else []
    works = [row["memory_mb"] for row in rows if row.get("works")]
    peaks = [row["peak_memory_mb"] for row in rows if row.get("measure") == "peak"]
    if not (works and peaks):
        return ""
    return f"{peaks[0]:.0f} MB for one short text; {min(works)} MB are enough for the largest requests."


def _cost(results: Results) -> str:
    result = results.get(file_name("cost", "avx2"))
    if not result or not result.rows:
        return ""
    (row,) = _of(result.rows, memory_mb=cost.MONTH_MEMORY_MB)
    prices = []
    for cpu, architecture in cost.PROCESSORS.items():
        bulk, short = (cost.seconds(result, row, what, cpu) for what in ("corpus", "short"))
        if bulk is None or short is None:
            continue
        given, price = result.parameters, cost.PRICES[f"lambda_{architecture}_gb_second"]
        billion = cost.dollars_per_billion_tokens(bulk, given["requests"], given["tokens"], row["memory_mb"], price)
        million = cost.dollars_per_million_requests(short, row["memory_mb"], price)
        speed = f"modelled speed of {cycles.PROCESSORS[cpu].title}" if cpu else "speed of this machine's core with AVX2"
        prices.append(f"${billion:.2f} and ${million:.2f} at the {speed}")
    openai = cost.PRICES["openai_text_embedding_3_small_million"] * 1000
    return (
        f"a billion tokens, and a million requests of one short text, cost at {row['memory_mb']:,} MB: "
        f"{', '.join(prices)}; OpenAI's text-embedding-3-small costs ${openai:.2f} per billion tokens."
    )


def _load(results: Results) -> str:
    if not (result := results.get("load")):
        return ""
    (run,) = _of(result.rows, measure="run")
    return (
        f"{run['right']:,} of {result.parameters['requests']:,} mixed requests over {result.parameters['connections']} "
        "connections were answered as documented, every vector right to the bit."
    )


def _measured_on(results: Results) -> str:
    if not (result := results.get("throughput")):
        return ""
    machine = result.machine
    return (
        f"Measured on {machine['cpus']} CPUs of type {machine['cpu']} ({', '.join(machine['cpu_features'])}), "
        f"Python {machine['python']}, onnxruntime {machine['packages']['onnxruntime']}, "
        f"torch {machine['packages']['torch']}. AWS promises AVX2 for Lambda's x86_64, so plan with that "
        "column; Lambda's arm64, Graviton2, is modelled in the report, not measured. All tables and plots, and how "
        "each figure is measured: [docs/benchmarks.md](docs/benchmarks.md)."
    )


def _of(rows: Iterable[Mapping[str, Any]], **values: object) -> Sequence[Mapping[str, Any]]:
    """The rows that have these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in values.items())]
