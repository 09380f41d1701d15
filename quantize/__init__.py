"""Float32 ONNX to INT8 ONNX, with onnx, onnxruntime (its fusion needs sympy), numpy and tokenizers; no torch.

from quantize import quantize
quantize(Path("model.onnx"), Path("model_int8.onnx"), Path("tokenizer.json"))
"""

import os

# onnxruntime's wheels report usage from a thread of their own unless told not to before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from quantize.check import Report
from quantize.errors import QuantizationError
from quantize.per_token import PerTokenRecipe
from quantize.recipes import DEFAULT_RECIPE, RECIPES, quantize

__all__ = [
    "DEFAULT_RECIPE",
    "RECIPES",
    "PerTokenRecipe",
    "QuantizationError",
    "Report",
    "quantize",
]
