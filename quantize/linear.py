"""One linear layer in INT8: how its input is scaled, which channels stay float32, how the weights are rounded.

Y = X W + b, X of shape (tokens, in), W of shape (in, out), becomes

    Z = X diag(1/s)              s: smoothing, one factor a channel of the input
    Z_q = clip(round(Z / d) + z, 0, 255)              d, z: one static scale and zero point for the tensor
    Y ~ d (Z_q - z) (W_q diag(r)) + X_o W_o + b'      r: one scale a column; X_o: the few outlier channels in float32

in four steps:

1. Smoothing (Xiao et al., "SmoothQuant", arXiv:2211.10438, eq. 4): s_j = m_j^a / max|W_j|^(1-a) moves range from the
   activations into the weights, m_j the channel's range on calibration text. a = 1 fits that text best; less keeps
   channels that it seldom excites from too narrow a range. After GELU a channel reaches far up and at most 0.17 down,
   and all share one zero point, so its range is m_j = max(max X_j, -h min X_j), h > 1 the headroom above zero: with
   h = 1 a channel that is never positive would ask for as much room below zero as others need above. The range is
   not cut: a finer step for most values was measured to cost more where it cuts than it brings.
2. Outliers (Dettmers et al., "LLM.int8()", arXiv:2208.07339): the channels that would contribute most error stay in
   float32. Their rows of W_q are zero, so what the INT8 product sees of them does not count.
3. Rounding (Frantar et al., "GPTQ", arXiv:2210.17323): weights are rounded one input channel at a time, and each
   rounding error is made good in the channels that are not rounded yet.
4. b' gives each output the mean that it has in the float32 model.

The file must give the same sums on every CPU. x86 without VNNI multiplies unsigned by signed bytes and adds two such
products, of input channels 2i and 2i+1, in 16 bits, where they saturate (onnxruntime's documentation, "Quantize ONNX
models", "U8S8 saturation"; the instruction is VPMADDUBSW). The usual remedy is 7 bits, |W_q| <= 63. But codes are never
negative, so such a sum is at most 255 times the weights of one sign, and it is enough that

    the weights of one sign in a pair add up to at most 128 in magnitude:    255 * 128 = 32640 < 2^15

Large weights seldom meet in a pair, so most columns use nearly all of -127..127: almost a bit more than 63.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]

SHRINKS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)
"""Shares of the scale at which a column just fits that are tried."""
SEARCH_ROWS = 2000
"""Tokens that headrooms are compared on."""


@dataclass(frozen=True)
class Settings:
    """What can be chosen; `python -m benchmarks ablation` measures what each choice brings."""

    strength: float | None = 0.9
    """Smoothing strength a; None for no smoothing."""
    headrooms: tuple[float, ...] = (1, 8)
    """Values of h that are tried."""
    largest: int = 127
    """Bound on a weight's magnitude."""
    largest_pair: int = 128
    """Bound on the sum of two weights of one sign in the input channels 2i and 2i+1."""
    damping: float = 0.01
    """Added to the diagonal for GPTQ's inverse, in units of the mean squared input (the paper's 1 %). Rounding comes
    near to rounding to nearest as it grows."""


@dataclass(frozen=True)
class InputPlan:
    """How the input is quantized."""

    smoothing: Array
    """s, shape (in,)."""
    is_outlier: npt.NDArray[np.bool_]
    """Shape (in,)."""
    scale: np.float32
    """d."""
    zero_point: np.uint8
    """z."""

    def dequantized(self, inputs: Array) -> Array:
        """Z as the INT8 product sees it, shape (tokens, in); outlier channels exact."""
        z = inputs / self.smoothing
        return np.where(self.is_outlier, z, _dequantized(z, self.scale, self.zero_point)).astype(np.float32)


@dataclass(frozen=True)
class QuantizedLinear:
    """A group of linears over one input, their columns side by side."""

    plan: InputPlan
    weight: npt.NDArray[np.int8]
    """W_q, shape (in, out); zero for outlier channels."""
    product_scale: Array
    """d r, shape (out,)."""
    outlier_weight: Array
    """W_o, shape (outliers, out), for inputs without smoothing."""
    bias: Array
    """b', shape (out,)."""
    error: float
    """Root of the squared error of the output on calibration text, its mean aside, over the output's variance."""


def quantize_linear(
    inputs: Array,
    weight: Array,
    bias: Array,
    mean: Array,
    outliers: int,
    settings: Settings,
) -> QuantizedLinear:
    """Quantize one group of linears.

    `inputs` of shape (tokens, in) is what the layer reads in the model quantized so far, `mean` of shape (in,) its
    mean in the float32 model.
    """
    plan = plan_input(inputs, weight, outliers, settings)
    scaled, keep = weight * plan.smoothing[:, None], ~plan.is_outlier
    seen = plan.dequantized(inputs)
    centred: Array = ((seen - seen.mean(axis=0)) * keep).astype(np.float32)
    hessian = centred.T @ centred / np.float32(len(centred))
    codes, scale = round_weights(scaled * keep[:, None], hessian, settings)
    effective = np.where(keep[:, None], codes * scale, scaled).astype(np.float32)
    change = seen @ effective - (inputs / plan.smoothing) @ scaled
    output = inputs @ weight
    return QuantizedLinear(
        plan=plan,
        weight=codes,
        product_scale=(scale * plan.scale).astype(np.float32),
        outlier_weight=weight[plan.is_outlier],
        bias=bias + mean @ weight - seen.mean(axis=0) @ effective,
        error=float(np.sqrt(change.var(axis=0).sum() / output.var(axis=0).sum())),
    )


