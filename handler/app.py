"""The Lambda function. Handler: `handler.app.lambda_handler`."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import orjson

from handler import events
from handler.api import MAX_BODY_BYTES, EmbedRequest, embed_response
from handler.artifact import ArtifactError, open_artifact
from handler.errors import ANSWERED, MethodNotAllowedError, TooLargeError, UnknownRouteError, describe
from handler.readahead import read_ahead
from handler.settings import ConfigurationError, Settings

if TYPE_CHECKING:
    from handler.embedder import Embedder

_embedder: Embedder | None = None


def lambda_handler(event: Any, context: Any) -> Any:
    """Answer a Function URL event, an API Gateway REST event or a direct invocation.

    A direct invocation gets the response object itself, and an error of `handler.errors.STATUS` is raised, so that
    Lambda marks the invocation as failed. HTTP gets every such error as JSON.
    """
    started = time.perf_counter()
    if not events.is_http(event):
        # Through the JSON writer and back: Python floats that print as the same short decimals as over HTTP.
        return orjson.loads(_embed(event, started))
    try:
        request = events.read(event)
        _check_route(request)
        return events.response(200, _embed(request.json(), started))
    except ANSWERED as error:
        status, body = describe(error)
        headers = {"allow": error.allow} if isinstance(error, MethodNotAllowedError) else None
        return events.response(status, orjson.dumps(body), headers)


def _check_route(request: events.HttpRequest) -> None:
    if request.path != "/embed":
        raise UnknownRouteError(f"no route {request.path[:200]!a}: send POST /embed")
    if request.method != "POST":
        raise MethodNotAllowedError(f"/embed does not answer {request.method[:20]!a}: send POST", allow="POST")


def _embed(data: Any, started: float) -> bytes:
    request = EmbedRequest.parse(data)
    embedder = _loaded_embedder()
    request.check_fits(embedder.manifest.dimensions)
    result = embedder.embed(request.texts)
    latency = round(time.perf_counter() - started, 6)
    response = embed_response(request, result, embedder.manifest, latency)
    body = orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)
    if len(body) > MAX_BODY_BYTES:
        raise TooLargeError(f"the response of {len(body)} bytes exceeds Lambda's {MAX_BODY_BYTES}: send fewer texts")
    return body


def _loaded_embedder() -> Embedder:
    """The model, loaded once; after a failure, tried again at every request."""
    global _embedder
    if _embedder is None:
        settings = Settings.from_environment()
        artifact = open_artifact(settings.model_folder)
        # Before the import, which takes 0.1 s: about what the weights take from EFS into memory.
        read_ahead(artifact.weights(settings.precision))
        # numpy's BLAS, which nothing here uses, otherwise spends 0.1 s of CPU on threads that wait.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from handler.embedder import Embedder

        _embedder = Embedder.from_artifact(artifact, settings.precision, settings.threads)
        # The tokenizer's threads, which it starts at its first text.
        os.environ.setdefault("RAYON_NUM_THREADS", str(_embedder.threads))
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if _embedder.threads == 1 else "true")
    return _embedder


# Lambda gives the init phase a full CPU whatever the memory size, so the model is loaded there. An artifact that
# cannot be read yet is no reason to fail the environment: requests answer 503 until it can.
try:
    _loaded_embedder()
except (ArtifactError, ConfigurationError) as error:
    print(f"model not loaded: {error}", file=sys.stderr)
