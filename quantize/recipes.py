"""The recipes by name, and the one function that applies one to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from quantize.dynamic import DynamicRecipe

RECIPES: Mapping[str, DynamicRecipe] = {
    "avx2": DynamicRecipe(signed_weights=False),
    "avx512_vnni": DynamicRecipe(signed_weights=True),
    "arm64": DynamicRecipe(signed_weights=True),
}
"""Named for the CPUs and with the values of optimum's presets (`optimum.onnxruntime.AutoQuantizationConfig`)."""

DEFAULT_RECIPE = "avx512_vnni"


class QuantizationError(Exception):
    """The model cannot be quantized; the message says why and what to do."""


def quantize(source: Path, target: Path, recipe: str = DEFAULT_RECIPE) -> None:
    """Write the INT8 form of the float32 ONNX file `source` to `target`, whole or not at all.

    Raises QuantizationError if the recipe is unknown, `source` is not an ONNX model, or it has nothing to quantize.
    """
    if recipe not in RECIPES:
        raise QuantizationError(f"no recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    _check_model(source)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        RECIPES[recipe].apply(source, partial)
        partial.replace(target)
    except OSError as error:
        raise QuantizationError(f"cannot write {target}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _check_model(source: Path) -> None:
    try:
        model = onnx.load(source)
    except OSError as error:
        raise QuantizationError(f"cannot read {source}: {error.strerror}") from error
    except DecodeError as error:
        raise QuantizationError(f"{source} is not an ONNX model: {error}") from error
    operators = {node.op_type for node in model.graph.node}
    if "DynamicQuantizeLinear" in operators or "QuantizeLinear" in operators:
        raise QuantizationError(f"{source} is quantized already: start from the float32 model")
    if "MatMul" not in operators:
        raise QuantizationError(f"{source} has no MatMul to quantize: is it a transformer's model.onnx?")
