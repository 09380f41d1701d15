"""Lambda events to requests, and answers to what Lambda expects back.

Known shapes (AWS Lambda Developer Guide, "Invoking Lambda function URLs"; API Gateway Developer Guide, "Input
format of a Lambda function for proxy integration"; Elastic Load Balancing, "Lambda functions as targets"):
  2.0  Function URL and HTTP API: `requestContext.http.method`, `rawPath`
  1.0  REST API and Application Load Balancer: `httpMethod`, `path`
Any other event is a direct invocation: the event itself is what the body of a POST would hold, or a ping of what keeps
functions warm.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from handler.errors import InvalidRequestError, TooLargeError
from handler.limits import MAX_REQUEST_BYTES, escaped_size
from handler.validation import shorten

JSON = "application/json"


class HttpRequest(NamedTuple):
    """An HTTP request as a Function URL, API Gateway or a load balancer passes it on."""

    method: str
    path: str
    """The path as it is in the event."""
    body: str
    base64_encoded: bool
    headers: Mapping[str, str]
    """By names in lower case, several values of one joined by commas."""
    route: str
    """The path of ours that is meant; empty if none is."""
    name: str
    """The model or deployment that the path names, if it does."""

    def json(self) -> Any:
        """The decoded body.

        Raises InvalidRequestError if it is absent, not base64 where it should be, or not JSON; TooLargeError if it
        is over the limit; UnsupportedEncodingError.
        """
        if not self.body:
            raise InvalidRequestError('the request has no body: send JSON like {"text": "..."}')
        # A character has at least one byte, and four characters of base64 are three bytes.
        size = len(self.body) * 3 // 4 if self.base64_encoded else len(self.body)
        if size > MAX_REQUEST_BYTES:
            raise TooLargeError(f"the body has {size} bytes, the limit is {MAX_REQUEST_BYTES}: send fewer texts")
        coding = self.headers.get("content-encoding", "").strip().lower()
        is_packed = coding not in ("", "identity")
        if not self.base64_encoded:
            # Packed bodies come as base64. API Gateway's REST APIs unpack them themselves, and leave the header.
            try:
                return _decode_json(self.body)
            except InvalidRequestError as error:
                if not is_packed:
                    raise
                raise InvalidRequestError(
                    f"content-encoding is {shorten(coding)}, but the body came as text: {error}; send it as it is"
                ) from error
        import binascii  # here and below: few requests need it, so a cold start should not load it

        try:
            content = binascii.a2b_base64(self.body, strict_mode=True)
        except ValueError as error:
            raise InvalidRequestError(f"the event's body is marked as base64 and is not: {error}") from error
        if is_packed:
            from handler.unpack import unpack

            content = unpack(content, coding)
        return _decode_json(content)


class Answer(NamedTuple):
    """What a route returns."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = {}


def is_http(event: Any) -> bool:
    """True for the events of a Function URL, an API Gateway or a load balancer, false for a direct invocation."""
    return isinstance(event, dict) and ("requestContext" in event or "httpMethod" in event)


def is_ping(event: Any) -> bool:
    """True for what plug-ins and schedules send to keep a function warm.

    serverless-plugin-warmup and serverless-plugin-lambda-warmup, lambda-warmer, OpenNext's warmer, and rules and
    schedules of EventBridge.
    """
    if not isinstance(event, dict) or any(field in event for field in ("text", "texts", "inputs", "input")):
        return False
    return (
        event.get("warmer") is True
        or event.get("type") == "warmer"
        or event.get("detail-type") == "Scheduled Event"
        or event.get("source") in ("serverless-plugin-warmup", "serverless-plugin-lambda-warmup")
    )


def check_direct(event: Any) -> None:
    """Raise InvalidRequestError for an event that another service of AWS has sent, which is no request."""
    if not isinstance(event, dict):
        return
    records = event.get("Records")
    first = records[0] if isinstance(records, list) and records else None
    if isinstance(first, dict):
        source = first.get("eventSource") or first.get("EventSource")
    else:
        source = event.get("source") if "detail-type" in event else None
    if isinstance(source, str):
        raise InvalidRequestError(
            f"this is an event of {shorten(source)}, not a request: the function takes "
            '{"text": "..."}, {"texts": ["...", ...]} or an HTTP event, and nobody would get its answer; events of '
            "queues and buckets are for bulk embedding, which this function does not do"
        )


def seconds_to_answer(event: Mapping[str, Any]) -> float:
    """How long API Gateway still waits for the answer to an event; infinite for an event of anything else."""
    context = event.get("requestContext")
    if not isinstance(context, dict) or "elb" in context:
        return float("inf")
    domain = context.get("domainName")
    if "httpMethod" not in event and not (isinstance(domain, str) and ".lambda-url." not in domain):
        return float("inf")
    sent = context.get("requestTimeEpoch" if "httpMethod" in event else "timeEpoch")
    waited = time.time() - sent / 1000 if type(sent) is int and 0 < sent < 1 << 53 else 0.0
    # Neither a clock that is behind nor a replayed event means that nothing is left.
    return GATEWAY_SECONDS - waited if 0 < waited < GATEWAY_SECONDS else GATEWAY_SECONDS


