"""What is compared, each behind one function: texts to vectors."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from artifact.manifest import open_artifact
from benchmarks.peers import (
    BATCH,
    Hidden,
    PaddedEncoder,
    ctranslate2_folder,
    ctranslate2_hidden,
    dynamic_file,
    fastembed_model,
    float32_folder,
    in_batches,
    onnx_hidden,
    openvino_file,
    openvino_genai_folder,
    openvino_genai_model,
    openvino_hidden,
    session_options,
    torch_int8,
    torch_int8_file,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

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
    packages: Sequence[str] = ()
    """Packages of the extra `peers` that it needs, by the names they are imported by."""


def _load_torch(model_folder: Path, source: Path, threads: int) -> Encode:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    return _encode_of(SentenceTransformer(str(source), device="cpu", local_files_only=True))


def _load_torch_int8(model_folder: Path, source: Path, threads: int) -> Encode:
    import torch

    torch.set_num_threads(threads)
    return _encode_of(torch_int8(source))


def _load_st_onnx(model_folder: Path, source: Path, threads: int) -> Encode:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)  # it pools in torch
    settings = {"provider": "CPUExecutionProvider", "file_name": "model.onnx"}
    return _encode_of(
        SentenceTransformer(
            str(float32_folder(model_folder, source)),
            device="cpu",
            backend="onnx",
            local_files_only=True,
            model_kwargs={**settings, "session_options": session_options(threads)},
        )
    )


def _encode_of(model: SentenceTransformer) -> Encode:
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
        return _padded(model_folder, onnx_hidden(dynamic_file(model_folder, per_channel), threads))

    return load


def _load_openvino(model_folder: Path, source: Path, threads: int) -> Encode:
    return _padded(model_folder, openvino_hidden(openvino_file(model_folder), threads))


def _load_openvino_genai(model_folder: Path, source: Path, threads: int) -> Encode:
    limit = open_artifact(model_folder).manifest.max_tokens
    embed = openvino_genai_model(openvino_genai_folder(model_folder, source), threads, limit)
    return lambda texts: in_batches(embed, texts)


def _load_ctranslate2(model_folder: Path, source: Path, threads: int) -> Encode:
    return _padded(model_folder, ctranslate2_hidden(ctranslate2_folder(model_folder, source), threads))


def _padded(model_folder: Path, hidden: Hidden) -> Encode:
    artifact = open_artifact(model_folder)
    return PaddedEncoder(hidden, Path(artifact.tokenizer), artifact.manifest.max_tokens)


def _load_fastembed(model_folder: Path, source: Path, threads: int) -> Encode:
    # Its tokenizer and pooling are right with the folder's tokenizer_config.json, see there. It does not sort texts by
    # length, so that its own batches of 256 would pad a mixed corpus more than the batches that all others have.
    model = fastembed_model(float32_folder(model_folder, source), threads)
    return lambda texts: np.array(list(model.embed(list(texts), batch_size=BATCH)))


def _weights_of_dynamic(per_channel: bool) -> Callable[[Path, Path], Path]:
    return lambda model_folder, source: dynamic_file(model_folder, per_channel)


def _weights_of_float32(model_folder: Path, source: Path) -> Path:
    return float32_folder(model_folder, source) / "onnx" / "model.onnx"


REFERENCE = "torch"
CONTENDERS: Mapping[str, Contender] = {
    REFERENCE: Contender(
        "sentence-transformers, torch float32",
        _load_torch,
        lambda model_folder, source: source / "model.safetensors",
        0.9999,
    ),
    "torch_int8": Contender("sentence-transformers, torch dynamic INT8", _load_torch_int8, torch_int8_file, 0.5),
    "st_onnx": Contender("sentence-transformers, ONNX float32", _load_st_onnx, _weights_of_float32, 0.9999),
    "fastembed": Contender("fastembed, ONNX float32", _load_fastembed, _weights_of_float32, 0.9999, ("fastembed",)),
    "fp32": Contender("this project, ONNX float32", _load_ours("fp32"), _weights_of_ours("fp32"), 0.9999),
    "dynamic_tensor": Contender(
        "optimum dynamic INT8, per tensor", _load_dynamic(False), _weights_of_dynamic(False), 0.7
    ),
    "dynamic_channel": Contender(
        "optimum dynamic INT8, per channel", _load_dynamic(True), _weights_of_dynamic(True), 0.9
    ),
    "openvino_int8": Contender(
        "OpenVINO, NNCF static INT8",
        _load_openvino,
        lambda model_folder, source: openvino_file(model_folder).with_suffix(".bin"),
        0.9,
        ("openvino", "nncf"),
    ),
    "openvino_genai": Contender(
        "OpenVINO GenAI, the same file",
        _load_openvino_genai,
        lambda model_folder, source: openvino_genai_folder(model_folder, source) / "openvino_model.bin",
        0.7,  # its own tokenizer splits odd text otherwise
        ("openvino", "nncf", "openvino_genai", "openvino_tokenizers"),
    ),
    "ctranslate2": Contender(
        "CTranslate2 INT8",
        _load_ctranslate2,
        lambda model_folder, source: ctranslate2_folder(model_folder, source) / "model.bin",
        0.9,
        ("ctranslate2",),
    ),
    "int8": Contender("this project, ONNX INT8", _load_ours("int8"), _weights_of_ours("int8"), 0.99),
}
OURS = (REFERENCE, "fp32", "int8")
"""The contenders of benchmarks that compare the project with sentence-transformers alone."""


def missing(name: str) -> str | None:
    """Which packages a contender lacks and the command that installs them, or None if it has all."""
    absent = [package for package in CONTENDERS[name].packages if importlib.util.find_spec(package) is None]
    if not absent:
        return None
    verb, pronoun = ("is", "it") if len(absent) == 1 else ("are", "them")
    return f"{name} is left out: {' and '.join(absent)} {verb} missing, install {pronoun} with: pip install '.[peers]'"


@cache
def available() -> Sequence[str]:
    """The contenders that have their packages. The first call says on stderr what the others lack."""
    for line in filter(None, map(missing, CONTENDERS)):
        print(f"benchmarks: {line}", file=sys.stderr)
    return tuple(name for name in CONTENDERS if missing(name) is None)


def limit_threads(threads: int) -> None:
    """Bound the thread pools that read their size from the environment; before numpy, torch or tokenizers load."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
