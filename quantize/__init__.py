"""Float32 ONNX to INT8 ONNX, with onnx and onnxruntime alone.

from quantize import quantize
quantize(Path("model.onnx"), Path("model_int8.onnx"), "avx512_vnni")
"""

import os

# onnxruntime's wheels report usage from a thread of their own unless told not to before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from quantize.recipes import DEFAULT_RECIPE, RECIPES, QuantizationError, quantize

__all__ = ["DEFAULT_RECIPE", "RECIPES", "QuantizationError", "quantize"]
