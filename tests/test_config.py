"""The files that describe a model, in the forms of each version of sentence-transformers, and all that is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from tokenizers import Tokenizer

from export import ExportError
from export.card import read_card
from export.config import Config, read_config
from export.dense import write_dense
from export.source import fetch
from export.to_onnx import to_onnx
from export.tokenizer import write_tokenizer
from export.verify import reference_vectors
from tests.support.models import WIDTH, edit_json, save_model

pytestmark = pytest.mark.slow

OLD_NAMES = {name: f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Dense", "Normalize")}
MODEL, TRANSFORMER, POOLING = "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the installed version saves it."""
    return save_model(
        tmp_path_factory.mktemp("saved"),
        "roberta",
        places=128,
        pooling="cls",
        dense=(Dense(WIDTH, 24),),
        prompts={"query": "query: ", "passage": "passage: "},
        default_prompt_name="query",
        truncate_dim=16,
    )


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), "utf-8")


def flags(**on: bool) -> dict[str, Any]:
    """A pooling's configuration before version 5.4."""
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {
        "word_embedding_dimension": WIDTH,
        **{f"pooling_mode_{name}": on.get(name, False) for name in names},
        "include_prompt": True,
    }


def as_version_3(model: Path) -> None:
    """So do 4 and 5.0 to 5.3, with one field more or less."""
    modules = json.loads((model / "modules.json").read_text())
    for entry in modules:
        entry["type"] = OLD_NAMES[entry["type"].rpartition(".")[2]]
    write_json(model / "modules.json", modules)
    write_json(model / POOLING, flags(cls_token=True))
    write_json(model / TRANSFORMER, {"max_seq_length": 128, "do_lower_case": False})
    dense = {"in_features": WIDTH, "out_features": 24, "bias": True}
    write_json(model / "2_Dense/config.json", dense | {"activation_function": "torch.nn.modules.activation.Tanh"})
    settings = json.loads((model / MODEL).read_text())
    settings["prompts"] = {name: text for name, text in settings["prompts"].items() if text}
    del settings["model_type"]
    write_json(model / MODEL, settings)


