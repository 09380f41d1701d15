"""Each operator of kernels/ with every instruction set that this CPU has, against float64, and what it refuses.

`make sanitize` runs this file alone, with operators that notice what C leaves undefined.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import kernels
from benchmarks.instructions import OF_THIS_CPU
from handler.embedder import Embedder
from quantize.assemble import DOMAIN, product_constants
from quantize.rounding import LARGEST_CODE
from tests import reference
from tests.reference import EPSILON, Arrays

HALF_A_CODE = 0.5 + 2e-3
"""How far a code may be from the exact number that it rounds: 0.002 codes for float32."""


def run(
    kind: str, inputs: Arrays, outputs: list[str], constants: Sequence[str] = (), **attributes: float
) -> list[np.ndarray]:
    """The outputs of one operator. `constants` are inputs that the model holds, as the weights of a real one are."""
    given = {name: value for name, value in inputs.items() if name not in constants}
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
        for name, value in given.items()
    ]
    node = helper.make_node(kind, list(inputs), outputs, domain=DOMAIN, **attributes)
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    held = [numpy_helper.from_array(inputs[name], name) for name in constants]
    graph = helper.make_graph([node], "operator", values, results, held)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    kernels.register(options)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, given)


def assert_codes(codes: np.ndarray, rest: np.ndarray, exact: np.ndarray, inputs: Arrays) -> None:
    """Codes and rest of rows that are `exact`, float64 of shape (rows, channels)."""
    wanted, wanted_rest = reference.unrounded_codes(exact, inputs)
    assert (codes.dtype, codes.shape) == (np.uint8, exact.shape)
    assert (rest.dtype, rest.shape) == (np.float32, wanted_rest.shape)
    scale = wanted_rest[:, 0]
    np.testing.assert_allclose(rest[:, 0], scale, rtol=1e-4)
    np.testing.assert_allclose(rest[:, 1], wanted_rest[:, 1], atol=1e-3 * scale.max())
    np.testing.assert_allclose(rest[:, 2:], wanted_rest[:, 2:], atol=1e-5)
    assert np.abs(codes - wanted)[:, inputs["factor"] != 0].max() <= HALF_A_CODE


def normal(size: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal((*shape, size)).astype(np.float32)


def coding(size: int, channels: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """Factors of a channel, 0 for the outlier channels."""
    factor = np.linspace(0.5, 1.5, size, dtype=np.float32)
    factor[list(channels)] = 0
    return {"factor": factor, "outlier_channels": np.array(channels, np.int64)}


def affine(size: int) -> dict[str, np.ndarray]:
    return {"gain": np.linspace(0.5, 2, size, dtype=np.float32), "shift": np.linspace(-1, 1, size, dtype=np.float32)}


def embed_inputs(texts: int, tokens: int, size: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "ids": random.integers(0, 50, (texts, tokens)),
        "words": random.integers(-127, 128, (50, size), dtype=np.int8),
        "word_scales": random.uniform(0.001, 0.01, 50).astype(np.float32),
        "channel_scales": random.uniform(0.5, 2, size).astype(np.float32),
        "places": normal(size, 20),
        **affine(size),
        **coding(size, [3]),
    }


@pytest.mark.parametrize(("texts", "tokens", "size"), [(1, 1, 16), (3, 20, 384), (2, 5, 48)])
def test_embed(texts: int, tokens: int, size: int) -> None:
    inputs = embed_inputs(texts, tokens, size)
    y, codes, rest = run("Embed", inputs, ["y", "codes", "rest"], epsilon=EPSILON)
    exact = reference.embed(inputs)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, exact, atol=1e-5)
    assert_codes(codes, rest, exact, inputs)


def product_inputs(rows: int, size: int, columns: int, outliers: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs of a product, and what comes out, float64 of shape (rows, columns)."""
    random = np.random.default_rng([rows, size, columns])
    weight = random.integers(-64, 65, (size, columns), np.int8)
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


ROWS = [*range(1, 28), 47, 48, 49, 60, 61, 97]
"""Each number of rows that is multiplied at once, and what is left of panels."""


@pytest.mark.parametrize(
    ("rows", "size", "columns", "outliers"),
    [(rows, 48, 96, 0) for rows in ROWS] + [(5, 16, 32, 1), (30, 384, 1152, 2), (13, 1536, 384, 5)],
)
def test_linear(rows: int, size: int, columns: int, outliers: int) -> None:
    inputs, exact = product_inputs(rows, size, columns, outliers)
    (y,) = run("Linear", inputs, ["y"])
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)