GATEWAY_SECONDS = 29.0
"""What a REST API waits for, if its quota was not raised; an HTTP API waits for 30 (API Gateway, "Quotas")."""
LOAD_BALANCER_BYTES = 1024 * 1024 - 4096
"""Maximum size of a response's body behind a load balancer (Elastic Load Balancing, "Lambda functions as targets")."""


def check_size(event: Mapping[str, Any], answer: Answer) -> None:
    """Raise TooLargeError if a load balancer has sent the event and would not take the answer."""
    context = event.get("requestContext")
    if isinstance(context, dict) and "elb" in context and (size := escaped_size(answer.body)) > LOAD_BALANCER_BYTES:
        raise TooLargeError(
            f"the response of {size} bytes exceeds the 1 MB that a load balancer takes from a function: send fewer "
            "texts, or ask for encoding_format base64"
        )


def read(event: Mapping[str, Any], routes: Container[str], base_path: str) -> HttpRequest:
    """The HTTP request in an event for which `is_http` holds. `base_path` begins with a slash and ends without.

    Raises InvalidRequestError if the event is of neither known shape.
    """
    body = event.get("body") or ""
    encoded = bool(event.get("isBase64Encoded"))
    try:
        if "httpMethod" in event:
            method, path = event["httpMethod"], event["path"]
        else:
            method, path = event["requestContext"]["http"]["method"], event["rawPath"]
        headers = _headers(event)
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidRequestError(
            f"the event is neither a Function URL's (2.0) nor an API Gateway REST API's (1.0): {error}"
        ) from error
    if not all(isinstance(part, str) for part in (method, path, body)):
        raise InvalidRequestError("the event's method, path and body must be strings")
    for candidate in _candidates(event, path, base_path):
        route, name = resolve(candidate)
        if route in routes:
            return HttpRequest(method, path, body, encoded, headers, route, name)
    return HttpRequest(method, path, body, encoded, headers, "", "")


def _candidates(event: Mapping[str, Any], path: str, base_path: str) -> Iterator[str]:
    """The paths that an event may mean, the surest first."""
    context = event.get("requestContext")
    stage = context.get("stage") if isinstance(context, dict) else None
    within = _behind(f"/{stage}", path) if isinstance(stage, str) and stage else None
    # An HTTP API's path begins with the stage, unless it came by a custom domain. A REST API's does not, unless it
    # came by a custom domain that names no stage.
    likely = (path, within) if "httpMethod" in event else (within, path)
    if base_path:
        yield from (rest for each in likely if each is not None and (rest := _behind(base_path, each)) is not None)
    # The API's own path, which has neither stage nor what a custom domain puts before it: `/{proxy+}`, for one.
    template = event.get("resource") or str(event.get("routeKey")).partition(" ")[2]
    parameters = event.get("pathParameters")
    if isinstance(template, str) and template.startswith("/"):
        for name, value in parameters.items() if isinstance(parameters, dict) else ():
            if template.endswith(f"/{{{name}+}}"):
                yield f"/{value}"
            template = template.replace(f"{{{name}+}}", str(value)).replace(f"{{{name}}}", str(value))
        yield template
    yield from (each for each in likely if each is not None)


def _behind(prefix: str, path: str) -> str | None:
    """The path behind a prefix of it; None if it begins otherwise.

    >>> _behind("/prod", "/prod/embed"), _behind("/prod", "/prod"), _behind("/prod", "/product")
    ('/embed', '', None)
    """
    return path[len(prefix) :] if path == prefix or path.startswith(f"{prefix}/") else None


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


def response(event: Mapping[str, Any], answer: Answer, headers: Mapping[str, str]) -> dict[str, Any]:
    """The result that the sender of an event expects. `headers` are added to the answer's own."""
    headers = {"content-type": answer.content_type, **answer.headers, **headers}
    result = {
        "statusCode": answer.status,
        "headers": headers,
        "body": answer.body.decode(),
        "isBase64Encoded": False,
    }
    # A load balancer that sends several values of a header as a list takes nothing else.
    if event.get("multiValueHeaders") and "headers" not in event:
        result["multiValueHeaders"] = {name: [value] for name, value in headers.items()}
    return result


def _decode_json(body: str | bytes) -> Any:
    try:
        return _load_json(body)
    except InvalidRequestError as error:
        # Looked for here, because nearly every body is right.
        if isinstance(body, str):
            mark, wide = body.startswith("\ufeff"), ("\0" in body[:2] or body.startswith("\ufffd\ufffd"))
        else:
            mark, wide = body.startswith(b"\xef\xbb\xbf"), (b"\0" in body[:2] or body[:2] in (b"\xff\xfe", b"\xfe\xff"))
        if mark:
            return _load_json(body[1 if isinstance(body, str) else 3 :])
        if wide:
            raise InvalidRequestError("the body is UTF-16 or UTF-32: send it in UTF-8") from error
        raise


def _load_json(body: str | bytes) -> Any:
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
