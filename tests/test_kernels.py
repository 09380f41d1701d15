"""Each operator of kernels/ against float64, what it refuses, and how the library is compiled."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import kernels
import kernels.__main__ as compiler
from export import ExportError
from export.package import package
from handler.artifact import ArtifactError, open_artifact
from handler.embedder import Embedder
from kernels import LIBRARY, VERSION, library
from kernels.__main__ import CompileError, compile_operators
from quantize import QuantizationError
from quantize.assemble import DOMAIN, product_constants
from quantize.rounding import LARGEST_CODE
from quantize.session import open_session
from tests.portability import command, missing

Arrays = Mapping[str, np.ndarray]

HALF_A_CODE = 0.5 + 2e-3
"""How far a code may be from the exact number that it rounds: 0.002 codes for float32."""
EPSILON = 1e-12


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
    factor, channels = inputs["factor"].astype(float), inputs["outlier_channels"]
    z = exact * factor
    lowest, scale = z.min(axis=1), (z.max(axis=1) - z.min(axis=1)) / LARGEST_CODE
    assert (codes.dtype, codes.shape) == (np.uint8, exact.shape)
    assert (rest.dtype, rest.shape) == (np.float32, (len(exact), 2 + len(channels)))
    np.testing.assert_allclose(rest[:, 0], scale, rtol=1e-4)
    np.testing.assert_allclose(rest[:, 1], lowest, atol=1e-3 * scale.max())
    np.testing.assert_allclose(rest[:, 2:], exact[:, channels], atol=1e-5)
    wanted = (z - lowest[:, None]) / scale[:, None]
    counted = factor != 0
    assert np.abs(codes - wanted)[:, counted].max() <= HALF_A_CODE


def normal(size: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal((*shape, size)).astype(np.float32)


def coding(size: int, channels: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """Factors of a channel, 0 for the outlier channels."""
    factor = np.linspace(0.5, 1.5, size, dtype=np.float32)
    factor[list(channels)] = 0
    return {"factor": factor, "outlier_channels": np.array(channels, np.int64)}


def affine(size: int) -> dict[str, np.ndarray]:
    return {"gain": np.linspace(0.5, 2, size, dtype=np.float32), "shift": np.linspace(-1, 1, size, dtype=np.float32)}


def normalized(x: np.ndarray, inputs: Arrays) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
    return unit * inputs["gain"].astype(float) + inputs["shift"]


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
    scales = inputs["word_scales"].astype(float)[:, None] * inputs["channel_scales"]
    words = (inputs["words"] * scales)[inputs["ids"]]
    exact = normalized(words + inputs["places"][:tokens], inputs).reshape(-1, size)
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
    z = inputs["input"] * rest[:, :1].astype(float) + rest[:, 1:2]
    exact = z @ weight.astype(int) * scale.astype(float) + inputs["bias"] + rest[:, 2:].astype(float) @ outlier_weight
    return inputs, exact


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
    return inputs, normalized(product + inputs["stream"], inputs)


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


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


@pytest.mark.parametrize("channels", [[], [3, 31, 95, 0, 32]])
@pytest.mark.parametrize("rows", [1, 60])
def test_linear_gelu_quantize(rows: int, channels: list[int]) -> None:
    inputs, product = product_inputs(rows, 48, 96)
    inputs |= coding(96, channels)
    codes, rest = run("LinearGeluQuantize", inputs, ["codes", "rest"])
    assert_codes(codes, rest, gelu(product), inputs)


def test_gelu_of_all_that_matters() -> None:
    """A product of codes that are all 0 leaves the bias, here from -12 to 12."""
    x = np.linspace(-12, 12, 6400, dtype=np.float32)
    inputs, _ = product_inputs(1, 16, len(x))
    inputs |= {"input": np.zeros((1, 16), np.uint8), "input_rest": np.array([[1, 0]], np.float32), "bias": x}
    inputs |= {"factor": np.ones(len(x), np.float32), "outlier_channels": np.arange(len(x))}
    codes, rest = run("LinearGeluQuantize", inputs, ["codes", "rest"])
    assert_codes(codes, rest, gelu(x.astype(float))[None], inputs)
    np.testing.assert_allclose(rest[0, 2:], gelu(x.astype(float)), atol=2e-6)


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
    assert quantized(0, 223, 0.5, 1.5, 2.5, 222.4, 222.5) == ([0, 223, 0, 2, 2, 222, 222], [1, 0])
    assert quantized(-128, 95, 0, 0.5) == ([0, 223, 128, 128], [1, -128])
    assert quantized(3, 226, 4) == ([0, 223, 1], [1, 3])  # 0 need not be in the range


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


@pytest.mark.parametrize(
    ("texts", "tokens", "heads", "size"),
    [(1, tokens, 2, 32) for tokens in (1, 2, 7, 8, 9, 15, 16, 17, 33, 255, 256, 511, 512)]
    + [(3, 10, 12, 32), (5, 3, 4, 16), (2, 40, 2, 64), (2, 12, 3, 48), (1, 20, 1, 128)],
)
def test_attention(texts: int, tokens: int, heads: int, size: int) -> None:
    inputs = attention_inputs(texts, tokens, heads, size, spread=2)
    alpha = 1 / math.sqrt(size)
    query, key, value = (
        part.reshape(texts, tokens, heads, size).transpose(0, 2, 1, 3)
        for part in np.split(inputs["qkv"].astype(float), 3, axis=1)
    )
    scores = alpha * query @ key.swapaxes(2, 3)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    exact = (weights / weights.sum(axis=-1, keepdims=True)) @ value
    codes, rest = attend(inputs, heads, alpha)
    assert_codes(codes, rest, exact.transpose(0, 2, 1, 3).reshape(texts * tokens, -1), as_it_is(heads * size))


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
    assert_codes(*attend(inputs, 1, 1.0), value[best], as_it_is(32))


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


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
def test_a_model_of_other_operators_is_refused(version: int, copy_model: Callable[[str], Path]) -> None:
    artifact = open_artifact(copy_model("v1"))
    entry = artifact.manifest.precisions["int8"]
    assert entry.operators == VERSION
    other = artifact.manifest._replace(precisions={"int8": entry._replace(operators=version)})
    with pytest.raises(ArtifactError, match=rf"v1 needs the operators of version {version}, this code has version"):
        Embedder.from_artifact(artifact._replace(manifest=other))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing: compile it with: make operators"),
        (b"no library", "cannot load .*operators.so: .*file too short"),
    ],
)
def test_a_library_that_cannot_be_loaded_is_named(
    content: bytes | None, message: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "operators.so"
    if content:
        path.write_bytes(content)
    monkeypatch.setattr(kernels, "LIBRARY", str(path))
    with pytest.raises(ArtifactError, match=message):
        Embedder.load(model_folder)
    with pytest.raises(QuantizationError, match=message):
        open_session(Path(open_artifact(model_folder).model("int8")))
    assert Embedder.load(model_folder, "fp32").embed(["float32 needs no operators"]).tokens == [7]


CHOICE = "c & VNNI ? &arithmetic_vnni : &arithmetic_avx512"


@pytest.mark.parametrize("instructions", ["avx512", "avx2"])
def test_older_instructions_of_x86_give_the_same(
    instructions: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What emulators do not know, AVX-512 without VNNI, and AVX2 as it runs without them."""
    if "avx512_vnni" not in Path("/proc/cpuinfo").read_text("utf-8"):
        pytest.skip("this CPU has no AVX-512 VNNI")
    texts = ["a", "Older instructions give the same.", "word " * 60]
    wanted = Embedder.load(model_folder).embed(texts).vectors
    source = compiler.SOURCE.read_text("utf-8")
    assert source.count(CHOICE) == 1
    for header in compiler.SOURCE.parent.glob("*.h"):
        shutil.copy(header, tmp_path)
    (tmp_path / "operators.c").write_text(source.replace(CHOICE, f"&arithmetic_{instructions}"), "utf-8")
    monkeypatch.setattr(compiler, "SOURCE", tmp_path / "operators.c")
    monkeypatch.setattr(compiler, "library", lambda system, machine: str(tmp_path / "operators.so"))
    # The choice that is not made any more leaves functions unused.
    monkeypatch.setattr(compiler, "WARNINGS", ())
    monkeypatch.setattr(kernels, "LIBRARY", str(compile_operators("linux", "x86_64")))
    np.testing.assert_array_equal(Embedder.load(model_folder).embed(texts).vectors, wanted)


