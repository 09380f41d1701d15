"""A small model behind the handler, and the same model in sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from export.__main__ import main
from tests.support.events import LoadApp, body_of, function_url_event
from tests.support.models import save_model

TEXTS = ["vitamin d", "iron rich foods", "敏捷的棕色狐狸", "word " * 90, ""]
TOKENS = 64
FORMS = {"texts": "/embed", "inputs": "/embed", "input": "/v1/embeddings"}
"""Field that holds the texts -> path."""


def build(root: Path, name: str, *options: str, **settings: Any) -> None:
    """Save a BERT with `save_model`'s settings in NAME.source, and export it into the folder NAME, in float32."""
    source = save_model(root / f"{name}.source", "bert", **settings)
    arguments = ["--model", str(source), "--model-id", f"my/{name}", "--precision", "fp32", "--output", str(root)]
    assert main([*arguments, *options]) == 0


class Served:
    """The model NAME of the folder `root`, served and in sentence-transformers."""

    def __init__(self, load_app: LoadApp, root: Path, name: str) -> None:
        self.name = name
        self.app: ModuleType = load_app(MODEL_CACHE_DIR=str(root), MODEL_NAME=name, MODEL_PRECISION="fp32")
        self.reference = SentenceTransformer(str(root / f"{name}.source" / "model"), device="cpu")
        self.reference.max_seq_length = TOKENS

    def post(self, field: str, content: Any = TEXTS, **fields: Any) -> dict[str, Any]:
        request = {field: content, "model": self.name, **fields}
        return self.app.lambda_handler(function_url_event(json.dumps(request), path=FORMS[field]), None)

    def tokens(self, text: str) -> int:
        return min(TOKENS, len(self.reference.tokenizer(text)["input_ids"]))


@pytest.fixture
def served(request: pytest.FixtureRequest, load_app: LoadApp, root: Path) -> Served:
    """The model whose name the test is parametrized with by `serve`; the module's fixture `root` has built it."""
    return Served(load_app, root, request.param)


def serve(*names: str) -> pytest.MarkDecorator:
    """Run a test with each of these models."""
    return pytest.mark.parametrize("served", names, indirect=True)


def rows_of(body: Any) -> list[Any]:
    """The vectors of an answer in any of the three forms."""
    if isinstance(body, list):
        return body
    return body["embeddings"] if "embeddings" in body else [row["embedding"] for row in body["data"]]


def check(response: dict[str, Any], expected: np.ndarray) -> Any:
    """The body of an answer that has these vectors."""
    body = body_of(response)
    np.testing.assert_allclose(np.array(rows_of(body), np.float32), expected, rtol=0, atol=1e-5)
    return body
