"""The quantized encoder as onnxruntime runs it: operators of our own, each an INT8 product with what follows it.

An INT8 product is exact, but the steps between two products are float32. If a value near the border of two codes
differs in its last bit, it gets another code, and hundreds of codes after it differ too. onnxruntime's own operators
sum a row in as many lanes as the CPU's vectors have, so the same text would get vectors of cosine 0.999 on x86 and on
Graviton. The operators of `kernels/` make each number by the same operations in the same order everywhere, and in one
pass over memory where onnxruntime's take up to ten:

    Embed, EmbedAfterPadding        tables, LayerNormalization, codes
    Linear                          query, key and value
    AttentionQuantize               attention, codes; AttentionBiasQuantize with a bias of distances
    LinearAddNormalizeQuantize      attention's output, residual, LayerNormalization, codes
    LinearGeluQuantize              up, Gelu, codes
    LinearAddNormalizeQuantize      down, residual, LayerNormalization, codes

The last is LinearAddNormalize in the last layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

from quantize.errors import QuantizationError
from quantize.fusion import IDS, MICROSOFT, OPSET, SEGMENTS, Graph, Group, heads_of, needed
from quantize.linear import QuantizedLinear
from quantize.places import bias_of_distances, places_by
from quantize.writer import Writer

DOMAIN = "lambda.embeddings"
LANES = 16
"""Channels of a layer, and of a head of attention, must be a multiple of this."""
ROWS_AT_ONCE = 4096
"""Of the table of words: more of them in float32 would only take memory."""
MORE_BIASES = LANES - 2
"""Beside those of each distance (kernels/arithmetic.h, `bias_size`)."""
BLOCK, QUAD = 32, 4
"""Columns and inputs of a linear layer whose weights lie together (kernels/operators.c, "PRODUCT")."""

Array = npt.NDArray[np.float32]


def codes_of(tensor: str) -> str:
    """The name of the codes of a tensor that a group reads: uint8, shape (rows, channels)."""
    return f"{tensor}/codes"


def rest_of(tensor: str) -> str:
    """The name of what a row has beside its codes: scale, lowest, outliers; float32, shape (rows, 2 + outliers)."""
    return f"{tensor}/rest"


def assemble(graph: Graph, quantized: Mapping[str, QuantizedLinear], wanted: Sequence[str] = ()) -> onnx.ModelProto:
    """A model of token ids, int64 of shape (texts, tokens), with `quantized` in place of the groups of those names.

    The output is the last hidden state, float32 of shape (texts, tokens, channels), or the tensors `wanted`, and the
    model has no more than they need.
    Raises QuantizationError if the graph is not that of a BERT-like encoder, or has sizes that the operators do not.
    """
    model = _Assembly(graph, quantized).model()
    if wanted:
        _keep(model.graph, wanted)
    return model


def _keep(graph: onnx.GraphProto, wanted: Sequence[str]) -> None:
    """Leave what the tensors `wanted` need, and make them the outputs."""
    nodes = needed(graph.node, wanted)
    read = {name for node in nodes for name in node.input}
    constants = [constant for constant in graph.initializer if constant.name in read]
    del graph.node[:], graph.initializer[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)


class _Assembly:
    def __init__(self, graph: Graph, quantized: Mapping[str, QuantizedLinear]) -> None:
        self._graph = graph
        self._quantized = quantized
        self._writer = Writer("int8")
        self._reader = {group.input: group for group in graph.groups}
        self._linear = {linear.output: group for group in graph.groups for linear in group.linears}
        self._makers = {node.output[0]: node for node in graph.nodes}

    def model(self) -> onnx.ModelProto:
        for part in self._graph.parts:
            if isinstance(part, Group):
                continue  # written with what follows it
            if part.op_type == "LayerNormalization":
                self._normalization(part)
            elif part.op_type == "MultiHeadAttention":
                self._attention(part)
            elif part.output[0] in self._reader:
                self._activation(part)
        channels = len(self._graph.groups[0].weight)
        sizes = ["texts", "tokens"]
        made = helper.make_graph(
            self._writer.nodes,
            "encoder",
            [helper.make_tensor_value_info(IDS, onnx.TensorProto.INT64, sizes)],
            [helper.make_tensor_value_info(self._graph.output, onnx.TensorProto.FLOAT, [*sizes, channels])],
            self._writer.constants,
        )
        opsets = [
            helper.make_opsetid(domain, version) for domain, version in (("", OPSET), (MICROSOFT, 1), (DOMAIN, 1))
        ]
        return helper.make_model(made, opset_imports=opsets, ir_version=10)

    def _product(self, group: Group) -> list[str]:
        """The inputs of a product."""
        found = self._quantized[group.name]
        constants = product_constants(found.weight, found.scale, found.bias, found.outlier_weight)
        names = [self._writer.constant(f"{group.name}/{name}", value) for name, value in constants.items()]
        return [codes_of(group.input), rest_of(group.input), *names]

    def _linear_layer(self, group: Group) -> str:
        """Write a group as a Linear, where no operator has its product and what follows; returns its output."""
        return self._writer.node("Linear", self._product(group), group.name, whole_name=True, domain=DOMAIN)

    def _coding(self, tensor: str) -> list[str]:
        """The inputs that an operator needs to make the codes of a tensor that a group reads."""
        found = self._quantized[self._reader[tensor].name]
        return [
            self._writer.constant(f"{tensor}/factor", found.factor),
            self._writer.constant(f"{tensor}/outlier_channels", found.outliers),
        ]

    def _normalization(self, node: NodeProto) -> None:
        source, output = node.input[0], node.output[0]
        if len(node.input) < 3 or not all(name in self._graph.constants for name in node.input[1:3]):
            raise QuantizationError(f"{output} is a LayerNormalization without a bias, which is not supported")
        check_channels(output, len(self._value(node.input[1])))
        affine = [self._writer.constant(f"{output}/{name}", self._value(name)) for name in node.input[1:3]]
        epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
        add = self._makers.get(source)
        addends = list(add.input) if add is not None and add.op_type == "Add" else []
        linears = [name for name in addends if name in self._linear]
        outputs = [output, codes_of(output), rest_of(output)]
        if not linears:
            tables, padding = self._tables(source)
            inputs = [IDS, *tables, *affine, *self._coding(output)]
            if padding is None:
                self._writer.node_of_outputs("Embed", inputs, outputs, DOMAIN, epsilon=epsilon)
            else:
                attributes = {"epsilon": epsilon, "padding": padding}
                self._writer.node_of_outputs("EmbedAfterPadding", inputs, outputs, DOMAIN, **attributes)
            return
        group = self._linear[linears[0]]
        (stream,) = (name for name in addends if name != linears[0])
        inputs = [*self._product(group), stream, *affine]
        if output == self._graph.output:
            self._writer.node_of_outputs("LinearAddNormalize", [*inputs, IDS], [output], DOMAIN, epsilon=epsilon)
            return
        inputs += self._coding(output)
        self._writer.node_of_outputs("LinearAddNormalizeQuantize", inputs, outputs, DOMAIN, epsilon=epsilon)

    def _attention(self, node: NodeProto) -> None:
        group, output, heads = self._linear[node.input[0]], node.output[0], heads_of(node)
        size = len(group.bias) // 3 // heads
        check_channels(f"a head of {output}", size)
        attributes = {"heads": heads, "alpha": 1 / math.sqrt(size)}
        outputs = [codes_of(output), rest_of(output)]
        inputs = [self._linear_layer(group), IDS]
        if self._graph.bias is None:
            self._writer.node_of_outputs("AttentionQuantize", inputs, outputs, DOMAIN, **attributes)
        else:
            inputs.append(self._bias)
            self._writer.node_of_outputs("AttentionBiasQuantize", inputs, outputs, DOMAIN, **attributes)

    def _activation(self, node: NodeProto) -> None:
        output = node.output[0]
        if len(node.input) != 1 or node.input[0] not in self._linear:
            raise QuantizationError(f"{output} is made by {node.op_type} of more than one linear layer's output")
        source = self._linear[node.input[0]]
        if node.op_type == "Gelu":
            kind, inputs = "LinearGeluQuantize", self._product(source)
        else:
            kept = NodeProto()
            kept.CopyFrom(node)
            kept.input[0] = self._linear_layer(source)
            self._writer.nodes.append(kept)
            kind, inputs = "Quantize", [output]
        inputs += self._coding(output)
        self._writer.node_of_outputs(kind, inputs, [codes_of(output), rest_of(output)], DOMAIN)

    def _tables(self, tensor: str) -> tuple[list[str], int | None]:
        """The table of words as int8 with one scale a row and one a channel, and that of places, from the first that is
        read on, with the first row of segments added; and the token of padding, if that has a place of its own. Without
        the channels' scales a far channel of a frequent token would make it coarse."""
        words, places, segments, padding = None, None, np.float32(0), None
        waiting = [tensor]
        while waiting:
            node = self._makers.get(waiting.pop())
            if node is not None and node.op_type == "Add":
                waiting += node.input
                continue
            table = self._graph.constants.get(node.input[0]) if node is not None and node.op_type == "Gather" else None
            if node is None or table is None:
                raise QuantizationError(
                    f"{tensor} is not the sum of three tables: is this a BERT-like encoder by optimum?"
                )
            if node.input[1] == IDS:
                words = numpy_helper.to_array(table)
            elif node.input[1] == SEGMENTS:
                segments = numpy_helper.to_array(table)[0]
            elif (read := places_by(self._graph, node.input[1])) is not None:
                places, padding = numpy_helper.to_array(table)[read.first :], read.padding
            else:
                raise QuantizationError(
                    f"{tensor} reads a table by {node.input[1]}: only {IDS}, {SEGMENTS} and places that count the "
                    "tokens of a text are supported"
                )
        if words is None or places is None:
            raise QuantizationError(f"{tensor} is made without a table of words or of places")
        if self._graph.bias is not None:
            bias = _biases(self._graph.bias, tokens=len(places) - (padding is not None))
            self._bias = self._writer.constant("bias", bias)
        codes, word_scales, channel_scales = quantize_rows(words)
        tables: dict[str, npt.NDArray[Any]] = {
            "words": codes,
            "word_scales": word_scales,
            "channel_scales": channel_scales,
            "places": places + segments,
        }
        return [self._writer.constant(name, value) for name, value in tables.items()], padding

    def _value(self, name: str) -> npt.NDArray[np.generic]:
        return numpy_helper.to_array(self._graph.constants[name])


