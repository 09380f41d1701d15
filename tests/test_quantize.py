"""python -m quantize: what it writes, and what it refuses."""

import math
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from artifact.manifest import WEIGHTS_SUFFIX, open_artifact
from export.texts import ORDINARY
from quantize import DEFAULT_RECIPE, RECIPES, QuantizationError, quantize
from quantize.assemble import BLOCK, QUAD, assemble, quantize_rows
from quantize.dynamic import DynamicRecipe
from quantize.fusion import OTHERWISE, Graph, Group, fuse
from quantize.linear import outlier_channels, quantize_linear, smoothing_factors
from quantize.per_token import crowding
from quantize.rounding import LARGEST, LARGEST_CODE, on_grid, round_weights
from quantize.session import feed, open_session, run
from quantize.vocabulary import MOST, REPEATED, TIMES, cut, pieces
from tests.support.encoders import random_encoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def float32_file(model_folder: Path) -> Path:
    return Path(open_artifact(model_folder).model("fp32"))


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Path:
    return Path(open_artifact(model_folder).tokenizer)


def weights(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


DYNAMIC = {name: recipe for name, recipe in RECIPES.items() if isinstance(recipe, DynamicRecipe)}


@pytest.mark.parametrize("recipe", DYNAMIC)
def test_dynamic_recipes_quantize_every_linear_per_channel(
    recipe: str, float32_file: Path, tokenizer: Path, tmp_path: Path
) -> None:
    target = tmp_path / "int8.onnx"
    quantize(float32_file, target, tokenizer, recipe=recipe)
    model = onnx.load(target)
    linears = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert len(linears) == 36
    tensors = weights(target)
    for node in linears:
        weight, scale = tensors[node.input[1]], tensors[node.input[1].replace("_quantized", "_scale")]
        assert weight.dtype == (np.int8 if DYNAMIC[recipe].signed_weights else np.uint8)
        assert scale.shape == (weight.shape[1],)
    assert target.stat().st_size < float32_file.stat().st_size / 3.9


def test_the_artifact_is_what_quantize_makes(
    float32_file: Path, tokenizer: Path, tmp_path: Path, model_folder: Path
) -> None:
    done: list[tuple[int, int]] = []
    report = quantize(float32_file, tmp_path / "int8.onnx", tokenizer, advance=lambda *step: done.append(step))
    built = Path(open_artifact(model_folder).model("int8"))
    assert onnx.load(tmp_path / "int8.onnx").graph.node == onnx.load(built).graph.node
    found, expected = weights(tmp_path / "int8.onnx"), weights(built)
    assert list(found) == list(expected)
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], strict=True)
    assert [step for step, _ in done] == list(range(done[-1][1] + 1))
    assert report.texts >= 50
    assert 0.995 < report.min_cosine < report.mean_cosine < 1


def largest_sum_of_four(weight: np.ndarray) -> int:
    """The largest magnitude that codes can give the sum of four products, of input channels i, i+1, i+4 and i+5."""
    fours = weight.astype(int).reshape(-1, 2, 2, 2, weight.shape[1])
    return LARGEST_CODE * int(max(np.maximum(sign * fours, 0).sum(axis=(1, 3)).max() for sign in (1, -1)))


def test_the_graph_is_the_one_that_is_fast_and_portable(model_folder: Path) -> None:
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
            weight, sums, scale, bias, rest_weight = (tensors[name] for name in node.input[2:7])
            unpacked = weight.reshape(len(weight), -1, BLOCK, QUAD).transpose(1, 3, 0, 2).reshape(-1, len(bias))
            assert weight.dtype == np.int8
            assert largest_sum_of_four(unpacked) < 2**15  # no 16-bit sum of AVX2 can saturate
            np.testing.assert_array_equal(sums, unpacked.sum(axis=0, dtype=np.int32))
            assert scale.shape == bias.shape
            np.testing.assert_array_equal(rest_weight[0], sums.astype(np.float32) * scale)
    stored = Path(open_artifact(model_folder).model("int8"))
    weights_file = stored.with_name(stored.name + WEIGHTS_SUFFIX)
    assert stored.stat().st_size + weights_file.stat().st_size <= 25_000_000


