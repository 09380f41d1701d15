"""Whatever event, body or request object comes: an answer that Lambda and HTTP can carry, and never a fault of ours.

What an answer must hold is in tests/clients/fuzz_events.py, whose fuzzer searches further; what was found is here by
name.
"""

from __future__ import annotations

import base64
import gzip
import importlib
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from handler.limits import MAX_REQUEST_BYTES
from tests.clients import fuzz_events
from tests.clients.fuzz_events import (
    CODINGS,
    EVENT_FIELDS,
    FIELDS,
    METHODS,
    MODEL,
    NUMBERS,
    PATHS,
    REQUEST_ID,
    WORDS,
    check,
    check_response,
    http_event,
)

run = settings(derandomize=True, deadline=None, max_examples=400)

TEXT = st.text(st.characters(), max_size=12) | st.sampled_from(WORDS)  # lone surrogates among them
TOKENS = st.lists(st.integers(-1, 31_000), max_size=6).flatmap(lambda ids: st.sampled_from([ids, [101, *ids, 102]]))
CONTENT = TEXT | st.lists(TEXT, max_size=3) | TOKENS | st.lists(TOKENS, max_size=3)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NUMBERS) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=8,
)
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("text", "texts", "inputs", "input"), CONTENT),
    "model": st.sampled_from([MODEL, "all-MiniLM-L6-v2", "other"]),
    "encoding_format": st.sampled_from(["float", "base64", "int8", None]),
    **dict.fromkeys(("normalize", "truncate"), st.booleans() | st.none()),
    "dimensions": st.sampled_from([384, 383, 384.0, None]),
    "truncation_direction": st.sampled_from(["right", "Right", "left", None]),
    **dict.fromkeys(("prompt_name", "prompt"), st.sampled_from([None, "", "query"])),
    "truncate_prompt_tokens": st.sampled_from([None, -1, 255, 256]),
    "parameters": st.dictionaries(st.sampled_from(FIELDS), CONTENT | st.booleans(), max_size=2),
    "embedding_types": st.sampled_from([None, ["float"], ["int8"]]),
    "add_special_tokens": st.booleans(),
    **dict.fromkeys(("user", "options", "input_type", "normalise", "Texts", "stream"), TEXT),
}
FORMS = {
    "/embed": (("text",), ("texts",), ("inputs",), ()),
    "/": (("inputs",), ("text",)),
    "/v1/embeddings": (("input", "model"), ("input",)),
}


@st.composite
def requests(draw: st.DrawFn, path: str = "/embed") -> dict[str, Any]:
    """Fields of a request that belong together, and up to two more, of values likely and unlikely."""
    form = draw(st.sampled_from(FORMS[path]))
    request = {field: draw(LIKELY[field]) for field in form}
    for field in draw(st.lists(st.sampled_from(FIELDS), max_size=2)):
        request[field] = draw(LIKELY[field] | VALUE)
    return request


@st.composite
def posts(draw: st.DrawFn) -> tuple[str, str]:
    """A path that embeds and a body for it."""
    path = draw(st.sampled_from(sorted(FORMS)))
    return path, json.dumps(draw(requests(path)), ensure_ascii=draw(st.booleans()))


@st.composite
def near_json(draw: st.DrawFn) -> tuple[str, str]:
    """A path and a body with some characters put in, cut out or doubled."""
    path, body = draw(posts())
    for _ in range(draw(st.integers(1, 3))):
        begin, end = sorted(draw(st.tuples(*[st.integers(0, len(body))] * 2)))
        put = draw(TEXT | st.sampled_from(["{", "[", '"', "\\", "\\ud800", ",", ":", "NaN", "1e999", body[begin:end]]))
        body = body[:begin] + put + body[end:]
    return path, body


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    """An HTTP event, right or with some fields of any type."""
    path = draw(st.sampled_from(PATHS) | TEXT)
    method = draw(st.sampled_from(METHODS) | TEXT)
    event = http_event(draw(st.none() | TEXT), path, method, draw(st.booleans()))
    if draw(st.booleans()):
        event |= {"httpMethod": method, "path": path}
    inside = st.dictionaries(st.sampled_from(EVENT_FIELDS), VALUE, max_size=3)
    return event | draw(st.dictionaries(st.sampled_from(EVENT_FIELDS), VALUE | inside, max_size=3))


