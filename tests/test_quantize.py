"""python -m quantize: what it writes, and what it refuses."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import helper
from transformers import BertConfig, BertModel

from export.texts import VERIFICATION_TEXTS
from export.to_onnx import to_onnx
from handler.artifact import WEIGHTS_SUFFIX, open_artifact
from quantize import DEFAULT_RECIPE, OWN_TEXTS, RECIPES, Calibration, QuantizationError, quantize
from quantize.assemble import BLOCK, QUAD, assemble
from quantize.calibration import (
    activations,
    feeds_of,
    read_texts,
    statistics,
    vocabulary_pieces,
)
from quantize.centring import centrable, centred
from quantize.dynamic import DynamicRecipe
from quantize.fusion import Graph, Group, fuse
from quantize.linear import Settings, plan_input, quantize_linear, round_weights
from quantize.static import StaticRecipe


@pytest.fixture(scope="module")
def float32_file(model_folder: Path) -> Path:
    return Path(open_artifact(model_folder).model("fp32"))


def weights(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


DYNAMIC = [name for name, recipe in RECIPES.items() if isinstance(recipe, DynamicRecipe)]


@pytest.mark.parametrize("recipe", DYNAMIC)
def test_dynamic_recipes_quantize_every_linear_per_channel(recipe: str, float32_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "int8.onnx"
    quantize(float32_file, target, recipe)
    model = onnx.load(target)
    linears = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert len(linears) == 36
    tensors = weights(target)
    for node in linears:
        weight, scale = tensors[node.input[1]], tensors[node.input[1].replace("_quantized", "_scale")]
        assert weight.dtype == (np.int8 if RECIPES[recipe].signed_weights else np.uint8)
        assert scale.shape == (weight.shape[1],)
    assert target.stat().st_size < float32_file.stat().st_size / 3.9


def test_the_same_input_gives_the_same_file(float32_file: Path, tmp_path: Path, model_folder: Path) -> None:
    calibration = Calibration(Path(open_artifact(model_folder).tokenizer), max_tokens=256)
    done: list[tuple[int, int]] = []
    report = quantize(float32_file, tmp_path / "int8.onnx", "static", calibration, lambda *step: done.append(step))
    built = Path(open_artifact(model_folder).model("int8"))
    assert onnx.load(tmp_path / "int8.onnx").graph.node == onnx.load(built).graph.node
    found, expected = weights(tmp_path / "int8.onnx"), weights(built)
    assert list(found) == list(expected)
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], strict=True)
    assert done == [(step, 24) for step in range(25)]
    assert len(report.errors) == 24
    assert 0 < max(report.errors.values()) < 0.1
    assert report.texts == 45
    assert 0.98 < report.min_cosine < report.mean_cosine < 1


def largest_pair_sum(weight: np.ndarray) -> int:
    """The largest magnitude that codes of 0 to 255 can give the sum of two products, of input channels 2i and 2i+1."""
    pairs = weight.astype(int).reshape(-1, 2, weight.shape[1])
    return 255 * int(max(np.maximum(pairs, 0).sum(axis=1).max(), np.maximum(-pairs, 0).sum(axis=1).max()))


def test_static_graph_is_the_one_that_is_fast_and_portable(model_folder: Path) -> None:
    model = onnx.load(Path(open_artifact(model_folder).model("int8")))
    assert [value.name for value in model.graph.input] == ["input_ids"]
    assert Counter(node.op_type for node in model.graph.node) == {
        "Embed": 1,
        "Linear": 6,
        "AttentionQuantize": 6,
        "LinearAddNormalizeQuantize": 11,
        "LinearGeluQuantize": 6,
        "LinearAddNormalize": 1,
    }
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type.startswith("Linear"):
            weight, sums, product_scale, bias = (tensors[name] for name in node.input[2:6])
            unpacked = weight.reshape(len(weight), -1, BLOCK, QUAD).transpose(1, 3, 0, 2).reshape(-1, len(bias))
            assert weight.dtype == np.int8
            assert largest_pair_sum(unpacked) < 2**15  # no 16-bit sum of AVX2 can saturate
            np.testing.assert_array_equal(sums, unpacked.sum(axis=0, dtype=np.int32))
            assert product_scale.shape == bias.shape
    stored = Path(open_artifact(model_folder).model("int8"))
    weights_file = stored.with_name(stored.name + WEIGHTS_SUFFIX)
    assert stored.stat().st_size + weights_file.stat().st_size <= 25_000_000


BAD_CALIBRATION = [
    ("few.txt", "one\ntwo\n", "few.txt has 2 texts: at least 100"),
    ("bad.jsonl", "{", "cannot read texts from .*bad.jsonl"),
    ("number.jsonl", '{"text": 1}', "cannot read texts from .*number.jsonl.*not a string"),
    ("field.jsonl", '{"txt": 1}', "cannot read texts from .*field.jsonl"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_CALIBRATION)
def test_unusable_calibration_is_named(
    float32_file: Path, tmp_path: Path, model_folder: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    calibration = Calibration(Path(open_artifact(model_folder).tokenizer), 256, tmp_path / name)
    with pytest.raises(QuantizationError, match=message):
        quantize(float32_file, tmp_path / "out.onnx", "static", calibration)
    with pytest.raises(QuantizationError, match=r"cannot read the tokenizer .*missing.json"):
        quantize(float32_file, tmp_path / "out.onnx", "static", Calibration(tmp_path / "missing.json", 256))
    with pytest.raises(QuantizationError, match="the static recipe needs calibration"):
        quantize(float32_file, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_calibration_texts_are_never_verified_with() -> None:
    texts = read_texts(OWN_TEXTS)
    assert len(texts) == len(set(texts)) > 400
    assert not {text.strip() for text in texts} & {text.strip() for text in VERIFICATION_TEXTS if text.strip()}


def test_the_whole_vocabulary_is_calibrated_with() -> None:
    pieces = vocabulary_pieces(1000, [101, 102], max_tokens=64)
    assert {(piece[0], piece[-1]) for piece in pieces} == {(101, 102)}
    assert sorted(token for piece in pieces for token in piece[1:-1]) == list(range(1000))
    lengths = [len(piece) for piece in pieces]
    assert min(lengths) == 3
    assert 40 < max(lengths) <= 64
    assert pieces == vocabulary_pieces(1000, [101, 102], max_tokens=64)


def test_centring_changes_ranges_and_not_the_model(float32_file: Path, model_folder: Path) -> None:
    feeds = feeds_of(Calibration(Path(open_artifact(model_folder).tokenizer), 256).token_ids()[0][:40])
    graph = fuse(float32_file)
    names = list(centrable(graph))
    assert len(names) == 12  # after the embeddings and twice in each of six layers, but for the model's output
    before = statistics(graph.model({}, names), names, feeds)
    shifted = centred(graph, {name: of.middle for name, of in before.items()})
    after = statistics(shifted.model({}, names), names, feeds)
    for name in names:
        np.testing.assert_allclose(after[name].lowest, -after[name].highest, atol=1e-4)
    widest = max(np.maximum(of.highest, -of.lowest).max() for of in before.values())
    assert max(of.highest.max() for of in after.values()) < 0.7 * widest
    outputs = [activations(each.model({}), each.output, feeds) for each in (graph, shifted)]
    np.testing.assert_allclose(*outputs, atol=1e-4)


SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 6))


@given(weight=SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=st.floats(-100, 100, width=32))))
def test_no_rounded_weights_saturate_a_sum(weight: np.ndarray) -> None:
    codes, scale = round_weights(weight, np.eye(len(weight), dtype=np.float32), Settings())
    even = np.concatenate([codes, np.zeros((len(codes) % 2, codes.shape[1]), np.int8)])
    assert largest_pair_sum(even) < 2**15
    assert np.abs(codes.astype(int)).max() <= 127
    # A scale is at least 0.65 of the one at which the column fits, so at most 35 % of a weight is cut.
    assert np.abs(codes * scale - weight).max() <= (0.5 + 0.35 / 0.65 * 128) * scale.max() + 1e-4


def correlated_inputs(columns: int) -> tuple[np.ndarray, np.ndarray]:
    source = np.random.default_rng(0)
    inputs = source.normal(size=(2000, columns)) @ source.normal(size=(columns, columns))
    return inputs.astype(np.float32), source.normal(size=(columns, 32)).astype(np.float32)


def test_rounding_makes_good_for_its_errors() -> None:
    """GPTQ against rounding to nearest with the same bounds."""
    inputs, weight = correlated_inputs(64)
    errors = []
    for settings in (Settings(), Settings(damping=1e9)):
        codes, scale = round_weights(weight, inputs.T @ inputs / len(inputs), settings)
        errors.append(np.linalg.norm(inputs @ (codes * scale - weight)))
    assert errors[0] < 0.8 * errors[1]


def test_bounding_pairs_loses_less_than_bounding_weights() -> None:
    inputs, weight = correlated_inputs(384)
    errors = []
    for settings in (Settings(), Settings(largest=63, largest_pair=126)):
        codes, scale = round_weights(weight, inputs.T @ inputs / len(inputs), settings)
        errors.append(np.linalg.norm(inputs @ (codes * scale - weight)))
    assert errors[0] < 0.75 * errors[1]


def test_an_outlier_channel_stays_exact() -> None:
    source = np.random.default_rng(1)
    inputs = source.normal(size=(3000, 48)).astype(np.float32)
    inputs[:, 7] *= 200
    weight, bias = (source.normal(size=shape).astype(np.float32) for shape in ((48, 16), (16,)))
    plan = plan_input(inputs, weight, 1, Settings())
    assert np.flatnonzero(plan.is_outlier).tolist() == [7]
    np.testing.assert_array_equal(plan.dequantized(inputs)[:, 7], (inputs / plan.smoothing)[:, 7])
    mean = inputs.mean(axis=0)
    found, without = (quantize_linear(inputs, weight, bias, mean, count, Settings()) for count in (1, 0))
    assert not found.weight[7].any()
    np.testing.assert_array_equal(found.outlier_weight, weight[[7]])
    assert found.error < 0.1 * without.error


def test_a_one_sided_input_gets_nearly_all_codes_above_zero() -> None:
    """As after GELU: most channels reach up, one stays below zero."""
    source = np.random.default_rng(2)
    inputs = np.maximum(source.normal(size=(3000, 48)), -0.17).astype(np.float32)
    inputs[:, 3] = -np.abs(inputs[:, 3])
    plan = plan_input(inputs, source.normal(size=(48, 16)).astype(np.float32), 0, Settings())
    assert plan.zero_point < 64
    assert plan_input(inputs, np.ones((48, 16), np.float32), 0, Settings(headrooms=(1,))).zero_point > plan.zero_point


def test_the_outputs_keep_the_float32_models_mean() -> None:
    inputs, weight = correlated_inputs(64)
    bias, mean = np.ones(32, np.float32), inputs.mean(axis=0) + np.float32(0.5)
    found = quantize_linear(inputs, weight, bias, mean, 0, Settings())
    output = found.plan.dequantized(inputs) @ (found.weight * found.product_scale / found.plan.scale) + found.bias
    np.testing.assert_allclose(output.mean(axis=0), mean @ weight + bias, atol=1e-2)


SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160}


def random_encoder(folder: Path, model_folder: Path, **settings: object) -> Calibration:
    """Write `model.onnx`, of other sizes and with random weights, exported as the real one is."""
    torch.manual_seed(0)
    config = BertConfig(**SIZES | settings, initializer_range=0.2)
    BertModel(config).save_pretrained(folder / "model")
    shutil.copy(Path(open_artifact(model_folder).tokenizer), folder / "model" / "tokenizer.json")
    to_onnx(folder / "model", folder / "model.onnx", folder)
    return Calibration(folder / "model" / "tokenizer.json", 256, vocabulary=False)


@pytest.mark.parametrize(("activation", "operator"), [("gelu", "LinearGeluQuantize"), ("relu", "Quantize")])
def test_another_encoder_of_the_family(activation: str, operator: str, model_folder: Path, tmp_path: Path) -> None:
    calibration = random_encoder(tmp_path, model_folder, hidden_act=activation)
    report = quantize(tmp_path / "model.onnx", tmp_path / "int8.onnx", "static", calibration)
    assert len(report.errors) == 8
    assert report.mean_cosine > 0.999
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node)
    assert sum(count for kind, count in operators.items() if kind.startswith("Linear")) == 8
    assert operators["AttentionQuantize"] == operators[operator] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_attention_heads": 8}, r"a head of .* has 8 channels: only multiples of 16 are supported"),
        ({"hidden_size": 72, "num_attention_heads": 3}, r"LayerNorm.* has 72 channels: only multiples of 16"),
        ({"intermediate_size": 100}, r"intermediate.* has 100 channels: only multiples of 16"),
        ({"intermediate_size": 144}, r"intermediate.* has 144 channels: only multiples of 32"),
    ],
)
def test_sizes_that_the_operators_do_not_have_are_refused(
    settings: dict[str, object], message: str, model_folder: Path, tmp_path: Path
) -> None:
    calibration = random_encoder(tmp_path, model_folder, **settings)
    with pytest.raises(QuantizationError, match=message):
        quantize(tmp_path / "model.onnx", tmp_path / "int8.onnx", "static", calibration)
    assert not (tmp_path / "int8.onnx").exists()


def other_places(graph: Graph) -> Graph:
    """Places that do not count from 0."""
    parts = list(graph.parts)
    (counted,) = (node for node in graph.nodes if node.op_type == "Constant" and 512 in node.attribute[0].t.dims)
    places = onnx.numpy_helper.from_array(np.arange(2, 514)[None])
    at = parts.index(counted)
    parts[at] = helper.make_node("Constant", [], parts[at].output, value=places)
    return replace(graph, parts=parts)


def no_words(graph: Graph) -> Graph:
    """Words that are looked up by other numbers than token ids."""
    return replace(graph, parts=[_renamed(part, "input_ids", "other_ids") for part in graph.parts])


def another_sum(graph: Graph) -> Graph:
    """A table that is multiplied and not added."""
    index, part = next((at, part) for at, part in enumerate(graph.parts) if part.op_type == "Add")
    product = helper.make_node("Mul", list(part.input), list(part.output))
    return replace(graph, parts=[*graph.parts[:index], product, *graph.parts[index + 1 :]])


def no_bias(graph: Graph) -> Graph:
    """A LayerNormalization without a bias."""
    parts = list(graph.parts)
    index = ["" if isinstance(part, Group) else part.op_type for part in parts].index("LayerNormalization")
    parts[index] = helper.make_node("LayerNormalization", parts[index].input[:2], parts[index].output)
    return replace(graph, parts=parts)


def _renamed(part: onnx.NodeProto | Group, old: str, new: str) -> onnx.NodeProto | Group:
    if isinstance(part, Group):
        return part
    node = onnx.NodeProto()
    node.CopyFrom(part)
    node.input[:] = [new if name == old else name for name in part.input]
    return node


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_places, r"/embeddings/.* is made without a table of words or of places counted from 0"),
        (no_words, r"/embeddings/.* is made without a table of words"),
        (another_sum, r"/embeddings/.* is not the sum of three tables: is this a BERT-like encoder by optimum?"),
        (no_bias, r"/embeddings/LayerNorm.* is a LayerNormalization without a bias"),
    ],
)
def test_another_kind_of_encoder_is_refused(change: Callable[[Graph], Graph], message: str, float32_file: Path) -> None:
    with pytest.raises(QuantizationError, match=message):
        assemble(change(fuse(float32_file)), {})


def test_unknown_recipe(float32_file: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="no recipe 'int4': choose one of static, avx2, avx512_vnni, arm64"):
        quantize(float32_file, tmp_path / "out.onnx", "int4")


def test_unwritable_output_leaves_nothing(float32_file: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"cannot write .*out.onnx: No such file or directory"):
        quantize(float32_file, tmp_path / "no" / "out.onnx", "avx2")
    (tmp_path / "taken").mkdir()
    with pytest.raises(QuantizationError, match=r"cannot write .*taken: Is a directory"):
        quantize(float32_file, tmp_path / "taken", "avx2")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_result_below_the_bar_is_not_written(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of five values reproduce nothing."""
    coarse = StaticRecipe(Settings(largest=2, largest_pair=4, damping=1e9))
    monkeypatch.setitem(RECIPES, "static", coarse)
    calibration = random_encoder(tmp_path, model_folder)
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "out.onnx"
    with pytest.raises(QuantizationError) as caught:
        quantize(tmp_path / "model.onnx", target, "static", calibration)
    assert re.fullmatch(
        rf"{target} is not written, its mean cosine would be below 0.997: cosine to float32 on 45 texts held out: mean "
        r"0\.\d+, minimum 0\.\d+; largest relative errors: (0\.\d+ in \S+(, )?){3}\. Calibrate .*--min-cosine 0",
        str(caught.value),
    )
    assert list(target.parent.iterdir()) == []
    report = quantize(tmp_path / "model.onnx", target, "static", calibration, min_cosine=0)
    assert report.mean_cosine < 0.997
    assert target.exists()


def test_command_line(float32_file: Path, model_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quantize"]
    shutil.copy(float32_file, tmp_path / "in.onnx")
    shutil.copy(Path(open_artifact(model_folder).tokenizer), tmp_path / "tokenizer.json")
    arguments = [str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--recipe", "avx2"]
    ran = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    assert (
        "out.onnx: 23.0 MB, from 90.4 MB, recipe avx2\ncosine to float32 on 45 texts held out: mean 0.99" in ran.stdout
    )
    assert ran.stderr == ""
    ran = subprocess.run([*command, arguments[1], arguments[0]], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"quantize: {arguments[1]} is quantized already")
    (tmp_path / "out.onnx").unlink()
    ran = subprocess.run([*command, *arguments, "--min-cosine", "0.9999"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"quantize: {arguments[1]} is not written, its mean cosine would be below 0.9999")
    assert not (tmp_path / "out.onnx").exists()
    assert DEFAULT_RECIPE in RECIPES
