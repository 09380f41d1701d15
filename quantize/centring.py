"""Give each channel after a LayerNormalization a range that is centred on zero, without changing the model.

A tensor has one zero point for all its channels, so a channel that spans -1 to 28 needs a range of 56, and centred
one of 29. The shift c costs nothing at run time: it is taken from the LayerNormalization's bias and given back to what
reads its output,

    (x - c) W + (b + c W) = x W + b         a linear layer
    (x - c) + (f + c)     = x + f           the residual addition, f the output of a linear layer, whose bias takes c

(Wei et al., "Outlier Suppression+", arXiv:2304.09145, shift channels in this way.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, numpy_helper

from quantize.fusion import Graph, Group, Linear

Array = npt.NDArray[np.float32]


def centrable(graph: Graph) -> dict[str, NodeProto]:
    """The LayerNormalization nodes, by output, that only linear layers and residual additions to such layers read."""
    linears = {linear.output for linear in graph.linears}
    found = {}
    for node in graph.nodes:
        if node.op_type != "LayerNormalization" or len(node.input) < 3 or node.output[0] == graph.output:
            continue
        addends = [_other_input(reader, node.output[0]) for reader in graph.nodes if node.output[0] in reader.input]
        if all(addend in linears for addend in addends):
            found[node.output[0]] = node
    return found


def centred(graph: Graph, middles: Mapping[str, Array]) -> Graph:
    """An equal graph in which `middles`, by outputs that `centrable` gave, are taken from these outputs' channels."""
    constants = dict(graph.constants)
    given_back: dict[str, Array] = {}
    nodes: dict[str, NodeProto] = {}
    for name, middle in middles.items():
        node = centrable(graph)[name]
        bias = f"{name}/centred_bias"
        constants[bias] = numpy_helper.from_array(numpy_helper.to_array(constants[node.input[2]]) - middle, bias)
        nodes[name] = NodeProto()
        nodes[name].CopyFrom(node)
        nodes[name].input[2] = bias
        for reader in graph.nodes:
            if name in reader.input:
                addend = _other_input(reader, name)
                given_back[addend] = given_back.get(addend, np.float32(0)) + middle

    def change(group: Group) -> list[Linear]:
        linears = []
        for linear in group.linears:
            bias_shift = given_back.get(linear.output, np.float32(0))
            if group.input in middles:
                bias_shift = bias_shift + middles[group.input] @ linear.weight
            linears.append(replace(linear, bias=(linear.bias + bias_shift).astype(np.float32)))
        return linears

    parts = [part if isinstance(part, Group) else nodes.get(part.output[0], part) for part in graph.parts]
    return replace(graph, parts=parts, constants=constants).with_linears(change)


def _other_input(node: NodeProto, name: str) -> str:
    """The other addend of an addition; "" for any other node."""
    others = [other for other in node.input if other != name]
    return others[0] if node.op_type == "Add" and len(others) == 1 else ""
