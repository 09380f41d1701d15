"""lambda_handler: what each kind of event gets back."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from handler.api import BYTES_PER_NUMBER, MAX_BODY_BYTES, max_texts
from handler.artifact import ArtifactNotFoundError
from handler.embedder import Embedder
from handler.errors import STATUS, InvalidRequestError
from tests.conftest import ROOT
from tests.hostile import HOSTILE, LONE_SURROGATES

LoadApp = Callable[..., ModuleType]
MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def function_url_event(
    body: str | None, path: str = "/embed", method: str = "POST", encoded: bool = False
) -> dict[str, Any]:
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json"},
        "requestContext": {"http": {"method": method, "path": path}, "stage": "$default"},
        "isBase64Encoded": encoded,
    }
    return event if body is None else event | {"body": body}


def rest_api_event(
    body: str | None, path: str = "/embed", method: str = "POST", encoded: bool = False
) -> dict[str, Any]:
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": {"Content-Type": "application/json"},
        "requestContext": {"stage": "prod", "path": "/prod" + path},
        "body": body,
        "isBase64Encoded": encoded,
    }


EVENTS = {"function-url": function_url_event, "rest-api": rest_api_event}


@pytest.fixture(params=EVENTS)
def make_event(request: pytest.FixtureRequest) -> Callable[..., dict[str, Any]]:
    return EVENTS[request.param]


@pytest.fixture
def app(load_app: LoadApp) -> ModuleType:
    return load_app()


def body_of(response: dict[str, Any], status: int = 200) -> Any:
    assert response["statusCode"] == status, response["body"]
    assert response["headers"]["content-type"] == "application/json"
    assert response["isBase64Encoded"] is False
    return json.loads(response["body"])


def error_of(response: dict[str, Any], status: int) -> dict[str, Any]:
    body = body_of(response, status)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


def test_one_text(app: ModuleType, make_event: Callable[..., Any], int8: Embedder) -> None:
    body = body_of(app.lambda_handler(make_event('{"text": "vitamin d"}'), None))
    assert set(body) == {"embedding", "model", "dimensions", "latency"}
    assert (body["model"], body["dimensions"], len(body["embedding"])) == (MODEL, 384, 384)
    assert 0 < body["latency"] < 60
    np.testing.assert_array_equal(np.float32(body["embedding"]), int8.embed(["vitamin d"]).vectors[0])


def test_the_readmes_answer_is_this_one(app: ModuleType) -> None:
    """To the accuracy of INT8: an artifact built on another CPU has other roundings."""
    shown = re.search(
        r"'({\S+ d\"})'\n{\"embedding\":\[(.+),\.\.\.,(.+)\],(.+),\"latency\"", (ROOT / "README.md").read_text()
    )
    assert shown
    request, first, last, rest = shown.groups()
    answer = app.lambda_handler(json.loads(request), None)
    numbers = [float(number) for number in f"{first},{last}".split(",")]
    np.testing.assert_allclose([*answer["embedding"][:3], answer["embedding"][-1]], numbers, atol=0.01)
    assert {key: answer[key] for key in ("model", "dimensions")} == json.loads(f"{{{rest}}}")


def test_several_texts_in_request_order(app: ModuleType, make_event: Callable[..., Any], int8: Embedder) -> None:
    texts = ["a longer sentence that comes first", "b", "and one between them", "b"]
    body = body_of(app.lambda_handler(make_event(json.dumps({"texts": texts})), None))
    assert set(body) == {"embeddings", "model", "dimensions", "count", "latency"}
    assert (body["model"], body["dimensions"], body["count"]) == (MODEL, 384, 4)
    np.testing.assert_array_equal(np.float32(body["embeddings"]), int8.embed(texts).vectors)


def test_base64_bodies_are_decoded(app: ModuleType, make_event: Callable[..., Any], int8: Embedder) -> None:
    body = base64.b64encode('{"text": "größe 🙂"}'.encode()).decode()
    found = body_of(app.lambda_handler(make_event(body, encoded=True), None))
    np.testing.assert_array_equal(np.float32(found["embedding"]), int8.embed(["größe 🙂"]).vectors[0])


def test_hostile_texts_arrive_unchanged(app: ModuleType, int8: Embedder) -> None:
    texts = [*HOSTILE, *LONE_SURROGATES]
    body = body_of(app.lambda_handler(function_url_event(json.dumps({"texts": texts})), None))
    np.testing.assert_array_equal(np.float32(body["embeddings"]), int8.embed(texts).vectors)


def test_numbers_are_shortest_float32_decimals(app: ModuleType) -> None:
    response = app.lambda_handler(function_url_event('{"text": "vitamin d"}'), None)
    assert len(response["body"]) < 384 * BYTES_PER_NUMBER
    direct = app.lambda_handler({"text": "vitamin d"}, None)
    assert direct["embedding"] == json.loads(response["body"])["embedding"]


@pytest.mark.parametrize("event", [{"text": "vitamin d"}, {"texts": ["vitamin d"]}])
def test_direct_invocation_gets_the_object_itself(app: ModuleType, event: dict[str, Any], int8: Embedder) -> None:
    result = app.lambda_handler(event, None)
    vector = result["embedding"] if "text" in event else result["embeddings"][0]
    np.testing.assert_array_equal(np.float32(vector), int8.embed(["vitamin d"]).vectors[0])
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("event", [{}, [], "text", None, 3, {"text": 1}, {"texts": []}])
def test_direct_invocation_fails_by_name(app: ModuleType, event: Any) -> None:
    with pytest.raises(InvalidRequestError):
        app.lambda_handler(event, None)


INVALID_BODIES = {
    "no body": (None, "no body", None),
    "empty body": ("", "no body", None),
    "not JSON": ("{text: 1}", "not valid JSON", None),
    "cut off": ('{"text": "vitamin', "not valid JSON", None),
    "NaN": ('{"text": NaN}', "not valid JSON", None),
    "too deep": ("[" * 100_000, "not valid JSON", None),
    "too deep after a surrogate": ('["\\ud800",' + "[" * 100_000, "not valid JSON", None),
    "byte order mark": ('\ufeff{"text": "x"}', "byte order mark", None),
    "an array": ('["vitamin d"]', "a list, not an object", None),
    "a string": ('"vitamin d"', "a string, not an object", None),
    "null": ("null", "null, not an object", None),
    "no field": ("{}", 'either "text" .* or "texts"', None),
    "both fields": ('{"text": "a", "texts": ["b"]}', 'either "text" .* or "texts"', None),
    "misspelt field": ('{"txt": "a"}', "unknown field 'txt'", "txt"),
    "additional field": ('{"text": "a", "normalise": false}', "unknown field 'normalise'", "normalise"),
    "text is a number": ('{"text": 5}', "text is the number 5, not a string", "text"),
    "text is null": ('{"text": null}', "text is null, not a string", "text"),
    "text is a list": ('{"text": ["a"]}', "text is a list, not a string", "text"),
    "text is a boolean": ('{"text": true}', "text is a boolean, not a string", "text"),
    "texts is a string": ('{"texts": "a"}', "texts is a string, not a list", "texts"),
    "texts is empty": ('{"texts": []}', "texts is empty", "texts"),
    "texts holds null": ('{"texts": ["a", null]}', r"texts\[1\] is null", "texts[1]"),
    "texts holds an object": ('{"texts": [{"text": "a"}]}', r"texts\[0\] is an object", "texts[0]"),
}


@pytest.mark.parametrize("name", INVALID_BODIES)
def test_invalid_bodies_are_400(app: ModuleType, make_event: Callable[..., Any], name: str) -> None:
    body, message, param = INVALID_BODIES[name]
    error = error_of(app.lambda_handler(make_event(body), None), 400)
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_request"
    assert error["param"] == param
    assert re.search(message, error["message"])


@pytest.mark.parametrize(
    "body",
    [
        "not base64!",
        "YQ",
        "ä",
        base64.b64encode(b"\xff\xfe{}").decode(),
        base64.b64encode(b'{"text": "\xff"}').decode(),
    ],
)
def test_undecodable_base64_is_400(app: ModuleType, make_event: Callable[..., Any], body: str) -> None:
    error_of(app.lambda_handler(make_event(body, encoded=True), None), 400)


@pytest.mark.parametrize("event", [{"requestContext": {}}, {"requestContext": None}, {"httpMethod": "POST"}])
def test_incomplete_events_are_400(app: ModuleType, event: dict[str, Any]) -> None:
    error_of(app.lambda_handler(event, None), 400)


@pytest.mark.parametrize("path", ["/", "/embed/", "/Embed", "/v2/embed", "/\ud800"])
def test_other_paths_are_404(app: ModuleType, make_event: Callable[..., Any], path: str) -> None:
    assert "POST /embed" in error_of(app.lambda_handler(make_event("{}", path=path), None), 404)["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_405(app: ModuleType, make_event: Callable[..., Any], method: str) -> None:
    response = app.lambda_handler(make_event(None, method=method), None)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response["headers"]["allow"] == "POST"


def test_more_texts_than_a_response_holds_are_413(app: ModuleType) -> None:
    limit = max_texts(384)
    error = error_of(app.lambda_handler(function_url_event(json.dumps({"texts": ["a"] * (limit + 1)})), None), 413)
    assert error["param"] == "texts"
    assert str(limit) in error["message"]


def test_as_many_texts_as_allowed_fit(app: ModuleType) -> None:
    texts = [f"{HOSTILE[index % 20]} {index}" for index in range(max_texts(384))]
    response = app.lambda_handler(function_url_event(json.dumps({"texts": texts})), None)
    assert len(body_of(response)["embeddings"]) == len(texts)
    assert len(json.dumps(response)) < 6 * 1024 * 1024


def test_a_response_that_came_out_too_large_is_413(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MAX_BODY_BYTES", 4000)
    error = error_of(app.lambda_handler(function_url_event('{"text": "vitamin d"}'), None), 413)
    assert "send fewer texts" in error["message"]
    assert MAX_BODY_BYTES > 4000


def test_missing_model_is_503_and_tried_again(
    load_app: LoadApp, tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = load_app(MODEL_CACHE_DIR=str(tmp_path))
    assert "model not loaded: no model in" in capsys.readouterr().err
    event = function_url_event('{"text": "vitamin d"}')
    error = error_of(app.lambda_handler(event, None), 503)
    assert str(tmp_path / "all-MiniLM-L6-v2") in error["message"]
    assert "python -m export" in error["message"]
    assert (error["type"], error["code"]) == ("server_error", "model_unavailable")
    with pytest.raises(ArtifactNotFoundError):
        app.lambda_handler({"text": "vitamin d"}, None)
    (tmp_path / "all-MiniLM-L6-v2").symlink_to(model_folder)
    assert body_of(app.lambda_handler(event, None))["dimensions"] == 384


def test_a_bad_request_is_400_even_without_a_model(load_app: LoadApp, tmp_path: Path) -> None:
    app = load_app(MODEL_CACHE_DIR=str(tmp_path))
    error_of(app.lambda_handler(function_url_event("{}"), None), 400)


def test_corrupt_model_is_503_until_it_is_replaced(load_app: LoadApp, copy_model: Callable[[str], Path]) -> None:
    model = copy_model("v1")
    whole = (model / "v1" / "model_int8.onnx").read_bytes()
    (model / "v1" / "model_int8.onnx").write_bytes(whole[:1000])
    app = load_app(MODEL_CACHE_DIR=str(model.parent))
    event = function_url_event('{"text": "vitamin d"}')
    assert "has 1000 bytes" in error_of(app.lambda_handler(event, None), 503)["message"]
    (model / "v1" / "model_int8.onnx").write_bytes(whole)
    body_of(app.lambda_handler(event, None))


def test_a_loaded_model_stays_when_the_folder_goes(load_app: LoadApp, copy_model: Callable[[str], Path]) -> None:
    model = copy_model("v1")
    app = load_app(MODEL_CACHE_DIR=str(model.parent))
    (model / "current").unlink()
    body_of(app.lambda_handler(function_url_event('{"text": "vitamin d"}'), None))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MODEL_PRECISION": "fp16"}, "no precision 'fp16'"),
        ({"MODEL_NAME": "other"}, "no model in .*other"),
        ({"MODEL_NAME": "x" * 300}, "cannot read .*File name too long"),
        ({"MODEL_THREADS": "many"}, "MODEL_THREADS is 'many'"),
        ({"MODEL_THREADS": "0"}, "MODEL_THREADS is '0'"),
    ],
)
def test_wrong_settings_are_503_by_name(load_app: LoadApp, variables: dict[str, str], message: str) -> None:
    app = load_app(**variables)
    error = error_of(app.lambda_handler(function_url_event('{"text": "a"}'), None), 503)
    assert re.search(message, error["message"])


def test_float32_is_a_setting(load_app: LoadApp, float32: Embedder) -> None:
    app = load_app(MODEL_PRECISION="fp32", MODEL_THREADS="1")
    body = body_of(app.lambda_handler(function_url_event('{"text": "vitamin d"}'), None))
    np.testing.assert_allclose(np.float32(body["embedding"]), float32.embed(["vitamin d"]).vectors[0], atol=1e-6)


def test_every_listed_error_has_one_status() -> None:
    assert sorted(status for status, _, _ in STATUS.values()) == [400, 404, 405, 413, 503, 503]
