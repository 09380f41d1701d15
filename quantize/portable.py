"""The rest of the graph in operators that give the same bits on every CPU.

An INT8 product is exact, but what lies between two of them is float32, and a value near the border of two codes turns
a last bit that differs into another code; the codes after it then differ in hundreds. So the same text would get
vectors of cosine 0.999 on x86 and on Graviton. onnxruntime's kernels, compared on AVX-512, AVX2 and NEON, agree to the
bit wherever each number is computed by itself (additions, products, exponentials, Gelu, quantization) and in matrix
products, which add up one input channel after the other. They disagree where a kernel sums a row in vector lanes:

    LayerNormalization     another algorithm on each architecture
    softmax, attention     sums of as many lanes as the vectors have

Here these sums are matrix products with a matrix of ones, a little slower than those kernels on x86:

    m = x 1/n    c = x - m    v = (c c) 1/n + epsilon    y = c / sqrt(v) g + b     of each token, n channels
    P = exp(S - max S)    Y = (P V) / (P 1)    with S = Q K^T / sqrt(d)            of each head, d channels

The products with biases that `linear.py` writes are the third place: a fused multiply-add, which ARM has and the
baseline of x86 has not, rounds once where a product and a sum round twice.

Attention reads its heads where the linear layers wrote them, with no copy, if tokens come before texts: from the
embeddings on, tensors have the shape (tokens * texts, channels).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from quantize.fusion import MICROSOFT, Graph, Group
from quantize.writer import Writer

COLUMNS = 4
"""Equal columns of the matrices of ones, of which one is used. For a single column onnxruntime has other kernels, whose
order of additions changes with the architecture and with a row's place."""
HIGHEST = 40.0
"""Where calibration saw no row of scores S whose highest leaves -HIGHEST..HIGHEST, exp(S) is taken as it is: float32
overflows at 88, and to subtract the highest takes two more passes over the scores."""
ONES, TEXTS = "portable/ones", "portable/tokens_texts"


def portable(graph: Graph, calm: Collection[str] = ()) -> Graph:
    """An equal graph without LayerNormalization and MultiHeadAttention.

    Attention whose output is named in `calm` does not subtract the highest scores.
    """
    start, embedded = _end_of_embeddings(graph)
    names = {name: f"{name}/rows" for name in (start, graph.output)}
    widths = {linear.output: len(linear.bias) for group in graph.groups for linear in group.linears}
    parts: list[NodeProto | Group] = list(graph.parts[:embedded])
    constants = dict(graph.constants)

    def add(writer: Writer) -> None:
        parts.extend(writer.nodes)
        constants.update({constant.name: constant for constant in writer.constants})

    add(_start(start, names[start]))
    for part in graph.parts[embedded:]:
        renamed = _renamed(part, names)
        if isinstance(renamed, Group) or renamed.op_type not in ("LayerNormalization", "MultiHeadAttention"):
            parts.append(renamed)
        elif renamed.op_type == "LayerNormalization":
            add(_normalization(renamed, constants))
        else:
            add(_attention(renamed, widths[renamed.input[0]], renamed.output[0] in calm))
    add(_end(names[graph.output], graph.output))
    return replace(graph, parts=parts, constants=constants)


def highest_scores(graph: Graph) -> dict[str, str]:
    """By attention's output, the tensor of `portable(graph)` that has the highest score of each row."""
    outputs = [node.output[0] for node in graph.nodes if node.op_type == "MultiHeadAttention"]
    return {name: f"{name}/portable/highest" for name in outputs}


def _end_of_embeddings(graph: Graph) -> tuple[str, int]:
    """The last tensor of the embeddings before their normalization, and how many parts make it."""
    first = graph.groups[0].input
    made = {part.output[0]: index for index, part in enumerate(graph.parts) if not isinstance(part, Group)}
    node = graph.parts[made[first]]
    if not isinstance(node, Group) and node.op_type == "LayerNormalization":
        first = node.input[0]
    return first, made[first] + 1


