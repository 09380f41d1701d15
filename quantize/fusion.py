"""optimum's float32 graph, fused by onnxruntime's own tool, as linear layers between the rest of the graph.

What fusing leaves of a BERT-like encoder layer, and what becomes of it here:

    Attention(x, W_qkv, b_qkv, mask)     three linears and MultiHeadAttention(q, k, v), without a mask
    MatMul + Add                         one linear
    Add, LayerNormalization, Gelu, ...   kept as they are

A bias that attention adds to its scores, as MPNet's does, the tool does not know. It is taken off before fusing.

The mask goes because every run holds texts of one length and nothing is padded; onnxruntime's CPU kernel uses flash
attention only where there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import cycle
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
MIN_OPSET = 13
"""Below it, some operators take as attributes what OPSET takes as inputs, so nodes could not be kept as they are."""
IDS, SEGMENTS = "input_ids", "token_type_ids"

LAYER = (
    {"query, key and value"},
    {"MultiHeadAttention"},
    {"linear layer"},
    {"Add"},
    {"LayerNormalization"},
    {"linear layer"},
    {"Gelu", "FastGelu", "QuickGelu", "Relu", "Tanh"},
    {"linear layer"},
    {"Add"},
    {"LayerNormalization"},
)
"""What an encoder layer is made of. Each part reads the output of the one before it; Add also reads the layer's input
or the output of the first LayerNormalization."""
OTHERWISE = "take --recipe avx2, or keep float32: python -m export --precision fp32"
REMEDY = f"and the recipe per-token takes only encoders like BERT, exported by optimum: {OTHERWISE}"

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
    output: str
    bias: onnx.ModelProto | None = None
    """What makes of token ids the bias of all attention's scores, (texts, heads, queries, keys)."""

    @property
    def groups(self) -> list[Group]:
        return [part for part in self.parts if isinstance(part, Group)]

    @property
    def nodes(self) -> list[NodeProto]:
        """The nodes that are not part of a linear layer."""
        return [part for part in self.parts if not isinstance(part, Group)]


def fuse(source: Path) -> Graph:
    """Read and fuse the float32 ONNX file of a BERT-like encoder, as far as its first output needs it.

    Raises QuantizationError if it is anything but embeddings and layers of the form LAYER.
    """
    model = onnx.load(source, format="protobuf")
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < MIN_OPSET:
        raise QuantizationError(f"{source} is of opset {opset}: export it for {MIN_OPSET} or later, as optimum does")
    alone, tables = _encoder_alone(model)
    del model  # which can be a gigabyte of words
    bias = _take_off_bias(alone.graph)
    graph = _fused(source, alone).graph
    constants = {constant.name: constant for constant in graph.initializer} | tables
    output = graph.output[0].name
    try:
        nodes = _with_segments(needed(graph.node, [output]), constants)
        parts = _parts(nodes, constants)
        _check_layers(parts, constants, output)
    except QuantizationError as error:
        raise QuantizationError(f"{source}: {error}, {REMEDY}") from error
    return Graph(parts, constants, output, bias)


def _encoder_alone(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, TensorProto]]:
    """A model without what the tool trips over: nodes that only other outputs need, such as pooling, and inputs that
    are weights or of no shape, as other exporters write them. And the tables of words, by name, of which the model has
    one row, since the tool copies what it is given."""
    graph = model.graph
    nodes = needed(graph.node, [graph.output[0].name])
    constants = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in constants]
    of_words = {node.input[0] for node in nodes if node.op_type == "Gather" and node.input[1] == IDS}
    of_words -= {name for node in nodes for name in node.input if node.op_type != "Gather"}
    kept = [tensor for tensor in graph.initializer if tensor.name not in of_words]
    tables = {tensor.name: _copy(tensor) for tensor in graph.initializer if tensor.name in of_words}
    for name, table in tables.items():
        row = np.zeros((1, *table.dims[1:]), helper.tensor_dtype_to_np_dtype(table.data_type))
        kept.append(numpy_helper.from_array(row, name))
    alone = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"]) for name in names],
        graph.output[:1],
        kept,
    )
    return helper.make_model(alone, opset_imports=model.opset_import, ir_version=model.ir_version), tables