def as_version_2(model: Path) -> None:
    """Without prompts, in other folders and by another name."""
    as_version_3(model)
    write_json(model / MODEL, {"__version__": {"sentence_transformers": "2.0.0"}})
    (model / TRANSFORMER).rename(model / "sentence_roberta_config.json")
    (model / "0_Transformer").mkdir()
    others = {"modules.json", MODEL, "README.md", "1_Pooling", "2_Dense", "3_Normalize", "0_Transformer"}
    for path in list(model.iterdir()):
        if path.name not in others:
            path.rename(model / "0_Transformer" / path.name)
    modules = json.loads((model / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    write_json(model / "modules.json", modules)


def as_version_6(model: Path) -> Path:
    modules = json.loads((model / "modules.json").read_text())
    modules[3]["type"] = "sentence_transformers.base.modules.normalize.Normalize"
    write_json(model / "modules.json", modules)
    (model / "3_Normalize").mkdir(exist_ok=True)
    ends = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
    write_json(model / "3_Normalize/config.json", ends)
    return model


def facts(config: Config) -> list[object]:
    """What does not depend on folders or on a version's habits."""
    prompts = {name: text for name, text in config.prompts.items() if text}
    return [
        (config.max_tokens, config.pooling, config.pooled_dimensions, config.dense, config.normalize),
        (config.truncate_dim, config.dimensions, config.full_dimensions),
        (prompts, config.default_prompt),
    ]


def test_what_the_installed_version_saves(saved: Path) -> None:
    config = read_config(saved)
    assert facts(config) == [
        (128, "cls", WIDTH, ((WIDTH, 24, True, "Tanh"),), True),
        (16, 16, 24),
        ({"query": "query: ", "passage": "passage: "}, "query"),
    ]
    assert (config.encoder, config.similarity) == (saved, "cosine")


@pytest.mark.parametrize("change", [as_version_3, as_version_6])
def test_other_versions_say_the_same_in_their_own_form(
    change: Callable[[Path], object], saved: Path, model: Path, tmp_path: Path
) -> None:
    change(model)
    found = fetch(str(model), "my/model", None, tmp_path).config
    assert facts(found) == facts(read_config(saved))
    # So does the reference read them.
    vectors = [reference_vectors(folder, ["vitamin d", "iron rich foods"], 128) for folder in (saved, model)]
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_the_oldest_form(model: Path, tmp_path: Path) -> None:
    as_version_2(model)
    found = fetch(str(model), "my/model", None, tmp_path)
    assert found.config.encoder == model / "0_Transformer"
    assert facts(found.config)[1:] == [(None, 24, 24), ({}, None)]
    assert found.config.max_tokens == 128


@pytest.mark.parametrize(
    ("flag", "mode"),
    [
        ("cls_token", "cls"),
        ("max_tokens", "max"),
        ("mean_tokens", "mean"),
        ("mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        ("weightedmean_tokens", "weightedmean"),
        ("lasttoken", "lasttoken"),
    ],
)
def test_each_flag_is_a_mode(flag: str, mode: str, model: Path) -> None:
    write_json(model / POOLING, flags(**{flag: True}))
    assert read_config(model).pooling == mode
    write_json(model / POOLING, {"embedding_dimension": WIDTH, "pooling_mode": [mode], "include_prompt": True})
    assert read_config(model).pooling == mode


@pytest.mark.parametrize(
    ("transformer", "tokenizer", "places", "expected"),
    [
        ({"max_seq_length": 100}, {"model_max_length": 90}, 130, 100),  # the module's own comes first
        ({"max_seq_length": None}, {"model_max_length": 90}, 130, 90),
        ({}, {"model_max_length": 90}, 130, 90),
        ({"tokenizer_args": {"model_max_length": 80}}, {"model_max_length": 90}, 130, 80),
        ({"processor_kwargs": {"model_max_length": 80}}, {"model_max_length": 90}, 130, 80),
        ({}, {"model_max_length": 10**30}, 130, 128),  # transformers' sign for none
        ({"max_seq_length": 514}, {"model_max_length": 512}, 514, 512),  # places begin after the padding's
        ({}, {}, 130, 128),
    ],
)
def test_the_longest_text(
    transformer: dict[str, Any], tokenizer: dict[str, Any], places: int, expected: int, model: Path
) -> None:
    write_json(model / TRANSFORMER, transformer)
    stored = json.loads((model / "tokenizer_config.json").read_text())
    stored.pop("model_max_length")
    write_json(model / "tokenizer_config.json", stored | tokenizer)
    edit_json(model / "config.json", max_position_embeddings=places)
    assert read_config(model).max_tokens == expected


def test_prompts_that_are_all_empty_are_none(model: Path) -> None:
    edit_json(model / MODEL, prompts={"query": "", "document": None}, default_prompt_name=None)
    assert read_config(model).prompts == {}
    edit_json(model / MODEL, prompts={"query": "query: ", "document": None})
    assert read_config(model).prompts == {"query": "query: ", "document": ""}


def replaced(model: Path, old: str, new: str) -> None:
    path = model / "modules.json"
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")


def reordered(model: Path) -> None:
    modules = json.loads((model / "modules.json").read_text())
    write_json(model / "modules.json", [*modules[:2], modules[3], modules[2]])


ONLY = "only Transformer, Pooling, any Dense and then Normalize work, and in this order"
SAVE_ANEW = "if you trust it, save it anew with: python -c .*save_pretrained.*, and pass: --model NEW --model-id"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "broken JSON": (lambda m: (m / "modules.json").write_text("{"), "cannot read .*modules.json"),
    "no list": (lambda m: write_json(m / "modules.json", {"a": 1}), "is not a list of modules with type and path"),
    "no modules": (lambda m: write_json(m / "modules.json", []), f"has the modules none: {ONLY}"),
    "another module": (lambda m: replaced(m, "normalize.Normalize", "layer_norm.LayerNorm"), f", LayerNorm: {ONLY}"),
    "another order": (reordered, f"Transformer, Pooling, Normalize, Dense: {ONLY}"),
    "a module of its own": (
        lambda m: replaced(m, "sentence_transformers.sentence_transformer.modules.normalize", "custom"),
        f"Dense, custom.Normalize: {ONLY}",
    ),
    "static": (lambda m: replaced(m, "transformer.Transformer", "x.StaticEmbedding"), f"StaticEmbedding, .*: {ONLY}"),
    "weights that are pickled": (
        lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"),
        rf"has no model.safetensors, and weights in other files \(pytorch_model.bin, .* do not work: {SAVE_ANEW}",
    ),
    "dense weights that are pickled": (
        lambda m: (m / "2_Dense" / "model.safetensors").rename(m / "2_Dense" / "pytorch_model.bin"),
        f"2_Dense has no model.safetensors, and weights in other files .*: {SAVE_ANEW}",
    ),
    "no fast tokenizer": (lambda m: (m / "tokenizer.json").unlink(), f"has no tokenizer.json: {SAVE_ANEW}"),
    "another family": (
        lambda m: edit_json(m / "config.json", model_type="electra"),
        "has model_type 'electra': only bert, distilbert, mpnet, roberta, xlm-roberta work",
    ),
    "code of its own": (
        lambda m: edit_json(m / "config.json", auto_map={"AutoModel": "modeling.Model"}),
        r"asks for code of the model's own \(auto_map\): only transformers' own roberta works",
    ),
    "a decoder": (lambda m: edit_json(m / "config.json", is_decoder=True), r"decoder \(is_decoder\): only encoders"),
    "no places": (lambda m: edit_json(m / "config.json", max_position_embeddings=None), "no max_position_embeddings"),
    "too many places": (
        lambda m: (
            [edit_json(m / "config.json", max_position_embeddings=10_002)]
            and edit_json(m / TRANSFORMER, max_seq_length=10_000)
        ),
        "reads 10000 tokens: set max_seq_length to at least 1 and at most 8192",
    ),
    "no places for tokens": (
        lambda m: edit_json(m / "config.json", max_position_embeddings=2),
        "reads 0 tokens: set max_seq_length to at least 1",
    ),
    "no length": (
        lambda m: edit_json(m / TRANSFORMER, max_seq_length="many"),
        "max_seq_length 'many', not a whole number of at least 1",
    ),
    "left truncation": (
        lambda m: edit_json(m / "tokenizer_config.json", truncation_side="left"),
        r"cuts texts at the left \(truncation_side\): only right works",
    ),
    "another task": (
        lambda m: edit_json(m / TRANSFORMER, transformer_task="fill-mask"),
        'has transformer_task "fill-mask", which does not work here: only "feature-extraction" works',
    ),
    "another output": (
        lambda m: edit_json(m / TRANSFORMER, module_output_name="sentence_embedding"),
        'has module_output_name "sentence_embedding", which does not work here: only "token_embeddings" works',
    ),
    "images": (
        lambda m: edit_json(m / TRANSFORMER, modality_config={"image": {}}),
        'has modality_config {"image": {}}, which does not work here: only {"text": {"method": "forward"',
    ),
    "query expansion": (
        lambda m: edit_json(m / TRANSFORMER, query_expansion={"strategy": "fixed"}),
        'has query_expansion {"strategy": "fixed"}, which does not work here$',
    ),
    "arguments": (
        lambda m: edit_json(m / TRANSFORMER, tokenizer_args={"add_prefix_space": True}),
        "has add_prefix_space true, which does not work here$",
    ),
    "two poolings": (
        lambda m: edit_json(m / POOLING, pooling_mode=["cls", "mean"]),
        "asks for cls and mean: one of mean, cls, max, mean_sqrt_len_tokens, weightedmean, lasttoken works",
    ),
    "two old poolings": (
        lambda m: write_json(m / POOLING, flags(cls_token=True, max_tokens=True)),
        "asks for cls and max: one of",
    ),
    "no pooling": (lambda m: write_json(m / POOLING, flags()), "asks for no pooling: one of"),
    "another pooling": (lambda m: edit_json(m / POOLING, pooling_mode="sum"), "asks for sum: one of mean, cls,"),
    "no dimension": (lambda m: edit_json(m / POOLING, embedding_dimension=None), "has embedding_dimension None, the"),
    "prompts left out": (
        lambda m: edit_json(m / POOLING, include_prompt=False),
        r"leaves prompts out of the pooling \(include_prompt false\), which does not work here",
    ),
    "another activation": (
        lambda m: edit_json(m / "2_Dense/config.json", activation_function="torch.nn.modules.activation.GELU"),
        "has activation_function torch.nn.modules.activation.GELU: Identity, Tanh, ReLU of torch work",
    ),
    "an activation of its own": (
        lambda m: edit_json(m / "2_Dense/config.json", activation_function="custom.Tanh"),
        "has activation_function custom.Tanh: Identity, Tanh, ReLU of torch work",
    ),
    "a residual": (lambda m: edit_json(m / "2_Dense/config.json", use_residual=True), r"\(use_residual\), which does"),
    "a dense layer of tokens": (
        lambda m: edit_json(m / "2_Dense/config.json", module_input_name="token_embeddings"),
        "has module_input_name 'token_embeddings': only sentence_embedding works",
    ),
    "normalized tokens": (
        lambda m: edit_json(as_version_6(m) / "3_Normalize/config.json", module_input_name="token_embeddings"),
        "3_Normalize/config.json has module_input_name 'token_embeddings': only sentence_embedding works",
    ),
    "a dense layer of another width": (
        lambda m: edit_json(m / "2_Dense/config.json", in_features=99),
        f"has 99 in_features and 24 out_features after {WIDTH}",
    ),
    "another kind of model": (
        lambda m: edit_json(m / MODEL, model_type="SparseEncoder"),
        "has model_type 'SparseEncoder': only SentenceTransformer works",
    ),
    "prompts that are no object": (
        lambda m: edit_json(m / MODEL, prompts=["x"]),
        r"has prompts \['x'\], not an object",
    ),
    "a prompt that is no Unicode": (
        lambda m: edit_json(m / MODEL, prompts={"query": "\ud800"}),
        r"has the prompt query '\\ud800', not a text",
    ),
    "another similarity": (
        lambda m: edit_json(m / MODEL, similarity_fn_name="maxsim"),
        "has similarity_fn_name 'maxsim': only cosine, dot, euclidean, manhattan work",
    ),
    "another width": (
        lambda m: edit_json(m / POOLING, embedding_dimension=99),
        f"has embedding_dimension 99, the encoder has {WIDTH}",
    ),
    "no such prompt": (
        lambda m: edit_json(m / MODEL, default_prompt_name="title"),
        "has default_prompt_name 'title', and prompts document, passage, query",
    ),
    "a prompt that is no text": (lambda m: edit_json(m / MODEL, prompts={"query": 1}), "has the prompt query 1, not"),
    "a dimension that is none": (lambda m: edit_json(m / MODEL, truncate_dim=0), "has truncate_dim 0, not a whole"),
    "a card that is no YAML": (
        lambda m: (m / "README.md").write_text("---\nlicense: [\n---\n"),
        r"cannot read the metadata of .*README.md \(.*\): mend them, or remove the file",
    ),
}


ODD: tuple[Any, ...] = (None, True, 0, -1, 7, 1.5, "", "x", [], ["x"], [None], {}, {"x": None}, {"x": "\ud800"})
FILES = ("modules.json", MODEL, TRANSFORMER, POOLING, "2_Dense/config.json", "config.json", "tokenizer_config.json")


@pytest.mark.parametrize("name", FILES)
def test_whatever_a_field_holds_is_taken_or_refused_by_a_sentence(name: str, model: Path, tmp_path: Path) -> None:
    whole = json.loads((model / name).read_text("utf-8"))
    changed = [*ODD, *({**whole, key: odd} for key in whole for odd in ODD if isinstance(whole, dict))]
    if isinstance(whole, list):
        changed += [[{**entry, key: odd}, *whole[1:]] for entry in whole[:1] for key in entry for odd in ODD]
    refused = 0
    for value in changed:
        write_json(model / name, value)
        try:
            fetch(str(model), "my/model", None, tmp_path)
        except ExportError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_work_is_refused_by_name(name: str, model: Path, tmp_path: Path) -> None:
    change, message = REFUSED[name]
    change(model)
    with pytest.raises(ExportError, match=message):
        fetch(str(model), "my/model", None, tmp_path)


def test_dense_weights_must_be_as_their_configuration_says(model: Path, tmp_path: Path) -> None:
    path = model / "2_Dense" / "model.safetensors"
    tensors = load_file(path)
    write_dense(read_config(model), tmp_path / "dense.bin")
    assert (tmp_path / "dense.bin").stat().st_size == 4 * 24 * (WIDTH + 1)
    save_file(tensors | {"linear.bias": torch.zeros(5)}, path)
    with pytest.raises(ExportError, match=r"has tensors .*'linear.bias': \(5,\).*, its configuration says .*\(24,\)"):
        write_dense(read_config(model), tmp_path / "dense.bin")
    path.write_bytes(b"no weights")
    with pytest.raises(ExportError, match=r"cannot read .*2_Dense/model.safetensors"):
        write_dense(read_config(model), tmp_path / "dense.bin")


def test_weights_that_cannot_be_read(model: Path, tmp_path: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ExportError, match=f"optimum cannot export {model}: .*"):
        to_onnx(model, tmp_path / "model.onnx", tmp_path)
    with pytest.raises(ExportError, match=f"sentence-transformers cannot load {model}: .*"):
        reference_vectors(model, ["vitamin d"], 128)


# The tokenizer


def test_a_tokenizer_that_transformers_leaves_alone_is_copied(model: Path, tmp_path: Path) -> None:
    write_tokenizer(read_config(model), tmp_path / "tokenizer.json")
    assert (tmp_path / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("bert", lambda m: edit_json(m / "tokenizer_config.json", do_lower_case=False)),
        ("roberta", lambda m: edit_json(m / "tokenizer_config.json", add_prefix_space=True)),
        ("roberta", lambda m: edit_json(m / TRANSFORMER, do_lower_case=True)),
    ],
)
def test_a_tokenizer_that_is_changed_on_loading_is_stored_so(
    family: str, change: Callable[[Path], object], tmp_path: Path
) -> None:
    folder = save_model(tmp_path, family)
    change(folder)
    write_tokenizer(read_config(folder), tmp_path / "tokenizer.json")
    texts = ["Vitamin D", "IRON rich", "ÄÖÜ ö"]
    stored = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    expected = SentenceTransformer(str(folder), device="cpu").tokenizer(texts)["input_ids"]
    assert [encoding.ids for encoding in stored.encode_batch(texts)] == expected
    before = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [encoding.ids for encoding in before.encode_batch(texts)] != expected


def test_a_tokenizer_that_cannot_be_loaded(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(ExportError, match=r"transformers cannot load the tokenizer in .*"):
        write_tokenizer(read_config(model), tmp_path / "tokenizer.json")


# The model card


CARD = """---
license: other
license_name: my-licence
language:
- en
- no
- zh
---
# A model
<!-- ## Limitations
nothing -->
## Uses
```python
# Limitations of code
```
### Bias, Risks and Limitations
English mostly.
```python
# a comment
```
#### More
Much more.
## Citation
None.
"""


def test_licence_languages_and_limits_come_from_the_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    card = read_card(tmp_path)
    assert (card.license, card.languages) == ("my-licence", ("en", "no", "zh"))
    assert card.limitations == "English mostly.\n```python\n# a comment\n```\n#### More\nMuch more."


@pytest.mark.parametrize(
    ("text", "license", "languages"),
    [
        (None, "unknown", ()),
        ("# A card without metadata\nlicense: mit\n", "unknown", ()),
        ("---\ntags: [x]\n---\n", "unknown", ()),
        ("---\nlicense: mit\nlanguage: multilingual\n---\n", "mit", ("multilingual",)),
        ("---\nlicense: [mit, apache-2.0]\nlanguage: [en, de]\n---\n", "mit, apache-2.0", ("en", "de")),
        ("---\nlicense: other\n---\n", "other", ()),
    ],
)
def test_cards_that_tell_less(text: str | None, license: str, languages: tuple[str, ...], tmp_path: Path) -> None:  # noqa: A002
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    card = read_card(tmp_path)
    assert (card.license, card.languages, card.limitations) == (license, languages, "")


def test_of_a_long_section_on_limits_the_beginning_is_kept(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Limitations\n" + "word " * 1000)
    found = read_card(tmp_path).limitations
    assert len(found) <= 2000
    assert found.endswith("word…")
