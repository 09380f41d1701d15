"""OpenAI's contract: `POST /v1/embeddings` and `GET /v1/models` (OpenAI API reference, "Embeddings", "Models")."""

from __future__ import annotations

from typing import Any

from artifact.manifest import Manifest
from handler.errors import InvalidRequestError, TooLargeError
from handler.limits import MAX_TEXTS
from handler.requests import OPTIONS, EmbedRequest, Outcome, check_model, options_of
from handler.validation import check_object, check_text, ignored_fields, kind, texts_of

_FIELDS = ("input", "model", "user", *OPTIONS)


def parse(data: Any, deployment: str = "") -> EmbedRequest:
    """Check the decoded JSON of a `POST /v1/embeddings`.

    `truncate` is our own: OpenAI refuses texts that are too long, we cut them unless it is false. `deployment` is what
    Azure's clients have in the path; as there, it names the model, and the body's `model` is not looked at.
    Raises InvalidRequestError that names the field and the value, TooLargeError.
    """
    check_object(data, '{"input": "...", "model": "..."}')
    ignored = ignored_fields(data, _FIELDS)
    model = deployment or data.get("model")
    for field, value in (("input", data.get("input")), ("model", model)):
        if value is None:
            raise InvalidRequestError(f"{field} is missing", field)
    check_text(model, "model")
    request = EmbedRequest([], "input", _list, model=model, ignored=ignored, **options_of(data))
    content = data["input"]
    if isinstance(content, str):
        texts = [content]
    elif isinstance(content, list) and content and isinstance(content[0], int | list):
        return request._replace(token_ids=_token_ids(content))
    else:
        texts = texts_of(data, "input")
    for index, text in enumerate(texts):
        if not text:
            name = "input" if content is text else f"input[{index}]"
            raise InvalidRequestError(f"{name} is an empty string: send at least one character", name)
    return request._replace(texts=texts)


def model_list(manifest: Manifest) -> dict[str, Any]:
    """The response object of `GET /v1/models`."""
    return {"object": "list", "data": [model_object(manifest.model, manifest)]}


def model_object(name: str, manifest: Manifest) -> dict[str, Any]:
    """The response object of `GET /v1/models/NAME`. Raises ModelNotFoundError for any other name."""
    import datetime

    check_model(name, manifest)
    created = int(datetime.datetime.fromisoformat(manifest.created).timestamp())
    return {"id": manifest.model, "object": "model", "created": created, "owned_by": manifest.model.partition("/")[0]}


def _list(outcome: Outcome) -> dict[str, Any]:
    data = [
        {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(outcome.vectors)
    ]
    usage = {"prompt_tokens": outcome.tokens, "total_tokens": outcome.tokens}
    response: dict[str, Any] = {"object": "list", "data": data, "model": outcome.manifest.model, "usage": usage}
    if outcome.truncated:
        response["truncated"] = outcome.truncated
    if outcome.warnings:
        response["warnings"] = outcome.warnings
    return response


def _token_ids(content: list[Any]) -> list[list[int]]:
    """One array of token ids, or several."""
    arrays: list[Any] = [content] if isinstance(content[0], int) else content
    if len(arrays) > MAX_TEXTS:
        raise TooLargeError(f"input has {len(arrays)} arrays, the limit is {MAX_TEXTS}: send several requests", "input")
    for index, array in enumerate(arrays):
        name = "input" if array is content else f"input[{index}]"
        if not isinstance(array, list):
            raise InvalidRequestError(f"{name} is {kind(array)}, not an array of token ids like the first", name)
        if not array:
            raise InvalidRequestError(f"{name} is empty: send at least one token id", name)
        for place, token in enumerate(array):
            if type(token) is not int:
                raise InvalidRequestError(f"{name}[{place}] is {kind(token)}, not a token id", f"{name}[{place}]")
    return arrays
