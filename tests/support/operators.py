"""Models of one operator of kernels/, and an example of each."""

import math
from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

import kernels
from quantize.assemble import DOMAIN, MORE_BIASES, product_constants
from quantize.rounding import LARGEST_CODE
from tests.support import reference
from tests.support.reference import EPSILON, Arrays

DATA = {"ids", "input", "input_rest", "residual", "x", "qkv"}
"""Inputs that another operator computes. All others are weights, which the model holds."""
PADDING = 7
"""The token id of padding in examples."""


def run(kind: str, inputs: Arrays, outputs: list[str], data: Set[str] = DATA, **attributes: float) -> list[np.ndarray]:
    """The outputs of one operator. What is not in `data` the model holds, as a real one does."""
    model, given = model_of(kind, inputs, outputs, data, **attributes)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    kernels.register(options)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, given)


def model_of(
    kind: str, inputs: Arrays, outputs: list[str], data: Set[str] = DATA, **attributes: float
) -> tuple[bytes, dict[str, np.ndarray]]:
    """A model of one operator, and what is fed to it."""
    given = {name: value for name, value in inputs.items() if name in data}
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
        for name, value in given.items()
    ]
    node = helper.make_node(kind, list(inputs), outputs, domain=DOMAIN)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    held = [numpy_helper.from_array(value, name) for name, value in inputs.items() if name not in data]
    graph = helper.make_graph([node], "operator", values, results, held)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString(), given


def normal(size: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal((*shape, size)).astype(np.float32)


def coding(size: int, channels: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """Factors of a channel, 0 for the outlier channels."""
    factor = np.linspace(0.5, 1.5, size, dtype=np.float32)
    factor[list(channels)] = 0
    return {"factor": factor, "outlier_channels": np.array(channels, np.int64)}


def affine(size: int) -> dict[str, np.ndarray]:
    return {"gamma": np.linspace(0.5, 2, size, dtype=np.float32), "beta": np.linspace(-1, 1, size, dtype=np.float32)}


def embed_inputs(texts: int, tokens: int, size: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "ids": random.integers(0, 50, (texts, tokens)),
        "words": random.integers(-127, 128, (50, size), dtype=np.int8),
        "word_scales": random.uniform(0.001, 0.01, 50).astype(np.float32),
        "channel_scales": random.uniform(0.5, 2, size).astype(np.float32),
        "positions": normal(size, 20),
        **affine(size),
        **coding(size, [3]),
    }


def embed_after_padding_inputs(texts: int, tokens: int, size: int) -> dict[str, np.ndarray]:
    inputs = embed_inputs(texts, tokens, size)
    inputs["ids"][0, 1:3] = PADDING
    return inputs


def product_inputs(rows: int, size: int, columns: int, outliers: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs of a product, and what comes out, float64 of shape (rows, columns)."""
    random = np.random.default_rng([rows, size, columns])
    weight = random.integers(-42, 43, (size, columns), np.int8)  # fours within the bound (quantize/linear.py)
    scale = random.uniform(0.5, 1.5, columns).astype(np.float32)
    outlier_weight = normal(columns, outliers)
    rest = np.concatenate(
        [random.uniform(0.5, 1.5, (rows, 1)) / (4000 * math.sqrt(size)), normal(1 + outliers, rows)], axis=1
    ).astype(np.float32)
    rest[:, 1] *= 100 * rest[:, 0]
    inputs = {
        "input": random.integers(0, LARGEST_CODE + 1, (rows, size), np.uint8),
        "input_rest": rest,
        **product_constants(weight, scale, normal(columns), outlier_weight),
    }
    return inputs, reference.product(weight, outlier_weight, inputs)


def add_inputs(rows: int, size: int, columns: int, outliers: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    inputs, product = product_inputs(rows, size, columns, outliers)
    inputs |= {"residual": normal(columns, rows), **affine(columns)}
    return inputs, reference.normalized(product + inputs["residual"], inputs)


def attention_inputs(texts: int, tokens: int, heads: int, size: int, spread: float = 1) -> dict[str, np.ndarray]:
    channels = heads * size
    qkv = normal(3 * channels, texts * tokens) * np.float32(spread)
    return {"qkv": qkv, "ids": np.zeros((texts, tokens), np.int64)}


def attention_bias_inputs(
    texts: int, tokens: int, heads: int, size: int, positions: int, spread: float = 1
) -> dict[str, np.ndarray]:
    bias = np.random.default_rng(3).normal(scale=2, size=(heads, 2 * positions + MORE_BIASES)).astype(np.float32)
    return attention_inputs(texts, tokens, heads, size, spread) | {"bias": bias}


EXAMPLES: dict[str, tuple[Callable[[], Arrays], list[str], dict[str, Any]]] = {
    "Embed": (lambda: embed_inputs(2, 5, 48), ["y", "codes", "rest"], {"epsilon": EPSILON}),
    "EmbedAfterPadding": (
        lambda: embed_after_padding_inputs(2, 5, 48),
        ["y", "codes", "rest"],
        {"epsilon": EPSILON, "padding": PADDING},
    ),
    "AttentionQuantize": (lambda: attention_inputs(3, 20, 2, 32), ["codes", "rest"], {"heads": 2, "alpha": 0.2}),
    "AttentionBiasQuantize": (
        lambda: attention_bias_inputs(3, 20, 2, 32, positions=20),
        ["codes", "rest"],
        {"heads": 2, "alpha": 0.2},
    ),
    "Linear": (lambda: product_inputs(60, 48, 96, 2)[0], ["y"], {}),
    "LinearAddNormalize": (
        lambda: add_inputs(60, 48, 96, 2)[0] | {"ids": np.zeros((3, 20), np.int64)},
        ["y"],
        {"epsilon": EPSILON},
    ),
    "LinearAddNormalizeQuantize": (
        lambda: add_inputs(60, 48, 96, 2)[0] | coding(96, [5, 1]),
        ["y", "codes", "rest"],
        {"epsilon": EPSILON},
    ),
    "LinearGeluQuantize": (lambda: product_inputs(60, 48, 96, 2)[0] | coding(96, [5, 1]), ["codes", "rest"], {}),
    "Quantize": (lambda: {"x": normal(96, 60), **coding(96, [5, 1])}, ["codes", "rest"], {}),
}
"""Each operator, of 60 rows, with outlier channels where it has them: inputs, outputs, attributes."""
