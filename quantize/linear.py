"""One linear layer in INT8: how its input is scaled, which channels stay float32, how the weights are rounded.

Y = X W + b, X of shape (tokens, in), W of shape (in, out), becomes

    Z = X diag(1/s)                                     s: smoothing, one factor a channel of the input
    Z_q = round((Z - l) / d)                            l, d: lowest value and scale of each token, found at run time
    Y ~ d Z_q (W_q diag(r)) + l (1 W_q diag(r)) + X_o W_o + b       r: one scale a column; X_o: the outlier channels

1. Outliers (Dettmers et al., "LLM.int8()", arXiv:2208.07339): a token's codes share one scale, so the channels that
   reach farthest, and would make it coarse for all others, stay in float32. Their rows of W_q are zero.
2. Smoothing (Xiao et al., "SmoothQuant", arXiv:2211.10438, eq. 4 with a = 1/2): s_j = sqrt(m_j / max|W_j|), m_j the
   channel's largest magnitude seen. It makes the ranges of activations and of weights equal, channel by channel. No
   range is fixed by it: a value beyond m_j makes its token's scale larger, and is not cut.
3. W_q = W diag(s) / r, with the smallest r with which the column fits, rounded so that errors compensate one another
   (rounding.py).

The file must give the same sums on every CPU. x86 without VNNI multiplies unsigned by signed bytes and adds two such
products in 16 bits, where they saturate (onnxruntime's documentation, "Quantize ONNX models", "U8S8 saturation"; the
instruction is VPMADDUBSW), and it is faster by a fifth if two such sums can be added before they are widened
(kernels/avx2.c). The usual remedy is 7 bits, |W_q| <= 63, for pairs, which for fours would be 6. But codes are never
negative, so such a sum is at most the largest code times the weights of one sign, and it is enough that

    codes are at most 191, and the weights of one sign in a four add up to at most 171:    191 * 171 = 32661 < 2^15

Large weights seldom meet in a four, so most columns use nearly all of -127..127. With larger codes and smaller sums
activations would be finer and weights coarser, and weights' errors, which are the same in every token, are the ones
that do not average out.

The file must also have the same bytes whichever machine makes it. So weights come only from maxima and from IEEE 754's
operations on single elements: no sum in a library's order, unless it is exact in any order (rounding.py), and no
function that libraries approximate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantize.rounding import round_to_nearest, round_weights

Array = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]

SMALLEST = np.float32(1e-5)
"""Smallest range that is divided by."""


@dataclass(frozen=True)
class QuantizedLinear:
    """A group of linears over one input, their columns side by side."""

    factor: Array
    """1/s, shape (in,); 0 for outlier channels."""
    outliers: npt.NDArray[np.int64]
    """The outlier channels, shape (outliers,)."""
    weight: npt.NDArray[np.int8]
    """W_q, shape (in, out)."""
    scale: Array
    """r, shape (out,)."""
    bias: Array
    """b, shape (out,)."""
    outlier_weight: Array
    """W_o, shape (outliers, out)."""


def quantize_linear(
    weight: Array,
    bias: Array,
    smoothing: Array,
    outliers: npt.NDArray[np.int64],
    products: Array64 | None,
) -> QuantizedLinear:
    """Quantize one group of linears.

    `weight` has shape (in, out), `bias` (out,), `smoothing` (in,); `products` is X^T X of inputs, shape (in, in), to
    compensate rounding errors with, or None.
    """
    factor = np.float32(1) / smoothing
    factor[outliers] = 0
    scaled = weight * smoothing[:, None]
    scaled[outliers] = 0
    if products is None:
        codes, scale = round_to_nearest(scaled)
    else:
        products = products.copy()
        products[outliers], products[:, outliers] = 0, 0  # or their rows would compensate for others
        codes, scale = round_weights(scaled, products, smoothing)
    return QuantizedLinear(factor, outliers, codes, scale, bias, outlier_weight=weight[outliers])


def outlier_channels(largest: Array, weight: Array, count: int) -> npt.NDArray[np.int64]:
    """The `count` channels, in order, whose largest magnitudes, shape (in,), and weights can contribute most."""
    reach = largest.astype(np.float64) ** 2 * row_sums(weight.astype(np.float64) ** 2)
    return np.sort(np.argsort(-reach, kind="stable")[:count])


def smoothing_factors(largest: Array, weight: Array) -> Array:
    """s, shape (in,), of channels with these largest magnitudes."""
    found: Array = np.sqrt(np.maximum(largest, SMALLEST) / np.maximum(np.abs(weight).max(axis=1), SMALLEST))
    return found


def row_sums(values: Array64) -> Array64:
    """Sums of rows, by adding one half to the other until one is left: the same order everywhere."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        odd = values[:, 2 * half :]
        values = np.concatenate([values[:, :half] + values[:, half : 2 * half], odd], axis=1)
    return values[:, 0]
