"""Dynamic quantization: INT8 weights, and activations quantized at run time with one scale per tensor.

For a linear layer Y = X W with X of shape (batch x length, in) and W of shape (in, out):

    W_q[:, j] = round(W[:, j] / s_j),  s_j = max|W[:, j]| / 127      one scale per output channel, once
    X_q = round(X / s) + z,            s = (max X - min X) / 255     one scale and zero point per run
    Y[:, j] = (X_q - z) W_q[:, j] * s * s_j                          the product is exact in int32

Since s and z come from every token of a run, a text's vector depends on the texts it runs with ("expected",
microsoft/onnxruntime#10111). Such a model is embedded one text at a time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.registry import IntegerOpsRegistry

from quantize.errors import QuantizationError

OPERATORS = sorted(set(IntegerOpsRegistry) - {"Attention"})
"""All that onnxruntime quantizes but its own Attention, with which it confuses ONNX's (opset 23). No file that is
quantized here has onnxruntime's own."""


@dataclass(frozen=True)
class DynamicRecipe:
    """onnxruntime's `quantize_dynamic`, per output channel, over every operator that it can quantize."""

    signed_weights: bool
    """int8 instead of uint8 weights: exact and fast on VNNI and ARM. On x86 without VNNI the 16-bit sums of uint8
    x int8 products saturate (onnxruntime's documentation, "Quantize ONNX models", "U8S8 saturation")."""

    batch_independent = False
    operators = 0
    optimized = False
    min_cosine = 0.98
    """Mean cosine to float32 below which something went wrong."""

    def apply(self, source: Path, target: Path, pieces: object, advance: object) -> None:
        """Quantize the ONNX file `source` into `target`.

        Raises QuantizationError.
        """
        logging.disable(logging.WARNING)  # onnxruntime advises on preprocessing, which changes nothing in these graphs
        try:
            self._quantize(source, target)
        except OSError:
            raise  # about `target`
        except Exception as error:  # onnxruntime raises any kind of error on a graph that it does not foresee
            raise QuantizationError(
                f"{source} stops onnxruntime's quantize_dynamic ({error!r}): export it with optimum"
            ) from error
        finally:
            logging.disable(logging.NOTSET)

    def _quantize(self, source: Path, target: Path) -> None:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=OPERATORS,
            per_channel=True,
            reduce_range=False,
            weight_type=QuantType.QInt8 if self.signed_weights else QuantType.QUInt8,
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
        )
