"""Quantization of a whole encoder with a scale for each token, so that a vector depends on its text alone.

Nothing is calibrated on texts. What weights do not tell, which channels reach far and whether vectors are crowded, a
first and plain INT8 form of the model shows on its own vocabulary. That form runs on our operators, which give the same
bits on every CPU, and so the file has the same bytes whichever machine makes it.

The vectors of some models, such as E5's, all point much the same way (Ethayarajh, "How Contextual are Contextualized
Word Representations?", arXiv:1909.00512, section 4). What tells texts apart is then a small part of a vector, and the
same error puts more of a text's neighbours in another order. So these models keep more outlier channels.
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
from quantize.linear import QuantizedLinear, outlier_channels, quantize_linear, row_sums, smoothing_factors
from quantize.rounding import on_grid
from quantize.session import feed, open_session, run, runs_of

Array = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]
Advance = Callable[[int, int], None]

SAMPLE = 8
"""One token in SAMPLE is used for the products of channels, which take most of the time."""


FEW_OUTLIERS, MORE_OUTLIERS = 2, 8
"""Of an input of a model whose vectors point in many directions, and of one whose vectors are crowded."""
CROWDED = 0.5
"""Of `crowding`. That of all-MiniLM-L6-v2 is 0.14, of multilingual-e5-small 0.83."""
SEEN = 50
"""Pieces of the vocabulary that show it."""
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
    outliers: int | None = None
    """Channels that stay float32 of each input but attention's, which has none that reach far; None: what the crowding
    of the model's vectors asks for."""

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
        outliers = self.outliers
        if outliers is None:
            outliers = MORE_OUTLIERS if crowding(_vectors(graph, plain, pieces)) > CROWDED else FEW_OUTLIERS
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
            self._quantize(graph, part, inputs, outliers, done)
        advance(len(parts) * len(runs), len(parts) * len(runs))
        return done

    def _quantize(
        self,
        graph: Graph,
        part: Sequence[Group],
        inputs: Mapping[str, Inputs],
        outliers: int,
        done: dict[str, QuantizedLinear],
    ) -> None:
        """Put the groups `part`, whose inputs are known by name, to those that are `done`, by their own names."""
        of_output = {linear.output: group for group in graph.groups for linear in group.linears}
        for group in part:
            smoothing, channels = _plain(group)
            largest, products = inputs[group.input].largest, inputs[group.input].products
            if self.smooth:
                smoothing = smoothing_factors(largest, group.weight)
            if group.folds_into is None:
                channels = outlier_channels(largest, group.weight, outliers)
            done[group.name] = quantize_linear(
                group.weight, group.bias, smoothing, channels, products if self.compensate else None
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


def _vectors(graph: Graph, plain: Mapping[str, QuantizedLinear], pieces: Sequence[Sequence[int]]) -> Array64:
    """Sums of the last hidden states of some pieces, shape (pieces, channels)."""
    session = open_session(assemble(graph, plain).SerializeToString())
    some = pieces[:: max(1, len(pieces) // SEEN)]
    hidden = (run(session, [graph.output], feed([piece]))[0][0] for piece in some)
    return np.array([on_grid(each.astype(np.float64), bits=20, bound=2.0**12).sum(axis=0) for each in hidden])


def crowding(vectors: Array64) -> float:
    """The squared length of the mean of vectors' directions: 0 if they point in all, 1 if in one. Shape (n, size)."""
    directions = vectors / np.sqrt(row_sums(vectors**2))[:, None]
    mean = on_grid(directions, bits=30, bound=1.0).sum(axis=0) / len(vectors)
    return float(row_sums(mean[None] ** 2)[0])


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
