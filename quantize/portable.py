"""The rest of the graph in operators that give the same bits on every CPU.

An INT8 product is exact, but what lies between two of them is float32, and a value near the border of two codes turns
a last bit that differs into another code; the codes after it then differ in hundreds. So the same text would get
vectors of cosine 0.999 on x86 and on Graviton. onnxruntime's kernels, compared on AVX-512, AVX2 and NEON, agree to the
bit wherever each number is computed by itself (additions, products, exponentials, Gelu, quantization), in matrix
products, which add up one input channel after the other, and in SkipSimplifiedLayerNormalization, which does so too.
They disagree where a kernel sums a row in vector lanes:

    LayerNormalization     another algorithm on each architecture
    softmax, attention     sums of as many lanes as the vectors have

Here a LayerNormalization of x + f, n channels, of which linear layers read x and one wrote f, is

    m = mean x                                   one more column of the layers that read x: x (1/n .. 1/n)
    y = (x - m + f) / rms(x - m + f) g + b       SkipSimplifiedLayerNormalization, Add

f has no mean, because the mean over outputs is taken from its layer's weights and bias: the mean of x + f is m. And
attention of each head, d channels, is

    [Y; t] = [V 1]^T exp(K Q^T / sqrt(d))    Y / t

with a channel of ones next to the values, whose sums t are those of softmax. Scores lie with one query in a column,
since a matrix product adds up columns of its second matrix much faster than rows of its first to a single number.

The products with biases that `linear.py` writes are the third place: a fused multiply-add, which ARM has and the
baseline of x86 has not, rounds once where a product and a sum round twice.

Attention reads its heads where the linear layers wrote them, with no copy, if tokens come before texts: from the
embeddings on, tensors have the shape (tokens * texts, channels).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from quantize.fusion import MICROSOFT, Graph, Group, Linear, heads_of, inputs_of
from quantize.writer import Writer

TEXTS = "portable/tokens_texts"
"""The tensor with the shape (tokens, texts)."""


def portable(graph: Graph, calm: Collection[str] = ()) -> Graph:
    """An equal graph without LayerNormalization and MultiHeadAttention.

    Attention whose output is named in `calm` does not subtract the highest scores.
    """
    residuals, shapes = _residuals(graph), _head_shapes(graph)
    graph = _with_means(graph, residuals.values(), shapes)
    start, embedded = _end_of_embeddings(graph)
    names = {name: f"{name}/rows" for name in (start, graph.output)}
    parts: list[NodeProto | Group] = list(graph.parts[:embedded])
    constants = dict(graph.constants)

    def add(writer: Writer) -> None:
        parts.extend(writer.nodes)
        constants.update({constant.name: constant for constant in writer.constants})

    with_ones = {(heads, size + 1) for heads, size in shapes.values()}
    channels = len(graph.groups[0].weight)
    add(_start(start, names[start], channels, sorted({*shapes.values(), *with_ones})))
    for part in graph.parts[embedded:]:
        renamed = _renamed(part, names)
        if isinstance(renamed, Group):
            parts.append(renamed)
        elif renamed.op_type == "LayerNormalization":
            add(_normalization(renamed, constants, residuals.get(renamed.input[0])))
        elif renamed.op_type == "MultiHeadAttention":
            add(_attention(renamed, *shapes[renamed.output[0]], renamed.output[0] in calm))
        elif renamed.output[0] not in residuals:
            parts.append(renamed)
    add(_end(names[graph.output], graph.output, channels))
    return replace(graph, parts=parts, constants=constants)


@dataclass(frozen=True)
class _Residual:
    """The sum that a LayerNormalization reads."""

    stream: str
    """What a linear layer's output is added to; another group of linears reads it too."""
    added: str
    """That output, which nothing else reads."""

    @property
    def mean(self) -> str:
        return f"{self.stream}/mean"


def _residuals(graph: Graph) -> dict[str, _Residual]:
    """By the name of the sum."""
    linears = {linear.output for linear in graph.linears}
    streams = {group.input for group in graph.groups}
    read = Counter(name for part in graph.parts for name in inputs_of(part))
    normalized = {node.input[0] for node in graph.nodes if node.op_type == "LayerNormalization"}
    found = {}
    for node in graph.nodes:
        if node.op_type != "Add" or node.output[0] not in normalized or read[node.output[0]] > 1:
            continue
        for stream, added in (node.input, reversed(node.input)):
            if stream in streams and added in linears and read[added] == 1:
                found[node.output[0]] = _Residual(stream, added)
    return found


