"""Quantization of a whole encoder with a scale for each token, so that a vector depends on its text alone.

Nothing is calibrated on texts. Weights do not tell which channels reach far, so a first, plain INT8 form of the model
is run on its own vocabulary to see it. That form runs on our operators, which give the same bits on every CPU, and so
the file has the same bytes whichever machine makes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kernels import VERSION
from quantize.assemble import assemble, check_sizes, codes_of, rest_of
from quantize.errors import QuantizationError
from quantize.fusion import OTHERWISE, Graph, Group, fuse
from quantize.linear import QuantizedLinear, outlier_channels, quantize_linear, smoothing_factors
from quantize.rounding import on_grid
from quantize.session import open_session, run, runs_of

Array = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]
Advance = Callable[[int, int], None]

SAMPLE = 8
"""One token in SAMPLE is used for the products of channels, which take most of the time."""


PRODUCTS_AT_ONCE = 1 << 30
"""Bytes of products that are kept. A model that has more is run as often as it takes."""


@dataclass(frozen=True)
class Inputs:
    """What a group has read so far."""

    largest: Array
    """Largest magnitude of each channel, shape (channels,)."""
    products: Array64
    """X^T X of some of the rows X, shape (channels, channels)."""

    @classmethod
    def none(cls, channels: int) -> Inputs:
        return cls(np.zeros(channels, np.float32), np.zeros((channels, channels)))

    def with_rows(self, rows: Array) -> Inputs:
        """These inputs and further float32 rows of shape (tokens, channels)."""
        # 2^18 tokens of values below 2^7, in steps of 2^-10: their sums are exact (rounding.py tells why).
        some = on_grid(rows[::SAMPLE].astype(np.float64), bits=10, bound=2.0**7)
        largest = np.maximum(rows.max(axis=0), -rows.min(axis=0))
        return Inputs(np.maximum(self.largest, largest), self.products + some.T @ some)


@dataclass(frozen=True)
class PerTokenRecipe:
    """Scales by token, smoothing, float32 outlier channels, weights of 8 bits with bounded fours."""

    smooth: bool = True
    compensate: bool = True
    """Whether rounding errors are compensated."""
    outliers: int = 2
    """Channels of each input that stay float32; none of attention's output, where none reach far."""

    batch_independent = True
    operators = VERSION
    optimized = True
    min_cosine = 0.997
    """Mean cosine to float32 below which something went wrong."""

    def apply(self, source: Path, target: Path, pieces: Sequence[Sequence[int]], advance: Advance) -> None:
        """Quantize the ONNX file `source` into `target`; `pieces` are token ids to see the channels' magnitudes on.

        Raises QuantizationError.
        """
        logging.disable(logging.WARNING)  # onnxruntime tells what it fuses
        try:
            graph = fuse(source)
        finally:
            logging.disable(logging.NOTSET)
        try:
            check_sizes(graph)
            quantized = self._quantized(graph, pieces, advance)
        except QuantizationError as error:
            raise QuantizationError(f"{source}: {error}; {OTHERWISE}") from error
        target.write_bytes(assemble(graph, quantized).SerializeToString())

    def _quantized(self, graph: Graph, pieces: Sequence[Sequence[int]], advance: Advance) -> dict[str, QuantizedLinear]:
        """Each group, by its name."""
        plain = {group.name: quantize_linear(group.weight, group.bias, *_plain(group), None) for group in graph.groups}
        done: dict[str, QuantizedLinear] = {}
        parts = _parts(graph.groups)
        runs = runs_of(pieces)
        for number, part in enumerate(parts):
            names = [name for group in part for name in (codes_of(group.input), rest_of(group.input))]
            session = open_session(assemble(graph, plain, names).SerializeToString())
            inputs = {group.input: Inputs.none(len(group.weight)) for group in part}
            for index, each in enumerate(runs):
                advance(number * len(runs) + index, len(parts) * len(runs))
                values = iter(run(session, names, each))
                for tensor, codes, rest in zip(inputs, values, values, strict=True):
                    inputs[tensor] = inputs[tensor].with_rows(codes * rest[:, :1] + rest[:, 1:2])
            self._quantize(graph, part, inputs, done)
        advance(len(parts) * len(runs), len(parts) * len(runs))
        return done

    def _quantize(
        self, graph: Graph, part: Sequence[Group], inputs: Mapping[str, Inputs], done: dict[str, QuantizedLinear]
    ) -> None:
        """Put the groups `part`, whose inputs are known by name, to those that are `done`, by their own names."""
        of_output = {linear.output: group for group in graph.groups for linear in group.linears}
        for group in part:
            smoothing, outliers = _plain(group)
            largest, products = inputs[group.input].largest, inputs[group.input].products
            if self.smooth:
                smoothing = smoothing_factors(largest, group.weight)
            if group.folds_into is None:
                outliers = outlier_channels(largest, group.weight, self.outliers)
            done[group.name] = quantize_linear(
                group.weight, group.bias, smoothing, outliers, products if self.compensate else None
            )
            if group.folds_into is not None:
                source = of_output[group.folds_into]
                columns = source.columns(group.folds_into)
                done[source.name] = _divided(done[source.name], columns, smoothing)


def _parts(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups in order, in parts whose products have at most PRODUCTS_AT_ONCE bytes together, or of one group."""
    parts: list[list[Group]] = []
    free = 0
    for group in groups:
        size = 8 * len(group.weight) ** 2
        if size > free:
            parts.append([])
            free = PRODUCTS_AT_ONCE
        parts[-1].append(group)
        free -= size
    return parts


def _plain(group: Group) -> tuple[Array, npt.NDArray[np.int64]]:
    """No smoothing and no outlier channels."""
    return np.ones(len(group.weight), np.float32), np.zeros(0, np.int64)


def _divided(quantized: QuantizedLinear, columns: slice, smoothing: Array) -> QuantizedLinear:
    """A linear whose output has some columns divided by `smoothing`."""
    factors = np.ones_like(quantized.bias)
    factors[columns] = np.float32(1) / smoothing
    return replace(
        quantized,
        scale=quantized.scale * factors,
        bias=quantized.bias * factors,
        outlier_weight=quantized.outlier_weight * factors,
    )
