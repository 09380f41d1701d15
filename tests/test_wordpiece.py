"""The tokenizer in two parts, which a start reads in half the time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from artifact.manifest import open_artifact
from export.wordpiece import split_wordpiece
from handler.embedder import Embedder, join_wordpiece, load_tokenizer


def test_the_parts_make_the_same_tokenizer(model_folder: Path) -> None:
    artifact = open_artifact(model_folder)
    assert artifact.manifest.wordpiece is not None
    joined = join_wordpiece(artifact.manifest.wordpiece, artifact.vocabulary)
    assert joined.to_str() == Tokenizer.from_file(artifact.tokenizer).to_str()


def without_type(data: dict[str, Any]) -> None:
    data["model"] = {"type": "WordLevel", "vocab": data["model"]["vocab"], "unk_token": "[UNK]"}


def with_space(data: dict[str, Any]) -> None:
    """A line's end is taken off."""
    data["model"]["vocab"]["space "] = len(data["model"]["vocab"])


def with_line(data: dict[str, Any]) -> None:
    data["model"]["vocab"]["two\nlines"] = len(data["model"]["vocab"])


def with_gap(data: dict[str, Any]) -> None:
    data["model"]["vocab"]["last"] = len(data["model"]["vocab"]) + 1


@pytest.mark.parametrize("change", [without_type, with_space, with_line, with_gap])
def test_what_lines_cannot_hold_stays_whole(
    model_folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    data = json.loads(Path(open_artifact(model_folder).tokenizer).read_bytes())
    change(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert split_wordpiece(tmp_path / "tokenizer.json", tmp_path / "vocab.txt") is None
    assert not (tmp_path / "vocab.txt").exists()


def test_without_parts_the_whole_is_read(model_folder: Path, int8: Embedder) -> None:
    artifact = open_artifact(model_folder)
    whole = artifact._replace(manifest=artifact.manifest._replace(wordpiece=None))
    assert whole.files_of("int8")[0] == "tokenizer.json"
    texts = ["Größe 🙂 naïve", "word " * 300]
    found = [encoding.ids for encoding in load_tokenizer(whole).encode_batch(texts)]
    assert found == int8.tokenize(texts).ids
