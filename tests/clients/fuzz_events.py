"""Coverage-guided fuzzing of events and bodies, and what every answer to them must hold.

    build/clients/bin/python -m tests.clients.fuzz_events [FOLDER] [-runs=N] [-max_total_time=SECONDS]

FOLDER, by default build/fuzz, keeps inputs that reached new code; options are libFuzzer's. An input that breaks a
promise ends the run and is kept beside FOLDER: make it a test in tests/test_events_fuzz.py. All is the handler's own
but onnxruntime, which is not where this runs, and its limits.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
CODINGS = ("gzip", "deflate", "br")
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
REQUEST_ID = "5f0c1d8a"
CONTEXT = SimpleNamespace(aws_request_id=REQUEST_ID, get_remaining_time_in_millis=lambda: 30_000)
MAX_RESPONSE_BYTES = 6 * 1024 * 1024
"""Lambda's limit for what the handler returns (AWS Lambda Developer Guide, "Lambda quotas")."""

FIELDS = (
    *("text", "texts", "inputs", "input", "model", "encoding_format", "normalize", "truncate", "dimensions", "user"),
    *("truncation_direction", "prompt_name", "prompt", "truncate_prompt_tokens", "parameters", "options", "input_type"),
    *("embedding_types", "add_special_tokens", "normalise", "Texts", "stream"),
)
EVENT_FIELDS = (
    *("version", "rawPath", "path", "httpMethod", "headers", "requestContext", "http", "method", "stage", "body"),
    *("isBase64Encoded", "origin", "Origin", "requestId", "multiValueHeaders", "content-encoding", "elb", "domainName"),
    *("pathParameters", "proxy", "resource", "routeKey", "requestTimeEpoch", "timeEpoch"),
    *("source", "detail-type", "warmer", "type", "Records", "eventSource"),
)
PATHS = (
    *("/embed", "/v1/embeddings", "/", "/v1/models", f"/v1/models/{MODEL}", "/v1/models/", "/health", "/info"),
    *("/openapi.json", "/docs", "/embed/", "/prod/embed", "", "/v1//v1/embeddings", "/models", "/embeddings"),
    *("/openai/deployments/a%2fb/embeddings", f"/openai/deployments/{MODEL}/embeddings", "/%"),
)
METHODS = ("POST", "GET", "HEAD", "OPTIONS", "PUT", "get", "")
WORDS = (
    "",
    "a",
    "float",
    "base64",
    "right",
    "Right",
    "left",
    "END",
    "gzip",
    "deflate",
    "/ml/{proxy+}",
    "aws:sqs",
    MODEL,
    "all-MiniLM-L6-v2",
    "\ud800",
    "\ud83d\ude00",
    "\0",
)
NUMBERS = (0, 1, -1, 384, 101, 102, 1 << 53, 1 << 63, 1 << 64, 10**400, 384.0, float("nan"), float("inf"))


def http_event(
    body: str | None, path: str = "/embed", method: str = "POST", encoded: bool = False, stage: str = "$default"
) -> dict[str, Any]:
    """A Function URL's event."""
    context = {"http": {"method": method, "path": path}, "stage": stage}
    return {"rawPath": path, "headers": {}, "requestContext": context, "body": body, "isBase64Encoded": encoded}


def check(app: ModuleType, event: Any) -> int | str:
    """Hand an event to the handler. Its status; of a direct invocation `ok`, or `direct` before the error's status.

    Raises AssertionError if a promise is broken: every event has a result, never a fault of the service, and none of
    HTTP one that HTTP cannot carry; each of its lines in the log is one JSON object.
    """
    is_http = isinstance(event, dict) and ("requestContext" in event or "httpMethod" in event)
    with contextlib.redirect_stdout(io.StringIO()) as log:
        try:
            result = app.lambda_handler(event, CONTEXT)
        except Exception as error:
            raise AssertionError(f"raised {type(error).__name__}: {error}") from error
    size = len(json.dumps(result, ensure_ascii=False).encode())  # as the runtime client does it
    assert size <= MAX_RESPONSE_BYTES, f"the result has {size} bytes"
    lines = [json.loads(line) for line in log.getvalue().removesuffix("\n").split("\n")]
    assert lines, "nothing in the log"
    assert all(line["request_id"] == REQUEST_ID for line in lines)
    if is_http:
        check_response(result, _is_head(event))
        assert lines[-1]["status"] == result["statusCode"]
        return result["statusCode"]
    if not isinstance(result, dict) or "error" not in result:
        return "ok"
    status = check_error(result, {"status"})["status"]
    assert lines[-1]["status"] == status
    assert status in (400, 404, 413), status
    return f"direct {status}"


def _is_head(event: Any) -> bool:
    """Whether an HTTP event is read and its method is HEAD."""
    if "httpMethod" in event:
        return bool(event["httpMethod"] == "HEAD")
    context = event["requestContext"]
    http = context.get("http") if isinstance(context, dict) else None
    return isinstance(http, dict) and http.get("method") == "HEAD"


