"""Milliseconds for one text, by its length."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, OURS
from benchmarks.corpus import of_length
from benchmarks.results import Figures, Result
from benchmarks.worker import check_vectors, workers

LENGTHS = (8, 32, 128, 256)
"""Tokens, special tokens included."""


def run(model_folder: Path, source: Path, threads: int, rounds: int, advance: Callable[[], None]) -> Result:
    """Embed single texts, ten times a turn, in turns of all contenders."""
    texts = {length: of_length(length - 2) for length in LENGTHS}
    samples: dict[tuple[str, int], list[float]] = {}
    with workers(OURS, model_folder, source, threads) as contenders:
        check_vectors(contenders, list(texts.values()))
        for _ in range(rounds):
            for length, text in texts.items():
                for worker in contenders:
                    samples.setdefault((worker.name, length), []).extend(worker.time([text], repeat=10))
                    advance()
    rows: list[dict[str, Any]] = [
        {"contender": name, "tokens": length, "seconds": seconds} for (name, length), seconds in samples.items()
    ]
    return Result.new("latency", model_folder, {"threads": threads, "rounds": rounds}, rows)


def figures(result: Result) -> Figures:
    cells = {(row["contender"], row["tokens"]): statistics.median(row["seconds"]) * 1000 for row in result.rows}
    threads = result.parameters["threads"]
    return Figures(
        f"Latency of one text, ms, median, {threads} thread{'s' if threads > 1 else ''}",
        ["", *(f"{length} tokens" for length in LENGTHS)],
        [[CONTENDERS[name].title, *(f"{cells[name, length]:.1f}" for length in LENGTHS)] for name in OURS],
    )
