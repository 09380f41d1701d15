"""Loads the model, once, and embeds the texts of requests with it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import orjson

from artifact.manifest import open_artifact
from handler import log
from handler.errors import TooLargeError
from handler.filecheck import FileCheck
from handler.limits import MAX_RESPONSE_BYTES, escaped_size
from handler.requests import EmbedRequest, Outcome, encode
from handler.settings import Settings

if TYPE_CHECKING:
    from handler.embedder import Embedder

_embedder: Embedder | None = None
_load_seconds: float | None = None
"""Seconds that loading took; None again once a request has logged them."""


def loaded_embedder() -> Embedder:
    """The model, loaded once; after a failure, tried again at every request.

    Raises ArtifactError, ConfigurationError.
    """
    global _embedder, _load_seconds
    if _embedder is None:
        started = time.perf_counter()
        settings = Settings.from_environment()
        artifact = open_artifact(settings.model_folder)
        # Started before the import, which takes 0.1 s: about as long as reading the weights from EFS.
        check = FileCheck(artifact, settings.precision)
        # numpy's BLAS, which nothing here uses, otherwise spends 0.1 s of CPU on threads that wait.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from handler.embedder import Embedder

        embedder = Embedder.from_artifact(artifact, settings.precision, settings.threads, check)
        # The tokenizer's threads, which it starts at its first text.
        os.environ.setdefault("RAYON_NUM_THREADS", str(embedder.threads))
        if embedder.threads == 1:
            # Never set to "true": then the tokenizer in a forked process would wait for threads of its parent.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        _embedder, _load_seconds = embedder, time.perf_counter() - started
    return _embedder


def embed(request: EmbedRequest, record: log.Record, deadline: float | None) -> bytes:
    """The JSON of the vectors of a request's texts. `deadline` is a value of `time.monotonic()`.

    Raises the errors of `handler.errors.STATUS`.
    """
    record.ignored = request.ignored
    record.end_phase("parse")
    embedder = loaded_embedder()
    _tell_load(record, embedder)
    manifest = embedder.manifest
    dimensions = request.check(manifest)
    prompt = request.prompt(manifest)
    if manifest.prompts:
        record.warnings = request.warnings(manifest)
    elif "input_type" in request.prompts:
        record.ignored = (*request.ignored, "input_type")
    record.texts = request.texts
    tokens, record.texts = request.tokens(embedder, prompt, deadline)
    request.check_lengths(tokens, manifest.max_tokens)
    truncated = tokens.truncated
    record.tokens, record.truncated = sum(map(len, tokens.ids)), len(truncated)
    record.end_phase("tokenize")
    vectors = embedder.embed_tokens(tokens.ids, request.normalize, deadline, dimensions)
    record.end_phase("run")
    latency = round(record.seconds, 6)
    coded = encode(vectors, request.encoding)
    outcome = Outcome(coded, record.tokens, truncated, manifest, dimensions, latency, record.warnings)
    body = orjson.dumps(request.render(outcome), option=orjson.OPT_SERIALIZE_NUMPY)
    if (size := escaped_size(body)) > MAX_RESPONSE_BYTES:
        raise TooLargeError(f"the response has {size} bytes, the limit is {MAX_RESPONSE_BYTES}: send fewer texts")
    return body


def _tell_load(record: log.Record, embedder: Embedder) -> None:
    """Record, for the first request only, how long loading the model took and which instruction set it uses."""
    global _load_seconds
    record.load_seconds, _load_seconds = _load_seconds, None
    record.instructions = embedder.instructions
    record.end_phase("load")
