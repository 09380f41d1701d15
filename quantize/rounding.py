"""Weights to integers; each rounding error is compensated by the weights that are not rounded yet.

With inputs X and H = X^T X, rounding W to W + E costs the output ||X E||^2 = tr(E^T H E). Factored, H = L D L^T with
L of ones on its diagonal and zeros above, that is a sum over input channels,

    sum over k of D_k |E_k + sum over j > k of L_jk E_j|^2

so from the last channel to the first each is rounded not as W_k, but as W_k + sum over j > k of L_jk (W_j - W_q,j)
(Frantar et al., "GPTQ", arXiv:2210.17323; in this form Chee et al., "QuIP", arXiv:2307.13304, LDLQ). Channels come in
the order of their mean squares, so that what matters most is rounded while all others can still compensate for it.

The result must not depend on the machine, and the sums of a matrix product do: their order is the library's and the
CPU's. So whatever is multiplied by a matrix product is first put on a grid so coarse that all its sums are integers
below 2^53, which float64 adds without rounding in any order. All else is element by element.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

LARGEST_CODE, LARGEST, LARGEST_SUM = 191, 127, 171
"""Bounds on an input's code, on a weight's magnitude, and on the sum of the weights of one sign in a four of input
channels (linear.py tells why)."""
FOUR, PERIOD = 4, 8
"""Channels of a four: i, i+1, i+4 and i+5 of each `PERIOD`, i = 0 and 2."""
DAMPING = 0.3
"""Added to H's diagonal, in units of it, since the inputs seen do not show everything. The larger it is, the nearer the
result is to rounding to nearest."""
BLOCK = 64
"""Channels between two matrix products."""


def on_grid(values: Array64, bits: int, bound: float) -> Array64:
    """Multiples of 2^-bits, at most `bound` in magnitude."""
    step = 2.0**-bits
    found: Array64 = np.rint(np.clip(values, -bound, bound) / step) * step
    return found


def round_to_nearest(weight: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """int8 weights that saturate no CPU's sums, shape (in, out), `in` a multiple of 8, and one scale a column."""
    scale = _column_scales(weight)
    return np.rint(weight / scale).astype(np.int8), scale


def round_weights(weight: Array, products: Array64, smoothing: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """Like `round_to_nearest`, with errors compensated.

    `products`, (in, in), is X^T X of inputs that are divided by `smoothing`, (in,), before they are multiplied with
    `weight`.
    """
    scale = _column_scales(weight)
    # A channel that no input reached counts a little, so that it can be divided by.
    squares = np.diag(products)
    squares = np.maximum(squares, squares.max(initial=0) * 1e-9 + 1e-30)
    size = np.sqrt(squares)
    order = np.argsort(size / smoothing, kind="stable")
    factor = _factor((products / size[:, None] / size)[np.ix_(order, order)])
    size = (size / smoothing)[order]
    # L of the inputs themselves and not of their correlations.
    feedback = on_grid(factor / np.diag(factor) * size[:, None] / size, bits=16, bound=2.0**8)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    codes = np.empty(weight.shape, np.int8)
    codes[order] = _round(weight[order].astype(np.float64) / scale, feedback, place[_fours(len(order))][:, order])
    return codes, scale


def _fours(channels: int) -> Indices:
    """For each channel the channels of its four, shape (4, channels)."""
    first = np.arange(channels) // PERIOD * PERIOD + np.arange(channels) % 4 // 2 * 2
    return np.stack([first, first + 1, first + 4, first + 5])


def _column_scales(weight: Array) -> Array:
    fours = weight.reshape(-1, 2, 2, 2, weight.shape[1])  # place in the period: 4 a + 2 four + b
    sums = np.maximum(_sums(np.maximum(fours, 0)), _sums(np.maximum(-fours, 0)))
    # Rounding makes each larger by a half at most.
    fitting = np.maximum(
        np.abs(weight).max(axis=0) / np.float32(LARGEST), sums.max(axis=(0, 1)) / np.float32(LARGEST_SUM - FOUR / 2)
    )
    scale: Array = np.maximum(fitting, np.float32(1e-12))
    return scale


def _sums(fours: Array) -> Array:
    """Sums of fours, in a fixed order."""
    found: Array = (fours[:, 0, :, 0] + fours[:, 0, :, 1]) + (fours[:, 1, :, 0] + fours[:, 1, :, 1])
    return found


def _factor(correlations: Array64) -> Array64:
    """Cholesky's factor G, G G^T = `correlations` with a damped diagonal, lower triangular: shape (in, in).

    Its rows have a norm of about 1, so that sums of products of multiples of 2^-24 stay below 2^53 such steps.
    """
    left = correlations + DAMPING * np.eye(len(correlations))
    found = np.zeros_like(left)
    for start in range(0, len(left), BLOCK):
        stop = min(start + BLOCK, len(left))
        for k in range(start, stop):
            column = on_grid(left[k:, k] / np.sqrt(left[k, k]), bits=24, bound=2)
            found[k:, k] = column
            left[k:, k + 1 : stop] -= column[:, None] * column[1 : stop - k]
        panel = found[stop:, start:stop]
        left[stop:, stop:] -= panel @ panel.T
    return found


def _round(wanted: Array64, feedback: Array64, fours: Indices) -> Array64:
    """`wanted`, shape (in, out), rounded to integers from the last row to the first.

    `feedback` is L, shape (in, in); `fours` are for each row the rows of its four, shape (4, in).
    """
    rows = len(wanted)
    errors = np.zeros_like(wanted)
    found = wanted.copy()  # each row is what is wanted, then that plus what compensates for others, then integers
    for stop in range(rows, 0, -BLOCK):
        start = max(0, stop - BLOCK)
        # At most 2^27 in steps of 2^-26: L of up to 2^8, errors of up to 2^6, up to 2^13 rows.
        found[start:stop] += feedback[stop:, start:stop].T @ errors[stop:]
        for k in range(stop - 1, start - 1, -1):
            done, waiting = found[fours[fours[:, k] > k, k]], found[fours[fours[:, k] < k, k]]
            found[k] = np.rint(np.clip(_bounded(found[k], done, waiting), -LARGEST, LARGEST))
            errors[k] = on_grid(wanted[k] - found[k], bits=10, bound=2.0**6)
            found[start:k] += feedback[k, start:k, None] * errors[k]
    return found


def _bounded(row: Array64, done: Array64, waiting: Array64) -> Array64:
    """`row`, made smaller where the weights of its sign in its four would add up to more than the bound.

    `done` are rows of the four that are integers already, `waiting` those that are not yet: `row` and these share what
    is beyond the bound equally.
    """
    sign, size = np.sign(row), np.abs(row)
    taken, wish, sharers = np.zeros_like(row), size.copy(), np.ones_like(row)
    for other in done:
        taken += np.maximum(other * sign, 0)
    for other in waiting:
        wish += np.maximum(other * sign, 0)
        sharers += other * sign > 0
    over = np.maximum(wish + taken - LARGEST_SUM, 0)
    return sign * np.clip(size - over / sharers, 0, LARGEST_SUM - taken)
