"""The Lambda function. Handler: `handler.app.lambda_handler`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from artifact.manifest import ArtifactError
from handler import embed_api, events, log, openai_api, service
from handler.errors import (
    MethodNotAllowedError,
    TooManyTokensError,
    UnknownRouteError,
    UnsupportedEncodingError,
    describe,
    describe_invoke,
    status_of,
)
from handler.events import Answer, HttpRequest
from handler.log import Record
from handler.settings import ConfigurationError, Surroundings
from handler.validation import shorten

RESERVED_SECONDS = 0.25
"""Seconds before the function's timeout that are kept for writing the answer."""

EXITS = (KeyboardInterrupt, SystemExit)
"""Exceptions that end the process on purpose: they are not answered."""

_surroundings = Surroundings.from_environment()


def lambda_handler(event: Any, context: Any) -> Any:
    """Answer an event of a Function URL, API Gateway or a load balancer, a direct invocation or a ping.

    Over HTTP every error is answered as JSON. A direct invocation returns the response object itself, or an error
    object if the error is the client's; it raises other errors, so that Lambda marks the invocation as failed.
    """
    record = Record(_request_id(event, context), _surroundings.namespace, _surroundings.log_texts)
    if not events.is_http(event):
        return _invoke(event, record, _deadline(_seconds_left(context)))
    headers: dict[str, str] = {}
    error: BaseException | None = None
    head = False
    seconds, gateway_seconds = _seconds_left(context), events.seconds_to_answer(event)
    is_gateways = gateway_seconds < seconds
    try:
        request = events.read(event, ROUTES, _surroundings.base_path)
        head = request.method == "HEAD"
        headers = _cors_headers(request)
        answer = _route(request, record)(request, record, _deadline(min(seconds, gateway_seconds)))
        events.check_size(event, answer)
    except EXITS:
        raise
    except BaseException as caught:  # noqa: BLE001  whatever it is, the client gets an answer and the log the traceback
        error = caught
        if is_gateways and isinstance(error, TooManyTokensError):
            error = TooManyTokensError(f"{error}; API Gateway waits for 29 s, the Function URL for the whole timeout")
        answer = _error_answer(error, record.request_id)
    if head:
        answer = answer._replace(body=b"")
    headers["x-request-id"] = record.request_id
    if record.truncated:
        headers["x-truncated-texts"] = str(record.truncated)
    if record.ignored:
        headers["x-ignored-fields"] = events.listed(record.ignored)
    if record.warnings:
        headers["x-warnings"] = "; ".join(record.warnings)
    response = events.response(event, answer, headers)
    record.end_phase("write")
    record.write(answer.status, error)
    return response


def _invoke(event: Any, record: Record, deadline: float | None) -> Any:
    record.route = "invoke"
    try:
        if events.is_ping(event):
            record.route = "ping"
            service.loaded_embedder()
            result = {"ping": "ok"}
        else:
            events.check_direct(event)
            # Written as JSON and read back, so that the floats print as the same short decimals as over HTTP.
            result = orjson.loads(service.embed(embed_api.parse(event), record, deadline))
    except EXITS:
        raise
    except BaseException as error:
        _log_incident(error, record.request_id)
        status = status_of(error).status
        record.write(status, error)
        if status < 500:
            return describe_invoke(error, record.request_id)
        if isinstance(error, Exception):
            raise
        # Such as a panic in the tokenizer's Rust code, which would end the runtime instead of being reported.
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    record.end_phase("write")
    record.write(None)
    return result


Route = Callable[[HttpRequest, Record, float | None], Answer]


def _post_embed(request: HttpRequest, record: Record, deadline: float | None) -> Answer:
    return Answer(service.embed(embed_api.parse(request.json()), record, deadline))


def _post_embeddings(request: HttpRequest, record: Record, deadline: float | None) -> Answer:
    return Answer(service.embed(openai_api.parse(request.json(), request.name), record, deadline))


def _get_models(request: HttpRequest, record: Record, deadline: float | None) -> Answer:
    return Answer(orjson.dumps(openai_api.model_list(service.loaded_embedder().manifest)))


def _get_model(request: HttpRequest, record: Record, deadline: float | None) -> Answer:
    return Answer(orjson.dumps(openai_api.model_object(request.name, service.loaded_embedder().manifest)))


def _get_health(request: HttpRequest, record: Record, deadline: float | None) -> Answer:
    service.loaded_embedder().check_longest()
    return Answer(b'{"status":"ok"}')


def _get_info(request: HttpRequest, record: Record, deadline: float | None) -> Answer:
    from handler import pages  # here and below, because a cold start should not load it

    return Answer(orjson.dumps(pages.info(service.loaded_embedder())))


def _get_openapi(request: HttpRequest, record: Record, deadline: float | None) -> Answer:
    from handler import pages

    return Answer(pages.openapi())


