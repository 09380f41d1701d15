"""The OpenAPI document says what the handler does. tests/test_schemathesis.py checks answers against its schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from handler import limits, requests, validation
from handler.errors import STATUS
from tests.support.events import LoadApp, body_of, function_url_event
from tests.support.servers import ROOT

FILE = ROOT / "handler" / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(FILE.read_bytes())
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = [(path, method.upper()) for path, methods in DOCUMENT["paths"].items() for method in methods]
ANSWER_FIELDS = {"text": "TextResponse", "texts": "TextsResponse", "input": "EmbeddingsResponse"}
"""Field of a request -> schema of the answer; the answer to `inputs` is an array."""


def examples() -> Iterator[Any]:
    """Each example of a request, with the path that it is for."""
    for path, methods in DOCUMENT["paths"].items():
        for operation in methods.values():
            for media in operation.get("requestBody", {}).get("content", {}).values():
                named = media.get("examples") or {"example": {"value": media["example"]}}
                for name, example in named.items():
                    yield pytest.param(path, example["value"], id=f"{path} {name}")


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """All objects of the document."""
    if isinstance(node, dict):
        yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(inner)


def resolve(reference: str) -> Any:
    """What a JSON pointer into the document (RFC 6901) points to. Raises KeyError."""
    assert reference.startswith("#/"), f"{reference} leaves the document"
    found = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


@pytest.fixture
def app(load_app: LoadApp) -> ModuleType:
    return load_app()


def get(app: ModuleType, path: str) -> dict[str, Any]:
    response: dict[str, Any] = app.lambda_handler(function_url_event(None, path=path, method="GET"), None)
    return response


def test_the_document_is_served_as_it_lies_in_the_file(app: ModuleType) -> None:
    response = get(app, "/openapi.json")
    assert body_of(response) == DOCUMENT
    assert response["body"].encode() == FILE.read_bytes()


def test_no_name_occurs_twice_in_an_object() -> None:
    def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs), [name for name, _ in pairs]
        return dict(pairs)

    json.loads(FILE.read_bytes(), object_pairs_hook=refuse_repeats)


def test_it_is_openapi_3_1() -> None:
    assert re.fullmatch(r"3\.1\.\d+", DOCUMENT["openapi"])
    assert {"title", "version"} <= set(DOCUMENT["info"])
    operations = [operation for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert all(operation["responses"] for operation in operations)
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    for path, methods in DOCUMENT["paths"].items():
        for operation in methods.values():
            declared = {entry["name"] for entry in operation.get("parameters", []) if entry["in"] == "path"}
            assert declared == set(re.findall(r"{(.+?)}", path))


def test_references_lead_somewhere_and_nothing_is_left_over() -> None:
    references = {node["$ref"] for node in nodes(DOCUMENT) if "$ref" in node}
    assert all(isinstance(resolve(reference), dict) for reference in references)
    defined = {f"#/components/{kind}/{name}" for kind, named in DOCUMENT["components"].items() for name in named}
    assert defined == references


def test_objects_require_only_fields_that_they_have() -> None:
    for node in nodes(SCHEMAS):
        if isinstance(node.get("properties"), dict):
            assert set(node.get("required", [])) <= set(node["properties"])


def test_routes_and_methods_are_the_handlers(app: ModuleType) -> None:
    routes = {(path, method) for path, methods in app.ROUTES.items() for method in methods}
    assert {(path.replace("{model}", ""), method) for path, method in OPERATIONS} == routes


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_allow_names_the_methods_of_a_path(app: ModuleType, path: str, method: str) -> None:
    event = function_url_event(None, path=path.replace("{model}", "all-MiniLM-L6-v2"), method="OPTIONS")
    allowed = set(app.lambda_handler(event, None)["headers"]["allow"].split(", "))
    assert allowed - {"HEAD", "OPTIONS"} == {name for other, name in OPERATIONS if other == path}
    assert ("HEAD" in allowed) is ("GET" in allowed)
    assert method in allowed


@pytest.mark.parametrize(("path", "request_fields"), [*examples()])
def test_examples_are_answered(app: ModuleType, path: str, request_fields: dict[str, Any]) -> None:
    answer = body_of(app.lambda_handler(function_url_event(json.dumps(request_fields), path=path), None))
    if "inputs" in request_fields:
        assert isinstance(answer, list)
        return
    schema = SCHEMAS[next(name for field, name in ANSWER_FIELDS.items() if field in request_fields)]
    assert set(schema["required"]) <= set(answer) <= set(schema["properties"])


@pytest.mark.parametrize("path", [path for path, method in OPERATIONS if method == "GET"])
def test_gets_are_answered_in_the_documented_type(app: ModuleType, path: str) -> None:
    parameters = DOCUMENT["paths"][path]["get"].get("parameters", [])
    response = get(app, path.format(**{entry["name"]: entry["example"] for entry in parameters}))
    assert response["statusCode"] == 200
    (media,) = DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]
    assert response["headers"]["content-type"].partition(";")[0] == media


def test_info_has_the_fields_of_its_schema(app: ModuleType) -> None:
    info = body_of(get(app, "/info"))
    schema = SCHEMAS["Info"]
    assert set(info) == set(schema["required"]) == set(schema["properties"])
    for part in ("parity", "limits"):
        known = schema["properties"][part]
        assert set(info[part]) == set(known["required"]) == set(known["properties"])


def test_errors_are_the_handlers() -> None:
    fields = SCHEMAS["Error"]["properties"]["error"]["properties"]
    assert set(fields["code"]["enum"]) == {status.code for status in STATUS.values()}
    assert len(fields["code"]["enum"]) == len(STATUS)
    assert set(fields["type"]["enum"]) == {status.type for status in STATUS.values()}


def test_each_operation_has_the_statuses_that_it_can_answer() -> None:
    """405 belongs to the methods that are not in the document, and the 404 of an unknown route to no path of it."""
    for path, method in OPERATIONS:
        expected = {"200", "500"}
        if path not in ("/docs", "/openapi.json") and (path, method) != ("/", "GET"):
            expected |= {"503"}
        if method == "POST":
            expected |= {"400", "413", "415"}
        if method == "POST" or path == "/v1/models/{model}":
            expected |= {"404"}
        assert set(DOCUMENT["paths"][path][method.lower()]["responses"]) == expected, (path, method)


def test_limits_are_the_handlers() -> None:
    texts = SCHEMAS["TextsRequest"]["properties"]["texts"]
    inputs = SCHEMAS["InputsRequest"]["properties"]["inputs"]
    openai = SCHEMAS["EmbeddingsRequest"]["properties"]["input"]
    lists = [form for form in (*inputs["anyOf"], *openai["anyOf"]) if "maxItems" in form]
    assert [texts["maxItems"], *(form["maxItems"] for form in lists)] == [limits.MAX_TEXTS] * 4
    assert limits.max_texts(384, "base64") == limits.MAX_TEXTS
    bodies = [schema for name, schema in SCHEMAS.items() if name.endswith("Request")]
    lengths = [node["maxLength"] for node in nodes(bodies) if "maxLength" in node]
    assert lengths == [limits.MAX_TEXT_CHARACTERS] * 6
    assert (
        f"up to {limits.MAX_PROMPT_CHARACTERS:,} characters"
        in SCHEMAS["Options"]["properties"]["prompt"]["description"]
    )
    words = f"at most {limits.max_texts(384):,}, or {limits.MAX_TEXTS:,} as base64"
    assert all(words in field["description"] for field in (texts, inputs, openai))


def test_options_are_the_handlers() -> None:
    options = SCHEMAS["Options"]["properties"]
    assert set(options) == {*requests.OPTIONS, *validation.VECTOR_FIELDS}
    for field, values in validation.VECTOR_FIELDS.items():
        assert options[field].get("enum", [None]) == [*values, None]
    assert [options[field]["enum"] for field in requests.SIZES] == [[384, None]] * len(requests.SIZES)
    for name in ("TextRequest", "TextsRequest", "InputsRequest", "EmbeddingsRequest"):
        assert SCHEMAS[name]["allOf"] == [{"$ref": "#/components/schemas/Options"}]


def test_encodings_and_dimensions_are_the_handlers() -> None:
    for node in nodes(SCHEMAS):
        if isinstance(node.get("encoding_format"), dict):
            assert node["encoding_format"]["enum"] == [*limits.ENCODINGS, None]
    numbers, coded = SCHEMAS["Vector"]["oneOf"]
    assert numbers["minItems"] == numbers["maxItems"] == 384
    assert coded["minLength"] == coded["maxLength"] == 384 * 4 * 4 // 3
