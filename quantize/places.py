"""How an encoder numbers the places of a text's tokens, found by running that part of its graph.

BERT and DistilBERT count from 0. RoBERTa, XLM-R and MPNet count from padding + 1 on, and the token of padding, which a
text can name, has the place `padding` and is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from quantize.fusion import IDS, OPSET, Graph, needed
from quantize.session import open_session, run

TOKENS = 40
"""Of a trial text."""


@dataclass(frozen=True)
class Places:
    """Which rows of its table of places a model reads."""

    first: int
    """That of a text's first token, or of padding where that has one."""
    padding: int | None
    """The token id that has a place of its own, before those of others."""


def places_by(graph: Graph, name: str) -> Places | None:
    """What numbers the tensor `name` has, for token ids of shape (texts, tokens); None if they are of no such kind."""
    nodes = needed(graph.nodes, [name])
    made = {output for node in nodes for output in node.output}
    read = {tensor for node in nodes for tensor in node.input if tensor} - made
    if not nodes or not read - {IDS} <= set(graph.constants):
        return None
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "places",
            [helper.make_tensor_value_info(IDS, TensorProto.INT64, ["texts", "tokens"])],
            [helper.make_empty_tensor_value_info(name)],
            [graph.constants[constant] for constant in sorted(read - {IDS})],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    session = open_session(model.SerializeToString())

    def found(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        (numbers,) = run(session, [name], {IDS: ids})
        return numbers

    # Of two different tokens one at least is not padding.
    first = max(int(found(np.array([[token]])).max()) for token in (5, 6))
    ids = np.arange(3 * TOKENS).reshape(3, TOKENS) % TOKENS
    ids[1:, 3:6] = first - 1
    numbers = found(ids)
    places = first + np.arange(TOKENS)
    if numbers.shape[-1] == TOKENS and (numbers == places).all():
        return Places(first, None)
    counted = ids != first - 1
    places = first - 1 + np.where(counted, np.cumsum(counted, axis=1), 0)
    if first > 0 and np.array_equal(numbers, places):
        return Places(first - 1, first - 1)
    return None