def check_response(response: Any, head: bool = False) -> None:
    """Raise AssertionError unless this is a proxy response without a fault of the service.

    That to a HEAD has no body, unless the event is of neither known shape.
    """
    assert set(response) - {"multiValueHeaders"} == {"statusCode", "headers", "body", "isBase64Encoded"}, set(response)
    status, headers, body = response["statusCode"], response["headers"], response["body"]
    assert type(status) is int, status
    assert status in (200, 204, 400, 404, 405, 413, 415), f"{status}: {body[:500]}"
    assert response["isBase64Encoded"] is False
    assert isinstance(body, str)
    for name, value in headers.items():
        assert re.fullmatch(r"[a-z0-9-]+", name), name
        assert re.fullmatch(r"[\x20-\x7e]{0,1000}", value), value
    assert response.get("multiValueHeaders", {name: [value] for name, value in headers.items()}) == {
        name: [value] for name, value in headers.items()
    }
    assert headers["x-request-id"] == REQUEST_ID
    # A page's preflight of an unknown path has nothing to allow, and succeeds so that the page sees the 404.
    is_preflight = "access-control-request-headers" in headers.get("vary", "")
    assert "allow" in headers or status not in (204, 405) or (status == 204 and is_preflight)
    if status < 400:
        return
    assert headers["content-type"] == "application/json"
    if head and status != 400:
        assert body == ""
        return
    check_error(json.loads(body))


