"""What an encoder makes of the places of a text's tokens, found by running these parts of its graph.

BERT and DistilBERT count from 0. RoBERTa, XLM-R and MPNet count from padding + 1 on, and the token of padding, which a
text can name, has the place `padding` and is not counted. MPNet adds to attention's scores a bias of the distance
between two tokens, one for each head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from quantize.errors import QuantizationError
from quantize.fusion import IDS, Graph, model_of
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
    model = model_of(graph.nodes, graph.constants, name)
    if model is None:
        return None
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


def bias_of_distances(model: onnx.ModelProto, tokens: int) -> npt.NDArray[np.float32]:
    """The bias that `model` makes, `Graph.bias`, by distance: float32 of shape (heads, 2 tokens - 1), of a query before
    its key by tokens - 1 first, of one behind it by that last.

    Raises QuantizationError if it is of anything but distances.
    """
    session = open_session(model.SerializeToString())
    (name,) = (output.name for output in session.get_outputs())
    whole, part = (
        run(session, [name], {IDS: np.zeros(shape, np.int64)})[0] for shape in ((1, tokens), (2, min(7, tokens)))
    )
    found = np.concatenate([whole[0, :, 0, :0:-1], whole[0, :, :, 0]], axis=1)
    for bias in (whole, part):
        place = np.arange(bias.shape[-1])
        if not np.array_equal(bias, np.broadcast_to(found[:, place[:, None] - place + tokens - 1], bias.shape)):
            raise QuantizationError("attention has a bias that is not one of the distance between tokens")
    return found