def test_a_tokenizer_that_cannot_be_read_is_named(float32_file: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"cannot read the tokenizer .*no.json .*: name .* with --tokenizer"):
        quantize(float32_file, tmp_path / "out.onnx", tmp_path / "no.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(QuantizationError, match=r"cannot read the tokenizer .*bad.json"):
        quantize(float32_file, tmp_path / "out.onnx", tmp_path / "bad.json")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]


@pytest.mark.parametrize("tokens", [1, 2, 5, 1000, 1024])
def test_pieces_have_the_whole_vocabulary_and_some_of_it_repeated(tokens: int) -> None:
    made = cut(tokens, [101, 102], max_tokens=64)
    assert {(piece[0], piece[-1]) for piece in made} == {(101, 102)}
    repeated = made[-len(range(0, tokens, REPEATED)) :]
    once = made[: -len(repeated)]
    assert sorted(token for piece in once for token in piece[1:-1]) == list(range(tokens))
    assert all(len(set(piece[1:-1])) == 1 and len(piece) == TIMES + 2 for piece in repeated)
    assert max(len(piece) for piece in made) <= 64


def test_pieces_of_a_large_vocabulary_are_spread_over_it() -> None:
    tokens = 250_002
    made = cut(tokens, [0, 2], max_tokens=512)
    once = sorted(token for piece in made[: -(MOST // REPEATED)] for token in piece[1:-1])
    assert len(once) == len(set(once)) == MOST
    gaps = np.diff([*once, once[0] + tokens])
    assert gaps.max() < 3 * tokens / MOST


def trained(kind: str) -> Tokenizer:
    """A tokenizer of RoBERTa's or XLM-R's kind."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    if kind == "byte-level BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
        trainer: object = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=special, unk_token=special[3], show_progress=False
        )
    tokenizer.train_from_iterator(ORDINARY, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    tokenizer.enable_padding(pad_id=1, pad_token=special[1], length=20)
    tokenizer.enable_truncation(8)
    return tokenizer


@pytest.mark.parametrize("kind", ["byte-level BPE", "Unigram"])
def test_pieces_of_other_kinds_of_tokenizers(kind: str, tmp_path: Path) -> None:
    tokenizer = trained(kind)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    made = pieces(tmp_path / "tokenizer.json", 64)
    assert {(piece[0], piece[-1]) for piece in made} == {(0, 2)}
    assert {token for piece in made for token in piece} == set(range(tokenizer.get_vocab_size()))
    assert 20 < max(map(len, made)) <= 64


def test_pieces_of_each_length_have_as_many_tokens() -> None:
    pieces_once = cut(1024, [101, 102], max_tokens=64)[: -len(range(0, 1024, REPEATED))]
    tokens: Counter[int] = Counter()
    for piece in pieces_once[:-1]:  # the last is what was left
        tokens[len(piece)] += len(piece)
    assert sorted(tokens) == [3, 4, 5, 7, 10, 15, 23, 36, 57, 64]  # the longest, so that each place of a text is seen
    assert max(tokens.values()) - min(tokens.values()) <= 64


def test_short_texts_are_not_exceeded(tokenizer: Path) -> None:
    assert {len(piece) for piece in pieces(tokenizer, 5)} == {3, 4, 5}
    with pytest.raises(QuantizationError, match="texts of 2 tokens have no room beside 2 special ones"):
        pieces(tokenizer, 2)


def test_pieces_begin_and_end_as_the_tokenizer_has_it(tokenizer: Path) -> None:
    made = pieces(tokenizer, 256)
    assert {(piece[0], piece[-1]) for piece in made} == {(101, 102)}
    assert len({token for piece in made for token in piece}) == 30522


SHAPES = st.tuples(st.integers(1, 5).map(lambda eights: 8 * eights), st.integers(1, 6))


VALUES = st.floats(-100, 100, width=32)


@given(
    weight=SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=VALUES)),
    seed=st.integers(0, 2**32 - 1),
    alike=st.floats(0, 1),
)
def test_no_rounded_weights_saturate_a_sum(weight: np.ndarray, seed: int, alike: float) -> None:
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(50, len(weight))) + alike * 20 * random.normal(size=(50, 1))
    codes, scale = round_weights(weight, inputs.T @ inputs, np.ones(len(weight), np.float32))
    assert largest_sum_of_four(codes) < 2**15
    assert np.abs(codes.astype(int)).max() <= LARGEST
    assert np.isfinite(scale).all()
    assert (scale > 0).all()


def correlated_inputs(columns: int) -> tuple[np.ndarray, np.ndarray]:
    source = np.random.default_rng(0)
    inputs = source.normal(size=(2000, columns)) @ source.normal(size=(columns, columns))
    return inputs.astype(np.float32), source.normal(size=(columns, 32)).astype(np.float32)


def plain(size: int) -> np.ndarray:
    return np.ones(size, np.float32)


def test_rounding_makes_good_for_its_errors() -> None:
    """Against rounding to nearest, which is what inputs that tell nothing of one another give."""
    inputs, weight = correlated_inputs(64)
    products = inputs.T.astype(float) @ inputs
    errors = []
    for known in (products, np.diag(np.diag(products))):
        codes, scale = round_weights(weight, known, plain(64))
        errors.append(np.linalg.norm(inputs @ (codes * scale - weight)))
    np.testing.assert_array_equal(codes, np.rint(weight / scale))
    assert errors[0] < 0.8 * errors[1]


def test_smoothing_is_part_of_what_is_made_good() -> None:
    """Inputs and weights as they are, or scaled up and down alike: the same problem."""
    inputs, weight = correlated_inputs(64)
    smoothing = np.exp2(np.arange(64) % 5 - 2).astype(np.float32)  # of powers of two nothing is rounded
    products = on_grid(inputs.T.astype(float) @ inputs, 10, 2.0**40)
    whole = products * smoothing[:, None] * smoothing
    for one, other in zip(
        round_weights(weight, products, plain(64)), round_weights(weight, whole, smoothing), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_bounding_pairs_loses_less_than_bounding_weights() -> None:
    _, weight = correlated_inputs(384)
    codes, scale = round_weights(weight, np.eye(384), plain(384))
    seven_bits = np.abs(weight).max(axis=0) / 63
    errors = [
        np.linalg.norm(rounded - weight) for rounded in (codes * scale, np.rint(weight / seven_bits) * seven_bits)
    ]
    assert errors[0] < 0.75 * errors[1]


def test_sums_of_numbers_on_a_grid_are_the_same_in_any_order() -> None:
    """As the sums of a matrix product are, which each library and CPU adds in an order of its own."""
    random = np.random.default_rng(0)
    rows = on_grid(random.normal(size=(4096, 8)) * 40, bits=10, bound=2.0**7)
    products = rows.T @ rows
    exact = (rows * 2**10).astype(int).T @ (rows * 2**10).astype(int)
    np.testing.assert_array_equal(products * 2.0**20, exact.astype(float))
    order = random.permutation(len(rows))
    np.testing.assert_array_equal(sum(np.outer(row, row) for row in rows[order]), products)


def test_an_outlier_channel_stays_exact() -> None:
    source = np.random.default_rng(1)
    inputs = source.normal(size=(3000, 48)).astype(np.float32)
    inputs[:, 7] *= 200
    weight, bias = (source.normal(size=shape).astype(np.float32) for shape in ((48, 16), (16,)))
    largest = np.abs(inputs).max(axis=0)
    outliers = outlier_channels(largest, weight, 1)
    assert outliers.tolist() == [7]
    smoothing = smoothing_factors(largest, weight)
    found = quantize_linear(weight, bias, smoothing, outliers, inputs.T.astype(float) @ inputs)
    assert not found.weight[7].any()
    assert found.factor[7] == 0
    np.testing.assert_allclose(np.delete(found.factor * smoothing, 7), 1, rtol=1e-6)
    np.testing.assert_array_equal(found.outlier_weight, weight[[7]])


def test_smoothing_makes_the_ranges_of_inputs_and_weights_equal() -> None:
    weight = np.array([[1, -8], [0.5, 0.25], [0, 0]], np.float32)
    largest = np.array([2, 32, 0], np.float32)
    smoothing = smoothing_factors(largest, weight)
    assert smoothing.tolist() == [0.5, 8, 1]
    np.testing.assert_array_equal((largest / smoothing)[:2], np.abs(weight * smoothing[:, None]).max(axis=1)[:2])


def test_a_table_is_quantized_row_by_row() -> None:
    table = np.random.default_rng(0).normal(size=(9000, 32)).astype(np.float32)
    table[:, 5] *= 40
    table[17] *= 1e-3
    table[18] = 0
    codes, rows, channels = quantize_rows(table)
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(np.abs(codes).max(axis=1)[np.arange(9000) != 18], 127)
    assert (np.abs(codes * rows[:, None] * channels - table) <= 0.5001 * rows[:, None] * channels).all()


def test_a_large_table_takes_little_memory() -> None:
    """Of 250,000 words as many bytes more as the codes have, and not many times those of float32."""
    table = np.ones((250_000, 64), np.float32)
    tracemalloc.start()
    codes, _, _ = quantize_rows(table)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * codes.nbytes


def test_crowding_of_vectors() -> None:
    random = np.random.default_rng(0)
    around = random.normal(size=(400, 64))
    assert crowding(around) < 0.01
    assert crowding(np.abs(around[:1]) * np.arange(1, 9)[:, None]) == pytest.approx(1)
    aside = around / np.linalg.norm(around, axis=1, keepdims=True) + np.eye(64)[0]
    assert crowding(aside) == pytest.approx(0.5, abs=0.05)
    assert crowding(aside[::-1]) == crowding(aside)


@pytest.mark.parametrize(("aside", "outliers"), [(0.0, 2), (3.0, 8)])
def test_a_model_of_crowded_vectors_keeps_more_outliers(
    aside: float, outliers: int, small_tokenizer: Path, tmp_path: Path
) -> None:
    """The last LayerNormalization puts their mean at 0, or to one side."""
    path = random_encoder(tmp_path, small_tokenizer)
    model = onnx.load(path)
    (name,) = (output.name for output in model.graph.output)
    session = open_session(path)
    means = [run(session, [name], feed([piece]))[0].mean(axis=(0, 1)) for piece in pieces(small_tokenizer, 256)[::20]]
    last = [node for node in model.graph.node if node.op_type == "LayerNormalization"][-1]
    shift = np.float32(aside) - np.mean(means, axis=0)
    model.graph.initializer.append(onnx.numpy_helper.from_array(shift, "shift"))
    last.input[2] = "shift"
    onnx.save(model, path)
    report = quantize(path, tmp_path / "int8.onnx", small_tokenizer)
    assert report.mean_cosine > 0.999
    made = weights(tmp_path / "int8.onnx")
    counts = Counter(len(value) for name, value in made.items() if name.endswith("/outlier_channels"))
    assert counts == {outliers: 6}  # the inputs of query, key and value, of up, and of down, in each layer


def test_products_that_are_kept_in_parts_are_the_same(
    small_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_encoder(tmp_path, small_tokenizer)
    quantize(model, tmp_path / "at once.onnx", small_tokenizer)
    monkeypatch.setattr("quantize.per_token.PRODUCTS_AT_ONCE", 8 * (64**2 + 160**2))
    done: list[tuple[int, int]] = []
    quantize(model, tmp_path / "parts.onnx", small_tokenizer, advance=lambda *step: done.append(step))
    assert (tmp_path / "parts.onnx").read_bytes() == (tmp_path / "at once.onnx").read_bytes()
    assert [step for step, _ in done] == list(range(done[-1][1] + 1))
    runs = len({len(piece) for piece in pieces(small_tokenizer, 256)})
    assert done[-1][1] >= 4 * runs  # each layer but its last linear, and that


SIZES_OF_MODELS: dict[str, dict[str, Any]] = {
    "24 layers": {"num_hidden_layers": 24},
    "768 wide, 64 channels a head": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "1024 wide, 64 channels a head": {"hidden_size": 1024, "num_attention_heads": 16},
    "384 wide, 32 channels a head": {"hidden_size": 384, "num_attention_heads": 12},
    "250,002 words": {"vocab_size": 250_002, "num_hidden_layers": 1},
}


@pytest.mark.parametrize("name", SIZES_OF_MODELS)
def test_sizes_of_other_models(name: str, small_tokenizer: Path, tmp_path: Path) -> None:
    """Of texts of up to 512 tokens. Weights are as large as those of a trained model of that width."""
    settings = {"num_hidden_layers": 1, **SIZES_OF_MODELS[name]}
    width = int(str(settings.get("hidden_size", 64)))
    model = random_encoder(tmp_path, small_tokenizer, **settings, spread=1.6 / math.sqrt(width))
    report = quantize(model, tmp_path / "int8.onnx", small_tokenizer, 512)
    assert report.mean_cosine > 0.999
    assert report.min_cosine > 0.995
    assert (tmp_path / "int8.onnx").stat().st_size < model.stat().st_size / 3


@pytest.mark.parametrize(("activation", "operator"), [("gelu", "LinearGeluQuantize"), ("relu", "Quantize")])
def test_another_encoder_of_the_family(activation: str, operator: str, small_tokenizer: Path, tmp_path: Path) -> None:
    model = random_encoder(tmp_path, small_tokenizer, hidden_act=activation)
    report = quantize(model, tmp_path / "int8.onnx", small_tokenizer)
    assert report.mean_cosine > 0.999
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node)
    assert sum(count for kind, count in operators.items() if kind.startswith("Linear")) == 8
    assert operators["AttentionQuantize"] == operators[operator] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_attention_heads": 8}, "a head of .* has 8 channels: only multiples of 16"),
        ({"hidden_size": 72, "num_attention_heads": 3}, "the input of .*query has 72 channels: only multiples of 16"),
        ({"intermediate_size": 100}, ".*intermediate.* has 100 channels: only multiples of 32"),
        ({"intermediate_size": 144}, ".*intermediate.* has 144 channels: only multiples of 32"),
    ],
)
def test_sizes_that_the_operators_do_not_have_are_refused(
    settings: dict[str, Any], message: str, small_tokenizer: Path, tmp_path: Path
) -> None:
    model = random_encoder(tmp_path, small_tokenizer, **settings)
    with pytest.raises(QuantizationError, match=f"^{model}: {message} are supported; {OTHERWISE}$"):
        quantize(model, tmp_path / "int8.onnx", small_tokenizer)
    assert not (tmp_path / "int8.onnx").exists()


def counting(graph: Graph, places: np.ndarray) -> Graph:
    """Other numbers of places."""
    parts = list(graph.parts)
    (counted,) = (node for node in graph.nodes if node.op_type == "Constant" and 512 in node.attribute[0].t.dims)
    value = onnx.numpy_helper.from_array(places[None])
    parts[parts.index(counted)] = helper.make_node("Constant", [], counted.output, value=value)
    return replace(graph, parts=parts)


def other_places(graph: Graph) -> Graph:
    """Places that are not counted one by one."""
    return counting(graph, 2 * np.arange(512))


def test_places_may_be_counted_from_any(float32_file: Path) -> None:
    """The rows before the first are left out, and whatever padding is, it has the place of its turn."""
    graph = fuse(float32_file)
    tables = [table_of_places(each) for each in (graph, counting(graph, np.arange(2, 514)))]
    np.testing.assert_array_equal(tables[0][2:], tables[1])
    assert len(tables[0]) == 512


def table_of_places(graph: Graph) -> np.ndarray:
    plain = {
        group.name: quantize_linear(group.weight, group.bias, np.ones(len(group.weight), np.float32), NO_OUTLIERS, None)
        for group in graph.groups
    }
    model = assemble(graph, plain)
    (node,) = (node for node in model.graph.node if node.op_type == "Embed")
    (table,) = (tensor for tensor in model.graph.initializer if tensor.name == node.input[4])
    return onnx.numpy_helper.to_array(table)


NO_OUTLIERS = np.zeros(0, np.int64)


def no_words(graph: Graph) -> Graph:
    """Words that are looked up by other numbers than token ids."""
    return replace(graph, parts=[_renamed(part, "input_ids", "other_ids") for part in graph.parts])


def another_sum(graph: Graph) -> Graph:
    """A table that is multiplied and not added."""
    parts = list(graph.parts)
    added = next(node for node in graph.nodes if node.op_type == "Add")
    parts[parts.index(added)] = helper.make_node("Mul", added.input, added.output)
    return replace(graph, parts=parts)


def no_bias(graph: Graph) -> Graph:
    """A LayerNormalization without a bias."""
    parts = list(graph.parts)
    whole = next(node for node in graph.nodes if node.op_type == "LayerNormalization")
    parts[parts.index(whole)] = helper.make_node("LayerNormalization", whole.input[:2], whole.output)
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
        (
            other_places,
            r"/embeddings/.* reads a table by .*: only input_ids, token_type_ids and places that count the tokens",
        ),
        (no_words, r"/embeddings/.* reads a table by .*: only input_ids"),
        (another_sum, r"/embeddings/.* is not the sum of three tables: is this a BERT-like encoder by optimum?"),
        (no_bias, r"/embeddings/LayerNorm.* is a LayerNormalization without a bias"),
    ],
)
def test_another_kind_of_encoder_is_refused(change: Callable[[Graph], Graph], message: str, float32_file: Path) -> None:
    with pytest.raises(QuantizationError, match=message):
        assemble(change(fuse(float32_file)), {})


def test_unknown_recipe(float32_file: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="no recipe 'int4': choose one of per-token, avx2, avx512_vnni, arm64"):
        quantize(float32_file, tmp_path / "out.onnx", tokenizer, recipe="int4")


def test_unwritable_output_leaves_nothing(float32_file: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"cannot write .*out.onnx: No such file or directory"):
        quantize(float32_file, tmp_path / "no" / "out.onnx", tokenizer, recipe="avx2")
    (tmp_path / "taken").mkdir()
    with pytest.raises(QuantizationError, match=r"cannot write .*taken: Is a directory"):
        quantize(float32_file, tmp_path / "taken", tokenizer, recipe="avx2")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_result_below_the_bar_is_not_written(
    small_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of five values reproduce nothing."""
    monkeypatch.setattr("quantize.rounding.LARGEST", 2)
    monkeypatch.setattr("quantize.rounding.LARGEST_SUM", 4)
    model = random_encoder(tmp_path, small_tokenizer)
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "out.onnx"
    with pytest.raises(QuantizationError) as caught:
        quantize(model, target, small_tokenizer)
    assert re.fullmatch(
        rf"{target} is not written, its mean cosine would be below 0.997: cosine to float32 on \d+ pieces of the "
        r"vocabulary: mean 0\.\d+, minimum -?0\.\d+\. Keep float32 for this model, or .*--min-cosine 0",
        str(caught.value),
    )
    assert list(target.parent.iterdir()) == []
    report = quantize(model, target, small_tokenizer, min_cosine=0)
    assert report.mean_cosine < 0.997
    assert target.exists()


def test_command_line(float32_file: Path, model_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quantize"]
    shutil.copy(float32_file, tmp_path / "in.onnx")
    shutil.copy(Path(open_artifact(model_folder).tokenizer), tmp_path / "tokenizer.json")
    arguments = [str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--recipe", "avx2"]
    ran = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    assert (
        "out.onnx: 23.0 MB, from 90.4 MB, recipe avx2\ncosine to float32 on 51 pieces of the vocabulary: mean 0.98"
        in ran.stdout
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
