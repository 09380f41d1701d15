"""`POST /embed` in our form and in text-embeddings-inference's.

The latter is defined in huggingface/text-embeddings-inference, `docs/openapi.json`, schemas EmbedRequest and
EmbedResponse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handler.errors import InvalidRequestError
from handler.limits import ENCODINGS
from handler.requests import EmbedRequest, Outcome
from handler.validation import check_fields, check_object, check_text, option, texts_of


def parse(data: Any) -> EmbedRequest:
    """Check the decoded JSON of a `POST /embed`, or of a direct invocation.

    Raises InvalidRequestError that names the field and the value.
    """
    check_object(data, '{"text": "..."}')
    if "input" in data:
        raise InvalidRequestError("input belongs to POST /v1/embeddings: send text or texts to POST /embed", "input")
    form = [field for field in _FIELDS if field in data]
    check_fields(data, _FIELDS[form[0]] if form else _FIELDS["text"])
    if len(form) != 1:
        raise InvalidRequestError('send either "text" with a string or "texts" with a list of strings')
    options = {
        "encoding": option(data, "encoding_format", str, "float", ENCODINGS),
        "normalize": option(data, "normalize", bool, None),
        "truncate": option(data, "truncate", bool, True),
    }
    if form == ["inputs"]:
        option(data, "truncation_direction", str, "right", ("right", "Right"))
        option(data, "prompt_name", str, None, ())
        options["dimensions"] = option(data, "dimensions", int, None)
        texts = data["inputs"]
        return EmbedRequest([texts] if isinstance(texts, str) else texts_of(data, "inputs"), "inputs", _rows, **options)
    if form == ["text"]:
        check_text(data["text"], "text")
        return EmbedRequest([data["text"]], "text", _one, **options)
    return EmbedRequest(texts_of(data, "texts"), "texts", _several, **options)


_OPTIONS = ("encoding_format", "normalize", "truncate")
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "texts", *_OPTIONS),
    "texts": ("text", "texts", *_OPTIONS),
    "inputs": ("inputs", "normalize", "truncate", "truncation_direction", "prompt_name", "dimensions"),
}
"""Field that holds the texts -> all fields that such a request may have."""


def _one(outcome: Outcome) -> dict[str, Any]:
    return {"embedding": outcome.vectors[0], **_common(outcome)}


def _several(outcome: Outcome) -> dict[str, Any]:
    common = _common(outcome)
    return {"embeddings": outcome.vectors, "count": len(outcome.vectors), **common}


def _rows(outcome: Outcome) -> Any:
    return outcome.vectors


def _common(outcome: Outcome) -> dict[str, Any]:
    return {
        "model": outcome.manifest.model,
        "dimensions": outcome.manifest.dimensions,
        "tokens": outcome.tokens,
        "truncated": outcome.truncated,
        "latency": outcome.latency,
    }
