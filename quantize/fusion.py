"""optimum's float32 graph, fused by onnxruntime's own tool, as linear layers between the rest of the graph.

What fusing leaves of a BERT-like encoder layer, and what becomes of it here:

    Attention(x, W_qkv, b_qkv, mask)     three linears and MultiHeadAttention(q, k, v), without a mask
    MatMul + Add                         one linear
    Add, LayerNormalization, Gelu, ...   kept as they are

The mask goes because every run holds texts of one length and nothing is padded; onnxruntime's CPU kernel uses flash
attention only where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model

from quantize.errors import QuantizationError

MICROSOFT = "com.microsoft"
"""Domain of onnxruntime's own operators (onnxruntime, ContribOperators.md)."""
OPSET = 18

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """y = x W + b."""

    output: str
    weight: Array
    """float32, shape (in, out)."""
    bias: Array
    """float32, shape (out,)."""


@dataclass(frozen=True)
class Group:
    """Linears that read the same tensor, and so share its quantization."""

    input: str
    linears: Sequence[Linear]
    folds_into: str | None = None
    """Output of the linear whose channels this input's channels are proportional to, where there is one: attention
    mixes positions but not channels, so a scale on its input's value channels is a scale on its output."""

    @property
    def name(self) -> str:
        return self.linears[0].output

    @property
    def weight(self) -> Array:
        """All weights side by side, shape (in, sum of out)."""
        return np.concatenate([linear.weight for linear in self.linears], axis=1)

    def columns(self, output: str) -> slice:
        """Which columns of `weight` are those of the linear with this output."""
        start = 0
        for linear in self.linears:
            if linear.output == output:
                return slice(start, start + len(linear.bias))
            start += len(linear.bias)
        raise KeyError(output)

    @property
    def bias(self) -> Array:
        return np.concatenate([linear.bias for linear in self.linears])


@dataclass(frozen=True)
class Graph:
    """A fused model: nodes in order, its linears taken out as groups."""

    parts: Sequence[NodeProto | Group]
    constants: Mapping[str, TensorProto]
    inputs: Sequence[onnx.ValueInfoProto]
    output: str

    @property
    def groups(self) -> list[Group]:
        return [part for part in self.parts if isinstance(part, Group)]

    @property
    def nodes(self) -> list[NodeProto]:
        """What is not part of a linear layer."""
        return [part for part in self.parts if not isinstance(part, Group)]


def fuse(source: Path) -> Graph:
    """Read and fuse the float32 ONNX file of a BERT-like encoder.

    Raises QuantizationError if no attention can be recognised in it.
    """
    options = FusionOptions("bert")
    # Slower on CPU than what they replace, or in the way of taking the linears out.
    for name in ("skip_layer_norm", "bias_skip_layer_norm", "embed_layer_norm", "bias_gelu"):
        setattr(options, f"enable_{name}", False)
    graph = optimize_model(str(source), model_type="bert", optimization_options=options, opt_level=0).model.graph
    constants = {constant.name: constant for constant in graph.initializer}
    if not any(node.op_type == "Attention" for node in graph.node):
        raise QuantizationError(f"{source}: no attention was recognised, is it a BERT-like encoder by optimum?")
    return Graph(_parts(list(graph.node), constants), constants, list(graph.input), graph.output[0].name)


def _parts(nodes: Sequence[NodeProto], constants: Mapping[str, TensorProto]) -> list[NodeProto | Group]:
    readers = {name: node for node in reversed(nodes) for name in node.input}
    value_of: dict[str, str] = {}
    biases: set[str] = set()
    parts: list[NodeProto | Group] = []
    for node in nodes:
        if node.op_type == "Attention":
            group, attention = _split_attention(node, constants)
            value_of[node.output[0]] = group.linears[2].output
            parts += [group, attention]
        elif node.op_type == "MatMul" and node.input[1] in constants:
            bias = readers[node.output[0]]
            biases.add(bias.output[0])
            parts.append(_linear(node, bias, constants, value_of.get(node.input[0])))
        elif node.output[0] not in biases:
            parts.append(node)
    return parts


def _split_attention(node: NodeProto, constants: Mapping[str, TensorProto]) -> tuple[Group, NodeProto]:
    weight, bias = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    outputs = [f"{node.output[0]}/{name}" for name in ("query", "key", "value")]
    weights, parts = np.split(weight, 3, axis=1), np.split(bias, 3)
    group = Group(node.input[0], [Linear(*fields) for fields in zip(outputs, weights, parts, strict=True)])
    heads = heads_of(node)
    return group, helper.make_node("MultiHeadAttention", outputs, [node.output[0]], domain=MICROSOFT, num_heads=heads)


def heads_of(attention: NodeProto) -> int:
    """How many heads an attention has."""
    return int(helper.get_node_attr_value(attention, "num_heads"))


def _linear(node: NodeProto, add: NodeProto, constants: Mapping[str, TensorProto], value: str | None) -> Group:
    biases = [name for name in add.input if name in constants]
    if add.op_type != "Add" or len(biases) != 1:
        raise QuantizationError(f"{node.name} is a linear layer without a bias, which is not supported")
    weight, bias = numpy_helper.to_array(constants[node.input[1]]), numpy_helper.to_array(constants[biases[0]])
    return Group(node.input[0], [Linear(add.output[0], weight, bias)], folds_into=value)
