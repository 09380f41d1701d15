"""Static quantization of a whole encoder: layer after layer, each on the output of those quantized before it.

With scales fixed on calibration text, a vector depends on its text alone. `centring.py` prepares the float32 graph,
`linear.py` says what is done to a layer; here the layers are walked through and the graph is written:

    Mul(x, 1/s) -> QuantizeLinear -> MatMulIntegerToFloat(W_q) -> Add(MatMul(Gather(x, outliers), W_o))

Tables that are looked up by token or position are stored as int8 with one scale a row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from quantize.calibration import activations, statistics
from quantize.centring import centrable, centred
from quantize.errors import QuantizationError
from quantize.fusion import MICROSOFT, Graph, Group, Piece, fuse
from quantize.linear import QuantizedLinear, Settings, quantize_linear

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class StaticRecipe:
    """Static activation scales, centring, smoothing, float32 outlier channels, weights rounded by output error."""

    settings: Settings = field(default_factory=Settings)
    centre: bool = True
    outliers: int = 4
    """Channels that stay float32 of an input that is wider than its output. Elsewhere they bring less, and the sum of
    two products costs more: it is taken over the output."""

    batch_independent = True
    min_cosine = 0.997
    """Mean cosine to float32 below which something went wrong."""

    def apply(self, source: Path, target: Path, ids: Sequence[Sequence[int]], advance: Advance) -> dict[str, float]:
        """Quantize the ONNX file `source` into `target`, with texts of token ids.

        Returns each linear's relative output error. Raises QuantizationError.
        """
        if not ids:
            raise QuantizationError("the static recipe needs calibration: a tokenizer and texts")
        logging.disable(logging.WARNING)  # onnxruntime tells what it fuses
        try:
            graph = fuse(source)
        finally:
            logging.disable(logging.NOTSET)
        model, errors = self._quantize_groups(graph, ids, advance)
        store_tables_as_int8(model.graph)
        target.write_bytes(model.SerializeToString())
        return errors

    def _quantize_groups(
        self, graph: Graph, ids: Sequence[Sequence[int]], advance: Advance
    ) -> tuple[onnx.ModelProto, dict[str, float]]:
        found = statistics(graph.model({}, names := list(centrable(graph))), names, ids)
        if self.centre:
            graph = centred(graph, {name: of.middle for name, of in found.items()})
        groups = graph.groups
        names = sorted({group.input for group in groups})
        exact = statistics(graph.model({}, names), names, ids)
        done: dict[str, QuantizedLinear] = {}
        pieces: dict[str, Piece] = {}
        for index, group in enumerate(groups):
            advance(index, len(groups))
            inputs = activations(graph.model(pieces, [group.input]), group.input, ids)
            wide, narrow = group.weight.shape
            quantized = quantize_linear(
                inputs,
                group.weight,
                group.bias,
                exact[group.input].mean,
                self.outliers if wide > narrow else 0,
                self.settings,
            )
            if group.folds_into:
                before = next(other for other in groups if group.folds_into in [line.output for line in other.linears])
                done[before.name] = _scale_output(before, done[before.name], group.folds_into, quantized.plan.smoothing)
                pieces[before.name] = write_group(before, done[before.name])
            done[group.name] = quantized
            pieces[group.name] = write_group(group, quantized)
        advance(len(groups), len(groups))
        return graph.model(pieces), {name: quantized.error for name, quantized in done.items()}


def write_group(group: Group, quantized: QuantizedLinear) -> Piece:
    """The nodes and constants of a quantized group."""
    writer = _Writer(group.name)
    plan = quantized.plan
    outliers = np.flatnonzero(plan.is_outlier)
    scaled = group.input
    if not group.folds_into:
        factors = writer.constant("inverse_smoothing", (1 / plan.smoothing).astype(np.float32))
        scaled = writer.node("Mul", [group.input, factors], "smoothed")
    scale = writer.constant("scale", np.array(plan.scale, np.float32))
    zero = writer.constant("zero_point", np.array(plan.zero_point, np.uint8))
    codes = writer.node("QuantizeLinear", [scaled, scale, zero], "codes")
    exact = ""
    if len(outliers):
        index = writer.constant("outliers", outliers.astype(np.int64))
        exact = writer.node("Gather", [group.input, index], "outlier_channels", axis=-1)
    start = 0
    for number, linear in enumerate(group.linears):
        columns = slice(start, start := start + linear.weight.shape[1])
        weight = writer.constant(f"{number}/weight", quantized.weight[:, columns])
        weight_scale = writer.constant(f"{number}/weight_scale", quantized.weight_scale[columns])
        bias = writer.constant(f"{number}/bias", quantized.bias[columns])
        inputs = [codes, weight, scale, weight_scale, zero, "", bias]
        if not exact:
            writer.node("MatMulIntegerToFloat", inputs, linear.output, whole_name=True, domain=MICROSOFT)
            continue
        product = writer.node("MatMulIntegerToFloat", inputs, f"{number}/product", domain=MICROSOFT)
        outlier_weight = writer.constant(f"{number}/outlier_weight", quantized.outlier_weight[:, columns])
        rest = writer.node("MatMul", [exact, outlier_weight], f"{number}/outlier_product")
        writer.node("Add", [product, rest], linear.output, whole_name=True)
    return Piece(writer.nodes, writer.constants)


def store_tables_as_int8(graph: onnx.GraphProto, rows: int = 100) -> None:
    """Replace each float32 table of at least `rows` rows that is looked up by Gather: row i as int8 times a scale."""
    tables = {constant.name: constant for constant in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or len(table.dims) != 2 or table.dims[0] < rows or table.data_type != TensorProto.FLOAT:
            nodes.append(node)
            continue
        values = numpy_helper.to_array(table)
        scale = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-12) / 127
        writer = _Writer(node.output[0])
        names = (
            writer.constant("table", np.rint(values / scale).astype(np.int8)),
            writer.constant("table_scale", scale.astype(np.float32)),
        )
        codes, scales = (writer.node("Gather", [name, node.input[1]], f"{name}/row") for name in names)
        floats = writer.node("Cast", [codes], "row", to=TensorProto.FLOAT)
        writer.node("Mul", [floats, scales], node.output[0], whole_name=True)
        nodes += writer.nodes
        graph.initializer.remove(table)
        graph.initializer.extend(writer.constants)
    del graph.node[:]
    graph.node.extend(nodes)


def _scale_output(
    group: Group, quantized: QuantizedLinear, output: str, smoothing: npt.NDArray[np.float32]
) -> QuantizedLinear:
    """Divide the channels of one linear's output by `smoothing`: exact, in its scales and bias."""
    factors = np.concatenate(
        [
            1 / smoothing if linear.output == output else np.ones(linear.weight.shape[1], np.float32)
            for linear in group.linears
        ]
    ).astype(np.float32)
    return replace(
        quantized,
        weight_scale=quantized.weight_scale * factors,
        outlier_weight=quantized.outlier_weight * factors,
        bias=quantized.bias * factors,
    )


class _Writer:
    """Collects nodes and constants under one prefix."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._prefix = prefix

    def constant(self, name: str, value: npt.NDArray[np.generic]) -> str:
        full = f"{self._prefix}/{name}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), full))
        return full

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        output: str,
        whole_name: bool = False,
        domain: str | None = None,
        **attributes: int,
    ) -> str:
        full = output if whole_name else f"{self._prefix}/{output}"
        node = helper.make_node(kind, list(inputs), [full], domain=domain)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self.nodes.append(node)
        return full
