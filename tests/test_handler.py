"""lambda_handler: what each kind of event gets back."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from artifact.manifest import ArtifactNotFoundError
from benchmarks.instructions import OF_THIS_CPU
from handler import service
from handler.embedder import Embedder
from handler.errors import STATUS
from handler.limits import BYTES_PER_NUMBER, MAX_REQUEST_BYTES, MAX_TEXT_CHARACTERS, MAX_TEXTS, max_texts
from tests.support.events import (
    EVENTS,
    LONG,
    MODEL,
    REQUEST_ID,
    LoadApp,
    body_of,
    error_of,
    function_url_event,
    rest_api_event,
)
from tests.support.hostile import HOSTILE, LONE_SURROGATES
from tests.support.servers import ROOT


@pytest.fixture(params=EVENTS)
def make_event(request: pytest.FixtureRequest) -> Callable[..., dict[str, Any]]:
    return EVENTS[request.param]


@pytest.fixture
def app(load_app: LoadApp) -> ModuleType:
    return load_app()


def test_every_answer_has_a_request_id(app: ModuleType, make_event: Callable[..., Any]) -> None:
    context = SimpleNamespace(aws_request_id="of-the-invocation")
    for event in (make_event('{"text": "a"}'), make_event("{"), make_event(None, path="/nowhere")):
        assert app.lambda_handler(event, None)["headers"]["x-request-id"] == REQUEST_ID
        assert app.lambda_handler(event, context)["headers"]["x-request-id"] == "of-the-invocation"
        del event["requestContext"]["requestId"]
        ids = {app.lambda_handler(event, None)["headers"]["x-request-id"] for _ in range(3)}
        assert len(ids) == 3
        assert all(ids)


def test_one_text(app: ModuleType, make_event: Callable[..., Any], int8: Embedder) -> None:
    body = body_of(app.lambda_handler(make_event('{"text": "vitamin d"}'), None))
    assert set(body) == {"embedding", "model", "dimensions", "tokens", "truncated", "latency"}
    assert (body["model"], body["dimensions"], len(body["embedding"])) == (MODEL, 384, 384)
    assert (body["tokens"], body["truncated"]) == (4, [])
    assert 0 < body["latency"] < 60
    np.testing.assert_array_equal(np.float32(body["embedding"]), int8.embed(["vitamin d"]).vectors[0])


@pytest.mark.real_model
def test_the_readmes_answer_is_this_one(app: ModuleType) -> None:
    """The numbers that it shows and all else in it; tests/test_benchmarks.py holds them more closely."""
    shown = re.search(
        r"'({\S+ d\"})'\n{\"embedding\":\[(.+),\.\.\.,(.+)\],(.+),\"latency\"", (ROOT / "README.md").read_text()
    )
    assert shown
    request, first, last, rest = shown.groups()
    answer = app.lambda_handler(json.loads(request), None)
    numbers = [float(number) for number in f"{first},{last}".split(",")]
    np.testing.assert_allclose([*answer["embedding"][:3], answer["embedding"][-1]], numbers, atol=0.01)
    assert {key: answer[key] for key in ("model", "dimensions", "tokens", "truncated")} == json.loads(f"{{{rest}}}")


def test_several_texts_in_request_order(app: ModuleType, make_event: Callable[..., Any], int8: Embedder) -> None:
    texts = ["a longer sentence that comes first", "b", "and one between them", "b"]
    body = body_of(app.lambda_handler(make_event(json.dumps({"texts": texts})), None))
    assert set(body) == {"embeddings", "model", "dimensions", "count", "tokens", "truncated", "latency"}
    assert (body["model"], body["dimensions"], body["count"]) == (MODEL, 384, 4)
    np.testing.assert_array_equal(np.float32(body["embeddings"]), int8.embed(texts).vectors)


@pytest.mark.parametrize("path", ["/embed", "/"])
@pytest.mark.parametrize("inputs", ["vitamin d", ["vitamin d", "and more"]])
def test_tei_form_gets_bare_vectors(
    app: ModuleType, make_event: Callable[..., Any], int8: Embedder, path: str, inputs: str | list[str]
) -> None:
    request = {"inputs": inputs, "truncate": True, "prompt_name": None, "truncation_direction": "right"}
    found = body_of(app.lambda_handler(make_event(json.dumps(request), path=path), None))
    expected = int8.embed([inputs] if isinstance(inputs, str) else inputs).vectors
    np.testing.assert_array_equal(np.float32(found), expected)


@pytest.mark.parametrize("form", [{"text": "a"}, {"texts": ["a"]}])
def test_base64_carries_the_same_floats(app: ModuleType, form: dict[str, Any]) -> None:
    plain = app.lambda_handler(form | {"encoding_format": "float"}, None)
    coded = app.lambda_handler(form | {"encoding_format": "base64"}, None)
    plain, coded = (each.get("embedding") or each["embeddings"][0] for each in (plain, coded))
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(coded), "<f4"), np.float32(plain))


def test_vectors_are_normalized_unless_told_otherwise(app: ModuleType, int8: Embedder) -> None:
    expected = int8.embed_tokens(int8.tokenize(["vitamin d"]).ids, normalize=False)[0]
    raw = app.lambda_handler({"text": "vitamin d", "normalize": False}, None)["embedding"]
    np.testing.assert_array_equal(np.float32(raw), expected)
    assert np.linalg.norm(raw) > 1.5
    for value in (True, None):
        unit = app.lambda_handler({"text": "vitamin d", "normalize": value}, None)["embedding"]
        assert abs(np.linalg.norm(unit) - 1) < 1e-6


@pytest.mark.real_model
@pytest.mark.parametrize("field", ["texts", "inputs"])
def test_truncation_is_never_silent(app: ModuleType, make_event: Callable[..., Any], field: str) -> None:
    response = app.lambda_handler(make_event(json.dumps({field: ["short", LONG, "b", LONG]})), None)
    body = body_of(response)
    assert response["headers"]["x-truncated-texts"] == "2"
    if field == "texts":
        assert (body["truncated"], body["tokens"]) == ([1, 3], 3 + 256 + 3 + 256)
    assert "x-truncated-texts" not in app.lambda_handler(make_event('{"text": "short"}'), None)["headers"]


@pytest.mark.parametrize(
    ("request_", "param", "counts"),
    [
        ({"text": LONG}, "text", "text has 302"),
        ({"texts": ["a", LONG, "b", "word " * 255]}, "texts[1]", r"texts\[1\] has 302, texts\[3\] has 257"),
        ({"inputs": LONG}, "inputs[0]", r"inputs\[0\] has 302"),
        ({"text": "word " * 50_000}, "text", "text has 50002"),
    ],
)
def test_truncate_false_names_the_texts_that_are_too_long(
    app: ModuleType, request_: dict[str, Any], param: str, counts: str
) -> None:
    response = app.lambda_handler(function_url_event(json.dumps(request_ | {"truncate": False})), None)
    error = error_of(response, 400)
    assert (error["code"], error["param"]) == ("text_too_long", param)
    assert re.search(f"reads 256 tokens of a text.*: {counts}$", error["message"])
    assert app.lambda_handler(request_ | {"truncate": False}, None)["error"] == error | {"status": 400}


def test_truncate_false_is_no_matter_for_texts_that_fit(app: ModuleType) -> None:
    assert app.lambda_handler({"text": "word " * 254, "truncate": False}, None)["tokens"] == 256


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


@pytest.mark.parametrize("event", [{}, [], "text", None, 3, {"text": 1}, {"texts": []}, {"tex\ud800": 1}])
def test_a_malformed_direct_invocation_is_no_failure_of_the_function(app: ModuleType, event: Any) -> None:
    """Lambda would count one that is raised in `Errors`, which wakes people and rolls deployments back."""
    result = app.lambda_handler(event, None)
    over_http = json.loads(app.lambda_handler(function_url_event(json.dumps(event)), None)["body"])["error"]
    param = over_http["param"]
    assert result["error"] == over_http | {"status": 400, "param": param and param.replace("\ud800", "?")}
    assert set(result) == {"error", "request_id"}
    json.dumps(result, ensure_ascii=False).encode()  # as the runtime client does it


def test_a_direct_invocation_has_the_statuses_of_http(app: ModuleType) -> None:
    for event, status in (({"texts": ["a"] * (MAX_TEXTS + 1)}, 413), ({"text": "a", "model": "other"}, 404)):
        assert app.lambda_handler(event, None)["error"]["status"] == status


INVALID_BODIES = {
    "no body": (None, "no body", None),
    "empty body": ("", "no body", None),
    "not JSON": ("{text: 1}", "not valid JSON", None),
    "cut off": ('{"text": "vitamin', "not valid JSON", None),
    "NaN": ('{"text": NaN}', "not valid JSON", None),
    "too deep": ("[" * 100_000, "not valid JSON", None),
    "too deep after a surrogate": ('["\\ud800",' + "[" * 100_000, "not valid JSON", None),
    "an array": ('["vitamin d"]', "a list, not an object", None),
    "a string": ('"vitamin d"', "a string, not an object", None),
    "null": ("null", "null, not an object", None),
    "no field": ("{}", 'either "text" .* or "texts"', None),
    "both fields": ('{"text": "a", "texts": ["b"]}', 'either "text" .* or "texts"', None),
    "no field that is near": ('{"sentence": "a"}', 'either "text" .* or "texts"', None),
    "OpenAI's field": ('{"input": "a"}', "POST /v1/embeddings", "input"),
    "TEI's and ours": ('{"inputs": "a", "text": "a"}', 'either "text" .* or "texts"', None),
    "inputs is a number": ('{"inputs": 5}', "inputs is the number 5", "inputs"),
    "inputs is empty": ('{"inputs": []}', "inputs is empty", "inputs"),
    "inputs holds token ids": ('{"inputs": [[101, 102]]}', r"inputs\[0\] is a list, not a string", "inputs[0]"),
    "cut at the start": (
        '{"inputs": "a", "truncation_direction": "left"}',
        "truncation_direction is 'left', not 'right' or 'Right': .* leave it out",
        "truncation_direction",
    ),
    "special tokens": (
        '{"text": "a", "add_special_tokens": false}',
        "add_special_tokens is false, not true: .* leave it out",
        "add_special_tokens",
    ),
    "deep lists where other vectors are asked for": (
        f'{{"text": "a", "embedding_types": {"[" * 1000}{"]" * 1000}}}',
        r"embedding_types is a list, not \['float'\]",
        "embedding_types",
    ),
    "a prompt": (
        '{"inputs": "a", "prompt_name": "query"}',
        "prompt_name is 'query': this model has no prompts; leave",
        "prompt_name",
    ),
    "shorter vectors": ('{"inputs": "a", "dimensions": 256}', "dimensions is 256: .* have 384", "dimensions"),
    "dimensions is a boolean": ('{"inputs": "a", "dimensions": true}', "dimensions is a boolean", "dimensions"),
    "unknown encoding": (
        '{"text": "a", "encoding_format": "int8"}',
        "encoding_format is 'int8', not float or base64",
        "encoding_format",
    ),
    "encoding is a number": ('{"text": "a", "encoding_format": 1}', "is the number 1, not a string", "encoding_format"),
    "normalize is a number": ('{"text": "a", "normalize": 1}', "normalize is the number 1, not a boolean", "normalize"),
    "truncate is a string": ('{"text": "a", "truncate": "no"}', "truncate is 'no', not true, false", "truncate"),
    "truncate is a number": ('{"text": "a", "truncate": 1}', "truncate is the number 1, not true, false", "truncate"),
    "Cohere's cut at the start": ('{"texts": ["a"], "truncate": "START"}', "cut at their end", "truncate"),
    "a field with a surrogate alone": ('{"t\\ud800": 1}', 'either "text"', None),
    "near a name, with a surrogate": ('{"texts\\ud800": 1}', r"unknown field 'texts\\ud800': did you", "texts\ud800"),
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


NEAR_MISSES = {
    "txt": "text",
    "Text": "text",
    "tex": "text",
    "textes": "texts",
    "TEXTS": "texts",
    "normalise": "normalize",
    "norm": "normalize",
    "normalize_embeddings": "normalize",
    "trunkate": "truncate",
    "trunc": "truncate",
    "encoding": "encoding_format",
    "encodingFormat": "encoding_format",
    "encoding-format": "encoding_format",
    "dimension": "dimensions",
    "Inputs": "inputs",
    "promptName": "prompt_name",
    "prompts": "prompt",
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_of_a_name_of_ours_is_refused(app: ModuleType, name: str) -> None:
    """Beside a right field, and, of those that hold texts, alone."""
    requests: list[dict[str, Any]] = [{"text": "a", name: None}, {"texts": ["a"], name: False}]
    if NEAR_MISSES[name] in ("text", "texts", "inputs"):
        requests.append({name: "a"})
    for request in requests:
        error = error_of(app.lambda_handler(function_url_event(json.dumps(request)), None), 400)
        assert error["param"] == name
        assert f"unknown field '{name}': did you mean {NEAR_MISSES[name]}?" in error["message"]


HARMLESS = {
    **{"options": {"wait_for_model": True, "use_cache": True}, "raw_scores": False, "input_type": {"any": "thing"}},
    **{"task": "retrieval.query", "priority": 0, "user": 5, "metadata": {"a": "b"}, "timeout": 600, "stream": False},
    **{"extra_headers": {}, "drop_params": True, "service_tier": "auto", "store": False, "prompt_cache_key": None},
    **{"context": "a", "type": "b", "id": "c", "text_type": "document", "title": "d", "request_id": "e"},
}


@pytest.mark.parametrize("name", HARMLESS)
def test_fields_that_change_no_vector_are_named_and_counted(
    app: ModuleType, make_event: Callable[..., Any], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = {
        "/embed": {"text": "vitamin d"},
        "/": {"inputs": "vitamin d"},
        "/v1/embeddings": {"input": "vitamin d", "model": MODEL},
    }
    for path, request in requests.items():
        plain = app.lambda_handler(make_event(json.dumps(request), path=path), None)
        response = app.lambda_handler(make_event(json.dumps(request | {name: HARMLESS[name]}), path=path), None)
        assert vectors_of(response) == vectors_of(plain)
        known = name == "user" and path == "/v1/embeddings"
        assert response["headers"].get("x-ignored-fields") == (None if known else name)
        assert "x-ignored-fields" not in plain["headers"]
        line = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert line.get("ignored_fields") == (None if known else 1)


def vectors_of(response: dict[str, Any]) -> Any:
    """The vectors of an answer in any of the three forms."""
    body = body_of(response)
    if isinstance(body, dict):
        return body.get("embedding") or [row["embedding"] for row in body["data"]]
    return body


def test_the_header_of_ignored_fields_is_safe_and_short(app: ModuleType, make_event: Callable[..., Any]) -> None:
    fields = {"a\r\nx-injected: 1": 1, "größe, b": 1, "": 1, "\ud800": 1, "z" * 10_000: 1}
    response = app.lambda_handler(make_event(json.dumps({"text": "a"} | fields)), None)
    named = response["headers"]["x-ignored-fields"]
    assert named == f"a**x-injected**1, gr**e**b, *, *, {'z' * 40}"
    many = {"text": "a"} | {f"field_{number}": 1 for number in range(300_000)}
    named = app.lambda_handler(make_event(json.dumps(many)), None)["headers"]["x-ignored-fields"]
    assert named == ", ".join([*(f"field_{number}" for number in range(16)), "..."])


WOULD_CHANGE_VECTORS = [
    *(("dimensions", 256), ("output_dimension", 256), ("truncate_dim", 128), ("dimensions", 384.0)),
    *(("prompt_name", "query"), ("prompt_name", ""), ("prompt", "query: "), ("prompt", 5)),
    ("instruction", "Represent"),
    *(("truncation_direction", "left"), ("truncation_direction", "Left"), ("truncation_side", "left")),
    *(("truncate_prompt_tokens", 255), ("truncate_prompt_tokens", 0), ("truncate_prompt_tokens", -2)),
    *(("truncate_prompt_tokens", True), ("truncate_prompt_tokens", "256"), ("truncation", False)),
    *(("add_special_tokens", False), ("add_special_tokens", 1), ("late_chunking", True), ("late_chunking", 0)),
    *(("normalized", False), ("use_activation", False), ("output_dtype", "int8"), ("embedding_type", "binary")),
    *(("embedding_types", ["float", "int8"]), ("embed_dtype", "bfloat16"), ("endianness", "big")),
    *(("truncate", "START"), ("normalize", "no"), ("encoding_format", "hex"), ("model", "text-embedding-3-small")),
]


@pytest.mark.parametrize(("name", "value"), WOULD_CHANGE_VECTORS)
def test_fields_that_would_change_vectors_are_refused_in_each_form(app: ModuleType, name: str, value: Any) -> None:
    forms = {"text": "/embed", "texts": "/embed", "inputs": "/embed", "input": "/v1/embeddings"}
    for field, path in forms.items():
        request = {field: ["a"] if field == "texts" else "a"} | ({"model": MODEL} if field == "input" else {})
        response = app.lambda_handler(function_url_event(json.dumps(request | {name: value}), path=path), None)
        error = error_of(response, 404 if name == "model" else 400)
        assert error["param"] == name
        assert re.search(f"{name} is |the model ", error["message"])


CHANGE_NOTHING = [
    *(("dimensions", 384), ("dimensions", None), ("output_dimension", 384), ("truncate_dim", None)),
    *(("prompt_name", None), ("prompt", ""), ("instruction", None), ("truncation_direction", "Right")),
    *(("truncation_direction", None), ("truncation_side", "right"), ("truncation", True), ("normalized", True)),
    *(("truncate_prompt_tokens", None), ("truncate_prompt_tokens", -1), ("truncate_prompt_tokens", 256)),
    *(("truncate_prompt_tokens", 8192), ("add_special_tokens", True), ("late_chunking", False)),
    *(("use_activation", True), ("output_dtype", "float"), ("embedding_type", "float"), ("embedding_types", ["float"])),
    *(("embed_dtype", "float32"), ("endianness", "native"), ("endianness", "little"), ("truncate", "END")),
    *(("truncate", "NONE"), ("normalize", True), ("encoding_format", None), ("model", "all-minilm-l6-v2")),
]


@pytest.mark.parametrize(("name", "value"), CHANGE_NOTHING)
def test_values_that_change_no_vector_are_accepted_in_each_form(app: ModuleType, name: str, value: Any) -> None:
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/embed", {"text": "vitamin d"}),
        ("/embed", {"inputs": "vitamin d"}),
        ("/v1/embeddings", {"input": "vitamin d", "model": MODEL}),
    ]
    for path, request in requests:
        plain = app.lambda_handler(function_url_event(json.dumps(request), path=path), None)
        response = app.lambda_handler(function_url_event(json.dumps(request | {name: value}), path=path), None)
        assert vectors_of(response) == vectors_of(plain)
        assert "x-ignored-fields" not in response["headers"]


def test_coheres_truncate_none_forbids_cutting(app: ModuleType) -> None:
    for value, status in (("NONE", 400), ("END", 200)):
        event = function_url_event(json.dumps({"texts": [LONG], "truncate": value}))
        assert app.lambda_handler(event, None)["statusCode"] == status


@pytest.mark.parametrize("inputs", ["vitamin d", ["vitamin d", "b"]])
def test_parameters_of_hugging_faces_inference_api_count(
    app: ModuleType, int8: Embedder, inputs: str | list[str]
) -> None:
    """Its clients nest what text-embeddings-inference has beside `inputs`."""
    request = {"inputs": inputs, "parameters": {"normalize": False, "top_k": 5}, "options": {"use_cache": False}}
    response = app.lambda_handler(function_url_event(json.dumps(request)), None)
    ids = int8.tokenize([inputs] if isinstance(inputs, str) else inputs).ids
    np.testing.assert_array_equal(np.float32(body_of(response)), int8.embed_tokens(ids, normalize=False))
    assert response["headers"]["x-ignored-fields"] == "top_k, options"
    for parameters, param in (({"truncation_direction": "left"}, "truncation_direction"), (5, "parameters")):
        event = function_url_event(json.dumps({"inputs": "a", "parameters": parameters}))
        assert error_of(app.lambda_handler(event, None), 400)["param"] == param
    nothing: tuple[dict[str, Any] | None, ...] = (None, {})
    for empty in nothing:
        event = function_url_event(json.dumps({"inputs": inputs, "parameters": empty}))
        assert app.lambda_handler(event, None)["statusCode"] == 200


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


OTHER_PATHS = (
    *("/Embed", "/v2/embed", "/\ud800", "/embed/x", "/x/embed", "/v1/embeddings/x", "/openai/deployments/embeddings"),
    *("/openai/deployments", f"/openai/deployments/{MODEL}", f"/openai/deployments/{MODEL}/completions", "/%ff", "/%"),
)


@pytest.mark.parametrize("path", OTHER_PATHS)
def test_other_paths_are_404(app: ModuleType, make_event: Callable[..., Any], path: str) -> None:
    assert error_of(app.lambda_handler(make_event("{}", path=path), None), 404)["code"] == "unknown_route"


OTHER_SPELLINGS = {
    "/embed": ["/embed/", "//embed", "/embed//", "/v1/embed", "/%65mbed"],
    "/v1/embeddings": [
        *("/v1//embeddings", "//v1/embeddings/", "/embeddings", "/v1/v1/embeddings", "/v1/embeddings/"),
        *("/openai/v1/embeddings", "/openai/deployments/all-MiniLM-L6-v2/embeddings", "/openai/embeddings"),
        *(f"/openai/deployments/{MODEL}/embeddings", "/openai/deployments/huggingface%2fall-minilm-l6-v2/embeddings"),
    ],
    "/v1/models": ["/models", "/v1/models/", "/v1/v1/models", "/openai/v1/models"],
    "/v1/models/all-MiniLM-L6-v2": [
        *("/models/all-MiniLM-L6-v2", "/v1//models/all-MiniLM-L6-v2/", f"/v1/models/{MODEL}"),
        *("/v1/models/sentence-transformers%2Fall-MiniLM-L6-v2", "/v1/models/sentence-transformers%2fall-MiniLM-L6-v2"),
        *("/v1/models/openai/all-minilm-l6-v2", "/v1/models/sentence-transformers//all-MiniLM-L6-v2"),
    ],
    "/health": ["/health/", "/v1/health"],
    "/": ["", "//", "/v1", "/v1/"],
}


@pytest.mark.parametrize("path", OTHER_SPELLINGS)
def test_paths_as_clients_spell_them(app: ModuleType, make_event: Callable[..., Any], path: str) -> None:
    post = {"/embed": {"text": "a"}, "/": {"inputs": "a"}, "/v1/embeddings": {"input": "a", "model": MODEL}}
    body, method = (json.dumps(post[path]), "POST") if path in post else (None, "GET")
    plain = app.lambda_handler(make_event(body, path=path, method=method), None)
    assert plain["statusCode"] == 200
    for spelling in OTHER_SPELLINGS[path]:
        response = app.lambda_handler(make_event(body, path=spelling, method=method), None)
        assert response["statusCode"] == 200, spelling
        if path != "/embed":  # whose answers tell their latency
            assert response["body"] == plain["body"], spelling


METHODS = {
    "/embed": "POST, OPTIONS",
    "/v1/embeddings": "POST, OPTIONS",
    "/v1/models": "GET, HEAD, OPTIONS",
    "/v1/models/all-MiniLM-L6-v2": "GET, HEAD, OPTIONS",
    "/health": "GET, HEAD, OPTIONS",
    "/": "GET, POST, HEAD, OPTIONS",
}


@pytest.mark.parametrize("path", METHODS)
def test_methods(app: ModuleType, make_event: Callable[..., Any], path: str) -> None:
    response = app.lambda_handler(make_event(None, path=path, method="OPTIONS"), None)
    assert (response["statusCode"], response["headers"]["allow"], response["body"]) == (204, METHODS[path], "")
    for method in {"GET", "PUT", "DELETE", "PATCH", "TRACE", "get", "\ud800"} - set(METHODS[path].split(", ")):
        response = app.lambda_handler(make_event(None, path=path, method=method), None)
        assert error_of(response, 405)["code"] == "method_not_allowed"
        assert response["headers"]["allow"] == METHODS[path]


@pytest.mark.parametrize(
    "path", ["/health", "/info", "/docs", "/openapi.json", "/v1/models", "/", "/v1/models/x", "/x"]
)
def test_head_is_get_without_the_body(app: ModuleType, make_event: Callable[..., Any], path: str) -> None:
    get, head = (app.lambda_handler(make_event(None, path=path, method=method), None) for method in ("GET", "HEAD"))
    assert head == get | {"body": ""}
    assert get["statusCode"] == (404 if "x" in path.split("/") else 200)
    assert get["body"]


def test_errors_to_head_have_no_body(load_app: LoadApp, make_event: Callable[..., Any], tmp_path: Path) -> None:
    app = load_app(MODEL_CACHE_DIR=str(tmp_path))
    for path, status in (("/embed", 405), ("/health", 503), ("/v1/models/x", 503)):
        head = app.lambda_handler(make_event(None, path=path, method="HEAD"), None)
        assert (head["statusCode"], head["body"]) == (status, "")
        assert head["headers"]["content-type"] == "application/json"


def test_health_is_ok_once_the_model_is_loaded(app: ModuleType, make_event: Callable[..., Any]) -> None:
    assert body_of(app.lambda_handler(make_event(None, path="/health", method="GET"), None)) == {"status": "ok"}


def test_health_reports_why_the_model_cannot_be_loaded(load_app: LoadApp, tmp_path: Path, model_folder: Path) -> None:
    app = load_app(MODEL_CACHE_DIR=str(tmp_path))
    event = function_url_event(None, path="/health", method="GET")
    response = app.lambda_handler(event, None)
    assert str(tmp_path) in error_of(response, 503)["message"]
    assert int(response["headers"]["retry-after"]) > 0
    (tmp_path / "all-MiniLM-L6-v2").symlink_to(model_folder)
    assert app.lambda_handler(event, None)["statusCode"] == 200


def test_info_tells_what_is_served(app: ModuleType, make_event: Callable[..., Any], int8: Embedder) -> None:
    info = body_of(app.lambda_handler(make_event(None, path="/info", method="GET"), None))
    assert (info["model"], info["artifact_version"]) == (MODEL, int8.manifest.version)
    assert (info["precision"], info["dimensions"], info["max_tokens"]) == ("int8", 384, 256)
    assert info["parity"] == int8.manifest.precisions["int8"].parity._asdict()
    assert info["limits"]["texts_float"] == max_texts(384)
    assert info["instructions"] == OF_THIS_CPU[0]
    assert info["versions"]["onnxruntime"] == int8.manifest.tools["onnxruntime"]


def test_the_docs_page_asks_nobody_else(app: ModuleType, make_event: Callable[..., Any]) -> None:
    response = app.lambda_handler(make_event(None, path="/docs", method="GET"), None)
    assert response["headers"]["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response["headers"]["content-security-policy"]
    assert "connect-src 'self'" in response["headers"]["content-security-policy"]


def test_the_stage_of_an_http_api_is_not_part_of_the_path(app: ModuleType) -> None:
    event = function_url_event('{"text": "a"}', path="/prod/embed")
    assert app.lambda_handler(event, None)["statusCode"] == 404
    event["requestContext"]["stage"] = "prod"
    assert app.lambda_handler(event, None)["statusCode"] == 200


CORS = "access-control-allow-origin"


@pytest.mark.parametrize(
    ("setting", "origin", "allowed"),
    [
        ("", "https://a.example", None),
        ("*", "https://a.example", "*"),
        ("https://a.example", "https://a.example", "https://a.example"),
        ("https://b.example, https://a.example", "https://a.example", "https://a.example"),
        ("https://b.example", "https://a.example", None),
        ("https://b.example", None, None),
    ],
)
def test_browsers_of_configured_origins_may_read(
    load_app: LoadApp, make_event: Callable[..., Any], setting: str, origin: str | None, allowed: str | None
) -> None:
    app = load_app(CORS_ORIGIN=setting)
    for method, body, status in (("OPTIONS", None, 204), ("POST", '{"text": "a"}', 200), ("POST", "{", 400)):
        event = make_event(body, method=method)
        if origin:
            event["headers"]["origin"] = origin
        response = app.lambda_handler(event, None)
        assert response["statusCode"] == status
        assert response["headers"].get(CORS) == allowed
        assert ("access-control-allow-headers" in response["headers"]) is (allowed is not None)
        vary = "origin, access-control-request-headers" if method == "OPTIONS" else "origin"
        assert response["headers"].get("vary") == (vary if setting else None)


ASKED = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os"


def preflight(make_event: Callable[..., Any], path: str, *asked: str) -> Any:
    """As a browser sends it: HTTP/1.1 with capitals, which a REST API passes on."""
    capitals = make_event is rest_api_event
    event = make_event(None, path=path, method="OPTIONS")
    names = ("Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers")
    values = ("https://a.example", "POST", *asked)
    event["headers"] |= {name if capitals else name.lower(): value for name, value in zip(names, values, strict=False)}
    return event


def test_a_preflight_is_answered_with_the_headers_asked_for(load_app: LoadApp, make_event: Callable[..., Any]) -> None:
    app = load_app(CORS_ORIGIN="https://a.example")
    response = app.lambda_handler(preflight(make_event, "/v1/embeddings", ASKED), None)
    assert response["statusCode"] == 204
    assert response["headers"]["access-control-allow-headers"] == ASKED
    assert response["headers"]["vary"] == "origin, access-control-request-headers"


@pytest.mark.parametrize("asked", [(), ("",), ("x-a\r\nx-b: c",), ("x-ä",), ("x-\ud800",)])
def test_a_preflight_that_asks_for_no_headers_is_told_of_the_usual_ones(
    load_app: LoadApp, make_event: Callable[..., Any], asked: tuple[str, ...]
) -> None:
    response = load_app(CORS_ORIGIN="*").lambda_handler(preflight(make_event, "/embed", *asked), None)
    assert response["headers"]["access-control-allow-headers"] == "authorization, content-type, x-api-key"


def test_a_page_gets_to_read_that_there_is_no_such_route(load_app: LoadApp, make_event: Callable[..., Any]) -> None:
    """A browser sends no request after a preflight that was refused, and tells its page nothing."""
    app = load_app(CORS_ORIGIN="https://a.example")
    response = app.lambda_handler(preflight(make_event, "/v2/embeddings", ASKED), None)
    assert (response["statusCode"], response["headers"][CORS]) == (204, "https://a.example")
    event = make_event("{}", path="/v2/embeddings")
    event["headers"]["origin"] = "https://a.example"
    response = app.lambda_handler(event, None)
    assert (error_of(response, 404)["code"], response["headers"][CORS]) == ("unknown_route", "https://a.example")
    assert app.lambda_handler(make_event(None, path="/v2/embeddings", method="OPTIONS"), None)["statusCode"] == 404


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_more_texts_than_a_response_holds_are_413(app: ModuleType, encoding: str) -> None:
    limit = max_texts(384, encoding)
    request = {"texts": ["a"] * (limit + 1), "encoding_format": encoding}
    error = error_of(app.lambda_handler(function_url_event(json.dumps(request)), None), 413)
    assert (error["code"], error["param"]) == ("too_large", "texts")
    assert str(limit) in error["message"]
    assert ("2048 with encoding_format base64" in error["message"]) is (encoding == "float")


def test_limits_of_bytes_texts_and_characters_are_413(app: ModuleType, make_event: Callable[..., Any]) -> None:
    def refused(body: str, encoded: bool = False) -> str:
        return error_of(app.lambda_handler(make_event(body, encoded=encoded), None), 413)["message"]

    assert "the body has" in refused('{"text": "' + "a" * MAX_REQUEST_BYTES + '"}')
    assert "the body has" in refused("A" * (MAX_REQUEST_BYTES * 4 // 3 + 4), encoded=True)
    assert f"the limit is {MAX_TEXTS}" in refused(json.dumps({"texts": ["a"] * (MAX_TEXTS + 1)}))
    too_long = "a" * (MAX_TEXT_CHARACTERS + 1)
    assert f"texts[1] has {len(too_long)} characters" in refused(json.dumps({"texts": ["a", too_long]}))
    assert app.lambda_handler(make_event(json.dumps({"text": too_long[1:]})), None)["statusCode"] == 200


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_as_many_texts_as_allowed_fit(app: ModuleType, path: str, encoding: str) -> None:
    texts = [f"{HOSTILE[index % 20]} {index}" for index in range(max_texts(384, encoding))]
    request = {"texts": texts} if path == "/embed" else {"input": texts, "model": MODEL}
    body = json.dumps(request | {"encoding_format": encoding})
    response = app.lambda_handler(function_url_event(body, path=path), None)
    found = body_of(response)["embeddings" if path == "/embed" else "data"]
    assert len(found) == len(texts)
    assert len(json.dumps(response)) < 6 * 1024 * 1024


def test_a_response_that_came_out_too_large_is_413(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_RESPONSE_BYTES", 4000)
    error = error_of(app.lambda_handler(function_url_event('{"text": "vitamin d"}'), None), 413)
    assert "send fewer texts" in error["message"]


def test_missing_model_is_503_and_tried_again(
    load_app: LoadApp, tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = load_app(MODEL_CACHE_DIR=str(tmp_path))
    assert "model not loaded: no model in" in capsys.readouterr().out
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


def test_a_fault_of_ours_is_a_500_that_tells_nothing(
    app: ModuleType, monkeypatch: pytest.MonkeyPatch, make_event: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a secret path")

    monkeypatch.setattr(service, "embed", fail)
    response = app.lambda_handler(make_event('{"text": "a"}'), None)
    error = error_of(response, 500)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "secret" not in response["body"]
    incident, line = map(json.loads, capsys.readouterr().out.splitlines()[-2:])
    assert incident["incident"] == "ZeroDivisionError"
    assert "a secret path" in incident["traceback"]
    assert incident["request_id"] == line["request_id"] == REQUEST_ID
    assert (line["status"], line["server_errors"]) == (500, 1)
    with pytest.raises(ZeroDivisionError):
        app.lambda_handler({"text": "a"}, None)


def test_errors_have_documented_statuses() -> None:
    assert {status.status for status in STATUS.values()} == {400, 404, 405, 413, 415, 500, 503}
    assert all((status.retry_after is not None) == (status.status == 503) for status in STATUS.values())
    assert all((status.type == "server_error") == (status.status >= 500) for status in STATUS.values())
