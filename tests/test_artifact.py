"""The artifact folder is checked wholly before use, and every way to be wrong has its own message."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifact.manifest import (
    MANIFEST,
    ArtifactCorruptError,
    ArtifactError,
    ArtifactNotFoundError,
    Dense,
    is_name,
    open_artifact,
    parse_manifest,
)
from handler.embedder import Embedder
from handler.openai_api import model_object


@pytest.fixture(scope="module")
def manifest(model_folder: Path) -> dict[str, Any]:
    return json.loads(Path(open_artifact(model_folder).folder, MANIFEST).read_bytes())


def test_manifest_survives_a_round_trip(manifest: dict[str, Any]) -> None:
    assert json.loads(parse_manifest(manifest).to_json()) == manifest


def test_what_only_some_models_have_is_stored_only_for_them(manifest: dict[str, Any]) -> None:
    plain = parse_manifest(manifest)
    for name in ("dense", "truncated_from", "matryoshka_dimensions", "prompts", "default_prompt", "limitations"):
        assert name not in manifest
    assert (plain.dense, plain.prompts, plain.prompt(None), plain.pooled_dimensions) == ((), {}, "", 384)
    file = plain.files["tokenizer.json"]._replace(size=4 * (500 * 768 + 400 * 501))
    other = plain._replace(
        dimensions=300,
        normalize=False,
        dense=(Dense(768, 500, False, "ReLU"), Dense(500, 400, True, "Tanh")),
        truncated_from=400,
        unit_before_truncation=True,
        matryoshka_dimensions=(200, 100),
        prompts={"query": "query: ", "document": ""},
        default_prompt="query",
        similarity="dot",
        languages=("en", "de"),
        limitations="Short texts only.",
        files={**plain.files, "dense.bin": file},
    )
    assert parse_manifest(json.loads(other.to_json())) == other
    assert [other.prompt(name) for name in (None, "query", "document")] == ["query: ", "query: ", ""]
    assert other.pooled_dimensions == 768


@pytest.mark.real_model
def test_manifest_states_what_readers_need(manifest: dict[str, Any]) -> None:
    assert manifest["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert manifest["license"] == "apache-2.0"
    assert (manifest["dimensions"], manifest["max_tokens"], manifest["pooling"]) == (384, 256, "mean")
    assert manifest["precisions"]["fp32"]["parity"]["min_cosine"] > 0.99999
    assert manifest["precisions"]["int8"]["parity"]["texts"] > 50
    assert manifest["tools"]["onnxruntime"]


def set_path(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(data))
    *parents, last = path.split("/")
    inner = copy
    for name in parents:
        inner = inner[name]
    if value is DELETED:
        del inner[last]
    else:
        inner[last] = value
    return copy


DELETED = object()
ENTRY = {"size": 1, "sha256": "0" * 64, "crc32": 0}
LAYER = {"inputs": 768, "outputs": 384, "bias": True, "activation": "Tanh"}
WRONG = [
    ("format_version", 2, "format_version is 2, this reader knows 5"),
    ("format_version", DELETED, "format_version is None"),
    ("dimensions", DELETED, "manifest.dimensions is missing"),
    ("extra", 1, "manifest.extra is not a known field"),
    ("dimensions", "384", "manifest.dimensions is '384', not of type int"),
    ("dimensions", True, "manifest.dimensions is True, not of type int"),
    ("dimensions", 0, "manifest.dimensions is 0, not at least 1"),
    ("max_tokens", -1, "manifest.max_tokens is -1, not at least 1"),
    ("normalize", 1, "manifest.normalize is 1, not of type bool"),
    ("pooling", "min", "manifest.pooling is 'min', not one of mean, cls, max, mean_sqrt_len_tokens, weightedmean"),
    ("created", "yesterday", "manifest.created is 'yesterday', not an ISO 8601 date and time with an offset"),
    ("created", "", "manifest.created is '', not an ISO 8601"),
    ("created", "2026-13-01T00:00:00+00:00", "manifest.created is '2026-13-01T00:00:00.00:00', not an ISO 8601"),
    ("created", "2026-11-28T11:51:29", "manifest.created is '2026-11-28T11:51:29', not an ISO 8601"),
    ("model", "", "manifest.model is '', not a name"),
    ("model", "sentence-transformers/", "manifest.model is 'sentence-transformers/', not a name"),
    ("tools/onnxruntime", 1, "manifest.tools.onnxruntime is 1, not of type str"),
    ("max_tokens", 8193, "manifest.max_tokens is 8193, not at most 8192"),
    ("version", "../../etc", "is not a file name"),
    ("version", "", "is not a file name"),
    ("version", "current", "manifest.version 'current' is not a file name"),
    ("precisions", {}, "manifest.precisions is empty"),
    ("precisions", [], r"manifest.precisions is \[\], not of type"),
    ("precisions/int8", None, "precisions.int8 is None, not an object"),
    ("precisions/int8/file", "other.onnx", "precisions.int8.file 'other.onnx' is not listed"),
    ("precisions/int8/recipe", 8, "precisions.int8.recipe is 8, not of type"),
    ("precisions/int8/parity/min_cosine", DELETED, "precisions.int8.parity.min_cosine is missing"),
    ("precisions/int8/parity/texts", 1.5, "precisions.int8.parity.texts is 1.5, not of type int"),
    ("files", {}, "files has no tokenizer.json"),
    ("files/vocab.txt", DELETED, "files has no vocab.txt"),
    ("wordpiece", 1, "manifest.wordpiece is 1, not of type str or NoneType"),
    ("files/tokenizer.json/size", -1, "files.tokenizer.json.size is -1"),
    ("files/tokenizer.json/sha256", "ABC", "files.tokenizer.json.sha256 is 'ABC'"),
    ("files/tokenizer.json/crc32", -1, "files.tokenizer.json.crc32 is -1, not a CRC-32"),
    ("files/tokenizer.json/crc32", 1 << 32, "files.tokenizer.json.crc32 is 4294967296"),
    ("files/..%2Fpasswd", ENTRY, "is not a plain file name"),
    ("files/manifest.json", ENTRY, "files.manifest.json is the manifest itself"),
    ("files/Manifest.JSON", ENTRY, "files.Manifest.JSON is the manifest itself"),
    ("files/current", ENTRY, "files.current is not a plain file name"),
    ("files/nul.onnx", ENTRY, "files.nul.onnx is not a plain file name"),
    ("files/MODEL.onnx", ENTRY, "files.model.onnx and files.MODEL.onnx differ in case alone"),
    ("max_tokens", 257, "crc32 is .*, the manifest's fields give .*: one of them was changed"),
    ("crc32", DELETED, "crc32 is None"),
    ("files/model.onnx", 3, "files.model.onnx is 3, not an object"),
    ("dense", {}, "manifest.dense is {}, not of type list"),
    ("dense", [1], r"dense\[0\] is 1, not an object"),
    ("dense", [{**LAYER, "inputs": 0}], r"dense\[0\] is of 0 inputs and 384 outputs, not at least 1"),
    ("dense", [{**LAYER, "activation": "GELU"}], r"dense\[0\].activation is 'GELU', not one of Identity, Tanh, ReLU"),
    ("dense", [{**LAYER, "outputs": 5}], r"dense\[0\].outputs is 5, what follows has 384"),
    ("dense", [LAYER, {**LAYER, "inputs": 7}], r"dense\[0\].outputs is 384, what follows has 7"),
    ("dense", [LAYER], "files has no dense.bin of 1181184 bytes, which manifest.dense needs"),
    ("truncated_from", 384, "manifest.truncated_from is 384, not more than the 384 dimensions"),
    (
        "unit_before_truncation",
        True,
        "manifest.unit_before_truncation is true of vectors that are unit vectors, or not",
    ),
    ("matryoshka_dimensions", 8, "manifest.matryoshka_dimensions is 8, not of type list"),
    *(
        (
            "matryoshka_dimensions",
            [128, size],
            f"manifest.matryoshka_dimensions has {size!r}, not a whole number between",
        )
        for size in (0, 384, True, "8", 8.0)
    ),
    ("prompts", [], r"manifest.prompts is \[\], not of type dict"),
    ("prompts", {"query": 1}, "manifest.prompts.query is 1, not of type str"),
    ("default_prompt", "query", "manifest.default_prompt is 'query', which is not one of its prompts"),
    ("languages", "en", "manifest.languages is 'en', not of type list"),
    ("languages", [1], "manifest.languages.0 is 1, not of type str"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_wrong_manifest_is_refused_by_field(manifest: dict[str, Any], path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_manifest(set_path(manifest, path, value))


@pytest.mark.parametrize("created", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "20261128T115129Z"])
def test_any_iso_date_and_time_with_an_offset_will_do(manifest: dict[str, Any], created: str) -> None:
    changed = parse_manifest(manifest)._replace(created=created)
    read = parse_manifest(json.loads(changed.to_json()))
    assert isinstance(model_object(read.model, read)["created"], int)


@pytest.mark.parametrize("data", [None, [], "x", 1])
def test_manifest_must_be_an_object(data: Any) -> None:
    with pytest.raises(ValueError, match="not an object"):
        parse_manifest(data)


def test_missing_model_folder_names_folder_and_command(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactNotFoundError, match=f"no model in {tmp_path}/m: .*python -m export --output {tmp_path}"
    ):
        open_artifact(tmp_path / "m")


def test_version_folder_can_be_opened_itself(model_folder: Path) -> None:
    version = Path(open_artifact(model_folder).folder)
    assert open_artifact(version) == open_artifact(model_folder)


@pytest.mark.parametrize(
    "text", ["v1", "7", "c9745ed1-fd7a8eee", "all-MiniLM-L6-v2", "v1_", "current2", "v.current", "com10", "a" * 255]
)
def test_a_name_is_one(text: str) -> None:
    assert is_name(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ".",
            "..",
            ".v1",
            "-v1",
            "_v1",
            "v1.",
            "v/1",
            "v\\1",
            "v 1",
            "v1 ",
            "v1\n",
            "vé",
            "v:1",
            "v\0",
            "a" * 256,
        ),
        *("current", "Current", "CURRENT", "con", "NUL", "Aux.txt", "prn.tar.gz", "COM0", "com1", "lpt9.onnx"),
    ],
)
def test_what_some_system_cannot_have_or_reserves_is_no_name(text: str) -> None:
    assert not is_name(text)


DAMAGE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "current names nothing": (lambda m, v: (m / "current").write_text("gone\n"), "gone/manifest.json does not exist"),
    "current is empty": (lambda m, v: (m / "current").write_text(""), "holds '', not a version's name"),
    "current is reserved": (lambda m, v: (m / "current").write_text("NUL\n"), "holds 'NUL', not a version's name"),
    "current names itself": (lambda m, v: (m / "current").write_text("current\n"), "holds 'current', not"),
    "current is a pipe": (lambda m, v: replace_by_pipe(m / "current"), "holds '', not a version's name"),
    "current is a folder": (lambda m, v: replace_by_folder(m / "current"), "cannot read .*current"),
    "current leaves the folder": (lambda m, v: (m / "current").write_text("../x"), "not a version's name"),
    "current is binary": (lambda m, v: (m / "current").write_bytes(b"\xff\xfe"), "cannot read"),
    "manifest missing": (lambda m, v: (v / MANIFEST).unlink(), "manifest.json does not exist"),
    "manifest is a pipe": (lambda m, v: replace_by_pipe(v / MANIFEST), "manifest.json is not JSON"),
    "manifest is a folder": (lambda m, v: replace_by_folder(v / MANIFEST), "cannot read .*manifest"),
    "manifest empty": (lambda m, v: (v / MANIFEST).write_bytes(b""), "is not JSON"),
    "manifest cut": (lambda m, v: (v / MANIFEST).write_bytes((v / MANIFEST).read_bytes()[:-30]), "is not JSON"),
    "manifest of another version": (
        lambda m, v: v.rename(m / "b") and (m / "current").write_text("b"),
        "is of another version",
    ),
    "model missing": (lambda m, v: (v / "model_int8.onnx").unlink(), "cannot read .*model_int8.onnx"),
    "model cut": (lambda m, v: truncate(v / "model_int8.onnx"), "model_int8.onnx has .* bytes, the manifest says"),
    "tokenizer cut": (lambda m, v: truncate(v / "tokenizer.json"), "tokenizer.json has .* bytes"),
    "weights missing": (lambda m, v: (v / "model_int8.onnx_data").unlink(), "cannot read .*model_int8.onnx_data"),
    "weights cut": (lambda m, v: truncate(v / "model_int8.onnx_data"), "model_int8.onnx_data has .* bytes"),
    "model overwritten": (lambda m, v: scramble(v / "model_int8.onnx"), "model_int8.onnx is damaged: it has CRC-32"),
    "weights overwritten": (lambda m, v: scramble(v / "model_int8.onnx_data"), "model_int8.onnx_data is damaged"),
    "vocabulary overwritten": (lambda m, v: scramble(v / "vocab.txt"), "vocab.txt is damaged: it has CRC-32"),
}


def replace_by_pipe(path: Path) -> None:
    """Whoever opens it to read waits for a writer."""
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def scramble(path: Path) -> None:
    """Same size, other bytes: what sizes cannot show."""
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, copy_model: Callable[[str], Path]) -> None:
    model = copy_model("v1")
    damage, message = DAMAGE[name]
    damage(model, model / "v1")
    with pytest.raises(ArtifactError, match=message) as caught:
        Embedder.load(model)
    assert "python -m export" in str(caught.value)


def test_a_model_folder_in_the_place_of_a_version_is_none(copy_model: Callable[[str], Path]) -> None:
    model = copy_model("v1")
    model.rename(model.with_name("v1"))
    model.mkdir()
    model.with_name("v1").rename(model / "v1")
    (model / "current").write_text("v1\n")
    with pytest.raises(ArtifactNotFoundError, match=f"{model}/v1/manifest.json does not exist"):
        open_artifact(model)


def test_digests_find_one_flipped_bit(copy_model: Callable[[str], Path]) -> None:
    model = copy_model("v1")
    open_artifact(model).check_digests()
    path = model / "v1" / "model_int8.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactCorruptError, match=r"model_int8.onnx has SHA-256 .*, the manifest says"):
        open_artifact(model).check_digests()


def test_unknown_precision_lists_those_there(model_folder: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match="no precision 'fp16', only fp32, int8: set MODEL_PRECISION"):
        Embedder.load(model_folder, "fp16")
