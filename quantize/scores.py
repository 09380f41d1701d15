"""Keep attention's scores where exp cannot overflow, so that softmax need not look for the highest of each row first.

Softmax divides exp(S) of a row by its sum, so any number may be taken from a row of scores. Usually that is the row's
highest, which takes two more passes over the largest tensor of the model. A shift of the keys does it as well, and is
a change of the key layer's bias that costs nothing:

    q (k - m) = q k - q m

takes the same number from all scores of the query q. Few heads need it. For those, m is the vector that leaves the
smallest magnitude of any row's highest score h on calibration text, min over m of max |h - q m|: a linear Chebyshev
approximation, found by Lawson's iteration of weighted least squares (Rice and Usow, "The Lawson Algorithm and
Extensions", Mathematics of Computation 22, 1968).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from quantize.calibration import Feeds, outputs
from quantize.fusion import Graph, heads_of

Array = npt.NDArray[np.float32]

HIGHEST = 40.0
"""Bound on the magnitude of a row's highest score on calibration text, which leaves room for other texts: exp of
float32 overflows at 88 and is zero at -104."""
ROUNDS = 50


def with_calm_scores(graph: Graph, feeds: Feeds) -> tuple[Graph, list[str]]:
    """An equal graph with shifted keys, and the outputs of the attentions that can do without each row's highest."""
    attentions = graph.attentions
    extremes = {node.output[0]: np.zeros(heads_of(node)) for node in attentions}
    names = [name for node in attentions for name in node.input[:2]]
    for values in outputs(graph.model({}, names), names, feeds):
        for node in attentions:
            highest = np.abs(_queries_and_highest(node, values)[1]).max(axis=1)
            extremes[node.output[0]] = np.maximum(extremes[node.output[0]], highest)
    calm = []
    for node in attentions:
        loud = np.flatnonzero(extremes[node.output[0]] > HIGHEST)
        if len(loud):
            shift, left = _key_shift(graph, node, loud, feeds)
            if left > HIGHEST:
                continue
            graph = _with_shifted_keys(graph, node.input[1], shift)
        calm.append(node.output[0])
    return graph, calm


def chebyshev(inputs: Array, targets: Array) -> npt.NDArray[np.float64]:
    """The c, of shape (n,), that about minimizes max |targets - inputs c|; shapes (rows, n) and (rows,).

    >>> chebyshev(np.ones((3, 1), np.float32), np.array([0, 1, 4], np.float32)).round(2).tolist()
    [2.0]
    """
    x, y = inputs.astype(np.float64), targets.astype(np.float64)
    weights = np.ones(len(x))
    best, least = np.zeros(x.shape[1]), np.inf
    for _ in range(ROUNDS):
        root = np.sqrt(weights)
        found = np.linalg.lstsq(x * root[:, None], y * root, rcond=None)[0].astype(np.float64)
        errors = np.abs(y - x @ found)
        if errors.max() < least:
            best, least = found, errors.max()
        weights = weights * errors
        if not weights.any():
            break
        weights /= weights.max()
    return best


def _queries_and_highest(node: NodeProto, values: Mapping[str, Array]) -> tuple[Array, Array]:
    """Of one run: queries / sqrt(d) of shape (heads, rows, d), and the highest score of each, shape (heads, rows)."""
    heads = heads_of(node)
    query, key = (
        values[name].reshape(*values[name].shape[:2], heads, -1).transpose(0, 2, 1, 3) for name in node.input[:2]
    )
    query = query / np.float32(math.sqrt(query.shape[-1]))
    highest: Array = (query @ key.swapaxes(2, 3)).max(axis=3)
    return query.swapaxes(0, 1).reshape(heads, -1, query.shape[-1]), highest.swapaxes(0, 1).reshape(heads, -1)


def _key_shift(graph: Graph, node: NodeProto, loud: npt.NDArray[np.intp], feeds: Feeds) -> tuple[Array, float]:
    """The shift of all keys, zero but for the heads `loud`, and the largest magnitude that it leaves in these."""
    names = list(node.input[:2])
    runs = [_queries_and_highest(node, values) for values in outputs(graph.model({}, names), names, feeds)]
    queries, highest = (np.concatenate([each[loud] for each in of_runs], axis=1) for of_runs in zip(*runs, strict=True))
    shift, left = np.zeros((heads_of(node), queries.shape[-1]), np.float32), 0.0
    for place, head in enumerate(loud):
        shift[head] = chebyshev(queries[place], highest[place])
        left = max(left, float(np.abs(highest[place] - queries[place] @ shift[head]).max()))
    return shift.reshape(-1), left


def _with_shifted_keys(graph: Graph, key: str, shift: Array) -> Graph:
    return graph.with_linears(
        lambda group: [
            replace(linear, bias=linear.bias - shift) if linear.output == key else linear for linear in group.linears
        ]
    )