def test_constants_are_read_once_and_give_the_same() -> None:
    inputs, _ = product_inputs(5, 48, 96)
    (y,) = run("Linear", inputs, ["y"])
    (again,) = run("Linear", inputs, ["y"], constants=("weight", "sums", "scale", "bias", "rest_weight"))
    np.testing.assert_array_equal(again, y)


def test_a_rows_product_does_not_depend_on_the_others() -> None:
    inputs, _ = product_inputs(61, 48, 96, 1)
    (together,) = run("Linear", inputs, ["y"])
    for row in (0, 47, 48, 60):
        alone = {**inputs, "input": inputs["input"][row : row + 1], "input_rest": inputs["input_rest"][row : row + 1]}
        np.testing.assert_array_equal(run("Linear", alone, ["y"])[0], together[row : row + 1])


def add_inputs(rows: int, size: int, columns: int, outliers: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    inputs, product = product_inputs(rows, size, columns, outliers)
    inputs |= {"stream": normal(columns, rows), **affine(columns)}
    return inputs, reference.normalized(product + inputs["stream"], inputs)


@pytest.mark.parametrize(
    ("rows", "size", "columns", "outliers"), [(1, 16, 32, 0), (60, 48, 384, 4), (3, 64, 1024, 1), (97, 16, 32, 2)]
)
def test_linear_add_normalize(rows: int, size: int, columns: int, outliers: int) -> None:
    inputs, exact = add_inputs(rows, size, columns, outliers)
    with_codes = inputs | coding(columns, [5, 1])
    y, codes, rest = run("LinearAddNormalizeQuantize", with_codes, ["y", "codes", "rest"], epsilon=EPSILON)
    np.testing.assert_allclose(y, exact, atol=2e-5)
    assert_codes(codes, rest, exact, with_codes)
    (last,) = run("LinearAddNormalize", inputs | {"ids": np.zeros((1, rows), np.int64)}, ["y"], epsilon=EPSILON)
    np.testing.assert_array_equal(last, y[None])


@pytest.mark.parametrize("channels", [[], [3, 31, 95, 0, 32]])
@pytest.mark.parametrize("rows", [1, 60])
def test_linear_gelu_quantize(rows: int, channels: list[int]) -> None:
    inputs, product = product_inputs(rows, 48, 96)
    inputs |= coding(96, channels)
    codes, rest = run("LinearGeluQuantize", inputs, ["codes", "rest"])
    assert_codes(codes, rest, reference.gelu(product), inputs)


def test_gelu_of_all_that_matters() -> None:
    """A product of codes that are all 0 leaves the bias, here from -12 to 12."""
    x = np.linspace(-12, 12, 6400, dtype=np.float32)
    inputs, _ = product_inputs(1, 16, len(x))
    inputs |= {"input": np.zeros((1, 16), np.uint8), "input_rest": np.array([[1, 0]], np.float32), "bias": x}
    inputs |= {"factor": np.ones(len(x), np.float32), "outlier_channels": np.arange(len(x))}
    codes, rest = run("LinearGeluQuantize", inputs, ["codes", "rest"])
    assert_codes(codes, rest, reference.gelu(x.astype(float))[None], inputs)
    np.testing.assert_allclose(rest[0, 2:], reference.gelu(x.astype(float)), atol=5e-6)
    np.testing.assert_allclose(rest[0, 2:], reference.float_gelu(x.astype(float)), atol=1.2e-4)


@pytest.mark.parametrize("channels", [[], [3, 31, 0]])
def test_quantize(channels: list[int]) -> None:
    x = normal(64, 100) * 3
    inputs = {"x": x, **coding(64, channels)}
    codes, rest = run("Quantize", inputs, ["codes", "rest"])
    assert_codes(codes, rest, x.astype(float), inputs)


def quantized(*row: float) -> tuple[list[int], list[float]]:
    """Codes and rest of one row of 16 channels, the rest of which repeat its last number."""
    x = np.array([[*row, *[row[-1]] * (16 - len(row))]], np.float32)
    inputs = {"x": x, "factor": np.ones(16, np.float32), "outlier_channels": np.zeros(0, np.int64)}
    codes, rest = run("Quantize", inputs, ["codes", "rest"])
    return codes[0].tolist()[: len(row)], rest[0].tolist()


def test_codes_span_the_range_of_their_row_and_are_rounded_half_to_even() -> None:
    assert quantized(0, 191, 0.5, 1.5, 2.5, 190.4, 190.5) == ([0, 191, 0, 2, 2, 190, 190], [1, 0])
    assert quantized(-128, 63, 0, 0.5) == ([0, 191, 128, 128], [1, -128])
    assert quantized(3, 194, 4) == ([0, 191, 1], [1, 3])  # 0 need not be in the range


@pytest.mark.parametrize("value", [0, -7, 3e38])
def test_a_row_of_one_number_is_exact(value: float) -> None:
    codes, (scale, lowest) = quantized(value, value)
    assert (codes, scale) == ([0, 0], 0)
    assert lowest == pytest.approx(value)


@pytest.mark.parametrize("tiny", [1e-38, 1e-45, 1e-31])
def test_a_range_too_small_to_divide_by_has_codes_of_0(tiny: float) -> None:
    codes, (scale, lowest) = quantized(0, tiny)
    assert (codes, lowest) == ([0, 0], 0)
    assert scale <= tiny


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_an_infinite_value_makes_a_product_that_is_not_finite(bad: float) -> None:
    """It must not come out as a vector."""
    x = np.full((1, 16), 0.5, np.float32)
    x[0, 3] = bad
    codes, rest = run(
        "Quantize",
        {"x": x, "factor": np.ones(16, np.float32), "outlier_channels": np.zeros(0, np.int64)},
        ["codes", "rest"],
    )
    inputs, _ = product_inputs(1, 16, 32)
    (y,) = run("Linear", {**inputs, "input": codes, "input_rest": rest}, ["y"])
    assert not np.isfinite(y).any()


def attention_inputs(texts: int, tokens: int, heads: int, size: int, spread: float = 1) -> dict[str, np.ndarray]:
    channels = heads * size
    qkv = normal(3 * channels, texts * tokens) * np.float32(spread)
    return {"qkv": qkv, "ids": np.zeros((texts, tokens), np.int64)}


def attend(inputs: Arrays, heads: int, alpha: float) -> list[np.ndarray]:
    return run("AttentionQuantize", inputs, ["codes", "rest"], heads=heads, alpha=alpha)


def as_it_is(channels: int) -> Arrays:
    """The coding of attention, which has no factors and no outliers."""
    return {"factor": np.ones(channels, np.float32), "outlier_channels": np.zeros(0, np.int64)}


def parts(inputs: Arrays, texts: int, heads: int) -> list[np.ndarray]:
    """Queries, keys and values, float64 of shape (texts, heads, tokens, size)."""
    rows, channels = inputs["qkv"].shape
    shape = (texts, rows // texts, 3, heads, channels // heads // 3)
    return list(inputs["qkv"].astype(float).reshape(shape).transpose(2, 0, 3, 1, 4))


def rows_of(y: np.ndarray) -> np.ndarray:
    texts, heads, tokens, size = y.shape
    return y.transpose(0, 2, 1, 3).reshape(texts * tokens, heads * size)


TOKENS = (1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 255, 256, 257, 512)
"""Around the 2 and 4 keys whose codes share a word, the 16 that share a range and are a register of AVX-512, and the
longest that models take."""
HEADS = ((16, 2), (32, 12), (48, 3), (64, 2), (128, 1))
"""Channels, and how many: one register of AVX-512, what is compiled for itself, and more."""


@pytest.mark.parametrize("instructions", OF_THIS_CPU)
@pytest.mark.parametrize(
    ("texts", "tokens", "heads", "size"),
    [(1, tokens, 2, 32) for tokens in TOKENS]
    + [(3, tokens, heads, size) for size, heads in HEADS for tokens in (7, 40)],
)
def test_attention(
    instructions: str, texts: int, tokens: int, heads: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERNELS_INSTRUCTIONS", instructions)
    inputs = attention_inputs(texts, tokens, heads, size, spread=2)
    alpha = 1 / math.sqrt(size)
    query, key, value = parts(inputs, texts, heads)
    exact = rows_of(reference.attention(query, key, value, alpha))
    codes, rest = attend(inputs, heads, alpha)
    # A code that float32 rounds otherwise moves an average by at most a 255th of the values' range.
    moved = np.ptp(exact) / 255 / rest[:, :1]
    np.testing.assert_allclose(rest[:, 0], np.ptp(exact, axis=1) / LARGEST_CODE, rtol=2 / 255)
    apart = np.abs(codes * rest[:, :1] + rest[:, 1:2] - exact) / rest[:, :1]
    assert (apart <= HALF_A_CODE + moved).all()
    assert (apart <= HALF_A_CODE).mean() > 0.98


@pytest.mark.parametrize("tokens", [8, 40, 256])
def test_attention_is_near_to_what_it_would_be_without_rounding(tokens: int) -> None:
    """With scores as wide as a trained model's."""
    inputs = attention_inputs(1, tokens, 12, 32)
    query, key, value = parts(inputs, 1, 12)
    exact = rows_of(reference.float_attention(query, key, value, 1 / math.sqrt(32)))
    codes, rest = attend(inputs, 12, 1 / math.sqrt(32))
    error = codes * rest[:, :1].astype(float) + rest[:, 1:2] - exact
    assert math.sqrt((error**2).mean() / (exact**2).mean()) < 0.02


def test_attention_of_a_text_does_not_depend_on_the_others() -> None:
    texts, tokens = 6, 13
    inputs = attention_inputs(texts, tokens, 2, 32)
    codes, rest = attend(inputs, 2, 0.2)
    for text in range(texts):
        rows = slice(text * tokens, (text + 1) * tokens)
        alone = {**inputs, "qkv": inputs["qkv"][rows], "ids": inputs["ids"][:1]}
        alone_codes, alone_rest = attend(alone, 2, 0.2)
        np.testing.assert_array_equal(alone_codes, codes[rows])
        np.testing.assert_array_equal(alone_rest, rest[rows])


def test_attention_with_huge_scores_takes_the_values_of_the_highest() -> None:
    """exp of the largest would overflow, and of most differences underflow."""
    inputs = attention_inputs(1, 20, 1, 32, spread=300)
    query, key, value = np.split(inputs["qkv"].astype(float), 3, axis=1)
    best = (query @ key.T).argmax(axis=1)
    codes, rest = attend(inputs, 1, 1.0)
    off = np.abs(codes * rest[:, :1] + rest[:, 1:2] - value[best])
    assert off.max() <= (np.ptp(value, axis=0).max() / 254 + rest[:, 0].max()) / 2 * 1.01  # half a code of each kind


@pytest.mark.parametrize("part", range(3), ids=["query", "key", "value"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_attention_of_what_is_not_finite_is_not_finite(part: int, bad: float) -> None:
    """It must not come out as a vector."""
    inputs = attention_inputs(1, 20, 1, 32)
    inputs["qkv"][7, 32 * part + 3] = bad
    codes, rest = attend(inputs, 1, 0.2)
    row = 7 if part == 0 else slice(None)
    assert not np.isfinite(codes * rest[:, :1] + rest[:, 1:2])[row].all(axis=-1).any()


def bad_product(message: str, **change: np.ndarray) -> tuple[str, Any, Arrays, dict[str, Any], str]:
    return "Linear", lambda: product_inputs(3, 16, 32, 1)[0], change, {}, message


COLUMNS = "sums, scale or bias and weight differ in columns"
BAD_INPUTS: list[tuple[str, Callable[[], dict[str, np.ndarray]], Arrays, dict[str, Any], str]] = [
    ("Embed", lambda: embed_inputs(1, 2, 16), {"ids": np.array([[50, 0]])}, {}, "a token id is not in the vocabulary"),
    ("Embed", lambda: embed_inputs(1, 2, 16), {"ids": np.array([[0, -1]])}, {}, "a token id is not in the vocabulary"),
    ("Embed", lambda: embed_inputs(1, 21, 16), {}, {}, "a text has more tokens than there are places"),
    ("Embed", lambda: embed_inputs(1, 2, 16), {"places": normal(32, 20)}, {}, "tables and gain differ in channels"),
    ("Embed", lambda: embed_inputs(1, 2, 24), {}, {}, "the channels are not a multiple of 16"),
    ("Embed", lambda: embed_inputs(1, 2, 16), {"ids": np.zeros((1, 1, 1), np.int64)}, {}, "more than two axes"),
    ("Embed", lambda: embed_inputs(1, 2, 16), coding(32), {}, "the channels are not as many as factors"),
    ("Embed", lambda: embed_inputs(1, 2, 16), {"factor": np.zeros((16, 0), np.float32)}, {}, "not as many as factors"),
    ("Embed", lambda: embed_inputs(1, 2, 16), {"shift": normal(32)}, {}, "shift and gain differ in channels"),
    ("Embed", lambda: embed_inputs(1, 2, 16), {"gain": np.zeros((16, 0), np.float32)}, {}, "shift and gain differ"),
    ("Embed", lambda: embed_inputs(1, 2, 16), {"word_scales": normal(49)}, {}, "there is not one scale a word"),
    ("Embed", lambda: embed_inputs(1, 2, 16), {"channel_scales": normal(49)}, {}, "there is not one scale a channel"),
    ("Linear", lambda: product_inputs(3, 24, 32)[0], {}, {}, "the channels are not a multiple of 16"),
    bad_product("codes and weight differ in channels", weight=np.zeros((1, 32 * 32), np.int8)),
    bad_product("codes and rest differ in rows", input_rest=normal(3, 2)),
    bad_product("codes and rest differ in rows", input_rest=normal(1, 3)),
    bad_product("rest and its weight differ", input_rest=normal(4, 3)),
    bad_product("rest and its weight differ", rest_weight=normal(16, 2)),
    *(
        bad_product(COLUMNS, **{name: np.zeros(shape, kind)})
        for name, kind in (("sums", np.int32), ("scale", np.float32), ("bias", np.float32))
        for shape in (64, (32, 0))
    ),
    (
        "LinearAddNormalizeQuantize",
        lambda: add_inputs(3, 16, 32, 0)[0] | coding(32),
        {"stream": normal(32, 2)},
        {},
        "product and stream differ in shape",
    ),
    (
        "LinearAddNormalizeQuantize",
        lambda: add_inputs(3, 16, 32, 0)[0] | coding(64),
        affine(64),
        {},
        "product and gain differ in channels",
    ),
    (
        "LinearAddNormalize",
        lambda: add_inputs(3, 16, 32, 0)[0] | {"ids": np.zeros((1, 2), np.int64)},
        {},
        {},
        "token ids and rows differ in number",
    ),
    (
        "LinearGeluQuantize",
        lambda: product_inputs(2, 16, 32)[0] | coding(32),
        {"outlier_channels": np.array([32])},
        {},
        "no such channel",
    ),
    (
        "LinearGeluQuantize",
        lambda: product_inputs(2, 16, 32)[0] | coding(32),
        {"outlier_channels": np.zeros((2, 2), np.int64)},
        {},
        "the outlier channels are not a list",
    ),
    (
        "Quantize",
        lambda: {"x": normal(16, 2), **coding(32)},
        {},
        {},
        "the channels are not as many as factors",
    ),
    ("AttentionQuantize", lambda: attention_inputs(1, 2, 2, 32), {}, {"heads": 3}, "not a multiple of 16"),
    ("AttentionQuantize", lambda: attention_inputs(1, 2, 2, 32), {}, {"heads": 0}, "not a multiple of 16"),
    (
        "AttentionQuantize",
        lambda: attention_inputs(1, 2, 2, 32),
        {"ids": np.zeros((1, 3), np.int64)},
        {"heads": 2},
        "queries, keys and values are not of the shape",
    ),
]
OUTPUTS = {
    "Linear": ["y"],
    "LinearAddNormalize": ["y"],
    "AttentionQuantize": ["codes", "rest"],
    "LinearGeluQuantize": ["codes", "rest"],
    "Quantize": ["codes", "rest"],
}


@pytest.mark.parametrize(("kind", "inputs", "change", "attributes", "message"), BAD_INPUTS)
def test_what_does_not_fit_is_refused(
    kind: str, inputs: Callable[[], dict[str, np.ndarray]], change: Arrays, attributes: dict[str, Any], message: str
) -> None:
    attributes = {"epsilon": EPSILON, "alpha": 1.0, **attributes}
    with pytest.raises(Exception, match=message):
        run(kind, {**inputs(), **change}, OUTPUTS.get(kind, ["y", "codes", "rest"]), **attributes)


def test_a_missing_attribute_is_named() -> None:
    with pytest.raises(Exception, match="heads"):
        run("AttentionQuantize", attention_inputs(1, 2, 2, 32), ["codes", "rest"], alpha=1.0)


@pytest.mark.parametrize("instructions", OF_THIS_CPU)
def test_all_instructions_give_the_same_vectors(
    instructions: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What emulators do not know, AVX-512 without VNNI, and AVX2 as it runs without them."""
    texts = ["a", "Older instructions give the same.", "word " * 60]
    wanted = Embedder.load(model_folder).embed(texts).vectors
    monkeypatch.setenv("KERNELS_INSTRUCTIONS", instructions)
    embedder = Embedder.load(model_folder)
    assert embedder.instructions == instructions
    np.testing.assert_array_equal(embedder.embed(texts).vectors, wanted)