def _get_docs(request: HttpRequest, record: Record, deadline: float | None) -> Answer:
    from handler import pages

    return Answer(pages.docs(), content_type="text/html; charset=utf-8", headers=pages.DOCS_HEADERS)


ROUTES: Mapping[str, Mapping[str, Route]] = {
    "/": {"GET": _get_docs, "POST": _post_embed},  # GET for browsers, POST for text-embeddings-inference's clients
    "/embed": {"POST": _post_embed},
    events.EMBEDDINGS: {"POST": _post_embeddings},
    "/v1/models": {"GET": _get_models},
    events.MODEL: {"GET": _get_model},
    "/health": {"GET": _get_health},
    "/info": {"GET": _get_info},
    "/openapi.json": {"GET": _get_openapi},
    "/docs": {"GET": _get_docs},
}
"""Path -> method -> the function that answers. HEAD is answered like GET, without the body; OPTIONS on every path."""


def _route(request: HttpRequest, record: Record) -> Route:
    """The function that answers a request. Raises UnknownRouteError, MethodNotAllowedError."""
    path = request.route
    methods = ROUTES.get(path)
    if methods is None:
        if request.method == "OPTIONS" and "origin" in request.headers:
            # A browser sends nothing after a preflight that failed, and its page would not learn of the 404.
            return lambda *_: Answer(b"", 204)
        raise UnknownRouteError(
            f"no route {shorten(request.path)}: send texts to POST /embed or POST /v1/embeddings; GET /docs lists all "
            "routes"
        )
    allow = ", ".join([*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"])
    if request.method == "OPTIONS":
        record.route = f"OPTIONS {path}"
        return lambda *_: Answer(b"", 204, headers={"allow": allow})
    found = methods.get("GET" if request.method == "HEAD" else request.method)
    if found is None:
        raise MethodNotAllowedError(f"{path} does not take {shorten(request.method)}: use one of {allow}", allow)
    record.route = f"{request.method} {path}"
    return found


def _error_answer(error: BaseException, request_id: str) -> Answer:
    _log_incident(error, request_id)
    status = status_of(error)
    headers = {}
    if isinstance(error, MethodNotAllowedError):
        headers["allow"] = error.allow
    if isinstance(error, UnsupportedEncodingError):
        headers["accept-encoding"] = "gzip, deflate"
    if status.retry_after is not None:
        headers["retry-after"] = str(status.retry_after)
    return Answer(log.to_json(describe(error, request_id)), status.status, headers=headers)


def _log_incident(error: BaseException, request_id: str) -> None:
    if status_of(error).status == 500:
        log.incident(request_id, error)


def _cors_headers(request: HttpRequest) -> dict[str, str]:
    """What a browser needs to let a page read the answer (Fetch standard, "CORS protocol").

    A preflight may send whatever headers it asks for: clients have more than we know of, and `*` would leave out
    `authorization`.
    """
    origins = _surroundings.origins
    if not origins:
        return {}
    origin, asked, vary = request.headers.get("origin", ""), "", "origin"
    if request.method == "OPTIONS":
        asked = request.headers.get("access-control-request-headers", "")
        vary = "origin, access-control-request-headers"
    if "*" not in origins and origin not in origins:
        return {"vary": vary}
    return {
        "vary": vary,
        "access-control-allow-origin": "*" if "*" in origins else origin,
        "access-control-allow-methods": "GET, HEAD, OPTIONS, POST",
        "access-control-allow-headers": (
            asked if asked and asked.isascii() and asked.isprintable() else "authorization, content-type, x-api-key"
        ),
        "access-control-expose-headers": "retry-after, x-ignored-fields, x-request-id, x-truncated-texts, x-warnings",
        "access-control-max-age": "3600",
    }


def _request_id(event: Any, context: Any) -> str:
    """Lambda's id of the invocation; without a context, the event's request id; else a new one."""
    found = getattr(context, "aws_request_id", None)
    if not found and isinstance(event, dict) and isinstance(event.get("requestContext"), dict):
        found = event["requestContext"].get("requestId")
    return found if isinstance(found, str) and found else os.urandom(16).hex()


def _seconds_left(context: Any) -> float:
    """Seconds left until the function's timeout; infinite without a context."""
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    return float("inf") if remaining is None else remaining() / 1000


def _deadline(seconds: float) -> float | None:
    """When the vectors must be done, as a value of time.monotonic(); None if there is no timeout."""
    return time.monotonic() + seconds - RESERVED_SECONDS if seconds < float("inf") else None


# Lambda gives the init phase a full CPU whatever the memory size, so the model is loaded there. If that fails, the
# environment starts all the same: every request tries again, and answers with an error in JSON until it succeeds.
try:
    service.loaded_embedder()
except (ArtifactError, ConfigurationError) as error:
    log.write_line({"level": "ERROR", "message": f"model not loaded: {error}"})
except EXITS:
    raise
except BaseException as error:  # noqa: BLE001  every request tries again
    log.incident("", error)
