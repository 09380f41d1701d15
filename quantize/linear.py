"""One linear layer in INT8: which channels stay float32, how the rest is scaled, how the weights are rounded.

Y = X W + b, X of shape (tokens, in), W of shape (in, out), becomes

    Z = X diag(1/s)              s: smoothing, one factor a channel of the input
    Z_q = clip(round(Z / d) + z, 0, 255)              d, z: one static scale and zero point for the tensor
    Y ~ d (Z_q - z) (W_q diag(r)) + X_o W_o + b'      r: one scale a column; X_o: the few outlier channels in float32

in four steps, each against the output error on calibration text:

1. Smoothing (Xiao et al., "SmoothQuant", arXiv:2211.10438, eq. 4): s_j = max|X_j|^a / max|W_j|^(1-a) moves range from
   the activations into the weights; a is chosen for the layer.
2. Outliers (Dettmers et al., "LLM.int8()", arXiv:2208.07339): the channels that would contribute most error stay in
   float32. The channel keeps its place in Z with a factor of zero, so the INT8 product needs no second copy of X.
3. Correction: W is fitted again so that the layer's output from the quantized input, which carries the errors of all
   layers before, comes near to the float32 model's output: ridge regression towards W.
4. Rounding (Frantar et al., "GPTQ", arXiv:2210.17323): weights are rounded one input channel at a time, and each
   rounding error is made good in the channels that are not rounded yet.

W_q stays within +-63: x86 without VNNI adds two products of 8 bits in 16, and 255 * 63 * 2 < 32768 while 255 * 127 * 2
is not (onnxruntime's documentation, "Quantize ONNX models", "U8S8 saturation"). So one file gives the same sums on
every CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]

WEIGHT_LEVELS = 63
STRENGTHS = (0.6, 0.75, 0.9)
"""Smoothing strengths a that are tried."""
CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of the observed range that are tried: rare extremes may be cut for a finer step."""
SHRINKS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)
"""Shares of a weight column's range that are tried."""
RIDGE = 0.2
"""Weight of staying near W in the correction, in units of the mean squared input."""
DAMPING = 0.01
"""Added to the diagonal for GPTQ's inverse, in the same units (the paper's 1 %)."""
WEIGHT_ERROR_SHARE = 0.35
"""What steps 3 and 4 leave of the weights' rounding error, for comparing strengths in step 1."""
SEARCH_ROWS = 2000


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
        zero = np.float32(self.zero_point)
        found = (np.clip(np.rint(z / self.scale) + zero, 0, 255) - zero) * self.scale
        return np.where(self.is_outlier, z, found).astype(np.float32)


@dataclass(frozen=True)
class QuantizedLinear:
    """A group of linears over one input, their columns side by side."""

    plan: InputPlan
    weight: npt.NDArray[np.int8]
    """W_q, shape (in, out); zero for outlier channels."""
    weight_scale: Array
    """r, shape (out,)."""
    outlier_weight: Array
    """W_o, shape (outliers, out), for inputs without smoothing."""
    bias: Array
    """b', shape (out,)."""
    error: float
    """Root of the squared output error on calibration text over the output's variance."""


def quantize_linear(exact: Array, inputs: Array, weight: Array, bias: Array, outliers: int) -> QuantizedLinear:
    """Quantize one group of linears.

    `exact` and `inputs`, both (tokens, in), are the layer's input in the float32 model and in the model quantized so
    far. The result maps `inputs` to nearly what the layer makes of `exact`.
    """
    target = exact @ weight + bias
    plan = plan_input(inputs, weight, outliers)
    seen = plan.dequantized(inputs)
    fitted, keep = _fit(seen, target, weight * plan.smoothing[:, None]), ~plan.is_outlier
    centred = seen[:, keep] - seen[:, keep].mean(axis=0)
    rounded, scale = round_weights(fitted[keep], (centred.T @ centred / len(centred)).astype(np.float64))
    whole = np.zeros(weight.shape, np.int8)
    whole[keep] = rounded
    found = seen[:, keep] @ (rounded * scale) + seen[:, ~keep] @ fitted[~keep].astype(np.float32)
    corrected = (target - found).mean(axis=0)
    return QuantizedLinear(
        plan=plan,
        weight=whole,
        weight_scale=scale,
        outlier_weight=(fitted[~keep] / plan.smoothing[~keep, None]).astype(np.float32),
        bias=corrected.astype(np.float32),
        error=float(np.sqrt(((found + corrected - target) ** 2).sum() / ((target - target.mean(axis=0)) ** 2).sum())),
    )


