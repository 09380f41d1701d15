"""What is compared, each behind one function: texts to vectors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from benchmarks.peers import PaddedEncoder, dynamic_file
from handler.artifact import open_artifact

Vectors: TypeAlias = npt.NDArray[np.float32]
Encode: TypeAlias = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True)
class Contender:
    """One implementation. `min_cosine` to the reference is asserted before its time counts."""

    title: str
    load: Callable[[Path, Path, int], Encode]
    """(artifact's model folder, sentence-transformers folder, threads) to the function that embeds."""
    weights: Callable[[Path, Path], Path]
    """(artifact's model folder, sentence-transformers folder) to the file of weights, made if it is missing."""
    min_cosine: float


def _load_torch(model_folder: Path, source: Path, threads: int) -> Encode:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(str(source), device="cpu", local_files_only=True)

    def encode(texts: Sequence[str]) -> Vectors:
        vectors: Vectors = model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return vectors

    return encode


def _load_ours(precision: str) -> Callable[[Path, Path, int], Encode]:
    def load(model_folder: Path, source: Path, threads: int) -> Encode:
        from handler.embedder import Embedder

        embedder = Embedder.load(model_folder, precision, threads)
        return lambda texts: embedder.embed(texts).vectors

    return load


def _weights_of_ours(precision: str) -> Callable[[Path, Path], Path]:
    return lambda model_folder, source: Path(open_artifact(model_folder).model(precision))


def _load_dynamic(per_channel: bool) -> Callable[[Path, Path, int], Encode]:
    def load(model_folder: Path, source: Path, threads: int) -> Encode:
        artifact = open_artifact(model_folder)
        model = dynamic_file(model_folder, per_channel)
        return PaddedEncoder(model, Path(artifact.tokenizer), artifact.manifest.max_tokens, threads)

    return load


def _weights_of_dynamic(per_channel: bool) -> Callable[[Path, Path], Path]:
    return lambda model_folder, source: dynamic_file(model_folder, per_channel)


REFERENCE = "torch"
CONTENDERS: Mapping[str, Contender] = {
    REFERENCE: Contender(
        "sentence-transformers, torch float32",
        _load_torch,
        lambda model_folder, source: source / "model.safetensors",
        0.9999,
    ),
    "fp32": Contender("this project, ONNX float32", _load_ours("fp32"), _weights_of_ours("fp32"), 0.9999),
    "dynamic_tensor": Contender(
        "optimum dynamic INT8, per tensor", _load_dynamic(False), _weights_of_dynamic(False), 0.7
    ),
    "dynamic_channel": Contender(
        "optimum dynamic INT8, per channel", _load_dynamic(True), _weights_of_dynamic(True), 0.9
    ),
    "int8": Contender("this project, ONNX INT8", _load_ours("int8"), _weights_of_ours("int8"), 0.97),
}
OURS = (REFERENCE, "fp32", "int8")
"""The contenders of benchmarks that compare the project with sentence-transformers alone."""


def limit_threads(threads: int) -> None:
    """Bound the thread pools that read their size from the environment; before numpy, torch or tokenizers load."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