def _take_off_bias(graph: onnx.GraphProto) -> onnx.ModelProto | None:
    """Leave a graph without a bias that all its attention adds, Softmax(Add(Add(scores, bias), mask)), and return what
    makes it; None if there is none of that kind."""
    makers = {name: node for node in graph.node for name in node.output}
    found: list[tuple[NodeProto, int, str]] = []
    biases: set[str] = set()
    for softmax in graph.node:
        masked = makers.get(softmax.input[0]) if softmax.op_type == "Softmax" else None
        if masked is None or masked.op_type != "Add":
            continue
        for index, name in enumerate(masked.input):
            biased = makers.get(name)
            if biased is None or biased.op_type != "Add":
                continue
            scores = [each for each in biased.input if _is_product(makers.get(each), makers)]
            if len(scores) == 1:
                found.append((masked, index, scores[0]))
                biases |= set(biased.input) - {*scores}
    model = None
    if len(biases) == 1:
        model = model_of(graph.node, {tensor.name: tensor for tensor in graph.initializer}, *biases)
    if model is not None:
        for masked, index, name in found:
            masked.input[index] = name
    return model


def _is_product(node: NodeProto | None, makers: Mapping[str, NodeProto]) -> bool:
    """Whether a node multiplies matrices, or scales what one does."""
    if node is not None and node.op_type in ("Div", "Mul"):
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "MatMul"