def _start(source: str, target: str) -> Writer:
    """From (texts, tokens, channels) to rows; what the parts after it share."""
    writer = Writer("portable")
    token_first = writer.node("Transpose", [source], "token_first", perm=[1, 0, 2])
    writer.node("Shape", [token_first], TEXTS, whole_name=True, start=0, end=2)
    tokens = writer.node("Shape", [token_first], "tokens", start=0, end=1)
    one = numpy_helper.from_array(np.ones(1, np.float32))
    shape = writer.node("Concat", [tokens, writer.constant("columns", np.array([COLUMNS]))], "ones_shape", axis=0)
    writer.node("ConstantOfShape", [shape], ONES, whole_name=True, value=one)
    flat = writer.node("Shape", [token_first], "channels", start=2, end=3)
    rows = writer.node("Concat", [writer.constant("any", np.array([-1])), flat], "rows", axis=0)
    writer.node("Reshape", [token_first, rows], target, whole_name=True)
    return writer


def _end(source: str, target: str) -> Writer:
    writer = Writer("portable")
    channels = writer.node("Shape", [source], "last_channels", start=1, end=2)
    shape = writer.node("Concat", [TEXTS, channels], "last_shape", axis=0)
    token_first = writer.node("Reshape", [source, shape], "last_token_first")
    writer.node("Transpose", [token_first], target, whole_name=True, perm=[1, 0, 2])
    return writer


def _normalization(node: NodeProto, constants: Mapping[str, TensorProto]) -> Writer:
    writer = Writer(f"{node.output[0]}/portable")
    source, gain, *bias = node.input
    size = len(numpy_helper.to_array(constants[gain]))
    mean = writer.constant("mean", np.full((size, COLUMNS), 1 / size, np.float32))
    last = writer.constant("last_axis", np.array([-1]))
    epsilon = writer.constant("epsilon", np.float32(_attribute(node, "epsilon", 1e-5)))
    average = writer.node("ReduceMax", [writer.node("MatMul", [source, mean], "averages"), last], "average")
    centred = writer.node("Sub", [source, average], "centred")
    squares = writer.node("Mul", [centred, centred], "squares")
    variances = writer.node("Gemm", [squares, mean, epsilon], "variances")
    deviation = writer.node("Sqrt", [writer.node("ReduceMax", [variances, last], "variance")], "deviation")
    scaled = [writer.node("Div", [centred, deviation], "normal"), gain]
    if bias and numpy_helper.to_array(constants[bias[0]]).any():
        writer.node("Add", [writer.node("Mul", scaled, "scaled"), bias[0]], node.output[0], whole_name=True)
    else:
        writer.node("Mul", scaled, node.output[0], whole_name=True)
    return writer


def _attention(node: NodeProto, width: int, calm: bool) -> Writer:
    writer = Writer(f"{node.output[0]}/portable")
    heads = int(_attribute(node, "num_heads", 0))
    size = width // heads
    sizes = writer.constant("heads_channels", np.array([heads, size]))
    split = writer.node("Concat", [TEXTS, sizes], "split", axis=0)
    roles = ("query", "key", "value")
    query, key, value = (
        writer.node("Reshape", [name, split], role) for name, role in zip(node.input, roles, strict=True)
    )
    # transBatch has (tokens, texts, heads, channels) read as (texts, heads, tokens, channels).
    scores = writer.node(
        "FusedMatMul",
        [query, key],
        "scores",
        domain=MICROSOFT,
        transBatchA=1,
        transBatchB=1,
        transB=1,
        alpha=1 / math.sqrt(size),
    )
    last = writer.constant("last_axis", np.array([-1]))
    if not calm:
        scores = writer.node("Sub", [scores, writer.node("ReduceMax", [scores, last], "highest")], "shifted")
    weights = writer.node("Exp", [scores], "weights")
    totals = writer.node("ReduceMax", [writer.node("MatMul", [weights, ONES], "sums"), last], "totals")
    weighted = writer.node("FusedMatMul", [weights, value], "weighted", domain=MICROSOFT, transBatchB=1)
    averages = writer.node("Div", [weighted, totals], "averages")
    token_first = writer.node("Transpose", [averages], "token_first", perm=[2, 0, 1, 3])
    rows = writer.constant("rows", np.array([-1, width]))
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
