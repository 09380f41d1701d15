"""Lambda events to requests, and answers to what Lambda expects back.

Known shapes (AWS Lambda Developer Guide, "Invoking Lambda function URLs"; API Gateway Developer Guide, "Input
format of a Lambda function for proxy integration"):
  2.0  Function URL and HTTP API: `requestContext.http.method`, `rawPath`
  1.0  REST API: `httpMethod`, `path`
Any other event is a direct invocation: the event itself is what the body of a POST would hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from handler.errors import InvalidRequestError, TooLargeError
from handler.limits import MAX_REQUEST_BYTES

JSON = "application/json"


class HttpRequest(NamedTuple):
    """An HTTP request as a Function URL or API Gateway passes it on."""

    method: str
    path: str
    """The path, without an API Gateway's stage."""
    body: str
    base64_encoded: bool
    headers: Mapping[str, str]
    """By names in lower case, several values of one joined by commas."""
    name: str = ""
    """The model or deployment that the path names."""

    def json(self) -> Any:
        """The decoded body.

        Raises InvalidRequestError if it is absent, not base64 where it should be, or not JSON; TooLargeError if it
        is over the limit.
        """
        if not self.body:
            raise InvalidRequestError('the request has no body: send JSON like {"text": "..."}')
        # A character has at least one byte, and four characters of base64 are three bytes.
        size = len(self.body) * 3 // 4 if self.base64_encoded else len(self.body)
        if size > MAX_REQUEST_BYTES:
            raise TooLargeError(f"the body has {size} bytes, the limit is {MAX_REQUEST_BYTES}: send fewer texts")
        if not self.base64_encoded:
            return _decode_json(self.body)
        import binascii  # here and below: few requests need it, so a cold start should not load it

        try:
            content = binascii.a2b_base64(self.body, strict_mode=True)
        except ValueError as error:
            raise InvalidRequestError(f"the event's body is marked as base64 and is not: {error}") from error
        return _decode_json(content)


class Answer(NamedTuple):
    """What a route returns."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = {}


def is_http(event: Any) -> bool:
    """True for the events of a Function URL or an API Gateway, false for a direct invocation."""
    return isinstance(event, dict) and ("requestContext" in event or "httpMethod" in event)


def read(event: Mapping[str, Any]) -> HttpRequest:
    """The HTTP request in an event for which `is_http` holds.

    Raises InvalidRequestError if the event is of neither known shape.
    """
    body = event.get("body") or ""
    encoded = bool(event.get("isBase64Encoded"))
    try:
        if "httpMethod" in event:
            method, path = event["httpMethod"], event["path"]
        else:
            context = event["requestContext"]
            method, path = context["http"]["method"], event["rawPath"]
            stage = context.get("stage")
            if stage and stage != "$default" and path.startswith(f"/{stage}/"):
                path = path[len(stage) + 1 :]  # an HTTP API's named stage, which is not part of our paths
        request = HttpRequest(method, path, body, encoded, _headers(event))
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidRequestError(
            f"the event is neither a Function URL's (2.0) nor an API Gateway REST API's (1.0): {error}"
        ) from error
    if not all(isinstance(part, str) for part in (request.method, request.path, request.body)):
        raise InvalidRequestError("the event's method, path and body must be strings")
    return request


def _headers(event: Mapping[str, Any]) -> dict[str, str]:
    """Raises TypeError, AttributeError if headers are not what they are in an event."""
    several = event.get("multiValueHeaders") or {}
    headers = {name.lower(): ",".join(values) for name, values in several.items()}
    for name, value in (event.get("headers") or {}).items():
        if not isinstance(value, str | None):
            raise TypeError(f"the header {name} is a {type(value).__name__}")
        headers[name.lower()] = value or ""
    return headers


def listed(names: Sequence[str]) -> str:
    """Names of fields as a header carries them: the first 16, each cut to 40 characters, `*` for what no token has."""
    safe = ["".join(each if each in _SAFE else "*" for each in name[:40]) or "*" for name in names[:16]]
    return ", ".join([*safe, "..."] if len(names) > 16 else safe)


_SAFE = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The characters of a token (RFC 9110, section 5.6.2)."""


def resolve(path: str) -> tuple[str, str]:
    """The path among ours that a client's path stands for, and the model or deployment that it names, or nothing.

    Clients double and leave slashes, add `/v1` to a base URL that has it or leave it out where it is not, and Azure's
    name a deployment:

    >>> resolve("/v1/v1//embeddings/"), resolve("/openai/deployments/a%2fb/embeddings"), resolve("/models/b")
    (('/v1/embeddings', ''), ('/v1/embeddings', 'a/b'), ('/v1/models/', 'b'))
    """
    if "%" in path:
        from urllib.parse import unquote  # here, because few paths have it

        path = unquote(path)
    parts = [part for part in path.split("/") if part]
    begin = 0
    while begin < len(parts) and parts[begin] in ("v1", "openai"):
        begin += 1
    match parts[begin:]:
        case ["models", *name] if name:
            return MODEL, "/".join(name)
        case ["deployments", *name, "embeddings"] if name:
            return EMBEDDINGS, "/".join(name)
        case ["models"] | ["embeddings"] as rest:
            return f"/v1/{rest[0]}", ""
        case rest:
            return "/" + "/".join(rest), ""


EMBEDDINGS = "/v1/embeddings"
MODEL = "/v1/models/"
"""Followed by a model's name, which has a slash inside."""


def response(answer: Answer, headers: Mapping[str, str]) -> dict[str, Any]:
    """The result that Lambda expects, the same for both event shapes. `headers` are added to the answer's own."""
    return {
        "statusCode": answer.status,
        "headers": {"content-type": answer.content_type, **answer.headers, **headers},
        "body": answer.body.decode(),
        "isBase64Encoded": False,
    }


def _decode_json(body: str | bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # JavaScript clients that cut a text inside an emoji send a lone surrogate, escaped. orjson refuses those;
        # the standard library reads them, and the embedder treats them as U+FFFD.
        if "surrogate" not in str(error):
            raise InvalidRequestError(f"the body is not valid JSON: {error}") from error
    import json

    try:
        # Decoded here, since json.loads would also take bytes in UTF-16.
        return json.loads(body if isinstance(body, str) else body.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from error
