"""Whether a model fits its tokenizer, and how near the quantized file is to it, on pieces of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantize.errors import QuantizationError
from quantize.session import feed, open_session, run

Array64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Report:
    """Cosines of the mean-pooled last hidden states to those of the float32 file."""

    texts: int
    mean_cosine: float
    min_cosine: float

    def __str__(self) -> str:
        figures = f"mean {self.mean_cosine:.5f}, minimum {self.min_cosine:.5f}"
        return f"cosine to float32 on {self.texts} pieces of the vocabulary: {figures}"


def check_fits(source: Path, tokenizer: Path, pieces: Sequence[Sequence[int]]) -> None:
    """Raise QuantizationError if a model has no place for a token of the vocabulary, or for all of the longest text."""
    session = open_session(source)
    names = [session.get_outputs()[0].name]
    highest, longest = max(map(max, pieces)), max(map(len, pieces))
    for ids, problem in (
        ([highest], f"has no token {highest}, which {tokenizer} has: name its own tokenizer.json with --tokenizer"),
        ([pieces[0][0]] * longest, f"takes no text of {longest} tokens: name its own maximum with --max-tokens"),
    ):
        try:
            run(session, names, feed([ids]))
        except Exception as error:  # onnxruntime's errors have no class in common but this
            raise QuantizationError(f"{source} {problem}") from error


def report(source: Path, target: Path, pieces: Sequence[Sequence[int]]) -> Report:
    """Compare the two files on texts of token ids, each by itself."""
    pooled = [_pooled(path, pieces) for path in (source, target)]
    lengths = [np.linalg.norm(vectors, axis=1) for vectors in pooled]
    cosines = (pooled[0] * pooled[1]).sum(axis=1) / (lengths[0] * lengths[1])
    return Report(len(pieces), float(cosines.mean()), float(cosines.min()))


def _pooled(path: Path, pieces: Sequence[Sequence[int]]) -> Array64:
    session = open_session(path)
    name = session.get_outputs()[0].name
    return np.array([run(session, [name], feed([piece]))[0][0].mean(axis=0, dtype=np.float64) for piece in pieces])
