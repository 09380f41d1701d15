"""The dense layers after pooling, as one file of numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from artifact.manifest import Dense
from export import ExportError
from export.config import WEIGHTS, Config


def write_dense(config: Config, target: Path) -> None:
    """Write the numbers of the model's dense layers as `Manifest.dense` has them; nothing if there are none.

    Raises ExportError.
    """
    pairs = zip(config.dense_folders, config.dense, strict=True)
    if numbers := [_numbers(folder / WEIGHTS, layer) for folder, layer in pairs]:
        target.write_bytes(np.concatenate(numbers).astype("<f4").tobytes())


def _numbers(path: Path, layer: Dense) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ExportError(f"cannot read {path}: {error}") from error
    shapes = {"linear.weight": (layer.outputs, layer.inputs)} | (
        {"linear.bias": (layer.outputs,)} if layer.bias else {}
    )
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes:
        raise ExportError(f"{path} has tensors {found}, its configuration says {shapes}")
    weight, *bias = (tensors[name].float().numpy() for name in shapes)
    return np.concatenate([weight.T.ravel(), *bias])
