"""Which tokens are words, the texts that they make, and the texts of the gate."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from tokenizers import Tokenizer

from artifact.manifest import Artifact, open_artifact
from export import ExportError
from export.manifest import file_entry
from export.texts import EXTREME, VERIFICATION_TEXTS
from export.verify import WORDS, gate_texts, verify
from export.words import FORMS, forms, words
from handler.embedder import Embedder

Reference = Callable[[Sequence[str]], np.ndarray]


@pytest.fixture(scope="module")
def vocabulary(source_folder: Path) -> list[str]:
    tokenizer = Tokenizer.from_file(str(source_folder / "tokenizer.json"))
    tokenizer.no_padding()
    return words(tokenizer)


@pytest.fixture(scope="module")
def gate(source_folder: Path) -> list[str]:
    return gate_texts(source_folder / "tokenizer.json")


def test_words_are_all_tokens_but_parts_special_and_unused_ones(source_folder: Path, vocabulary: list[str]) -> None:
    tokens = (source_folder / "vocab.txt").read_text("utf-8").split("\n")[:-1]
    rest = set(tokens) - set(vocabulary)
    assert {token for token in rest if not token.startswith(("##", "[unused"))} == {
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        "...",  # as a text these are three tokens
    }
    assert vocabulary == [token for token in tokens if token not in rest]


@pytest.mark.real_model
def test_each_form_has_as_many_tokens_as_it_says(int8: Embedder) -> None:
    specials = 2
    assert int8.embed(forms("nods")).tokens == [count + specials for count in (1, 2, 2, 8, 250)]
    assert int8.embed(forms("nods")).truncated == []
    assert len(set(forms("nods"))) == len(FORMS)


def test_the_gate_has_every_kind_of_text_once(gate: list[str], vocabulary: list[str]) -> None:
    assert len(gate) == len(set(gate))
    assert set(gate) > {*VERIFICATION_TEXTS, *EXTREME, *(text for word in WORDS for text in forms(word))}
    alone = [vocabulary.index(text) for text in gate if text in set(vocabulary)]
    assert len(alone) > 40
    assert max(np.diff(sorted(alone))) < len(vocabulary) / 20


def down_projections(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    shapes = {weight.name: list(weight.dims) for weight in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type == "MatMul" and shapes.get(node.input[1]) == [1536, 384]]


def ranges(model: onnx.ModelProto, names: Sequence[str], tokens: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Of each tensor, its channels' lowest and highest values over all texts: shape (2, channels)."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    observed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(observed.SerializeToString(), providers=["CPUExecutionProvider"])
    rows: list[list[np.ndarray]] = [[] for _ in names]
    for text in tokens:
        ids = np.array([text])
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        for seen, values in zip(rows, session.run(list(names), feeds), strict=True):
            seen += [values.min(axis=(0, 1)), values.max(axis=(0, 1))]
    return [np.stack([np.min(seen, axis=0), np.max(seen, axis=0)]) for seen in rows]


@pytest.fixture
def with_fixed_ranges(model_folder: Path, float32: Embedder, tmp_path: Path) -> Artifact:
    """The float32 model, but what enters the down projections is clipped, channel by channel, to the range that the
    verification texts show: what fixed ranges do to texts that they were not calibrated on, and nothing else."""
    artifact = open_artifact(model_folder)
    model = onnx.load(artifact.model("fp32"))
    nodes = down_projections(model)
    names = [node.input[0] for node in nodes]
    for node, (low, high) in zip(nodes, ranges(model, names, float32.tokenize(VERIFICATION_TEXTS).ids), strict=True):
        name = node.input[0]
        bounds = [numpy_helper.from_array(low, f"{name}_low"), numpy_helper.from_array(high, f"{name}_high")]
        model.graph.initializer.extend(bounds)
        place = list(model.graph.node).index(node)
        node.input[0] = f"{name}_clipped"
        model.graph.node.insert(place, helper.make_node("Min", [f"{name}_raised", bounds[1].name], [node.input[0]]))
        model.graph.node.insert(place, helper.make_node("Max", [name, bounds[0].name], [f"{name}_raised"]))
    manifest = artifact.manifest
    for name in manifest.files:
        (tmp_path / name).symlink_to(Path(artifact.folder, name).absolute())
    path = tmp_path / manifest.precisions["fp32"].file
    path.unlink()
    onnx.save(model, path)
    precision = manifest.precisions["fp32"]._replace(recipe="per-token")
    files = {name: file_entry(tmp_path / name) for name in manifest.files}
    return Artifact(str(tmp_path), manifest._replace(precisions={"fp32": precision}, files=files))


def test_ranges_that_are_right_for_ordinary_texts_alone_do_not_pass_the_gate(
    with_fixed_ranges: Artifact, gate: list[str], reference: Reference
) -> None:
    vectors = reference(gate)
    count = len(VERIFICATION_TEXTS)
    passed = verify(with_fixed_ranges, "fp32", gate[:count], vectors[:count], lambda done, total: None)
    assert passed.min_cosine > 0.99999
    with pytest.raises(ExportError, match=r"minimum 0\.7.* needed are 0\.999 and 0\.995; worst text: 'nods nods nods"):
        verify(with_fixed_ranges, "fp32", gate, vectors, lambda done, total: None)
