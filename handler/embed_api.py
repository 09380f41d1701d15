"""`POST /embed` in our form and in text-embeddings-inference's.

The latter is defined in huggingface/text-embeddings-inference, `docs/openapi.json`, schemas EmbedRequest and
EmbedResponse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handler.errors import InvalidRequestError
from handler.requests import OPTIONS, EmbedRequest, Outcome, options_of
from handler.validation import check_object, check_spelling, check_text, ignored_fields, kind, option, texts_of


def parse(data: Any) -> EmbedRequest:
    """Check the decoded JSON of a `POST /embed`, or of a direct invocation.

    Raises InvalidRequestError that names the field and the value.
    """
    check_object(data, '{"text": "..."}')
    if "input" in data:
        raise InvalidRequestError("input belongs to POST /v1/embeddings: send text or texts to POST /embed", "input")
    if "inputs" in data and "parameters" in data:
        data = _flatten(data)
    form = [field for field in _FORMS if field in data]
    ignored = ignored_fields(data, _FIELDS)
    if form != ["inputs"]:
        for field in ignored[:MAX_SPELT]:
            check_spelling(field, _NAMES)
    if len(form) != 1:
        raise InvalidRequestError('send either "text" with a string or "texts" with a list of strings')
    options = {**options_of(data), "model": option(data, "model", str, None), "ignored": ignored}
    if form == ["text"]:
        check_text(data["text"], "text")
        return EmbedRequest([data["text"]], "text", _one, **options)
    if form == ["texts"]:
        return EmbedRequest(texts_of(data, "texts"), "texts", _several, **options)
    texts = data["inputs"]
    return EmbedRequest([texts] if isinstance(texts, str) else texts_of(data, "inputs"), "inputs", _rows, **options)


_FORMS = ("text", "texts", "inputs")
_FIELDS = (*_FORMS, "model", *OPTIONS)
_NAMES = (*_FORMS, "encoding_format", "normalize", "truncate", "dimensions", "prompt", "prompt_name")
"""Of which a near miss is refused."""
MAX_SPELT = 64
"""Unknown fields of a request that are looked at for near misses: a body has room for half a million."""


def _flatten(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A request to Hugging Face's Inference API, with what it has in `parameters` beside its other fields."""
    parameters = data["parameters"]
    if not isinstance(parameters, dict | None):
        raise InvalidRequestError(f"parameters is {kind(parameters)}, not an object", "parameters")
    return {**(parameters or {}), **{field: value for field, value in data.items() if field != "parameters"}}


def _one(outcome: Outcome) -> dict[str, Any]:
    return {"embedding": outcome.vectors[0], **_common(outcome)}


def _several(outcome: Outcome) -> dict[str, Any]:
    common = _common(outcome)
    return {"embeddings": outcome.vectors, "count": len(outcome.vectors), **common}


def _rows(outcome: Outcome) -> Any:
    return outcome.vectors


def _common(outcome: Outcome) -> dict[str, Any]:
    common = {
        "model": outcome.manifest.model,
        "dimensions": outcome.dimensions,
        "tokens": outcome.tokens,
        "truncated": outcome.truncated,
        "latency": outcome.latency,
    }
    if outcome.warnings:
        common["warnings"] = outcome.warnings
    return common
