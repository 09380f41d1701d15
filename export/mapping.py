"""Weights in a file of their own, which onnxruntime maps into memory instead of reading and copying it."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import numpy_helper
from onnx.external_data_helper import set_external_data

from artifact.manifest import WEIGHTS_SUFFIX

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector register."""
_TABLES = {"Gather": slice(1), "Embed": slice(1, 5), "EmbedAfterPadding": slice(1, 5)}
"""Which inputs of an operator are looked up by row."""
SMALLEST = 1024
"""Bytes below which a tensor stays in the ONNX file."""


def map_weights(model: Path) -> None:
    """Move the weights of an ONNX file to `<name>_data` beside it (onnx.proto, "external").

    Tables of which a run needs a few rows come last, so that what every run needs lies together.
    The two files work from any folder, as long as they are in the same.
    """
    graph = onnx.load(model)
    weights = model.with_name(model.name + WEIGHTS_SUFFIX)
    tables = {name for node in graph.graph.node for name in node.input[_TABLES.get(node.op_type, slice(0))]}
    with weights.open("wb") as file:
        for tensor in sorted(graph.graph.initializer, key=lambda tensor: tensor.name in tables):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))  # in raw_data
            raw = tensor.raw_data
            if len(raw) < SMALLEST:
                continue
            file.write(bytes(-file.tell() % ALIGNMENT))
            set_external_data(tensor, weights.name, offset=file.tell(), length=len(raw))
            file.write(raw)
            tensor.ClearField("raw_data")
    model.write_bytes(graph.SerializeToString())