def plan_input(inputs: Array, weight: Array, outliers: int, settings: Settings) -> InputPlan:
    """Steps 1 and 2, with the headroom that gives the least output error."""
    highest, lowest = np.maximum(inputs.max(axis=0), 0), np.minimum(inputs.min(axis=0), 0)
    sample = inputs[:: max(1, len(inputs) // SEARCH_ROWS)]
    plans: list[tuple[float, InputPlan]] = []
    for headroom in settings.headrooms:
        largest = np.maximum(np.maximum(highest, -headroom * lowest), 1e-5)
        smoothing = _smoothing(largest, weight, settings.strength)
        is_outlier = np.zeros(len(smoothing), bool)
        is_outlier[np.argsort(-largest * np.linalg.norm(weight, axis=1))[:outliers]] = True
        keep = ~is_outlier
        z, scaled = (sample / smoothing)[:, keep], (weight * smoothing[:, None])[keep]
        low, high = (lowest / smoothing)[keep].min(), (highest / smoothing)[keep].max()
        scale = np.float32(max(high - low, 1e-8) / 255)
        zero_point = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
        error = float((((_dequantized(z, scale, zero_point) - z) @ scaled) ** 2).sum())
        plans.append((error, InputPlan(smoothing, is_outlier, scale, zero_point)))
    return min(plans, key=lambda found: found[0])[1]


def round_weights(weight: Array, hessian: Array, settings: Settings) -> tuple[npt.NDArray[np.int8], Array64]:
    """Step 3: int8 weights that saturate no CPU's sums, and one scale a column, for inputs with X^T X / n = `hessian`.

    `weight` has shape (in, out), `hessian` (in, in); returns shapes (in, out) and (out,).
    """
    size = len(weight)
    partner = np.arange(size) ^ 1
    partner[partner == size] = size - 1  # the last of an odd number is by itself
    scale = _column_scales(weight, np.diag(hessian), partner, settings)
    damped = hessian.astype(np.float64) + np.eye(size) * (settings.damping * np.diag(hessian).mean() + 1e-12)
    order = np.argsort(-np.diag(damped))  # what matters most is rounded while all others can still make good for it
    partner = np.argsort(order)[partner[order]]
    inverse = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left, codes = (weight[order] / scale).astype(np.float64), np.zeros(weight.shape)
    block = 64
    for start in range(0, size, block):
        stop = min(start + block, size)
        errors = np.zeros((stop - start, weight.shape[1]))
        for row in range(start, stop):
            other = partner[row]
            if other < row:
                room = settings.largest_pair
                wanted = np.clip(left[row], -room - np.minimum(codes[other], 0), room - np.maximum(codes[other], 0))
            elif other > row:
                wanted = _shared(left[row], left[other], settings)
            else:
                wanted = left[row]
            codes[row] = np.rint(np.clip(wanted, -settings.largest, settings.largest))
            errors[row - start] = (left[row] - codes[row]) / inverse[row, row]
            left[row + 1 : stop] -= np.outer(inverse[row, row + 1 : stop], errors[row - start])
        left[stop:] -= inverse[start:stop, stop:].T @ errors
    return codes[np.argsort(order)].astype(np.int8), scale


def _column_scales(weight: Array, importance: Array, partner: npt.NDArray[np.int64], settings: Settings) -> Array64:
    """For each column the scale with the least weighted squared error among shares of the one at which it just fits."""
    other = np.where((partner == np.arange(len(partner)))[:, None], 0, weight[partner])
    pair = np.where(weight * other > 0, np.abs(weight + other), 0)
    full = np.maximum(np.abs(weight).max(axis=0) / settings.largest, pair.max(axis=0) / settings.largest_pair)
    full = np.maximum(full, 1e-12).astype(np.float64)
    errors, scales = [], []
    for share in SHRINKS:
        scale = full * share
        scales.append(scale)
        wanted = _shared(weight / scale, other / scale, settings)
        codes = np.clip(np.rint(wanted), -settings.largest, settings.largest)
        errors.append(((codes * scale - weight) ** 2 * importance[:, None]).sum(axis=0))
    chosen: Array64 = np.take_along_axis(np.array(scales), np.argmin(errors, axis=0)[None], axis=0)[0]
    return chosen


def _shared(one: Array64, other: Array64, settings: Settings) -> Array64:
    """`one` without its half of what both, if of one sign, have beyond the bound for pairs."""
    over = np.maximum(np.abs(one + other) - settings.largest_pair, 0) / 2
    return np.where(one * other > 0, one - np.sign(one) * over, one)


def _smoothing(largest: Array, weight: Array, strength: float | None) -> Array:
    if strength is None:
        return np.ones_like(largest)
    factors = largest**strength / np.maximum(np.abs(weight).max(axis=1), 1e-5) ** (1 - strength)
    scaled: Array = factors / np.exp(np.log(factors).mean())
    return scaled


def _dequantized(z: Array, scale: np.float32, zero_point: np.uint8) -> Array:
    zero = np.float32(zero_point)
    found: Array = (np.clip(np.rint(z / scale) + zero, 0, 255) - zero) * scale
    return found