def _head_shapes(graph: Graph) -> dict[str, tuple[int, int]]:
    """By attention's output, heads and channels of a head."""
    widths = {linear.output: len(linear.bias) for linear in graph.linears}
    return {node.output[0]: (heads_of(node), widths[node.input[0]] // heads_of(node)) for node in graph.attentions}


def _with_means(graph: Graph, residuals: Collection[_Residual], shapes: Mapping[str, tuple[int, int]]) -> Graph:
    """A graph with the tensors `residual.mean`, where what is added has no mean, and with ones between values."""
    added = {residual.added for residual in residuals}
    missing = {residual.stream: residual.mean for residual in residuals}
    values = {node.input[2]: shapes[node.output[0]][1] for node in graph.attentions}

    def change(group: Group) -> list[Linear]:
        linears = []
        for linear in group.linears:
            if linear.output in added:
                weight = linear.weight - linear.weight.mean(axis=1, keepdims=True)
                linear = replace(linear, weight=weight, bias=linear.bias - linear.bias.mean())
            linears.append(replace(linear, ones_after=values.get(linear.output, 0)))
        if group.input in missing:
            size = len(group.weight)
            mean = np.full((size, 1), 1 / size, np.float32)
            linears.append(Linear(missing.pop(group.input), mean, np.zeros(1, np.float32)))
        return linears

    return graph.with_linears(change)


def _end_of_embeddings(graph: Graph) -> tuple[str, int]:
    """The last tensor of the embeddings before their normalization, and how many parts make it."""
    first = graph.groups[0].input
    made = {part.output[0]: index for index, part in enumerate(graph.parts) if not isinstance(part, Group)}
    node = graph.parts[made[first]]
    if not isinstance(node, Group) and node.op_type == "LayerNormalization":
        first = node.input[0]
    return first, made[first] + 1


def _start(source: str, target: str, channels: int, shapes: Collection[tuple[int, int]]) -> Writer:
    """From (texts, tokens, channels) to rows; what the parts after it share, with the shapes (heads, channels)."""
    writer = Writer("portable")
    token_first = writer.node("Transpose", [source], "token_first", perm=[1, 0, 2])
    writer.node("Shape", [token_first], TEXTS, whole_name=True, start=0, end=2)
    for heads, size in shapes:
        sizes = writer.constant(f"{heads}x{size}", np.array([heads, size]))
        writer.node("Concat", [TEXTS, sizes], _of_heads(heads, size), whole_name=True, axis=0)
    rows = writer.constant("rows", np.array([-1, channels]))
    writer.node("Reshape", [token_first, rows], target, whole_name=True)
    return writer


def _of_heads(heads: int, size: int) -> str:
    """The tensor with the shape (tokens, texts, heads, channels of a head)."""
    return f"{TEXTS}_{heads}x{size}"


def _end(source: str, target: str, channels: int) -> Writer:
    writer = Writer("portable")
    sizes = writer.constant("channels", np.array([channels]))
    shape = writer.node("Concat", [TEXTS, sizes], "last_shape", axis=0)
    token_first = writer.node("Reshape", [source, shape], "last_token_first")
    writer.node("Transpose", [token_first], target, whole_name=True, perm=[1, 0, 2])
    return writer


def _normalization(node: NodeProto, constants: Mapping[str, TensorProto], residual: _Residual | None) -> Writer:
    writer = Writer(f"{node.output[0]}/portable")
    source, gain, *bias = node.input
    epsilon = _attribute(node, "epsilon", 1e-5)
    if residual:
        addends = [writer.node("Sub", [residual.stream, residual.mean], "centred"), residual.added]
    else:
        size = len(numpy_helper.to_array(constants[gain]))
        ones = writer.constant("ones", np.full((size, 1), 1 / size, np.float32))
        centred = writer.node("Sub", [source, writer.node("MatMul", [source, ones], "mean")], "centred")
        addends, epsilon = [centred, centred], 4 * epsilon  # the norm of twice the input is twice the norm
    shifted = bool(bias) and numpy_helper.to_array(constants[bias[0]]).any()
    normal = f"{node.output[0]}/portable/normal" if shifted else node.output[0]
    inputs = [*addends, gain]
    writer.node("SkipSimplifiedLayerNormalization", inputs, normal, whole_name=True, domain=MICROSOFT, epsilon=epsilon)
    if shifted:
        writer.node("Add", [normal, bias[0]], node.output[0], whole_name=True)
    return writer


def _attention(node: NodeProto, heads: int, size: int, calm: bool) -> Writer:
    writer = Writer(f"{node.output[0]}/portable")
    shapes = {"query": _of_heads(heads, size), "key": _of_heads(heads, size), "value": _of_heads(heads, size + 1)}
    query, key, value = (
        writer.node("Reshape", [name, shape], role)
        for name, (role, shape) in zip(node.input, shapes.items(), strict=True)
    )
    # transBatch has (tokens, texts, heads, channels) read as (texts, heads, tokens, channels).
    scores = writer.node(
        "FusedMatMul",
        [key, query],
        "scores",
        domain=MICROSOFT,
        transBatchA=1,
        transBatchB=1,
        transB=1,
        alpha=1 / math.sqrt(size),
    )
    if not calm:
        highest = writer.node("ReduceMax", [scores, writer.constant("keys", np.array([-2]))], "highest")
        scores = writer.node("Sub", [scores, highest], "shifted")
    weights = writer.node("Exp", [scores], "weights")
    sums = writer.node("FusedMatMul", [value, weights], "sums", domain=MICROSOFT, transBatchA=1, transA=1)
    weighted, totals = writer.split(sums, ["weighted", "totals"], [size, 1], axis=-2)
    averages = writer.node("Div", [weighted, totals], "averages")
    token_first = writer.node("Transpose", [averages], "token_first", perm=[3, 0, 1, 2])
    rows = writer.constant("rows", np.array([-1, heads * size]))
    writer.node("Reshape", [token_first, rows], node.output[0], whole_name=True)
    return writer


def _renamed(part: NodeProto | Group, names: Mapping[str, str]) -> NodeProto | Group:
    if isinstance(part, Group):
        return replace(part, input=names.get(part.input, part.input))
    node = NodeProto()
    node.CopyFrom(part)
    node.input[:] = [names.get(name, name) for name in part.input]
    node.output[:] = [names.get(name, name) for name in part.output]
    return node


def _attribute(node: NodeProto, name: str, default: float) -> float:
    found = [helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name]
    return float(found[0]) if found else default
