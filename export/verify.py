"""The artifact's vectors, through the handler's own code, against sentence-transformers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from artifact.manifest import Artifact, Parity, Precision
from export import ExportError
from export.texts import EXTREME, VERIFICATION_TEXTS
from export.words import forms, spread, words
from handler.embedder import Embedder

Vectors: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Bar:
    """What an artifact must reach on `gate_texts` to be installed."""

    mean_cosine: float
    min_cosine: float


FLOAT32 = Bar(mean_cosine=0.99999, min_cosine=0.99999)
"""Float32 differs from torch by rounding alone."""
BATCH_INDEPENDENT = Bar(mean_cosine=0.999, min_cosine=0.995)
"""Minimum cosine of each text by itself. No text may be served badly, so the minimum is what counts."""
BATCH_DEPENDENT = Bar(mean_cosine=0.985, min_cosine=0.93)
"""What the dynamic recipes reach."""

WORDS = ("nods", "playoff", ".", "2", "^")
"""Words that got bad vectors with fixed ranges; others are spread over the vocabulary."""
SPREAD = 43
"""Number of the others. A word in all its forms has 273 tokens."""


def gate_texts(tokenizer: Path) -> list[str]:
    """What an artifact must reproduce to be installed: the verification texts, the extreme ones, and a fixed sample of
    the words of a tokenizer.json in all their forms."""
    reader = Tokenizer.from_file(str(tokenizer))
    reader.no_padding()
    sample = [*WORDS, *spread(words(reader), SPREAD)]
    return list(dict.fromkeys([*VERIFICATION_TEXTS, *EXTREME, *(text for word in sample for text in forms(word))]))


def bar_of(precision: Precision) -> Bar:
    """The bar for a file, by the way it was made."""
    if precision.recipe is None:
        return FLOAT32
    return BATCH_INDEPENDENT if precision.batch_independent else BATCH_DEPENDENT


def reference_vectors(source: Path, texts: Sequence[str], max_tokens: int) -> Vectors:
    """Vectors of sentence-transformers on CPU: float32, shape (n, dimensions), with the model's default prompt if any.

    `max_tokens` is set, since sentence-transformers may allow more than the model has positions for.
    Raises ExportError if the model cannot be loaded.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    _find_modules_of_version_6()
    try:
        model = SentenceTransformer(
            str(source), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
        )
    except Exception as error:  # whatever its files lead to
        raise ExportError(f"sentence-transformers cannot load {source}: {error}") from error
    model.max_seq_length = max_tokens
    vectors: Vectors = model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
    return vectors


def _find_modules_of_version_6() -> None:
    """Let version 5 of sentence-transformers find the one module of these models that 6 keeps elsewhere."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    name = "sentence_transformers.base.modules.normalize"
    if name not in sys.modules and find_spec(name) is None:
        sys.modules[name] = sys.modules[Normalize.__module__]


def verify(
    artifact: Artifact, precision: str, texts: Sequence[str], reference: Vectors, advance: Callable[[int, int], None]
) -> Parity:
    """Embed every text alone and all together, and compare with the reference.

    `advance` is called with the number of texts done and of all texts.
    Raises ExportError if the result is below the precision's bar.
    """
    embedder = Embedder.from_artifact(artifact, precision)
    if reference.shape[1] != artifact.manifest.dimensions:
        raise ExportError(
            f"sentence-transformers gives {reference.shape[1]} dimensions, the model's files say "
            f"{artifact.manifest.dimensions}: mend its configuration"
        )
    alone = np.empty_like(reference)
    for row, text in enumerate(texts):
        alone[row] = embedder.embed([text]).vectors[0]
        advance(row + 1, len(texts))
    together = embedder.embed(texts).vectors
    parity = compare(alone, reference, batch_difference=float(np.abs(together - alone).max()))
    bar = bar_of(artifact.manifest.precisions[precision])
    if not (parity.mean_cosine >= bar.mean_cosine and parity.min_cosine >= bar.min_cosine):
        worst = texts[int(cosines(alone, reference).argmin())]
        raise ExportError(
            f"{precision} does not reproduce the model: cosine mean {parity.mean_cosine:.6f} and minimum "
            f"{parity.min_cosine:.6f}, needed are {bar.mean_cosine} and {bar.min_cosine}; worst text: {worst[:80]!a}"
        )
    return parity


def compare(vectors: Vectors, reference: Vectors, batch_difference: float) -> Parity:
    """Parity figures of vectors of shape (n, dimensions), row by row."""
    found = cosines(vectors, reference)
    return Parity(
        texts=len(found),
        mean_cosine=float(found.mean()),
        p1_cosine=float(np.quantile(found, 0.01)),
        min_cosine=float(found.min()),
        max_abs_difference=float(np.abs(vectors - reference).max()),
        batch_difference=batch_difference,
    )


def cosines(left: Vectors, right: Vectors) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Cosine of each pair of rows, computed in float64."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    found: np.ndarray[tuple[int], np.dtype[np.float64]] = (a * b).sum(axis=1) / (
        np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    )
    return found
