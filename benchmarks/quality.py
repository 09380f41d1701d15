"""How near each contender's vectors are to sentence-transformers'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from artifact.manifest import WEIGHTS_SUFFIX
from benchmarks import vocabulary
from benchmarks.contenders import CONTENDERS, REFERENCE, Vectors, available
from benchmarks.corpus import Corpus, Pairs, Retrieval
from benchmarks.results import Figures, Result
from benchmarks.worker import Worker, workers
from export.verify import compare

TEN = 10
EXTRAS = {
    "spearman": ("Spearman", "Spearman correlation with the scores that people gave"),
    "kept_of_ten": ("nearest", "share of the reference's ten nearest passages kept"),
}
"""Fields that rows of some sets have: the column and what it means."""


def run(
    model_folder: Path,
    source: Path,
    corpora: Sequence[Corpus],
    pairs: Sequence[Pairs],
    retrievals: Sequence[Retrieval],
    advance: Callable[[], None],
    words: Sequence[str] = (),
) -> Result:
    """Cosine statistics on every set of texts, the Spearman correlation with people's scores on pairs, the share of
    the reference's ten nearest passages that are among a contender's ten, and cosine statistics on words."""
    rows: list[dict[str, Any]] = []
    with workers(available(), model_folder, source, threads=2) as contenders:
        for corpus in corpora:
            rows += _compare(contenders, corpus.name, corpus.texts)[0]
            advance()
        for pair in pairs:
            texts = sorted({*pair.left, *pair.right})
            found, vectors = _compare(contenders, pair.name, texts)
            rows += [row | {"spearman": _spearman(pair, texts, vectors[row["contender"]])} for row in found]
            advance()
        for retrieval in retrievals:
            found, vectors = _compare(contenders, retrieval.name, [*retrieval.queries, *retrieval.passages])
            nearest = {name: _nearest(each, len(retrieval.queries)) for name, each in vectors.items()}
            rows += [row | {"kept_of_ten": _kept(nearest[row["contender"]], nearest[REFERENCE])} for row in found]
            advance()
        if words:
            rows += vocabulary.measure(contenders, words, advance)
    sizes = {name: _bytes(CONTENDERS[name].weights(model_folder, source)) for name in available()}
    sets = {each.name: len(each.texts) for each in corpora} | {each.name: len(each.left) for each in pairs}
    sets |= {each.name: len(each.queries) + len(each.passages) for each in retrievals}
    return Result.new("quality", model_folder, {"sets": sets, "bytes": sizes}, rows)


def _bytes(model: Path) -> int:
    """Size of a file of weights, together with the one that it maps, if any."""
    mapped = model.with_name(model.name + WEIGHTS_SUFFIX)
    return sum(path.stat().st_size for path in (model, mapped) if path.exists())


def figures(result: Result) -> list[Figures]:
    """One table a set."""
    words = [row for row in result.rows if row["set"] == vocabulary.SET]
    sets = dict.fromkeys(row["set"] for row in result.rows if row["set"] != vocabulary.SET)
    return [*(_table(result, name) for name in sets), *([vocabulary.figures(words)] if words else [])]


def _table(result: Result, name: str) -> Figures:
    rows = [row for row in result.rows if row["set"] == name]
    title = (
        f"Quality on {result.parameters['sets'][name]:,} of {name}: cosine to sentence-transformers float32, "
        "and the largest change of a component by the texts embedded with it (batch)"
    )
    header = ["", "MB", "mean", "1st percentile", "minimum", "batch"]
    extras = [extra for extra in EXTRAS if extra in rows[0]]
    return Figures(
        "; ".join([title, *(EXTRAS[extra][1] for extra in extras)]),
        header + [EXTRAS[extra][0] for extra in extras],
        [
            [
                CONTENDERS[row["contender"]].title,
                f"{result.parameters['bytes'][row['contender']] / 1e6:.1f}",
                *(f"{row[name]:.5f}" for name in ("mean_cosine", "p1_cosine", "min_cosine")),
                "0" if row["batch_difference"] == 0 else f"{row['batch_difference']:.0e}",
                *(f"{row[extra]:.4f}" for extra in extras),
            ]
            for row in rows
            if row["contender"] != REFERENCE or extras
        ],
    )


def _compare(
    contenders: Sequence[Worker], name: str, texts: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Vectors]]:
    """One row a contender, and the vectors. Batch dependence is measured on a hundred texts spread over the set."""
    vectors = {worker.name: worker.embed(texts) for worker in contenders}
    sample = list(range(0, len(texts), max(1, len(texts) // 100)))
    rows = []
    for worker in contenders:
        found = vectors[worker.name]
        alone = np.concatenate([worker.embed([texts[index]]) for index in sample])
        parity = compare(found, vectors[REFERENCE], float(np.abs(alone - found[sample]).max()))
        rows.append({"contender": worker.name, "set": name, **parity._asdict()})
    return rows, vectors


def _nearest(vectors: Vectors, queries: int) -> npt.NDArray[np.int64]:
    """Of each query, which come first, the ten nearest of the passages, which come after: shape (queries, 10)."""
    scores = vectors[:queries] @ vectors[queries:].T
    nearest: npt.NDArray[np.int64] = np.argsort(-scores, axis=1)[:, :TEN]
    return nearest


def _kept(found: npt.NDArray[np.int64], reference: npt.NDArray[np.int64]) -> float:
    shares = [len({*ours} & {*theirs}) / TEN for ours, theirs in zip(found.tolist(), reference.tolist(), strict=True)]
    return float(np.mean(shares))


def _spearman(pairs: Pairs, texts: list[str], vectors: Vectors) -> float:
    row = {text: index for index, text in enumerate(texts)}
    left = vectors[[row[text] for text in pairs.left]]
    right = vectors[[row[text] for text in pairs.right]]
    return float(spearmanr((left * right).sum(axis=1), pairs.scores).statistic)
