"""Tokens per second: on texts of mixed length, by batch and length, and against what the machine can multiply."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from artifact.manifest import open_artifact
from benchmarks import instructions, roofline
from benchmarks.contenders import CONTENDERS, available
from benchmarks.corpus import Corpus, of_length
from benchmarks.results import Figures, Result
from benchmarks.worker import Worker, check_vectors, workers
from handler.embedder import Embedder

BATCHES = (1, 10, 100)
LENGTHS = (8, 32, 128, 256)
"""Tokens, special tokens included."""
CELLS = tuple((batch, length) for batch in BATCHES for length in LENGTHS)
"""The grid: texts of one call, and tokens of each."""

LARGE_CELL, LARGE_CELL_ROUNDS = 10_000, 3
"""Tokens beyond which a cell takes seconds a call, and the rounds that are enough then."""
TURN_TOKENS, TURN_CALLS = 2560, 20
"""A contender's turn at a small cell has calls for TURN_TOKENS, but at most TURN_CALLS."""


def run(
    model_folder: Path,
    source: Path,
    corpus: Corpus,
    threads: Sequence[int],
    rounds: int,
    advance: Callable[[], None],
    grid: bool = False,
    cells: Sequence[tuple[int, int]] = CELLS,
) -> Result:
    """Embed the corpus `rounds` times with each contender, in turns, for each number of threads; then, with `grid`,
    `cells` of (batch, tokens), in one thread. `advance` is called `steps` times.

    Every contender's vectors are checked before each of its times. Raises WrongVectorsError.
    """
    tokens = sum(Embedder.load(model_folder, "fp32").embed(corpus.texts).tokens)
    rates: dict[str, list[float]] = {}
    rows: list[dict[str, Any]] = []
    for count in dict.fromkeys([*threads, *([1] if grid else [])]):
        with workers(available(), model_folder, source, count) as contenders:
            if count in threads:
                rows += _corpus(contenders, corpus, count, rounds, rates, advance)
            if grid and count == 1:
                rows += _grid(contenders, cells, rounds, advance)
    parameters = {
        "corpus": corpus.name,
        "texts": len(corpus.texts),
        "tokens": tokens,
        "rounds": rounds,
        "roofline": rates,
        "macs_per_token": roofline.macs_per_token(Path(open_artifact(model_folder).model("int8"))),
    }
    return Result.new("throughput", model_folder, parameters, rows)


def steps(threads: Sequence[int], rounds: int, grid: bool = False, cells: Sequence[tuple[int, int]] = CELLS) -> int:
    """How often `run` calls `advance`."""
    turns = len(threads) * rounds
    if grid:
        turns += sum(_rounds(batch * length, rounds) for batch, length in cells)
    return turns * len(available())


def figures(result: Result) -> list[Figures]:
    """The corpus; the grid and the machine's limit, where the result has them."""
    found = [_corpus_figures(result)]
    if cells := [row for row in result.rows if "batch" in row]:
        found.append(_grid_figures(cells, result))
    if "roofline" in result.parameters and _corpus_rates(result, 1):
        found.append(_roofline_figures(result))
    return found


def texts_of(batch: int, length: int) -> list[str]:
    """`batch` different texts of `length` tokens, special tokens included; always the same ones."""
    words = of_length(batch * (length - 2)).split()
    return [" ".join(words[start : start + length - 2]) for start in range(0, len(words), length - 2)]


def _corpus(
    contenders: Sequence[Worker],
    corpus: Corpus,
    threads: int,
    rounds: int,
    rates: dict[str, list[float]],
    advance: Callable[[], None],
) -> list[dict[str, Any]]:
    """One row a contender; the machine's rates are added to `rates`."""
    check_vectors(contenders, corpus.texts)
    samples: dict[str, list[float]] = {worker.name: [] for worker in contenders}
    for _ in range(rounds):
        # In turns with the contenders, so that load by others slows the limit as it slows them.
        for name, measured in roofline.measure(threads=1).items():
            rates.setdefault(name, []).extend(measured)
        for worker in contenders:
            samples[worker.name] += worker.time(corpus.texts)
            advance()
    return [{"contender": name, "threads": threads, "seconds": seconds} for name, seconds in samples.items()]


