"""Tokens per second on texts of mixed length."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.corpus import Corpus
from benchmarks.results import Figures, Result
from benchmarks.worker import check_vectors, workers
from handler.embedder import Embedder


def run(
    model_folder: Path, source: Path, corpus: Corpus, threads: list[int], rounds: int, advance: Callable[[], None]
) -> Result:
    """Embed the corpus `rounds` times with each contender, in turns, for each number of threads."""
    tokens = sum(Embedder.load(model_folder, "fp32").embed(corpus.texts).tokens)
    rows: list[dict[str, Any]] = []
    for count in threads:
        with workers(list(CONTENDERS), model_folder, source, count) as contenders:
            check_vectors(contenders, corpus.texts)
            samples: dict[str, list[float]] = {worker.name: [] for worker in contenders}
            for _ in range(rounds):
                for worker in contenders:
                    samples[worker.name] += worker.time(corpus.texts)
                    advance()
        rows += [{"contender": name, "threads": count, "seconds": seconds} for name, seconds in samples.items()]
    parameters = {"corpus": corpus.name, "texts": len(corpus.texts), "tokens": tokens, "rounds": rounds}
    return Result.new("throughput", model_folder, parameters, rows)


def figures(result: Result) -> Figures:
    threads = sorted({row["threads"] for row in result.rows})
    cells = {(row["contender"], row["threads"]): statistics.median(row["seconds"]) for row in result.rows}
    tokens, texts = result.parameters["tokens"], result.parameters["texts"]
    return Figures(
        f"Throughput, tokens/s, {texts} texts of mixed length ({tokens} tokens, {result.parameters['corpus']})",
        ["", *(f"{count} thread{'s' if count > 1 else ''}" for count in threads)],
        [
            [contender.title, *(f"{tokens / cells[name, count]:,.0f}" for count in threads)]
            for name, contender in CONTENDERS.items()
        ],
    )
