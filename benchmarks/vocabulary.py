"""Every word of the vocabulary in all its forms: the lowest cosines are of what is served worst.

These are some six million tokens, so that only this project's INT8 is compared, and with this project's float32
instead of sentence-transformers, which takes much longer. The two agree to 1e-6 on every other set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from artifact.manifest import open_artifact
from benchmarks.results import Figures
from benchmarks.worker import Worker
from export.verify import cosines
from export.words import FORMS, spread, words
from handler.embedder import load_tokenizer

SET = "vocabulary"
EXACT, MEASURED = "fp32", "int8"
"""The contenders that are compared."""
AT_ONCE = 256
"""Words of which vectors are held in memory; 64,000 tokens where each stands 250 times."""
LOWEST = 5


def words_of(model_folder: Path, count: int | None) -> list[str]:
    """The words of the artifact's vocabulary, or a fixed sample of that many."""
    found = words(load_tokenizer(open_artifact(model_folder)))
    return found if count is None else spread(found, count)


def steps(vocabulary: Sequence[str]) -> int:
    """How often `measure` calls `advance`."""
    return len(FORMS) * len(list(_parts(vocabulary)))


def measure(contenders: Sequence[Worker], vocabulary: Sequence[str], advance: Callable[[], None]) -> list[Any]:
    """One row a form: statistics of the cosines, and the words with the lowest."""
    by_name = {worker.name: worker for worker in contenders}
    rows = []
    for form, text_of in FORMS.items():
        parts = []
        for part in _parts(vocabulary):
            texts = [text_of(word) for word in part]
            parts.append(cosines(by_name[MEASURED].embed(texts), by_name[EXACT].embed(texts)))
            advance()
        rows.append({"contender": MEASURED, "set": SET, "form": form, **_statistics(vocabulary, np.concatenate(parts))})
    return rows


def figures(rows: Sequence[Mapping[str, Any]]) -> Figures:
    """The table of what `measure` gave."""
    return Figures(
        f"Quality on {rows[0]['texts']:,} words of the vocabulary, each in {len(rows)} forms: cosine of this project's "
        "INT8 to its own float32, which equals sentence-transformers' to 1e-6, and the words with the lowest",
        ["", "mean", "1st percentile", "minimum", "lowest"],
        [
            [
                row["form"],
                *(f"{row[name]:.5f}" for name in ("mean_cosine", "p1_cosine", "min_cosine")),
                ", ".join(f"{_code(worst['word'])} {worst['cosine']:.4f}" for worst in row["lowest"]),
            ]
            for row in rows
        ],
    )


def _parts(vocabulary: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(vocabulary), AT_ONCE):
        yield vocabulary[start : start + AT_ONCE]


def _statistics(vocabulary: Sequence[str], found: npt.NDArray[np.float64]) -> dict[str, Any]:
    lowest = np.argsort(found, kind="stable")[:LOWEST].tolist()
    return {
        "texts": len(found),
        "mean_cosine": float(found.mean()),
        "p1_cosine": float(np.quantile(found, 0.01)),
        "min_cosine": float(found.min()),
        "lowest": [{"word": vocabulary[index], "cosine": float(found[index])} for index in lowest],
    }


def _code(word: str) -> str:
    r"""A word as it stands in a Markdown table.

    >>> print(_code("nods"), _code("|"), _code("`"))
    `nods` `\|` `` ` ``
    """
    return "`` ` ``" if word == "`" else f"`{word}`".replace("|", r"\|")
