"""How fast this machine multiplies matrices of the model's shapes: the limit of what the model can reach on it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

from kernels import register
from quantize.assemble import DOMAIN, product_constants
from quantize.fusion import MICROSOFT
from quantize.rounding import LARGEST_CODE, LARGEST_SUM

TOKENS = 384
"""Rows of the left matrix: as many tokens as the handler gives to a run."""
SHAPES = ((384, 384), (384, 1536), (1536, 384))
"""Rows and columns of the model's weights: attention projections, `up` and `down`."""
WARM_UP, REPEATS = 5, 30


def measure(threads: int) -> dict[str, list[float]]:
    """Rates in 10^9 multiply-accumulates a second, one a call, of the shape with the highest median.

    `int8_gmacs` is of uint8 activations and int8 weights, scaled by column: of onnxruntime's MatMulIntegerToFloat or of
    our Linear, whichever is faster. `float32_gmacs` is of MatMul. Weights are constants, packed beforehand. Kept to
    some instructions, there is our Linear alone.
    """
    if os.environ.get("KERNELS_INSTRUCTIONS"):
        return {"int8_gmacs": _best([_int8_rates(_our_product, *shape, threads) for shape in SHAPES])}
    kinds = (_onnxruntime_product, _our_product)
    return {
        "int8_gmacs": _best([_int8_rates(kind, *shape, threads) for shape in SHAPES for kind in kinds]),
        "float32_gmacs": _best([_float32_rates(rows, columns, threads) for rows, columns in SHAPES]),
    }


def macs_per_token(model: Path) -> int:
    """Multiply-accumulates a token in the INT8 products: rows x columns of all weights of Linear and its kin. Those of
    attention are not among them, as they grow with the text's length."""
    graph = onnx.load(str(model), load_external_data=False).graph
    dims = {weight.name: weight.dims for weight in graph.initializer}
    weights = [node.input[2] for node in graph.node if node.domain == DOMAIN and node.op_type.startswith("Linear")]
    return sum(dims[name][0] * dims[name][1] for name in weights)


def _best(rates: Sequence[list[float]]) -> list[float]:
    return max(rates, key=statistics.median)


Constants = dict[str, npt.NDArray[Any]]


def _onnxruntime_product(weight: npt.NDArray[np.int8]) -> tuple[onnx.NodeProto, Constants]:
    constants: Constants = {
        "weight": weight,
        "input_scale": np.array(0.01, np.float32),
        "weight_scale": np.full(weight.shape[1], 0.01, np.float32),
        "input_zero": np.array(128, np.uint8),
    }
    return helper.make_node("MatMulIntegerToFloat", ["input", *constants], ["output"], domain=MICROSOFT), constants


def _our_product(weight: npt.NDArray[np.int8]) -> tuple[onnx.NodeProto, Constants]:
    columns = weight.shape[1]
    scale, bias = np.full(columns, 0.01, np.float32), np.zeros(columns, np.float32)
    rest = np.tile(np.array([0.01, -1.28], np.float32), (TOKENS, 1))
    no_outliers = np.zeros((0, columns), np.float32)
    constants: Constants = {"rest": rest, **product_constants(weight, scale, bias, no_outliers)}
    return helper.make_node("Linear", ["input", *constants], ["output"], domain=DOMAIN), constants


def _int8_rates(
    kind: Callable[[npt.NDArray[np.int8]], tuple[onnx.NodeProto, Constants]], rows: int, columns: int, threads: int
) -> list[float]:
    source = np.random.default_rng(0)
    # No four of these add up to more than the model's own weights, whose sums fit into 16 bits on AVX2.
    largest = LARGEST_SUM // 4
    node, constants = kind(source.integers(-largest, largest + 1, (rows, columns), np.int8))
    given = source.integers(0, LARGEST_CODE + 1, (TOKENS, rows), np.uint8)
    return _rates(node, constants, given, columns, threads)


def _float32_rates(rows: int, columns: int, threads: int) -> list[float]:
    source = np.random.default_rng(0)
    weight = source.standard_normal((rows, columns), np.float32)
    node = helper.make_node("MatMul", ["input", "weight"], ["output"])
    return _rates(node, {"weight": weight}, source.standard_normal((TOKENS, rows), np.float32), columns, threads)


def _rates(
    node: onnx.NodeProto, constants: Constants, given: npt.NDArray[Any], columns: int, threads: int
) -> list[float]:
    """GMAC/s of each of REPEATS runs of a model of one node: `given` of shape (TOKENS, rows) times weights of shape
    (rows, columns)."""
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("input", helper.np_dtype_to_tensor_dtype(given.dtype), given.shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, (len(given), columns))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    versions = [helper.make_opsetid(domain, version) for domain, version in (("", 17), (MICROSOFT, 1), (DOMAIN, 1))]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    register(options)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    seconds = []
    for _ in range(WARM_UP + REPEATS):
        started = time.perf_counter()
        session.run(None, {"input": given})
        seconds.append(time.perf_counter() - started)
    return [given.size * columns / each / 1e9 for each in seconds[WARM_UP:]]