def _grid(
    contenders: Sequence[Worker], cells: Sequence[tuple[int, int]], rounds: int, advance: Callable[[], None]
) -> list[dict[str, Any]]:
    rows = []
    for batch, length in cells:
        texts = texts_of(batch, length)
        check_vectors(contenders, texts)  # the first call with this shape, too, which may compile or allocate
        samples: dict[str, list[float]] = {worker.name: [] for worker in contenders}
        repeat = max(1, min(TURN_CALLS, TURN_TOKENS // (batch * length)))
        for _ in range(_rounds(batch * length, rounds)):
            for worker in contenders:
                samples[worker.name] += worker.time(texts, repeat)
                advance()
        cell = {"threads": 1, "batch": batch, "tokens": length}
        rows += [{"contender": name, **cell, "seconds": seconds} for name, seconds in samples.items()]
    return rows


def _rounds(tokens: int, rounds: int) -> int:
    return min(rounds, LARGE_CELL_ROUNDS) if tokens > LARGE_CELL else rounds


def _corpus_rates(result: Result, threads: int) -> Mapping[str, float]:
    """Of each contender, tokens per second on the corpus."""
    tokens = result.parameters["tokens"]
    rows = [row for row in result.rows if "batch" not in row and row["threads"] == threads]
    return {row["contender"]: tokens / statistics.median(row["seconds"]) for row in rows}


def _corpus_figures(result: Result) -> Figures:
    tokens, texts = result.parameters["tokens"], result.parameters["texts"]
    rates = {count: _corpus_rates(result, count) for count in sorted({row["threads"] for row in result.rows})}
    rates = {count: each for count, each in rates.items() if each}  # the grid alone may be in one thread
    names = [name for name in CONTENDERS if all(name in each for each in rates.values())]
    return Figures(
        f"Throughput, tokens/s, {texts} texts of mixed length ({tokens} tokens, {result.parameters['corpus']})"
        f"{instructions.suffix(result)}",
        ["", *(f"{count} thread{'s' if count > 1 else ''}" for count in rates)],
        [
            [
                instructions.title(name, result),
                *(f"{each[name]:,.0f}" for each in rates.values()),
            ]
            for name in names
        ],
    )


def _grid_figures(rows: Sequence[Mapping[str, Any]], result: Result) -> Figures:
    rates = {
        (row["contender"], row["batch"], row["tokens"]): row["batch"]
        * row["tokens"]
        / statistics.median(row["seconds"])
        for row in rows
    }
    batches, lengths = (sorted({row[key] for row in rows}) for key in ("batch", "tokens"))
    names = [name for name in CONTENDERS if any(row["contender"] == name for row in rows)]
    return Figures(
        f"By batch and length: tokens/s, texts of one length, 1 thread, median{instructions.suffix(result)}",
        ["", "texts", *(f"{length} tokens" for length in lengths)],
        [
            [
                instructions.title(name, result),
                f"{batch}",
                *(_number(rates.get((name, batch, length))) for length in lengths),
            ]
            for name in names
            for batch in batches
        ],
    )


def _number(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.0f}"


def _roofline_figures(result: Result) -> Figures:
    macs, rates = result.parameters["macs_per_token"], _corpus_rates(result, 1)
    rows = []
    for name, samples in (("int8", "int8_gmacs"), ("fp32", "float32_gmacs")):
        if samples not in result.parameters["roofline"]:
            continue
        gmacs = statistics.median(result.parameters["roofline"][samples])
        limit = gmacs * 1e9 / macs
        share = f"{rates[name] / limit:.0%}"
        rows.append([CONTENDERS[name].title, f"{gmacs:,.0f}", f"{limit:,.0f}", f"{rates[name]:,.0f}", share])
    return Figures(
        f"Limit of one core: its matrix products, at {macs / 1e6:.1f} million multiply-accumulates a token"
        f"{instructions.suffix(result)}",
        ["", "GMAC/s", "limit, tokens/s", "mixed length, tokens/s", "share of the limit"],
        rows,
    )
