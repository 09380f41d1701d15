"""The recipes by name, and the one function that applies one to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from quantize.calibration import Calibration
from quantize.dynamic import DynamicRecipe
from quantize.errors import QuantizationError
from quantize.static import Advance, StaticRecipe

RECIPES: Mapping[str, StaticRecipe | DynamicRecipe] = {
    "static": StaticRecipe(),
    # Named for the CPUs and with the values of optimum's presets (optimum.onnxruntime.AutoQuantizationConfig).
    "avx2": DynamicRecipe(signed_weights=False),
    "avx512_vnni": DynamicRecipe(signed_weights=True),
    "arm64": DynamicRecipe(signed_weights=True),
}

DEFAULT_RECIPE = "static"


def _silent(done: int, total: int) -> None:
    """Show no progress."""


def quantize(
    source: Path,
    target: Path,
    recipe: str = DEFAULT_RECIPE,
    calibration: Calibration | None = None,
    advance: Advance = _silent,
) -> dict[str, float]:
    """Write the INT8 form of the float32 ONNX file `source` to `target`, whole or not at all.

    `calibration` is for the static recipe; `advance` is called with the layers done and their number. Returns the
    output error of each linear on calibration text, relative to the output's deviation; empty for dynamic recipes.
    Raises QuantizationError if the recipe is unknown, `source` is not an ONNX model, has nothing to quantize, or the
    calibration cannot be read.
    """
    if recipe not in RECIPES:
        raise QuantizationError(f"no recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    _check_model(source)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        errors = RECIPES[recipe].apply(source, partial, calibration, advance)
        partial.replace(target)
        return errors
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
