"""Float32 ONNX to INT8 ONNX, with onnx, onnxruntime, numpy and tokenizers; no torch.

from quantize import Calibration, quantize
quantize(Path("model.onnx"), Path("model_int8.onnx"), "static", Calibration(Path("tokenizer.json"), max_tokens=256))
"""

import os

# onnxruntime's wheels report usage from a thread of their own unless told not to before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from quantize.calibration import OWN_TEXTS, Calibration, read_texts
from quantize.check import Report
from quantize.errors import QuantizationError
from quantize.linear import Settings
from quantize.recipes import DEFAULT_RECIPE, RECIPES, quantize
from quantize.static import StaticRecipe

__all__ = [
    "DEFAULT_RECIPE",
    "OWN_TEXTS",
    "RECIPES",
    "Calibration",
    "QuantizationError",
    "Report",
    "Settings",
    "StaticRecipe",
    "quantize",
    "read_texts",
]