@pytest.fixture(scope="module")
def app(model_cache: Path) -> Iterator[ModuleType]:
    """As `load_app` makes it, once for all, with every optional header and field of the log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL_CACHE_DIR", str(model_cache))
        patch.setenv("CORS_ORIGIN", "https://a.example")
        patch.setenv("LOG_TEXTS", "true")
        import handler.app

        importlib.reload(handler.service)
        yield importlib.reload(handler.app)


@given(event=events())
@run
def test_any_event_is_answered(app: ModuleType, event: dict[str, Any]) -> None:
    check(app, event)


@given(event=st.dictionaries(st.sampled_from(EVENT_FIELDS) | TEXT, VALUE, max_size=6) | VALUE)
@run
def test_anything_is_answered_or_refused_by_name(app: ModuleType, event: Any) -> None:
    check(app, event)


@given(body=st.binary(max_size=64) | TEXT, path=st.sampled_from(sorted(FORMS)), encoded=st.booleans())
@run
def test_any_body_is_answered(app: ModuleType, body: bytes | str, path: str, encoded: bool) -> None:
    if isinstance(body, bytes):
        body = base64.b64encode(body).decode() if encoded else body.decode("utf-8", "surrogateescape")
    check(app, http_event(body, path, encoded=encoded))


@given(
    content=st.binary(max_size=64) | TEXT.map(lambda text: json.dumps({"text": text}).encode()),
    pack=st.sampled_from([bytes, gzip.compress, zlib.compress]),
    coding=st.sampled_from(CODINGS) | TEXT,
    cut=st.integers(0, 8),
)
@run
def test_any_packed_body_is_answered(
    app: ModuleType, content: bytes, pack: Callable[[bytes], bytes], coding: str, cut: int
) -> None:
    packed = pack(content)
    event = http_event(base64.b64encode(packed[: len(packed) - cut]).decode(), encoded=True)
    check(app, event | {"headers": {"content-encoding": coding}})


@given(near_json())
@run
def test_a_body_that_is_nearly_json_is_answered(app: ModuleType, post: tuple[str, str]) -> None:
    check(app, http_event(post[1], post[0]))


@given(posts())
@run
def test_events_of_all_kinds_get_the_same_answer(app: ModuleType, post: tuple[str, str]) -> None:
    path, body = post
    plain = check(app, http_event(body, path))
    rest_api = {"httpMethod": "POST", "path": path, "headers": None, "body": body}
    assert check(app, rest_api) == plain
    coded = base64.b64encode(body.encode("utf-8", "surrogatepass")).decode()
    assert check(app, http_event(coded, path, encoded=True)) == plain


@given(request=requests())
@run
def test_a_direct_invocation_refuses_what_http_refuses(app: ModuleType, request: dict[str, Any]) -> None:
    body = json.dumps(request)
    assume(not any(name in body for name in ("NaN", "Infinity", "0" * 400)))  # which HTTP's JSON reader refuses
    status = check(app, http_event(body))
    assert check(app, request) == ("ok" if status == 200 else f"direct {status}")


BODIES: dict[str, tuple[str | bytes, int]] = {
    "NaN": ('{"text": NaN}', 400),
    "infinity": ('{"inputs": "a", "dimensions": Infinity}', 400),
    "NaN where a surrogate has the other reader read": ('{"text": NaN, "texts": "\\ud800"}', 400),
    "number over the largest float": ('{"inputs": "a", "dimensions": 1e999}', 400),
    "whole number of 400 digits": (f'{{"inputs": "a", "dimensions": {"9" * 400}}}', 400),
    "whole number of 4,000 digits beside a surrogate": (f'{{"inputs": "\\ud800", "dimensions": {"9" * 4000}}}', 400),
    "whole number of 5,000 digits beside a surrogate": (f'{{"inputs": "\\ud800", "dimensions": {"9" * 5000}}}', 400),
    "whole number as a float": ('{"inputs": "a", "dimensions": 384.0}', 400),
    "the last of two": ('{"text": 5, "text": "a"}', 200),
    "the last of two is wrong": ('{"text": "a", "text": 5}', 400),
    "deep lists": ("[" * 1_000_000, 400),
    "deep lists in a field": (f'{{"texts": {"[" * 100_000}{"]" * 100_000}}}', 400),
    "deep objects": ('{"texts":' * 200_000, 400),
    "deep lists after a surrogate": (f'{{"text": "\\ud800", "texts": {"[" * 100_000}{"]" * 100_000}}}', 400),
    "deep lists after a surrogate, base64": (f'{{"text": "\\ud800", "texts": {"[" * 100_000}'.encode(), 400),
    "lone surrogate": ('{"text": "\\ud83d"}', 200),
    "lone surrogate, base64": (b'{"text": "\\ud83d"}', 200),
    "lone surrogate not escaped": ('{"text": "\ud83d"}', 200),
    "lone surrogate as bytes": (b'{"text": "\xed\xa0\xbd"}', 200),
    "byte order mark": ('\ufeff{"text": "a"}', 200),
    "byte order mark before nothing": ("\ufeff", 400),
    "UTF-16": ('{"text": "a"}'.encode("utf-16"), 400),
    "UTF-16 with a surrogate": ('{"text": "\\ud800"}'.encode("utf-16"), 400),
    "NUL in a text": ('{"text": "a\\u0000b"}', 200),
    "NUL after the body": ('{"text": "a"}\0', 400),
    "two objects": ('{"text": "a"}{"text": "b"}', 400),
    "white space around": (' \n{"text": "a"}\r\n', 200),
    "white space only": (" ", 400),
    "line separators in a text": ('{"text": "a\u2028b\u0085c"}', 200),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_hard_to_read(app: ModuleType, name: str) -> None:
    body, status = BODIES[name]
    event = http_event(body) if isinstance(body, str) else http_event(base64.b64encode(body).decode(), encoded=True)
    assert check(app, event) == status


EVENTS: dict[str, dict[str, Any]] = {
    "nothing in it": {"requestContext": None},
    "http is a string": {"requestContext": {"http": "GET"}, "rawPath": "/"},
    "method is a number": {"requestContext": {"http": {"method": 5}}, "rawPath": "/"},
    "path is a list": {"httpMethod": "GET", "path": ["/"]},
    "path is missing beside the other format's": {"httpMethod": "GET", "rawPath": "/"},
    "body is an object": http_event("") | {"body": {"text": "a"}},
    "body is a number": http_event("") | {"body": 5},
    "headers is a list": http_event("") | {"headers": ["origin"]},
    "headers is a string": http_event("") | {"headers": "origin"},
    "origin is a number": http_event("") | {"headers": {"origin": 5}},
}


@pytest.mark.parametrize("name", EVENTS)
def test_events_with_a_part_of_another_type_are_400(app: ModuleType, name: str) -> None:
    assert check(app, EVENTS[name]) == 400


@pytest.mark.parametrize("stage", [5, 1.5, True, ["prod"], {"a": 1}, "\ud800", "prod/embed"])
def test_a_stage_of_any_type_is_not_in_the_way(app: ModuleType, stage: Any) -> None:
    event = http_event('{"text": "a"}')
    event["requestContext"]["stage"] = stage
    assert check(app, event) == 200


LONG = MAX_REQUEST_BYTES // 3
LONG_REQUESTS: dict[str, str] = {
    "field": json.dumps({"x" * LONG: 1}),
    "field that must be escaped twice": json.dumps({'"' * LONG: 1}),
    "field beside a surrogate": json.dumps({"ä" * LONG: "\ud800"}, ensure_ascii=False),
    "model": json.dumps({"input": "a", "model": '"' * LONG}),
    "value": json.dumps({"text": "a", "encoding_format": '"' * LONG}),
    "text of the wrong type": json.dumps({"text": ['"' * LONG]}),
}


@pytest.mark.parametrize("path", sorted(FORMS))
@pytest.mark.parametrize("name", LONG_REQUESTS)
def test_the_answer_to_a_long_mistake_is_short(app: ModuleType, name: str, path: str) -> None:
    """Lambda refuses results over 6 MB, and the client gets a 502: what is quoted of a request takes more, escaped."""
    body = base64.b64encode(LONG_REQUESTS[name].encode("utf-8", "surrogatepass")).decode()
    answer = app.lambda_handler(http_event(body, path, encoded=True), None)
    assert answer["statusCode"] in (400, 404)
    assert len(json.dumps(answer)) < 4096


@pytest.mark.parametrize("ids", [[101, *[1] * 1_000_000, 102], [[101, *[1] * 500_000, 102]] * 2], ids=["one", "two"])
def test_more_token_ids_than_a_text_has_are_refused(app: ModuleType, ids: list[Any]) -> None:
    """Without decoding them, which would take seconds."""
    assert check(app, http_event(json.dumps({"model": MODEL, "input": ids}), "/v1/embeddings")) == 413


ERROR = {"message": "m", "type": "invalid_request_error", "param": None, "code": "c"}


def response(status: Any = 400, **changes: Any) -> dict[str, Any]:
    headers = {"content-type": "application/json", "x-request-id": REQUEST_ID}
    body = json.dumps({"error": ERROR, "request_id": REQUEST_ID})
    return {"statusCode": status, "headers": headers, "body": body, "isBase64Encoded": False} | changes


BAD_RESPONSES = {
    "status is a string": response("400"),
    "status is a boolean": response(True),
    "a fault of the service": response(500),
    "405 without allow": response(405),
    "header is a number": response(headers={"content-type": "application/json", "x-request-id": 5}),
    "header of two lines": response(headers=response()["headers"] | {"vary": "a\r\nb"}),
    "header not in ASCII": response(headers=response()["headers"] | {"vary": "\ud800"}),
    "no request id": response(headers={"content-type": "application/json"}),
    "other type": response(headers={"content-type": "text/html", "x-request-id": REQUEST_ID}),
    "body is bytes": response(body=b"{}"),
    "body is not JSON": response(body="{"),
    "body without an error": response(body=json.dumps({"request_id": REQUEST_ID})),
    "other request id": response(body=json.dumps({"error": ERROR, "request_id": "other"})),
    "error without a code": response(body=json.dumps({"error": {"message": "m"}, "request_id": REQUEST_ID})),
    "code is a number": response(body=json.dumps({"error": ERROR | {"code": 5}, "request_id": REQUEST_ID})),
    "base64 not told": response(isBase64Encoded=None),
    "a field more": response(cookies=[]),
}


@pytest.mark.parametrize("name", BAD_RESPONSES)
def test_the_check_itself_refuses(name: str) -> None:
    check_response(response())
    with pytest.raises((AssertionError, ValueError, TypeError, KeyError)):
        check_response(BAD_RESPONSES[name])


@pytest.mark.parametrize("event", [http_event('{"text": "a"}'), {"text": "a"}], ids=["http", "direct"])
@pytest.mark.parametrize("fault", [ZeroDivisionError("a"), RecursionError("b")], ids=["arithmetic", "recursion"])
def test_the_check_itself_sees_a_fault_of_the_service(
    app: ModuleType, monkeypatch: pytest.MonkeyPatch, event: dict[str, Any], fault: Exception
) -> None:
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(app.service, "embed", fail)
    with pytest.raises(AssertionError):
        check(app, event)


def test_the_check_itself_sees_a_log_of_two_lines(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    write: Callable[[dict[str, Any]], None] = app.log.write_line

    def write_two(line: dict[str, Any]) -> None:
        write(line)
        print("more")

    monkeypatch.setattr(app.log, "write_line", write_two)
    with pytest.raises(ValueError, match="Expecting value"):
        check(app, http_event('{"text": "a"}'))
    assert fuzz_events.MAX_RESPONSE_BYTES == MAX_REQUEST_BYTES