REGISTER = """
from handler import embedder
from kernels import register
register(embedder.onnxruntime.SessionOptions())
"""


@pytest.mark.parametrize(
    ("cpu", "machine", "emulated", "older", "message"),
    [
        ("haswell", "x86_64", "Haswell", "SandyBridge", "no AVX2: x86-64 needs AVX2 and FMA (Haswell, 2013, or newer)"),
        (
            "graviton2",
            "aarch64",
            "neoverse-n1",
            "cortex-a72",
            "no dot products: arm64 needs ARMv8.2's (Graviton2, 2019, or newer)",
        ),
    ],
)
def test_a_cpu_that_is_too_old_is_named(cpu: str, machine: str, emulated: str, older: str, message: str) -> None:
    if reason := missing(cpu):
        pytest.skip(f"{cpu}: {reason}")
    arguments, environment = command(cpu, ["-c", REGISTER])
    arguments = [older if argument == emulated else argument for argument in arguments]
    assert older in arguments
    ran = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode
    assert f"OperatorsError: cannot load {library('linux', machine)}: " in ran.stderr
    assert f"this CPU has {message}" in ran.stderr


def test_two_compilations_have_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "library", lambda system, machine: str(tmp_path / f"{system}-{machine}.so"))
    made = compile_operators("linux", os.uname().machine)
    assert made.parent == tmp_path
    assert made.read_bytes() == Path(LIBRARY).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [made.name]


def test_sources_that_do_not_compile_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "operators.c").write_text("int broken(void) { return }")
    monkeypatch.setattr(compiler, "SOURCE", tmp_path / "operators.c")
    monkeypatch.setattr(compiler, "library", lambda system, machine: str(tmp_path / "made.so"))
    with pytest.raises(CompileError, match=r"cannot compile operators.c for linux x86_64: .*expected expression"):
        compile_operators("linux", "x86_64")
    assert [path.name for path in tmp_path.iterdir()] == ["operators.c"]


def test_an_unknown_machine_is_named() -> None:
    with pytest.raises(
        CompileError, match=r"no operators for linux riscv64, only for linux x86_64, linux aarch64, darwin"
    ):
        compile_operators("linux", "riscv64")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", sys._base_executable)  # without what is installed beside it
    with pytest.raises(CompileError, match=r"the compiler is missing, install it with: pip install '.\[export\]'"):
        compile_operators("linux", "x86_64")


def test_a_package_without_operators_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import export.package

    monkeypatch.setattr(export.package, "library", lambda system, machine: str(tmp_path / f"{system}-{machine}.so"))
    with pytest.raises(ExportError, match=r"linux-aarch64.so is missing: compile it with: make operators"):
        package(tmp_path / "function", architecture="arm64")
    assert not (tmp_path / "function").exists()
