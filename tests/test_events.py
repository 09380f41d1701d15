"""Events of every kind that reaches a function: requests by each way, pings, and what is no request.

tests/events/ has one of each as AWS and the plug-ins send it, by their documentation and reports of their users.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from handler.embedder import Embedder
from handler.errors import TooManyTokensError
from handler.limits import MAX_REQUEST_BYTES
from tests.support.events import LoadApp, body_of, error_of, function_url_event, rest_api_event

FOLDER = Path(__file__).parent / "events"
KINDS = {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
REQUESTS = [kind for kind in KINDS if not kind.startswith(("ping-", "other-"))]
PINGS = [kind for kind in KINDS if kind.startswith("ping-")]
GATEWAYS = [kind for kind in REQUESTS if kind.startswith(("rest-api", "http-api"))]


def recorded(kind: str) -> Any:
    return json.loads(KINDS[kind].read_bytes())


@pytest.fixture
def app(load_app: LoadApp) -> ModuleType:
    return load_app()


def line_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The last line of the log."""
    line: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_request_arrives_by_every_way(
    app: ModuleType, kind: str, int8: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = body_of(app.lambda_handler(recorded(kind), None))
    np.testing.assert_array_equal(np.float32(answer["embedding"]), int8.embed(["vitamin d"]).vectors[0])
    assert line_of(capsys)["route"] == "POST /embed"


@pytest.mark.parametrize("kind", REQUESTS)
def test_what_no_way_leads_to_is_404(app: ModuleType, kind: str) -> None:
    event = json.loads(KINDS[kind].read_text().replace("embed", "other"))
    assert error_of(app.lambda_handler(event, None), 404)["code"] == "unknown_route"


@pytest.mark.parametrize("kind", ["http-api-stage", "http-api-stage-v1"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_stage_alone_is_the_root(app: ModuleType, kind: str, slash: str) -> None:
    event = recorded(kind)
    event["rawPath"] = f"/{event['requestContext']['stage']}{slash}"
    event.pop("pathParameters", None)
    event["body"] = '{"inputs": "vitamin d"}'
    assert len(body_of(app.lambda_handler(event, None))[0]) == 384


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/v1/embeddings", "/v1/v1/embeddings/"])
def test_a_stage_named_v1(app: ModuleType, path: str) -> None:
    """A client's base URL may end with the stage or with the stage and our own `/v1`."""
    event = recorded("http-api-stage-v1") | {"rawPath": path, "body": '{"input": "a", "model": "all-MiniLM-L6-v2"}'}
    assert body_of(app.lambda_handler(event, None))["object"] == "list"


def test_names_behind_a_base_path(app: ModuleType) -> None:
    event = recorded("rest-api-custom-domain") | {"httpMethod": "GET", "body": None}
    event["path"] = "/ml/v1/models/sentence-transformers%2Fall-MiniLM-L6-v2"
    event["pathParameters"] = {"proxy": "v1/models/sentence-transformers/all-MiniLM-L6-v2"}
    assert body_of(app.lambda_handler(event, None))["object"] == "model"
    event |= {"resource": "/v1/models/{model}", "pathParameters": {"model": "all-MiniLM-L6-v2"}}
    assert body_of(app.lambda_handler(event, None))["object"] == "model"


@pytest.mark.parametrize("base", ["models", "v1", "openai", "embed", "health", "v1/models", "live"])
@pytest.mark.parametrize("kind", ["rest-api-custom-domain", "http-api-custom-domain"])
def test_a_base_path_named_as_one_of_our_paths(
    app: ModuleType, kind: str, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    event = recorded(kind)
    event["path" if "path" in event else "rawPath"] = f"/{base}/embed"
    assert app_answer(app, event) == 200
    assert line_of(capsys)["route"] == "POST /embed"


@pytest.mark.parametrize("setting", ["/ml", "ml", "/ml/", "team/ml"])
@pytest.mark.parametrize("kind", ["function-url", "http-api", "http-api-stage", "rest-api", "load-balancer"])
def test_base_path_is_a_setting_where_an_event_cannot_tell(load_app: LoadApp, kind: str, setting: str) -> None:
    event = recorded(kind)
    event.pop("pathParameters", None)
    event |= {"resource": "/{proxy+}"} if "resource" in event else {}
    field = "path" if "path" in event else "rawPath"
    plain = event[field]
    event[field] = plain.replace("/embed", f"/{setting.strip('/')}/embed")
    assert app_answer(load_app(), event) == 404
    app = load_app(BASE_PATH=setting)
    assert app_answer(app, event) == 200
    assert app_answer(app, event | {field: plain}) == 200
    assert app_answer(app, event | {field: plain.replace("/embed", f"/{setting.strip('/')}x/embed")}) == 404


def app_answer(app: ModuleType, event: dict[str, Any]) -> int:
    status: int = app.lambda_handler(event, None)["statusCode"]
    return status


def test_a_load_balancer_with_several_values_a_header_gets_them_so(app: ModuleType) -> None:
    response = app.lambda_handler(recorded("load-balancer-multi-value"), None)
    assert response["multiValueHeaders"] == {name: [value] for name, value in response["headers"].items()}
    for kind in set(REQUESTS) - {"load-balancer-multi-value"}:
        assert "multiValueHeaders" not in app.lambda_handler(recorded(kind), None)


def test_a_response_that_a_load_balancer_would_not_take_is_413(app: ModuleType) -> None:
    texts = json.dumps({"texts": ["a"] * 400})
    assert "1 MB" in error_of(app.lambda_handler(recorded("load-balancer") | {"body": texts}, None), 413)["message"]
    assert app_answer(app, recorded("rest-api") | {"body": texts}) == 200
    coded = json.dumps({"texts": ["a"] * 400, "encoding_format": "base64"})
    assert app_answer(app, recorded("load-balancer") | {"body": coded}) == 200


@pytest.mark.parametrize("kind", REQUESTS)
def test_headers_may_be_missing_or_null(load_app: LoadApp, kind: str) -> None:
    app = load_app(CORS_ORIGIN="https://a.example")
    event = recorded(kind)
    for name in ("headers", "multiValueHeaders"):
        event.pop(name, None)
    assert app_answer(app, event) == 200
    assert app_answer(app, event | {"headers": None, "multiValueHeaders": None}) == 200
    several = {"multiValueHeaders": {"Origin": ["https://a.example"], "accept": ["a", "b"]}}
    allowed = app.lambda_handler(event | several, None)["headers"]["access-control-allow-origin"]
    assert allowed == "https://a.example"


# What is no request


@pytest.mark.parametrize("kind", PINGS)
def test_a_ping_is_answered_and_logged_as_one(app: ModuleType, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.lambda_handler(recorded(kind), None) == {"ping": "ok"}
    line = line_of(capsys)
    assert (line["route"], line["level"], line["texts"]) == ("ping", "INFO", 0)


def test_a_ping_fails_where_no_model_can_be_loaded(load_app: LoadApp, tmp_path: Path) -> None:
    app = load_app(MODEL_CACHE_DIR=str(tmp_path))
    with pytest.raises(Exception, match="no model in"):
        app.lambda_handler({"warmer": True}, None)


@pytest.mark.parametrize("extra", [{"warmer": True}, {"source": "serverless-plugin-warmup"}, {"type": "warmer"}])
def test_texts_are_embedded_whatever_else_is_there(app: ModuleType, extra: dict[str, Any]) -> None:
    assert app.lambda_handler({"text": "a"} | extra, None)["dimensions"] == 384


OTHERS = {
    "other-sqs": "an event of 'aws:sqs', not a request: .* bulk",
    "other-s3": "an event of 'aws:s3', not a request: .* bulk",
    "other-sns": "an event of 'aws:sns', not a request",
    "other-eventbridge": "an event of 'aws.s3', not a request: .* bulk",
    "other-console-hello-world": '"text" .* "texts"',
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("other-")])
def test_what_is_no_request_is_told_what_the_function_takes(
    app: ModuleType, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = app.lambda_handler(recorded(kind), None)
    assert result["error"]["status"] == 400
    assert '"text"' in result["error"]["message"]
    assert re.search(OTHERS[kind], result["error"]["message"])
    line = line_of(capsys)
    assert (line["route"], line["status"], line["client_errors"]) == ("invoke", 400, 1)


@pytest.mark.parametrize(
    "event", [{"Records": []}, {"Records": [5]}, {"Records": None}, {"source": 5, "detail-type": 5}]
)
def test_what_is_nearly_an_event_of_a_service_is_refused_all_the_same(app: ModuleType, event: dict[str, Any]) -> None:
    result = app.lambda_handler(event, None)
    assert result["error"]["status"] == 400
    json.dumps(result, ensure_ascii=False).encode()  # as the runtime client does it


# Bodies

TEXT = '{"text": "größe 🙂"}'
raw_deflate = zlib.compressobj(wbits=-15)
PACKED = {
    "gzip": gzip.compress(TEXT.encode()),
    "x-gzip": gzip.compress(TEXT.encode()),
    "GZIP": gzip.compress(TEXT.encode()),
    "deflate": zlib.compress(TEXT.encode()),
    "Deflate": raw_deflate.compress(TEXT.encode()) + raw_deflate.flush(),
    "identity": TEXT.encode(),
    "": TEXT.encode(),
}


def packed(content: bytes, coding: str, kind: Callable[..., dict[str, Any]] = function_url_event) -> dict[str, Any]:
    """An event whose body has a content coding, as a Function URL passes it on."""
    event = kind(base64.b64encode(content).decode(), encoded=True)
    event["headers"] |= {"Content-Encoding": coding}
    return event


@pytest.mark.parametrize("kind", [function_url_event, rest_api_event])
@pytest.mark.parametrize("coding", PACKED)
def test_packed_bodies_are_read(
    app: ModuleType, int8: Embedder, coding: str, kind: Callable[..., dict[str, Any]]
) -> None:
    answer = body_of(app.lambda_handler(packed(PACKED[coding], coding, kind), None))
    np.testing.assert_array_equal(np.float32(answer["embedding"]), int8.embed(["größe 🙂"]).vectors[0])


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, br", "gzip, gzip", "\ud800", "x" * 1000])
def test_other_codings_are_415(app: ModuleType, coding: str) -> None:
    response = app.lambda_handler(packed(b"x", coding), None)
    error = error_of(response, 415)
    assert error["code"] == "unsupported_encoding"
    assert "send the body as it is, or with gzip or deflate" in error["message"]
    assert len(error["message"]) < 300
    assert response["headers"]["accept-encoding"] == "gzip, deflate"


UNREADABLE = {
    "not gzip": (TEXT.encode(), "gzip", "the body is not gzip"),
    "nothing but the header": (PACKED["gzip"][:10], "gzip", "ends within its gzip"),
    "cut off": (PACKED["gzip"][:-9], "gzip", "ends within its gzip"),
    "without its checksum": (PACKED["gzip"][:-8], "gzip", "ends within its gzip"),
    "wrong checksum": (PACKED["gzip"][:-8] + b"\0" * 8, "gzip", "the body is not gzip"),
    "something after it": (PACKED["gzip"] + b"{}", "gzip", "2 bytes follow"),
    "twice": (PACKED["gzip"] * 2, "gzip", "bytes follow"),
    "not deflate": (b"\xff\xff\xff", "deflate", "the body is not deflate"),
    "cut off deflate": (PACKED["deflate"][:-3], "deflate", "ends within its deflate"),
    "no JSON inside": (gzip.compress(b"{"), "gzip", "not valid JSON"),
    "nothing inside": (gzip.compress(b""), "gzip", "not valid JSON"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_packed_bodies_that_cannot_be_read_are_400(app: ModuleType, name: str) -> None:
    content, coding, message = UNREADABLE[name]
    assert message in error_of(app.lambda_handler(packed(content, coding), None), 400)["message"]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_the_limit_holds_for_what_a_body_unpacks_to(app: ModuleType, coding: str) -> None:
    pack: Callable[[bytes], bytes] = gzip.compress if coding == "gzip" else zlib.compress
    fits = b'{"text": "a"' + b" " * (MAX_REQUEST_BYTES - 13) + b"}"
    assert len(fits) == MAX_REQUEST_BYTES
    assert app_answer(app, packed(pack(fits), coding)) == 200
    error = error_of(app.lambda_handler(packed(pack(fits + b" "), coding), None), 413)
    assert f"more than {MAX_REQUEST_BYTES} bytes" in error["message"]


@pytest.mark.slow
def test_a_bomb_is_not_unpacked_whole(app: ModuleType) -> None:
    """A gigabyte of blanks in a megabyte; the limit of memory is that of the request, not of the bomb."""
    packer = zlib.compressobj(9, wbits=31)
    block = b" " * (1 << 20)
    bomb = b"".join([packer.compress(block) for _ in range(1024)]) + packer.flush()
    event = packed(bomb, "gzip")
    tracemalloc.start()
    try:
        error_of(app.lambda_handler(event, None), 413)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * MAX_REQUEST_BYTES


def test_a_body_that_a_gateway_has_unpacked_is_read(app: ModuleType) -> None:
    """API Gateway's REST APIs unpack bodies themselves and hand text on."""
    event = rest_api_event(TEXT)
    event["headers"]["Content-Encoding"] = "gzip"
    assert app_answer(app, event) == 200
    damaged = rest_api_event(PACKED["gzip"].decode("utf-8", "replace"))
    damaged["headers"]["Content-Encoding"] = "gzip"
    message = error_of(app.lambda_handler(damaged, None), 400)["message"]
    assert "content-encoding is 'gzip', but the body came as text" in message


@pytest.mark.parametrize("kind", [function_url_event, rest_api_event])
def test_a_byte_order_mark_is_no_part_of_a_body(
    app: ModuleType, int8: Embedder, kind: Callable[..., dict[str, Any]]
) -> None:
    expected = int8.embed(["größe \ud800"]).vectors[0]
    for text in ('{"text": "größe \\ud800"}', '{"text": "größe \ufffd"}'):
        coded = base64.b64encode(b"\xef\xbb\xbf" + text.encode()).decode()
        for event in (kind("\ufeff" + text), kind(coded, encoded=True)):
            np.testing.assert_array_equal(np.float32(body_of(app.lambda_handler(event, None))["embedding"]), expected)
    assert app_answer(app, kind("\ufeff\ufeff{}")) == 400
    assert app_answer(app, kind("\ufeff")) == 400


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("kind", [function_url_event, rest_api_event])
def test_utf_16_and_32_are_refused_with_a_sentence(
    app: ModuleType, encoding: str, kind: Callable[..., dict[str, Any]]
) -> None:
    content = TEXT.encode(encoding)
    events = [kind(base64.b64encode(content).decode(), encoded=True)]
    events.append(kind('{"text": "a"}'.encode(encoding).decode("utf-8", "replace")))  # as a REST API hands it on
    for event in events:
        assert "UTF-16 or UTF-32: send it in UTF-8" in error_of(app.lambda_handler(event, None), 400)["message"]


# Deadlines


class Context:
    """Of a function with a timeout of 15 minutes."""

    aws_request_id = "of-the-invocation"

    def get_remaining_time_in_millis(self) -> int:
        return 900_000


class ShortContext(Context):
    """Of a function with the shortest timeout that the template allows."""

    def get_remaining_time_in_millis(self) -> int:
        return 3_000


def deadline_of(app: ModuleType, monkeypatch: pytest.MonkeyPatch, event: dict[str, Any]) -> float:
    """Seconds that the handler gives itself for an event."""
    found: list[float] = []
    embed = app.service.embed

    def look(request: Any, record: Any, deadline: float) -> Any:
        found.append(deadline - time.monotonic())
        return embed(request, record, deadline)

    with monkeypatch.context() as patch:
        patch.setattr(app.service, "embed", look)
        body_of(app.lambda_handler(event, Context()))
    return found[0]


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_gateway_gets_its_answer_within_29_seconds(
    app: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    seconds = deadline_of(app, monkeypatch, recorded(kind))
    assert (25 < seconds < 29) if kind in GATEWAYS else (890 < seconds < 900)


@pytest.mark.parametrize("kind", ["rest-api", "http-api"])
def test_what_a_gateway_has_waited_already_counts(app: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A cold start, for one."""
    for waited, low, high in ((10, 15, 19), (-100, 25, 29), (1000, 25, 29)):
        event = recorded(kind)
        name = "requestTimeEpoch" if kind == "rest-api" else "timeEpoch"
        event["requestContext"][name] = int((time.time() - waited) * 1000)
        assert low < deadline_of(app, monkeypatch, event) < high


@pytest.mark.parametrize("value", [None, "1659687279885", True, 10**400, -1, 1e300, float("nan"), [], {}])
def test_a_time_of_any_type_is_not_in_the_way(app: ModuleType, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    for kind, name in (("rest-api", "requestTimeEpoch"), ("http-api", "timeEpoch"), ("http-api", "domainName")):
        event = recorded(kind)
        event["requestContext"][name] = value
        assert deadline_of(app, monkeypatch, event) > 25


def test_too_many_tokens_for_a_gateway_are_told_of_its_limit(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise TooManyTokensError("the texts have many tokens")

    monkeypatch.setattr(app.service, "embed", refuse)
    for kind in ("rest-api", "http-api"):
        message = error_of(app.lambda_handler(recorded(kind), Context()), 413)["message"]
        assert "API Gateway waits for 29 s" in message
    for kind, context in (("function-url", Context()), ("rest-api", ShortContext())):
        message = error_of(app.lambda_handler(recorded(kind), context), 413)["message"]
        assert "API Gateway" not in message