def _biases(model: onnx.ModelProto, tokens: int) -> Array:
    """A bias of attention as the operator reads it, for texts of up to so many tokens."""
    powers_of_2 = bias_of_distances(model, tokens).astype(np.float64) / math.log(2)
    found: Array = np.pad(powers_of_2, [(0, 0), (0, MORE_BIASES + 1)]).astype(np.float32)
    return found


def quantize_rows(table: Array) -> tuple[npt.NDArray[np.int8], Array, Array]:
    """A table as int8 codes of its shape (rows, channels), one scale a row and one a channel."""
    channel_scales: Array = np.maximum(np.maximum(table.max(axis=0), -table.min(axis=0)), np.float32(1e-12))
    codes, row_scales = np.empty(table.shape, np.int8), np.empty(len(table), np.float32)
    for start in range(0, len(table), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        relative = table[rows] / channel_scales
        row_scales[rows] = np.maximum(np.abs(relative).max(axis=1), np.float32(1e-12)) / np.float32(127)
        codes[rows] = np.rint(relative / row_scales[rows, None])
    return codes, row_scales, channel_scales


def check_sizes(graph: Graph) -> None:
    """Raises QuantizationError if a linear layer of the graph has channels that the operators do not multiply."""
    for group in graph.groups:
        inputs, columns = group.weight.shape
        check_channels(f"the input of {group.name}", inputs)
        check_channels(group.name, columns, BLOCK)


def check_channels(name: str, channels: int, multiple: int = LANES) -> None:
    if channels % multiple:
        raise QuantizationError(f"{name} has {channels} channels: only multiples of {multiple} are supported")


def product_constants(
    weight: npt.NDArray[np.int8], scale: Array, bias: Array, outlier_weight: Array
) -> dict[str, npt.NDArray[Any]]:
    """The inputs of a product after its codes and their rest, in order.

    `weight` of shape (inputs, columns) becomes (columns / 32, 32 inputs), in the order in which it is read; `scale` and
    `bias` have shape (columns,), `outlier_weight` has (outliers, columns).
    """
    inputs, columns = weight.shape
    blocks = weight.reshape(inputs // QUAD, QUAD, columns // BLOCK, BLOCK).transpose(2, 0, 3, 1)
    sums = weight.sum(axis=0, dtype=np.int32)
    return {
        "weight": np.ascontiguousarray(blocks).reshape(columns // BLOCK, BLOCK * inputs),
        "sums": sums,
        "scale": scale,
        "bias": bias,
        "rest_weight": np.concatenate([(sums.astype(np.float32) * scale)[None], outlier_weight]),
    }
