"""Lambda events to requests, and answers to what Lambda expects back.

Known shapes (AWS Lambda Developer Guide, "Invoking Lambda function URLs"; API Gateway Developer Guide, "Input
format of a Lambda function for proxy integration"):
  2.0  Function URL and HTTP API: `requestContext.http.method`, `rawPath`
  1.0  REST API: `httpMethod`, `path`
Any other event is a direct invocation: the event itself is what the body of a POST would hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from handler.errors import InvalidRequestError


class HttpRequest(NamedTuple):
    """An HTTP request as a Function URL or API Gateway passes it on."""

    method: str
    path: str
    body: str
    base64_encoded: bool

    def json(self) -> Any:
        """The decoded body.

        Raises InvalidRequestError if it is absent, not base64 where it should be, or not JSON.
        """
        if not self.body:
            raise InvalidRequestError('the request has no body: send JSON like {"text": "..."}')
        if not self.base64_encoded:
            return _decode_json(self.body)
        import base64  # here and below: what few requests need, a cold start should not load

        try:
            return _decode_json(base64.b64decode(self.body, validate=True))
        except ValueError as error:
            raise InvalidRequestError(f"the event's body is marked as base64 and is not: {error}") from error


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
            request = HttpRequest(event["httpMethod"], event["path"], body, encoded)
        else:
            request = HttpRequest(event["requestContext"]["http"]["method"], event["rawPath"], body, encoded)
    except (KeyError, TypeError) as error:
        raise InvalidRequestError(
            f"the event is neither a Function URL's (2.0) nor an API Gateway REST API's (1.0): {error} is missing"
        ) from error
    if not all(isinstance(part, str) for part in (request.method, request.path, request.body)):
        raise InvalidRequestError("the event's method, path and body must be strings")
    return request


def response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What both event shapes take back: a JSON body with its status."""
    return {
        "statusCode": status,
        "headers": {"content-type": "application/json", **(headers or {})},
        "body": body.decode(),
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
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from error
