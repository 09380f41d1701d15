"""What each operator of kernels/ computes, in float64 and as plainly as numpy can say it (kernels/operators.c).

All instruction sets are held to this. Rounding, which the operators do to nearest and half to even, is numpy's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from quantize.rounding import LARGEST_CODE

Arrays = Mapping[str, np.ndarray]
Array64 = npt.NDArray[np.float64]

EPSILON = 1e-12
GROUP = 16
"""Keys whose weights share a range."""


def unrounded_codes(y: Array64, inputs: Arrays) -> tuple[Array64, Array64]:
    """Codes of rows, before they are rounded, and the rest, of the inputs `factor` and `outlier_channels`."""
    z = y * inputs["factor"]
    lowest = z.min(axis=1, keepdims=True)
    scale = (z.max(axis=1, keepdims=True) - lowest) / LARGEST_CODE
    codes = (z - lowest) / np.where(scale > 0, scale, np.inf)
    return codes, np.concatenate([scale, lowest, y[:, inputs["outlier_channels"]]], axis=1)


def embed(inputs: Arrays, padding: int | None = None) -> Array64:
    ids = inputs["ids"]
    scales = inputs["word_scales"].astype(float)[:, None] * inputs["channel_scales"]
    words = (inputs["words"] * scales)[ids]
    places = np.arange(ids.shape[1])[None] if padding is None else np.where(ids == padding, 0, _count(ids != padding))
    return normalized(words + inputs["positions"][places], inputs).reshape(-1, words.shape[-1])


def _count(of: np.ndarray) -> np.ndarray:
    """How many are true in a row up to each place, that included."""
    found: np.ndarray = np.cumsum(of, axis=1)
    return found


def normalized(x: Array64, inputs: Arrays) -> Array64:
    """LayerNormalization with the inputs `gamma` and `beta`."""
    centred = x - x.mean(axis=-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
    found: Array64 = unit * inputs["gamma"].astype(float) + inputs["beta"]
    return found


def product(weight: np.ndarray, outlier_weight: np.ndarray, inputs: Arrays) -> Array64:
    """Of int8 weights of shape (inputs, columns), with the inputs `input`, `input_rest`, `scale` and `bias`."""
    rest = inputs["input_rest"].astype(float)
    z = inputs["input"] * rest[:, :1] + rest[:, 1:2]
    found: Array64 = z @ weight.astype(int) * inputs["scale"].astype(float) + inputs["bias"]
    return found + rest[:, 2:] @ outlier_weight


GELU = np.array(
    [4.9696392e-1, -3.727715e-1, -7.600672e-2, 1.6986367e-1, -7.222161e-2, 1.3909920e-2, -1.2082409e-3, 3.251474e-5],
    np.float32,
).astype(float)


def float_gelu(x: Array64) -> Array64:
    found: Array64 = x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    return found


def gelu(x: Array64) -> Array64:
    """The same with the polynomial that the operators have."""
    size = np.abs(x)
    powers = np.minimum(size, 3.9)[..., None] ** np.arange(1, 9)
    below: Array64 = powers @ GELU
    return np.maximum(x, 0) - below


def float_attention(query: Array64, key: Array64, value: Array64, alpha: float) -> Array64:
    """What attention would be without rounding; all of shape (..., tokens, channels)."""
    scores = alpha * query @ key.swapaxes(-1, -2)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: Array64 = weights / weights.sum(axis=-1, keepdims=True) @ value
    return found


def attention(query: Array64, key: Array64, value: Array64, alpha: float, bias: Array64 | float = 0.0) -> Array64:
    """In INT8 (kernels/attention.h); all of shape (..., tokens, channels), `bias` of (heads, tokens, tokens)."""
    query_codes, query_scale = _symmetric(query, 63)
    key_codes, key_scale = _symmetric(key, 64)
    scores = query_codes @ key_codes.swapaxes(-1, -2) * key_scale.swapaxes(-1, -2) * query_scale * (alpha / math.log(2))
    scores = scores + bias
    middle = (value.max(axis=-2, keepdims=True) + value.min(axis=-2, keepdims=True)) / 2
    value_codes, value_scale = _symmetric((value - middle).swapaxes(-1, -2), 127)

    groups = [slice(start, start + GROUP) for start in range(0, key.shape[-2], GROUP)]
    highest = np.stack([scores[..., group].max(axis=-1, keepdims=True) for group in groups])
    of_group = np.exp2(highest - highest.max(axis=0))
    weights = np.concatenate(
        [
            np.rint(255 * _power(scores[..., group] - top)) * scale
            for group, top, scale in zip(groups, highest, of_group, strict=True)
        ],
        axis=-1,
    )
    averages = weights @ value_codes.swapaxes(-1, -2) / weights.sum(axis=-1, keepdims=True)
    return averages * value_scale.swapaxes(-1, -2) + middle


def by_distance(bias: np.ndarray, tokens: int) -> Array64:
    """Of each query and key, (heads, tokens, tokens), of one for each distance, (heads, 2 positions + some)."""
    positions = (bias.shape[1] - 14) // 2
    place = np.arange(tokens)
    found: Array64 = bias.astype(float)[:, place[:, None] - place + positions - 1]
    return found


def _symmetric(rows: Array64, largest: int) -> tuple[Array64, Array64]:
    """Codes of rows of the last axis, and their scale."""
    scale = np.abs(rows).max(axis=-1, keepdims=True) / largest
    return np.rint(rows / np.where(scale > 0, scale, np.inf)), scale


def _power(x: Array64) -> Array64:
    """2^x as the operators have it: 255 2^x by a polynomial of degree 2 between -1/2 and 1/2."""
    shifted = np.maximum(x + math.log2(255), -20)
    whole = np.rint(shifted)
    r = shifted - whole
    found: Array64 = (1.00044314 + r * (0.70344801 + r * 0.23842893)) * np.exp2(whole) / 255
    return found
