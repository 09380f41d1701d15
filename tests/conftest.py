"""Fixtures shared by all tests: the built artifact, the reference model, the evaluation data.

The reference side is sentence-transformers on the published files; it never runs code of ours.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import kernels
from artifact.manifest import MANIFEST, open_artifact
from export.source import DEFAULT_MODEL, fetch
from handler.embedder import Embedder
from tests.support.servers import MODEL_NAME, ROOT
from tests.support.servers import start as start
from tests.support.skips import pytest_sessionfinish as pytest_sessionfinish

if sanitized := os.environ.get("TEST_OPERATORS"):
    kernels.LIBRARY = str(ROOT / sanitized)


RANDOM_MODEL = os.environ.get("TEST_RANDOM_MODEL")
"""The folder that `python -m tests.support.random_model` has filled: tests of the real weights are left out then."""
NEEDED = {"source_folder", "reference", "eval_data", "moto"}
"""Fixtures that say something of the published weights, or need AWS's stand-in."""
LEFT_OUT = {"real_model", "slow"}
"""Markers of what the random model is not tested with."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if RANDOM_MODEL is None:
        return
    left_out = [
        item
        for item in items
        if LEFT_OUT & {mark.name for mark in item.iter_markers()} or NEEDED & {*getattr(item, "fixturenames", ())}
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def model_cache() -> Path:
    """The folder that `make model` fills, or that with the random model."""
    folder = ROOT / (RANDOM_MODEL or "build/ml-models")
    if not (folder / MODEL_NAME / "current").exists():
        pytest.fail(f"{folder} has no model: run the tests with make test, or make model first")
    return folder


@pytest.fixture(scope="session")
def model_folder(model_cache: Path) -> Path:
    return model_cache / MODEL_NAME


@pytest.fixture(scope="session")
def int8(model_folder: Path) -> Embedder:
    return Embedder.load(model_folder)


@pytest.fixture(scope="session")
def float32(model_folder: Path) -> Embedder:
    return Embedder.load(model_folder, "fp32")


@pytest.fixture(scope="session")
def source_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published files of the model, from wherever they can be had."""
    return fetch(DEFAULT_MODEL, None, None, tmp_path_factory.mktemp("source")).folder


@pytest.fixture(scope="session")
def reference(source_folder: Path) -> Callable[[Sequence[str]], np.ndarray]:
    """Texts to the float32 vectors of sentence-transformers, shape (n, 384)."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(source_folder), device="cpu", local_files_only=True)

    def encode(texts: Sequence[str]) -> np.ndarray:
        return model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)

    encode.model = model  # type: ignore[attr-defined]
    return encode


@pytest.fixture(scope="session")
def eval_data() -> Path:
    folder = os.environ.get("EVAL_DATA")
    if not folder:
        pytest.skip("EVAL_DATA is not set: it names the folder with the evaluation sets")
    return Path(folder)


@pytest.fixture(scope="session")
def small_tokenizer(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json with the first 1,000 tokens of the model's, for encoders that are made up."""
    whole = json.loads(Path(open_artifact(model_folder).tokenizer).read_text("utf-8"))
    vocabulary = whole["model"]["vocab"]
    whole["model"]["vocab"] = {token: number for token, number in vocabulary.items() if number < 1000}
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(whole), "utf-8")
    return path


@pytest.fixture
def load_app(monkeypatch: pytest.MonkeyPatch, model_cache: Path) -> Callable[..., types.ModuleType]:
    """Import `handler.app` anew, as a fresh environment with the given variables does."""
    monkeypatch.setenv("MODEL_CACHE_DIR", str(model_cache))

    def load(**variables: str) -> types.ModuleType:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        import handler.app

        importlib.reload(handler.service)
        return importlib.reload(handler.app)

    return load


@pytest.fixture
def copy_model(model_folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Make a model folder of its own in tmp_path, whose version in use has the given name."""

    def copy(version: str) -> Path:
        artifact = open_artifact(model_folder)
        target = tmp_path / MODEL_NAME
        (target / version).mkdir(parents=True)
        for name in artifact.manifest.files:
            shutil.copy2(Path(artifact.folder, name), target / version / name)
        (target / version / MANIFEST).write_bytes(artifact.manifest._replace(version=version).to_json())
        (target / "current").write_text(version + "\n")
        return target

    return copy