def model_of(nodes: Sequence[NodeProto], constants: Mapping[str, TensorProto], name: str) -> onnx.ModelProto | None:
    """A model of what makes the tensor `name` of token ids; None if it is made of anything else."""
    kept = needed(nodes, [name])
    read = {each for node in kept for each in node.input if each} - {each for node in kept for each in node.output}
    if not kept or not read - {IDS} <= set(constants):
        return None
    graph = helper.make_graph(
        kept,
        "part",
        [helper.make_tensor_value_info(IDS, TensorProto.INT64, ["texts", "tokens"])],
        [helper.make_empty_tensor_value_info(name)],
        [constants[each] for each in sorted(read - {IDS})],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _copy(tensor: TensorProto) -> TensorProto:
    """One that does not keep the memory of the model that it was part of."""
    copied = TensorProto()
    copied.CopyFrom(tensor)
    return copied


def _fused(source: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    options = FusionOptions("bert")
    # Slower on CPU than what they replace, or in the way of taking the linears out.
    for name in ("skip_layer_norm", "bias_skip_layer_norm", "embed_layer_norm", "bias_gelu"):
        setattr(options, f"enable_{name}", False)
    try:
        with redirect_stdout(StringIO()):  # it prints the shapes that it cannot infer
            fused: onnx.ModelProto = optimize_model(model, "bert", optimization_options=options, opt_level=0).model
    except ImportError as error:
        raise QuantizationError(f"onnxruntime's fusion lacks a package ({error}): pip install '.[export]'") from error
    except Exception as error:  # the tool raises any kind of error on a graph that it does not foresee
        raise QuantizationError(f"{source} stops onnxruntime's fusion ({error!r}), {REMEDY}") from error
    return fused


def _with_segments(nodes: Sequence[NodeProto], constants: Mapping[str, TensorProto]) -> list[NodeProto]:
    """Nodes in which a table that is read only at row 0, as some exporters write segments, is read by SEGMENTS."""
    makers = {name: node for node in nodes for name in node.output}
    found = []
    for node in nodes:
        if node.op_type == "Gather" and node.input[0] in constants and _is_zeros(node.input[1], makers, constants):
            node = helper.make_node("Gather", [node.input[0], SEGMENTS], node.output)
        found.append(node)
    return found


def _is_zeros(name: str, makers: Mapping[str, NodeProto], constants: Mapping[str, TensorProto]) -> bool:
    """Whether a tensor is cut from or spread over an array of zeros, of at least two axes."""
    while name in makers and makers[name].op_type in ("Expand", "Slice", "GatherElements"):
        name = makers[name].input[0]
    value = constants.get(name)
    if value is None and name in makers and makers[name].op_type == "Constant":
        value = makers[name].attribute[0].t
    return value is not None and len(value.dims) == 2 and not numpy_helper.to_array(value).any()


def _check_layers(parts: Sequence[NodeProto | Group], constants: Mapping[str, TensorProto], output: str) -> None:
    """Raise QuantizationError unless the embeddings are followed by layers of the form LAYER, and by nothing else."""
    if not any(isinstance(part, Group) and len(part.linears) == 3 for part in parts):
        raise QuantizationError("no attention was recognised in it")
    first = next(index for index, part in enumerate(parts) if isinstance(part, Group))
    stream = inputs_of(parts[first])[0]
    before = {stream}
    layers = [part for part in parts[first:] if isinstance(part, Group) or part.op_type != "Constant"]
    for part, kinds in zip(layers, cycle(LAYER), strict=False):
        expected = before | {stream} if "Add" in kinds else before
        read = [name for name in inputs_of(part) if name not in constants]
        if _kind(part) not in kinds or set(read) != expected:
            raise QuantizationError(f"{_outputs(part)[0]} ({_kind(part)}) is not what a layer of BERT has in its place")
        before = set(_outputs(part)) if isinstance(part, Group) else {part.output[0]}
        if "LayerNormalization" in kinds:
            (stream,) = before
    if len(layers) % len(LAYER) or before != {output}:
        raise QuantizationError(f"{output} is not the output of a layer of BERT")


def _kind(part: NodeProto | Group) -> str:
    if isinstance(part, Group):
        return "linear layer" if len(part.linears) == 1 else "query, key and value"
    return part.op_type


def _parts(nodes: Sequence[NodeProto], constants: Mapping[str, TensorProto]) -> list[NodeProto | Group]:
    value_of: dict[str, str] = {}
    biases: set[str] = set()
    parts: list[NodeProto | Group] = []
    for node in nodes:
        if node.op_type == "Attention" and node.domain == MICROSOFT:
            group, attention = _split_attention(node, constants)
            value_of[node.output[0]] = group.linears[2].output
            parts += [group, attention]
        elif node.op_type == "MatMul" and node.input[1] in constants:
            readers = [other for other in nodes if node.output[0] in other.input]
            group = _linear(node, readers, constants, value_of.get(node.input[0]))
            biases.add(group.name)
            parts.append(group)
        elif node.op_type == "Gelu" and node.domain != MICROSOFT:
            parts.append(_microsoft_gelu(node))
        elif node.output[0] not in biases:
            parts.append(node)
    return parts


def _split_attention(node: NodeProto, constants: Mapping[str, TensorProto]) -> tuple[Group, NodeProto]:
    attributes = {attribute.name for attribute in node.attribute}
    plain = attributes <= {"num_heads", "mask_filter_value"} and not any(node.input[4:])
    heads = heads_of(node)  # 0 where the tool cannot tell
    if not plain or not heads or not all(name in constants for name in node.input[1:3]):
        raise QuantizationError(f"{node.output[0]} is attention of another kind than BERT's")
    weight, bias = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    outputs = [f"{node.output[0]}/{name}" for name in ("query", "key", "value")]
    weights, parts = np.split(weight, 3, axis=1), np.split(bias, 3)
    group = Group(node.input[0], [Linear(*fields) for fields in zip(outputs, weights, parts, strict=True)])
    return group, helper.make_node("MultiHeadAttention", outputs, [node.output[0]], domain=MICROSOFT, num_heads=heads)


def heads_of(attention: NodeProto) -> int:
    """How many heads an attention has."""
    return int(helper.get_node_attr_value(attention, "num_heads"))


def _linear(
    node: NodeProto, readers: Sequence[NodeProto], constants: Mapping[str, TensorProto], value: str | None
) -> Group:
    weight = numpy_helper.to_array(constants[node.input[1]])
    biases = [name for reader in readers for name in reader.input if name in constants]
    if [reader.op_type for reader in readers] != ["Add"] or len(biases) != 1:
        raise QuantizationError(f"{node.output[0]} is a linear layer without a bias")
    bias = numpy_helper.to_array(constants[biases[0]])
    if bias.shape != weight.shape[1:]:
        raise QuantizationError(f"{node.output[0]} has a bias of shape {bias.shape} for a weight of {weight.shape}")
    return Group(node.input[0], [Linear(readers[0].output[0], weight, bias)], folds_into=value)


def _microsoft_gelu(node: NodeProto) -> NodeProto:
    """Gelu as onnxruntime has it; ONNX's own, of opset 20, has both forms under one name."""
    tanh = any(attribute.name == "approximate" and attribute.s == b"tanh" for attribute in node.attribute)
    return helper.make_node("FastGelu" if tanh else "Gelu", node.input, node.output, domain=MICROSOFT)


def inputs_of(part: NodeProto | Group) -> list[str]:
    """The tensors that a part reads."""
    return [part.input] if isinstance(part, Group) else list(part.input)


def _outputs(part: NodeProto | Group) -> list[str]:
    return [linear.output for linear in part.linears] if isinstance(part, Group) else list(part.output)


def needed(nodes: Sequence[NodeProto], wanted: Iterable[str]) -> list[NodeProto]:
    """The nodes without which the tensors `wanted` cannot be computed, in their order."""
    missing = set(wanted)
    kept = []
    for node in reversed(nodes):
        if missing & set(node.output):
            kept.append(node)
            missing |= set(node.input)
    return kept[::-1]
