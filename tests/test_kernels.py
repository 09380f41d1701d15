"""Each operator of kernels/ with every instruction set that this CPU has, against float64, and what it refuses.

`make sanitize` runs this file too, with operators that notice what C leaves undefined.
"""

import contextlib
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

import kernels
from quantize.assemble import MORE_BIASES
from quantize.rounding import LARGEST_CODE
from tests.support import reference
from tests.support.operators import (
    DATA,
    EXAMPLES,
    PADDING,
    add_inputs,
    attention_bias_inputs,
    attention_inputs,
    coding,
    embed_after_padding_inputs,
    embed_inputs,
    normal,
    product_inputs,
    run,
)
from tests.support.reference import EPSILON, Arrays

HALF_A_CODE = 0.5 + 2e-3
"""How far a code may be from the exact number that it rounds: 0.002 codes for float32."""


@pytest.fixture(params=["vnni", "avx512", "avx2", "neon"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of those that the CPU has."""
    chosen: str = request.param
    monkeypatch.setenv("KERNELS_INSTRUCTIONS", chosen)
    try:
        kernels.register(onnxruntime.SessionOptions())
    except kernels.OperatorsError as error:
        pytest.skip(str(error))
    return chosen


def assert_codes(codes: np.ndarray, rest: np.ndarray, exact: np.ndarray, inputs: Arrays) -> None:
    """Codes and rest of rows that are `exact`, float64 of shape (rows, channels)."""
    wanted, wanted_rest = reference.unrounded_codes(exact, inputs)
    assert (codes.dtype, codes.shape) == (np.dtype(np.uint8), exact.shape)
    assert (rest.dtype, rest.shape) == (np.dtype(np.float32), wanted_rest.shape)
    scale = wanted_rest[:, 0]
    np.testing.assert_allclose(rest[:, 0], scale, rtol=1e-4)
    np.testing.assert_allclose(rest[:, 1], wanted_rest[:, 1], atol=1e-3 * scale.max())
    np.testing.assert_allclose(rest[:, 2:], wanted_rest[:, 2:], atol=1e-5)
    assert np.abs(codes - wanted)[:, inputs["factor"] != 0].max() <= HALF_A_CODE


@pytest.mark.parametrize(("texts", "tokens", "size"), [(1, 1, 16), (3, 20, 384), (2, 5, 48)])
def test_embed(texts: int, tokens: int, size: int) -> None:
    inputs = embed_inputs(texts, tokens, size)
    y, codes, rest = run("Embed", inputs, ["y", "codes", "rest"], epsilon=EPSILON)
    exact = reference.embed(inputs)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, exact, atol=1e-5)
    assert_codes(codes, rest, exact, inputs)


@pytest.mark.parametrize(("texts", "tokens", "size"), [(1, 3, 16), (3, 19, 384), (2, 5, 48)])
def test_embed_after_padding(texts: int, tokens: int, size: int) -> None:
    """Padding, which a text can name, has a place of its own and takes none from the others."""
    inputs = embed_after_padding_inputs(texts, tokens, size)
    y, codes, rest = run("EmbedAfterPadding", inputs, ["y", "codes", "rest"], epsilon=EPSILON, padding=PADDING)
    exact = reference.embed(inputs, PADDING)
    np.testing.assert_allclose(y, exact, atol=1e-5)
    assert_codes(codes, rest, exact, inputs)
    assert not np.allclose(exact, reference.embed(inputs), atol=1e-2)


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


def test_a_rows_product_does_not_depend_on_the_others() -> None:
    inputs, _ = product_inputs(61, 48, 96, 1)
    (together,) = run("Linear", inputs, ["y"])
    for row in (0, 47, 48, 60):
        alone = {**inputs, "input": inputs["input"][row : row + 1], "input_rest": inputs["input_rest"][row : row + 1]}
        np.testing.assert_array_equal(run("Linear", alone, ["y"])[0], together[row : row + 1])


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
    inputs: Arrays = {"x": x, "factor": np.ones(16, np.float32), "outlier_channels": np.zeros(0, np.int64)}
    codes, rest = run("Quantize", inputs, ["codes", "rest"])
    return codes[0].tolist()[: len(row)], rest[0].tolist()


def test_codes_span_the_range_of_their_row_and_are_rounded_half_to_even() -> None:
    assert quantized(0, 191, 0.5, 1.5, 2.5, 190.4, 190.5) == ([0, 191, 0, 2, 2, 190, 190], [1, 0])
    assert quantized(-128, 63, 0, 0.5) == ([0, 191, 128, 128], [1, -128])
    assert quantized(3, 194, 4) == ([0, 191, 1], [1, 3])  # 0 need not be in the range


@pytest.mark.parametrize("value", [0, -7, 1e12])
def test_a_row_of_one_number_is_exact(value: float) -> None:
    codes, (scale, lowest) = quantized(value, value)
    assert (codes, scale) == ([0, 0], 0)
    assert lowest == pytest.approx(value)


@pytest.mark.parametrize("tiny", [1e-38, 1e-45, 1e-31])
def test_a_range_too_small_to_divide_by_has_codes_of_0(tiny: float) -> None:
    codes, (scale, lowest) = quantized(0, tiny)
    assert (codes, lowest) == ([0, 0], 0)
    assert scale <= tiny


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


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize(
    ("texts", "tokens", "heads", "size"),
    [(1, tokens, 2, 32) for tokens in TOKENS]
    + [(3, tokens, heads, size) for size, heads in HEADS for tokens in (7, 40)],
)
def test_attention(texts: int, tokens: int, heads: int, size: int) -> None:
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


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize(
    ("tokens", "positions", "heads", "size"),
    [*((tokens, tokens, 2, 32) for tokens in TOKENS), (7, 40, 3, 16), (40, 64, 12, 64), (17, 512, 2, 48)],
)
def test_attention_with_a_bias(tokens: int, positions: int, heads: int, size: int) -> None:
    inputs = attention_bias_inputs(2, tokens, heads, size, positions, spread=2)
    alpha = 1 / math.sqrt(size)
    bias = reference.by_distance(inputs["bias"], tokens)
    query, key, value = parts(inputs, 2, heads)
    exact = rows_of(reference.attention(query, key, value, alpha, bias))
    codes, rest = run("AttentionBiasQuantize", inputs, ["codes", "rest"], heads=heads, alpha=alpha)
    apart = np.abs(codes * rest[:, :1] + rest[:, 1:2] - exact) / rest[:, :1]
    assert (apart <= HALF_A_CODE + np.ptp(exact) / 255 / rest[:, :1]).all()
    assert (apart <= HALF_A_CODE).mean() > 0.98
    if tokens > 3:
        assert not np.allclose(exact, rows_of(reference.attention(query, key, value, alpha)), atol=1e-2)


def test_attention_with_a_bias_of_0_is_attention() -> None:
    inputs = attention_inputs(3, 33, 2, 48)
    without = attend(inputs, 2, 0.2)
    inputs["bias"] = np.zeros((2, 2 * 40 + MORE_BIASES), np.float32)
    found = run("AttentionBiasQuantize", inputs, ["codes", "rest"], heads=2, alpha=0.2)
    assert (found[0] != without[0]).mean() < 0.01
    np.testing.assert_allclose(found[1], without[1], rtol=1e-2, atol=1e-2)


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


ATTENTION = ("AttentionQuantize", "AttentionBiasQuantize")
BAD_NUMBERS = [np.nan, np.inf, -np.inf, 3e38, -3e38]


def inputs_of_type(kind: type, constant: bool) -> list[tuple[str, str]]:
    return [
        (operator, name)
        for operator, (inputs, *_) in EXAMPLES.items()
        for name, value in inputs().items()
        if issubclass(value.dtype.type, kind) and (name not in DATA) == constant
    ]


@pytest.mark.parametrize("bad", BAD_NUMBERS)
@pytest.mark.parametrize(("operator", "name"), inputs_of_type(np.floating, constant=False))
@pytest.mark.usefixtures("instructions")
def test_a_row_that_holds_what_is_no_number_is_none(operator: str, name: str, bad: float) -> None:
    """It must not come out as a vector, wherever in the row it lies, and no other row may change."""
    made, outputs, attributes = EXAMPLES[operator]
    good = rows_by_output(run(operator, made(), outputs, **attributes), outputs)
    row = 47  # the last of a panel of rows, and in the third text
    of_the_text = np.arange(60) // 20 == row // 20
    hit = of_the_text if operator in ATTENTION else np.arange(60) == row
    for column in range(0, made()[name].shape[1], 7):
        inputs = {key: value.copy() for key, value in made().items()}
        inputs[name][row, column] = bad
        found = rows_by_output(run(operator, inputs, outputs, **attributes), outputs)
        only_the_query = operator in ATTENTION and column < 64
        lost = np.arange(60) == row if only_the_query else hit
        for output in set(outputs) - {"codes"}:
            finite = np.isfinite(found[output])
            # Of outlier channels alone the other parts of the rest stay numbers; a product takes them all.
            assert not (finite.all(axis=1) if output == "rest" else finite.any(axis=1))[lost].any()
        for output in outputs:
            np.testing.assert_array_equal(found[output][~hit], good[output][~hit])


def rows_by_output(found: list[np.ndarray], outputs: list[str]) -> dict[str, np.ndarray]:
    return {name: value.reshape(60, -1) for name, value in zip(outputs, found, strict=True)}


@pytest.mark.parametrize("bad", BAD_NUMBERS)
@pytest.mark.parametrize(("operator", "name"), inputs_of_type(np.floating, constant=True))
def test_weights_that_are_no_numbers_are_refused(operator: str, name: str, bad: float) -> None:
    made, outputs, attributes = EXAMPLES[operator]
    inputs = {key: value.copy() for key, value in made().items()}
    inputs[name].flat[-1] = bad
    with pytest.raises(Exception, match=f"{operator}: {name} holds a number that is not finite, or beyond 1e12"):
        run(operator, inputs, outputs, **attributes)


@pytest.mark.parametrize("bad", [0, 1, 2, 7])
def test_a_product_of_what_is_no_number_is_none(bad: int) -> None:
    """From a row to its codes, and from these to a product: in each column."""
    x = normal(48, 9)
    x[5, bad] = np.nan
    coded = {"x": x, **coding(48, [2, 7])}
    codes, rest = run("Quantize", coded, ["codes", "rest"])
    inputs, _ = product_inputs(9, 48, 96, 2)
    (y,) = run("Linear", {**inputs, "input": codes, "input_rest": rest}, ["y"])
    assert np.isnan(y[5]).all()
    assert np.isfinite(np.delete(y, 5, axis=0)).all()


def test_a_row_so_large_that_its_variance_overflows_is_none() -> None:
    """Divided by it, all channels would be those of the shift."""
    inputs, _ = add_inputs(3, 16, 32, 0)
    inputs["residual"][1] *= 1e25
    (y,) = run("LinearAddNormalize", inputs | {"ids": np.zeros((1, 3), np.int64)}, ["y"], epsilon=EPSILON)
    assert np.isnan(y[0, 1]).all()
    assert np.isfinite(y[0, [0, 2]]).all()


DIGESTS = Path(__file__).with_name("operator_digests.json")
"""SHA-256 of what each operator gives for its example, by `kernels.VERSION`."""


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("operator", EXAMPLES)
def test_other_bits_are_another_version(operator: str) -> None:
    """After an intended change raise kernels.VERSION and store what this test shows."""
    made, outputs, attributes = EXAMPLES[operator]
    inputs = {name: exact(value) for name, value in made().items()}
    found = hashlib.sha256(b"".join(each.tobytes() for each in run(operator, inputs, outputs, **attributes)))
    stored = json.loads(DIGESTS.read_text("utf-8"))
    assert found.hexdigest() == stored[str(kernels.VERSION)][operator]


def exact(value: np.ndarray) -> np.ndarray:
    """Numbers of few bits, which every machine's numpy makes alike."""
    return value.astype(np.float16).astype(np.float32) if value.dtype == np.float32 else value


@pytest.mark.parametrize("operator", EXAMPLES)
def test_no_rows_give_no_rows(operator: str) -> None:
    made, outputs, attributes = EXAMPLES[operator]
    empty = {name: value[:0] if name in DATA else value for name, value in made().items()}
    for output in run(operator, empty, outputs, **attributes):
        assert output.size == 0


SHAPES = [(0,), (0, 0), (1,), (1, 1), (3,), (16, 0), (0, 16), (16,), (32, 1), (96, 2), (5, 5), (7, 1), (1, 1, 1)]
OF_ANY_LENGTH = {"outlier_channels": 7}
OF_ANY_SHAPE = {(operator, "ids"): len(SHAPES) - 1 for operator in ("Embed", "EmbedAfterPadding")}
"""Inputs of which some of these shapes fit, and how many: lists, or all with up to two axes."""


@pytest.mark.parametrize(
    ("operator", "name"), [(operator, name) for operator in EXAMPLES for name in EXAMPLES[operator][0]()]
)
def test_an_input_of_another_shape_is_refused(operator: str, name: str) -> None:
    """Each input in each of many shapes: nothing is read that is not there."""
    made, outputs, attributes = EXAMPLES[operator]
    refused = []
    for shape in SHAPES:
        changed = {**made(), name: np.zeros(shape, made()[name].dtype)}
        with contextlib.suppress(Fail, RuntimeException):  # at a run, or when the session is made
            run(operator, changed, outputs, **attributes)
            continue
        refused.append(shape)
    assert len(SHAPES) - len(refused) == OF_ANY_SHAPE.get((operator, name), OF_ANY_LENGTH.get(name, 0))


@pytest.mark.parametrize(
    ("operator", "name"),
    [(operator, name) for operator in EXAMPLES for name in EXAMPLES[operator][0]() if name not in DATA],
)
def test_weights_that_are_computed_are_refused(operator: str, name: str) -> None:
    made, outputs, attributes = EXAMPLES[operator]
    with pytest.raises(Exception, match=f"{operator}: {name} is not a constant"):
        run(operator, made(), outputs, DATA | {name}, **attributes)


BAD_VALUES: list[tuple[str, dict[str, np.ndarray], dict[str, Any], str]] = [
    ("Embed", {"ids": np.array([[50, 0]])}, {}, "a token id is not in the vocabulary"),
    ("Embed", {"ids": np.array([[0, -1]])}, {}, "a token id is not in the vocabulary"),
    ("Embed", {"ids": np.zeros((1, 21), np.int64)}, {}, "a text has more tokens than there are positions"),
    ("EmbedAfterPadding", {"ids": np.zeros((1, 20), np.int64)}, {}, "a text has more tokens than there are positions"),
    ("EmbedAfterPadding", {}, {"padding": -1}, "padding is not a token id"),
    ("Linear", {"sums": np.full(96, 128 * 48 + 1, np.int32)}, {}, "sums holds a sum that no int8 weights have"),
    ("Linear", {"bias": np.zeros(64, np.float32)}, {}, "Linear: bias of shape 64 x 1 does not fit the other inputs"),
    ("Linear", {"input": np.zeros((60, 24), np.uint8)}, {}, "codes of shape 60 x 24 does not fit"),
    ("LinearGeluQuantize", {"outlier_channels": np.array([96])}, {}, "names a channel that is not there"),
    ("LinearGeluQuantize", {"outlier_channels": np.array([-1])}, {}, "names a channel that is not there"),
    ("LinearAddNormalize", {"ids": np.zeros((1, 2), np.int64)}, {}, "token ids and rows differ in number"),
    ("AttentionQuantize", {"ids": np.zeros((1, 3), np.int64)}, {}, "token ids and rows differ in number"),
    ("AttentionQuantize", {}, {"heads": 3}, "the channels of a head are not a multiple of 16"),
    ("AttentionBiasQuantize", {"bias": np.zeros((2, 52), np.float32)}, {}, "a text has more tokens than there are pos"),
    ("AttentionBiasQuantize", {"bias": np.zeros((2, 53), np.float32)}, {}, "bias of shape 2 x 53 does not fit"),
    ("AttentionBiasQuantize", {"bias": np.zeros((1, 54), np.float32)}, {}, "the heads of bias and of attention differ"),
    *[("AttentionQuantize", {}, {"heads": heads}, "heads is not a number of heads") for heads in (0, -2, 1 << 40)],
    *[("AttentionQuantize", {}, {"alpha": bad}, "alpha is not a number") for bad in (-1.0, np.nan, np.inf, 3e38)],
    *[("Embed", {}, {"epsilon": bad}, "epsilon is not a number") for bad in (-1.0, np.nan, np.inf)],
]


@pytest.mark.parametrize(("operator", "change", "attributes", "message"), BAD_VALUES)
def test_what_does_not_fit_is_refused(
    operator: str, change: dict[str, np.ndarray], attributes: dict[str, Any], message: str
) -> None:
    made, outputs, usual = EXAMPLES[operator]
    with pytest.raises(Exception, match=message):
        run(operator, {**made(), **change}, outputs, **{**usual, **attributes})


def test_a_product_of_more_inputs_than_its_sums_hold_is_refused() -> None:
    inputs, _ = product_inputs(1, 65552, 32)
    with pytest.raises(Exception, match="weight has too many inputs for sums of 32 bits"):
        run("Linear", inputs, ["y"])


def test_a_missing_attribute_is_named() -> None:
    with pytest.raises(Exception, match="heads"):
        run("AttentionQuantize", attention_inputs(1, 2, 2, 32), ["codes", "rest"], alpha=1.0)