def check_error(answer: Any, more: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
    """The error in an answer, with `more` fields than HTTP's. Raises AssertionError unless it is the client's."""
    assert set(answer) == {"error", "request_id"}, set(answer)
    assert answer["request_id"] == REQUEST_ID
    error: dict[str, Any] = answer["error"]
    assert set(error) == {"message", "type", "param", "code", *more}, set(error)
    message, kind, param, code = (error[name] for name in ("message", "type", "param", "code"))
    assert kind == "invalid_request_error"
    assert message
    assert all(isinstance(part, str) for part in (message, code, "" if param is None else param))
    return error


def load_app() -> ModuleType:
    """The handler, instrumented: made-up vectors, low limits, every optional header and field of the log."""
    import atheris

    os.environ |= {"CORS_ORIGIN": "https://a.example", "LOG_TEXTS": "true"}
    os.environ["MODEL_CACHE_DIR"] = os.devnull  # what importing the handler would load needs the real onnxruntime
    sys.modules["onnxruntime"] = types.ModuleType("onnxruntime")
    sys.modules["onnxruntime"].__version__ = "none"  # type: ignore[attr-defined]
    with contextlib.redirect_stdout(io.StringIO()), atheris.instrument_imports(include=["handler"]):
        from artifact.manifest import open_artifact
        from handler import app, events, limits, openai_api, requests, service, validation
        from handler.embedder import Embedder, load_tokenizer
    # So low that short inputs reach them: a float response holds two vectors by estimate, one by what it takes.
    for module, limit, value in (
        *((module, "MAX_TEXTS", 3) for module in (validation, openai_api, limits)),
        (requests, "MAX_TEXT_CHARACTERS", 4000),
        (events, "MAX_REQUEST_BYTES", 8000),
        (limits, "MAX_RESPONSE_BYTES", 12_000),
        (service, "MAX_RESPONSE_BYTES", 9_000),
    ):
        assert hasattr(module, limit), limit
        setattr(module, limit, value)
    artifact = open_artifact(str(ROOT / "build" / "ml-models" / "all-MiniLM-L6-v2"))
    service._embedder = Embedder(artifact.manifest, "int8", load_tokenizer(artifact), MadeUpSession(), 1)
    return app


class MadeUpSession:
    """Instead of onnxruntime's: a hidden state that depends on the token alone."""

    def __init__(self) -> None:
        import numpy as np

        self.states = np.random.default_rng(0).standard_normal((97, 384), np.float32)

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="input_ids")]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="last_hidden_state")]

    def run(self, outputs: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
        return [self.states[feeds["input_ids"] % 97]]


class Maker:
    """Events out of a fuzzer's bytes: each choice takes some of them."""

    def __init__(self, data: Any) -> None:
        """`data` is atheris' FuzzedDataProvider."""
        self.data = data

    def event(self) -> Any:
        form = self.pick(
            (self.raw_body, self.base64_body, self.http, self.http, self.http, self.direct, self.any_event)
        )
        return form()

    def raw_body(self) -> dict[str, Any]:
        path = self.pick(PATHS[:3])
        return http_event(self.rest().decode("utf-8", "surrogateescape"), path)

    def base64_body(self) -> dict[str, Any]:
        path = self.pick(PATHS[:3])
        coding = self.pick(("", *CODINGS))
        event = http_event(base64.b64encode(self.rest()).decode(), path, encoded=True)
        return event | {"headers": {"content-encoding": coding}} if coding else event

    def http(self) -> dict[str, Any]:
        path = self.pick(PATHS[:3]) if self.data.ConsumeProbability() < 0.8 else self.pick((*PATHS, self.text()))
        method = self.pick(METHODS) if path not in PATHS[:3] or self.data.ConsumeProbability() < 0.1 else "POST"
        body = json.dumps(self.request(), ensure_ascii=self.data.ConsumeBool())
        event = http_event(body, path, method, stage=self.pick(("$default", "prod", "")))
        if self.data.ConsumeBool():
            event["headers"] = {"origin": self.pick(("https://a.example", "https://b.example", self.text()))}
        if self.data.ConsumeBool():
            event |= {"httpMethod": method, "path": path}
        for _ in range(self.data.ConsumeIntInRange(0, 2) if self.data.ConsumeBool() else 0):
            event[self.pick(EVENT_FIELDS)] = self.value()
        return event

    def direct(self) -> Any:
        return self.request() if self.data.ConsumeBool() else self.value()

    def any_event(self) -> dict[str, Any]:
        return {self.pick(EVENT_FIELDS): self.value(EVENT_FIELDS) for _ in range(self.data.ConsumeIntInRange(0, 8))}

    def request(self) -> Any:
        """Mostly an object with a field that holds texts."""
        if self.data.ConsumeProbability() < 0.05:
            return self.value()
        content = self.pick((self.text, self.texts, self.tokens, self.value))()
        options = {self.pick(FIELDS): self.value() for _ in range(self.data.ConsumeIntInRange(0, 4))}
        request = {self.pick(FIELDS[:4]): content} | options
        return request | {"model": MODEL} if "input" in request and self.data.ConsumeBool() else request

    def value(self, fields: Sequence[str] = FIELDS, depth: int = 0) -> Any:
        kinds: list[Callable[[], Any]] = [
            *(lambda: None, self.data.ConsumeBool, self.text, lambda: self.pick(WORDS), lambda: self.pick(NUMBERS)),
            *(lambda: self.data.ConsumeInt(9), self.data.ConsumeFloat, self.tokens, self.texts),
        ]
        if depth < 3:
            size = self.data.ConsumeIntInRange(0, 4)
            kinds += [
                lambda: [self.value(fields, depth + 1) for _ in range(size)],
                lambda: {self.pick((*fields, self.text())): self.value(fields, depth + 1) for _ in range(size)},
            ]
        return self.pick(kinds)()

    def texts(self) -> list[str]:
        return [self.text() for _ in range(self.data.ConsumeIntInRange(0, 4))]

    def tokens(self) -> list[Any]:
        ids = [self.data.ConsumeIntInRange(-1, 31_000) for _ in range(self.data.ConsumeIntInRange(0, 6))]
        ids = [101, *ids, 102] if self.data.ConsumeBool() else ids
        return [ids, [101, 102]] if self.data.ConsumeBool() else ids

    def text(self) -> str:
        text = self.data.ConsumeUnicode(self.data.ConsumeIntInRange(0, 24))
        return text * 400 if self.data.ConsumeProbability() < 0.02 else text

    def rest(self) -> bytes:
        return self.data.ConsumeBytes(self.data.remaining_bytes())

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[self.data.ConsumeIntInRange(0, len(choices) - 1)]


def plant_seeds(folder: Path) -> None:
    """Have the examples of the OpenAPI document in a folder, as bytes of which `Maker` makes requests with them."""
    folder.mkdir(parents=True, exist_ok=True)
    document = json.loads((ROOT / "handler" / "openapi.json").read_bytes())
    for place, path in enumerate(PATHS[:3]):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        examples = content.get("examples") or {"example": {"value": content["example"]}}
        for name, example in examples.items():
            # FuzzedDataProvider takes its choices from the end.
            seed = json.dumps(example["value"]).encode() + bytes([place, 0])
            (folder / f"seed-{place}-{name}").write_bytes(seed)


def main() -> None:
    import atheris

    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")] or [str(ROOT / "build" / "fuzz")]
    plant_seeds(Path(folders[0]))
    app = load_app()

    outcomes: Counter[int | str] = Counter()

    def check_one(data: bytes) -> None:
        event = Maker(atheris.FuzzedDataProvider(data)).event()
        try:
            outcomes[check(app, event)] += 1
        except Exception:
            print(f"event: {event!r}", file=sys.stderr)
            raise
        if (count := outcomes.total()) & (count - 1) == 0:  # a power of two, as libFuzzer tells of itself
            print(f"outcomes: {json.dumps(dict(outcomes.most_common()))}", file=sys.stderr)

    defaults = ["-max_len=1024", "-len_control=0", "-timeout=20", f"-artifact_prefix={folders[0]}-"]
    atheris.Setup([sys.argv[0], *defaults, *options, *folders], check_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
