"""Static quantization of a whole encoder: layer after layer, each on the output of those quantized before it.

With scales fixed on calibration text, a vector depends on its text alone. `centring.py` prepares the float32 graph,
`linear.py` says what is done to a layer; here the layers are walked through, each written for calibrating the next:

    Mul(x, 1/s) -> QuantizeLinear -> MatMulIntegerToFloat(W_q) -> Add(MatMul(Gather(x, outliers), W_o))

What they become in the end is written by `assemble.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from kernels import VERSION
from quantize.assemble import assemble
from quantize.calibration import Feeds, activations, feeds_of, outputs, statistics
from quantize.centring import centrable, centred
from quantize.errors import QuantizationError
from quantize.fusion import MICROSOFT, Graph, Group, Piece, fuse
from quantize.linear import QuantizedLinear, Settings, quantize_linear
from quantize.writer import Writer

Array = npt.NDArray[np.float32]
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
    operators = VERSION
    optimized = True
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
        feeds = feeds_of(ids)
        model, errors = self._quantize_groups(self._prepared(graph, feeds), feeds, advance)
        target.write_bytes(model.SerializeToString())
        return errors

    def _prepared(self, graph: Graph, feeds: Feeds) -> Graph:
        """An equal graph with centred ranges."""
        if self.centre:
            names = list(centrable(graph))
            found = statistics(graph.model({}, names), names, feeds)
            graph = centred(graph, {name: of.middle for name, of in found.items()})
        return graph

    def _quantize_groups(
        self, graph: Graph, feeds: Feeds, advance: Advance
    ) -> tuple[onnx.ModelProto, dict[str, float]]:
        groups = graph.groups
        of_output = {linear.output: group for group in groups for linear in group.linears}
        names = sorted({group.input for group in groups})
        exact = statistics(graph.model({}, names), names, feeds)
        done: dict[str, QuantizedLinear] = {}
        pieces: dict[str, Piece] = {}
        given: dict[str, int] = {}
        for index, group in enumerate(groups):
            advance(index, len(groups))
            if len(group.linears) > 1:  # an encoder layer begins: what is before it stays as it is from now on
                names = graph.before(group)
                feeds = list(outputs(graph.model(pieces, names, given), names, feeds))
                given = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in feeds[0].items()}
            inputs = activations(graph.model(pieces, [group.input], given), group.input, feeds)
            wide, narrow = group.weight.shape
            outliers = self.outliers if wide > narrow else 0
            means = exact[group.input].mean
            quantized = quantize_linear(inputs, group.weight, group.bias, means, outliers, self.settings)
            if group.folds_into is not None:
                source = of_output[group.folds_into]
                columns = source.columns(group.folds_into)
                done[source.name] = _divide_output(done[source.name], columns, quantized.plan.smoothing)
                pieces[source.name] = write_group(source, done[source.name])
            done[group.name] = quantized
            pieces[group.name] = write_group(group, quantized)
        advance(len(groups), len(groups))
        return assemble(graph, done), {name: quantized.error for name, quantized in done.items()}


def _divide_output(quantized: QuantizedLinear, columns: slice, smoothing: Array) -> QuantizedLinear:
    """Divide some columns of the output by `smoothing`."""
    factors = np.ones_like(quantized.bias)
    factors[columns] = 1 / smoothing
    return replace(
        quantized,
        product_scale=quantized.product_scale * factors,
        outlier_weight=quantized.outlier_weight * factors,
        bias=quantized.bias * factors,
    )


def write_group(group: Group, quantized: QuantizedLinear) -> Piece:
    """The nodes and constants of a quantized group."""
    writer = Writer(group.name)
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
    one = writer.constant("one", np.float32(1))
    for number, linear in enumerate(group.linears):
        columns = group.columns(linear.output)
        weight = writer.constant(f"{number}/weight", quantized.weight[:, columns])
        product_scale = writer.constant(f"{number}/product_scale", quantized.product_scale[columns])
        bias = writer.constant(f"{number}/bias", quantized.bias[columns])
        inputs = [codes, weight, one, product_scale, zero, "", bias]
        if not exact:
            writer.node("MatMulIntegerToFloat", inputs, linear.output, whole_name=True, domain=MICROSOFT)
            continue
        product = writer.node("MatMulIntegerToFloat", inputs, f"{number}/product", domain=MICROSOFT)
        outlier_weight = writer.constant(f"{number}/outlier_weight", quantized.outlier_weight[:, columns])
        added = writer.node("MatMul", [exact, outlier_weight], f"{number}/outlier_product")
        writer.node("Add", [product, added], linear.output, whole_name=True)
    return Piece(writer.nodes, writer.constants)
