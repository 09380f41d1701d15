"""What is looked up by the place of a token and not by its id, simplified: same bits, fewer operators.

Of one short text's time each operator takes its share, however little it does. A text here is one segment, so the
table of segments has one row, and places count from 0, so they are the first rows of their table:

    Gather(table, token_type_ids)                          table[0]
    Gather(table, Slice([[0, 1, ...]], 0, length))         Slice(table, 0, length)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, numpy_helper

from quantize.fusion import needed
from quantize.writer import Writer

SEGMENTS = "token_type_ids"


def simplify_lookups(graph: onnx.GraphProto) -> None:
    """Change a graph of token ids of shape (texts, tokens) in place; what is not built like that stays as it is."""
    lookups = _Lookups(graph)
    nodes = [new for node in graph.node for new in lookups.shorter(node)]
    for node in nodes:
        node.input[:] = [lookups.renamed.get(name, name) for name in node.input]
    nodes = needed(nodes, [output.name for output in graph.output])
    read = {name for node in nodes for name in node.input}
    constants = [constant for constant in (*graph.initializer, *lookups.constants) if constant.name in read]
    inputs = [value for value in graph.input if value.name in read]
    for field, values in ((graph.node, nodes), (graph.initializer, constants), (graph.input, inputs)):
        del field[:]
        field.extend(values)


class _Lookups:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants: list[onnx.TensorProto] = []
        self.renamed: dict[str, str] = {}
        """Tensors whose place a constant takes."""
        self._values = {constant.name: constant for constant in graph.initializer}
        self._makers = {node.output[0]: node for node in graph.node}

    def shorter(self, node: NodeProto) -> list[NodeProto]:
        """What takes a node's place: that node, unless it is one of these lookups."""
        table = self._value(node.input[0]) if node.op_type == "Gather" else None
        if table is None or table.ndim != 2:
            return [node]
        writer = Writer(node.output[0])
        if node.input[1] == SEGMENTS:
            self.renamed[node.output[0]] = writer.constant("segment", table[0])
        elif ids := self._counted_ids(node.input[1], len(table)):
            length = writer.node("Shape", [ids], "length", start=1, end=2)
            begin, axis = writer.constant("begin", np.array([0])), writer.constant("axis", np.array([0]))
            writer.node("Slice", [node.input[0], begin, length, axis], node.output[0], whole_name=True)
        else:
            return [node]
        self.constants += writer.constants
        return writer.nodes

    def _counted_ids(self, name: str, rows: int) -> str | None:
        """The tensor of shape (texts, tokens) whose tokens `name` counts from 0, in an array of shape (1, tokens)."""
        cut = self._maker(name, "Slice")
        if cut is None or len(cut.input) < 4:
            return None
        counted, begin, end, axis = cut.input[:4]
        step = self._value(cut.input[4]) if len(cut.input) > 4 else np.array([1])
        expected = ((counted, [list(range(rows))]), (begin, [0]), (axis, [1]))
        if step is None or step.tolist() != [1] or any(self._list(each) != value for each, value in expected):
            return None
        single = self._maker(end, "Unsqueeze")
        place = self._maker(single.input[0], "Gather") if single else None
        shape = self._maker(place.input[0], "Shape") if place and self._list(place.input[1]) == 1 else None
        return shape.input[0] if shape and not shape.attribute else None

    def _maker(self, name: str, kind: str) -> NodeProto | None:
        node = self._makers.get(name)
        return node if node is not None and node.op_type == kind else None

    def _list(self, name: str) -> object:
        value = self._value(name)
        return None if value is None else value.tolist()

    def _value(self, name: str) -> npt.NDArray[np.generic] | None:
        if name in self._values:
            return numpy_helper.to_array(self._values[name])
        node = self._maker(name, "Constant")
        return numpy_helper.to_array(node.attribute[0].t) if node else None
