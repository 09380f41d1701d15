"""What the service says about itself: `GET /info`, and the files behind `GET /openapi.json` and `GET /docs`."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

from handler.limits import (
    MAX_PROMPT_CHARACTERS,
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
    MAX_TEXT_CHARACTERS,
    MAX_TEXTS,
    MAX_TOKEN_IDS,
    max_texts,
)

if TYPE_CHECKING:
    from handler.embedder import Embedder

_FOLDER = os.path.dirname(os.path.abspath(__file__))

DOCS_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
}
"""The page may call this service only, and no other page may show it in a frame."""


def openapi() -> bytes:
    """The OpenAPI document, which lies beside this file."""
    return _read("openapi.json")


def docs() -> bytes:
    """The page that documents and tries the API."""
    return _read("docs.html")


def info(embedder: Embedder) -> dict[str, Any]:
    """The model that is loaded, its parity with the original, the limits, and all versions."""
    import numpy
    import onnxruntime
    import orjson
    import tokenizers

    manifest = embedder.manifest
    precision = manifest.precisions[embedder.precision]
    return {
        "model": manifest.model,
        "revision": manifest.revision,
        "artifact_version": manifest.version,
        "created": manifest.created,
        "license": manifest.license,
        "languages": manifest.languages,
        "limitations": manifest.limitations or None,
        "precision": embedder.precision,
        "recipe": precision.recipe,
        "dimensions": manifest.dimensions,
        "matryoshka_dimensions": manifest.matryoshka_dimensions,
        "max_tokens": manifest.max_tokens,
        "pooling": manifest.pooling,
        "normalize": manifest.normalize,
        "similarity": manifest.similarity,
        "prompts": manifest.prompts,
        "default_prompt": manifest.default_prompt,
        "parity": precision.parity._asdict(),
        "threads": embedder.threads,
        "instructions": embedder.instructions,
        "limits": {
            "request_bytes": MAX_REQUEST_BYTES,
            "response_bytes": MAX_RESPONSE_BYTES,
            "texts": MAX_TEXTS,
            "texts_float": max_texts(manifest.dimensions),
            "texts_base64": max_texts(manifest.dimensions, "base64"),
            "text_characters": MAX_TEXT_CHARACTERS,
            "prompt_characters": MAX_PROMPT_CHARACTERS,
            "token_ids": MAX_TOKEN_IDS,
        },
        "versions": {
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "numpy": numpy.__version__,
            "tokenizers": tokenizers.__version__,
            "orjson": orjson.__version__,
        },
    }


def _read(name: str) -> bytes:
    with open(os.path.join(_FOLDER, name), "rb") as file:
        return file.read()
