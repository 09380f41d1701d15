"""How near each contender's vectors are to sentence-transformers'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.contenders import CONTENDERS, REFERENCE, Vectors
from benchmarks.corpus import Corpus, Pairs
from benchmarks.results import Figures, Result
from benchmarks.worker import Worker, workers
from export.verify import compare


def run(
    model_folder: Path, source: Path, corpora: Sequence[Corpus], pairs: Sequence[Pairs], advance: Callable[[], None]
) -> Result:
    """Cosine statistics on every set of texts, and the Spearman correlation with people's scores on pairs."""
    rows: list[dict[str, Any]] = []
    with workers(list(CONTENDERS), model_folder, source, threads=2) as contenders:
        for corpus in corpora:
            texts = list(corpus.texts)
            vectors = {worker.name: worker.embed(texts) for worker in contenders}
            rows += _compare(contenders, corpus.name, texts, vectors)
            advance()
        for pair in pairs:
            texts = sorted({*pair.left, *pair.right})
            vectors = {worker.name: worker.embed(texts) for worker in contenders}
            for row in _compare(contenders, pair.name, texts, vectors):
                rows.append(row | {"spearman": _spearman(pair, texts, vectors[row["contender"]])})
            advance()
    sets = {corpus.name: len(corpus.texts) for corpus in corpora} | {pair.name: len(pair.left) for pair in pairs}
    return Result.new("quality", model_folder, {"sets": sets}, rows)


def figures(result: Result) -> Figures:
    return Figures(
        "Quality: cosine to sentence-transformers float32; Spearman correlation with people's scores, x 100",
        ["", "set", "mean", "1st percentile", "minimum", "Spearman"],
        [
            [
                CONTENDERS[row["contender"]].title,
                row["set"],
                *(f"{row[name]:.5f}" for name in ("mean_cosine", "p1_cosine", "min_cosine")),
                f"{row['spearman'] * 100:.2f}" if "spearman" in row else "",
            ]
            for row in result.rows
            if row["contender"] != REFERENCE or "spearman" in row
        ],
    )


def _compare(
    contenders: Sequence[Worker], name: str, texts: Sequence[str], vectors: Mapping[str, Vectors]
) -> list[dict[str, Any]]:
    """One row a contender. Batch dependence is measured on a hundred texts spread over the set."""
    sample = list(range(0, len(texts), max(1, len(texts) // 100)))
    rows = []
    for worker in contenders:
        found = vectors[worker.name]
        alone = np.concatenate([worker.embed([texts[index]]) for index in sample])
        parity = compare(found, vectors[REFERENCE], float(np.abs(alone - found[sample]).max()))
        rows.append({"contender": worker.name, "set": name, **asdict(parity)})
    return rows


def _spearman(pairs: Pairs, texts: list[str], vectors: Vectors) -> float:
    row = {text: index for index, text in enumerate(texts)}
    left = vectors[[row[text] for text in pairs.left]]
    right = vectors[[row[text] for text in pairs.right]]
    return float(spearmanr((left * right).sum(axis=1), pairs.scores).statistic)