def plan_input(inputs: Array, weight: Array, outliers: int) -> InputPlan:
    """Steps 1 and 2: the strength, the outliers and the range with the least output error."""
    highest, lowest = np.maximum(inputs.max(axis=0), 0), np.minimum(inputs.min(axis=0), 0)
    largest = np.maximum(np.maximum(highest, -lowest), 1e-5)
    sample = inputs[:: max(1, len(inputs) // SEARCH_ROWS)]
    best: tuple[float, InputPlan] | None = None
    for strength in STRENGTHS:
        smoothing = largest**strength / np.maximum(np.abs(weight).max(axis=1), 1e-5) ** (1 - strength)
        smoothing /= np.exp(np.log(smoothing).mean())
        scaled = weight * smoothing[:, None]
        is_outlier = np.zeros(len(smoothing), bool)
        contribution = (largest / smoothing) ** 2 * (scaled**2).sum(axis=1)
        is_outlier[np.argsort(-contribution)[:outliers]] = True
        z, scaled = (sample / smoothing)[:, ~is_outlier], scaled[~is_outlier]
        rounding = WEIGHT_ERROR_SHARE * ((z @ (_round_to_nearest(scaled) - scaled)) ** 2).sum()
        low, high = (lowest / smoothing)[~is_outlier].min(), (highest / smoothing)[~is_outlier].max()
        for clip in CLIPS:
            # A one-sided input (after GELU) is cut on its long side alone.
            cut_low = low if low > -0.3 * high else low * clip
            scale = np.float32(max(high * clip - cut_low, 1e-8) / 255)
            plan = InputPlan(smoothing, is_outlier, scale, np.uint8(np.clip(np.rint(-cut_low / scale), 0, 255)))
            zero = np.float32(plan.zero_point)
            seen = (np.clip(np.rint(z / scale) + zero, 0, 255) - zero) * scale
            error = float((((seen - z) @ scaled) ** 2).sum() + rounding)
            if best is None or error < best[0]:
                best = error, plan
    assert best is not None  # noqa: S101  there is at least one strength and one clip
    return best[1]


def round_weights(weight: Array64, hessian: Array64) -> tuple[npt.NDArray[np.int8], Array]:
    """Step 4: int8 weights within +-WEIGHT_LEVELS and one scale a column, for inputs with X^T X / n = `hessian`.

    `weight` has shape (in, out), `hessian` (in, in); returns shapes (in, out) and (out,).
    """
    scale = _column_scales(weight, np.diag(hessian))
    size = len(weight)
    damped = hessian + np.eye(size) * (DAMPING * np.diag(hessian).mean() + 1e-12)
    order = np.argsort(-np.diag(damped))  # what matters most is rounded while all others can still make good for it
    inverse = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left, rounded = weight[order].copy(), np.zeros(weight.shape)
    block = 64
    for start in range(0, size, block):
        stop = min(start + block, size)
        errors = np.zeros((stop - start, weight.shape[1]))
        for row in range(start, stop):
            rounded[row] = np.clip(np.rint(left[row] / scale), -WEIGHT_LEVELS, WEIGHT_LEVELS)
            error = (left[row] - rounded[row] * scale) / inverse[row, row]
            left[row + 1 : stop] -= np.outer(inverse[row, row + 1 : stop], error)
            errors[row - start] = error
        left[stop:] -= inverse[start:stop, stop:].T @ errors
    return rounded[np.argsort(order)].astype(np.int8), scale.astype(np.float32)


def _fit(seen: Array, target: Array, weight: Array) -> Array64:
    """Step 3: argmin over V of |seen V - target|^2 + ridge |V - weight|^2, both sides centred."""
    centre = seen.mean(axis=0)
    centred = seen - centre
    gram = (centred.T @ centred).astype(np.float64)
    ridge = RIDGE * np.diag(gram).mean()
    right = (centred.T @ (target - target.mean(axis=0))).astype(np.float64) + ridge * weight
    fitted: Array64 = np.linalg.solve(gram + ridge * np.eye(len(gram)), right)
    return fitted


def _column_scales(weight: Array64, importance: Array64) -> Array64:
    """For each column the scale with the least weighted squared error among shares of the full range."""
    full = np.maximum(np.abs(weight).max(axis=0), 1e-12) / WEIGHT_LEVELS
    scales = np.array([full * share for share in SHRINKS])
    errors = np.array(
        [
            (
                (np.clip(np.rint(weight / scale), -WEIGHT_LEVELS, WEIGHT_LEVELS) * scale - weight) ** 2
                * importance[:, None]
            ).sum(axis=0)
            for scale in scales
        ]
    )
    chosen: Array64 = scales[errors.argmin(axis=0), np.arange(weight.shape[1])]
    return chosen


def _round_to_nearest(weight: Array) -> Array:
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-12) / WEIGHT_LEVELS
    rounded: Array = np.rint(weight / scale) * scale
    return rounded
