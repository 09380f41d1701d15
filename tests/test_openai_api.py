"""OpenAI's contract, inside the handler; tests/test_clients.py shows it with real clients."""

import base64
import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from handler.embedder import Embedder
from handler.limits import MAX_TEXTS, MAX_TOKEN_IDS
from tests.support.events import LONG, MODEL, LoadApp, body_of, error_of, function_url_event

TEXTS = ["a longer sentence that comes first", "b", "größe 🙂"]


@pytest.fixture(scope="module")
def token_ids(int8: Embedder) -> list[list[int]]:
    return int8.tokenize(TEXTS).ids


@pytest.fixture
def app(load_app: LoadApp) -> ModuleType:
    return load_app()


def post(app: ModuleType, fields: dict[str, Any]) -> dict[str, Any]:
    return app.lambda_handler(function_url_event(json.dumps(fields), path="/v1/embeddings"), None)


def get(app: ModuleType, path: str) -> dict[str, Any]:
    return app.lambda_handler(function_url_event(None, path=path, method="GET"), None)


def vectors_of(body: dict[str, Any]) -> np.ndarray:
    return np.array([row["embedding"] for row in body["data"]], np.float32)


def test_a_list_of_embeddings(app: ModuleType, int8: Embedder) -> None:
    expected = int8.embed(TEXTS)
    body = body_of(post(app, {"input": TEXTS, "model": MODEL, "user": "u", "dimensions": 384}))
    assert set(body) == {"object", "data", "model", "usage"}
    assert (body["object"], body["model"]) == ("list", MODEL)
    assert [(row["object"], row["index"]) for row in body["data"]] == [("embedding", index) for index in range(3)]
    np.testing.assert_array_equal(vectors_of(body), expected.vectors)
    assert body["usage"] == {"prompt_tokens": sum(expected.tokens), "total_tokens": sum(expected.tokens)}


def test_base64_is_little_endian_float32(app: ModuleType, int8: Embedder) -> None:
    body = body_of(post(app, {"input": TEXTS[0], "model": "all-MiniLM-L6-v2", "encoding_format": "base64"}))
    (row,) = body["data"]
    vector = np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
    np.testing.assert_array_equal(vector, int8.embed(TEXTS[:1]).vectors[0])


def test_token_ids_of_this_model_are_embedded(app: ModuleType, int8: Embedder, token_ids: list[list[int]]) -> None:
    expected = int8.embed(TEXTS)
    body = body_of(post(app, {"input": token_ids, "model": MODEL}))
    np.testing.assert_array_equal(vectors_of(body), expected.vectors)
    assert body["usage"]["total_tokens"] == sum(expected.tokens)
    (row,) = body_of(post(app, {"input": token_ids[0], "model": MODEL}))["data"]
    np.testing.assert_array_equal(np.array(row["embedding"], np.float32), expected.vectors[0])


@pytest.mark.parametrize(
    "content",
    [
        [9906, 1917],  # cl100k_base's "Hello world", whose ids this vocabulary has too
        [[9906, 1917]],
        [[101, 7592, 102], [9906, 1917]],
        [[101, 100257, 102]],
        [[101, -5, 102]],
        [[101, 2**63, 102]],
    ],
)
def test_token_ids_of_another_vocabulary_are_refused_with_the_remedy(app: ModuleType, content: list[Any]) -> None:
    error = error_of(post(app, {"input": content, "model": MODEL}), 400)
    assert error["param"] == "input"
    assert "check_embedding_ctx_length=False" in error["message"]


@pytest.mark.parametrize("count", [256, 257, 302, MAX_TOKEN_IDS])
def test_token_ids_are_cut_as_text_is(app: ModuleType, int8: Embedder, count: int) -> None:
    text = "word " * (count - 2)
    (word,) = int8.tokenize(["word"]).ids
    ids = [word[0], *[word[1]] * (count - 2), word[2]]
    cut = [1] if count > 256 else []
    expected = int8.embed(["a", text])
    assert expected.truncated == cut
    response = post(app, {"input": [int8.tokenize(["a"]).ids[0], ids], "model": MODEL})
    body = body_of(response)
    np.testing.assert_array_equal(vectors_of(body), expected.vectors)
    assert body["usage"]["total_tokens"] == sum(expected.tokens)
    assert body.get("truncated", []) == cut
    assert response["headers"].get("x-truncated-texts") == ("1" if cut else None)
    if cut:
        messages = [
            error_of(post(app, {"input": content, "model": MODEL, "truncate": False}), 400)
            for content in (["a", text], [int8.tokenize(["a"]).ids[0], ids])
        ]
        assert messages[0] == messages[1]
        assert f"input[1] has {count}" in messages[1]["message"]
        assert messages[1]["code"] == "text_too_long"


def test_arrays_over_the_limit_are_told_so_before_their_ids_are_looked_at(app: ModuleType) -> None:
    arrays = [[9906, 1917], [101, *[7592] * MAX_TOKEN_IDS, 102]]
    error = error_of(post(app, {"input": arrays, "model": MODEL}), 413)
    assert (error["code"], error["param"]) == ("too_large", "input[1]")
    assert f"input[1] has {MAX_TOKEN_IDS + 2} token ids, the limit is {MAX_TOKEN_IDS}: send it" in error["message"]


@pytest.mark.real_model
@pytest.mark.parametrize("last", [102, 2102])  # of this model, and not
def test_token_ids_are_read_under_the_deadline(app: ModuleType, last: int) -> None:
    class Context:
        aws_request_id = "one"

        def get_remaining_time_in_millis(self) -> float:
            return 1000 * app.RESERVED_SECONDS + 150

    arrays = [[101, *[7592] * 600, 102]] * (MAX_TEXTS - 1) + [[101, 7592, last]]
    fields = {"input": arrays, "model": MODEL, "encoding_format": "base64"}
    event = function_url_event(json.dumps(fields, separators=(",", ":")), path="/v1/embeddings")
    error = error_of(app.lambda_handler(event, Context()), 413)
    assert (error["code"], error["param"]) == ("too_many_tokens", None)
    assert "cannot even be split into tokens" in error["message"]


def test_truncation_is_told(app: ModuleType) -> None:
    response = post(app, {"input": ["a", LONG], "model": MODEL})
    body = body_of(response)
    assert body["truncated"] == [1]
    assert body["usage"]["total_tokens"] == 3 + 256
    assert response["headers"]["x-truncated-texts"] == "1"
    error = error_of(post(app, {"input": ["a", LONG], "model": MODEL, "truncate": False}), 400)
    assert (error["code"], error["param"]) == ("text_too_long", "input[1]")
    assert "input[1] has 302" in error["message"]


INVALID: dict[str, tuple[dict[str, Any], str, str]] = {
    "no input": ({"model": MODEL}, "input is missing", "input"),
    "null input": ({"input": None, "model": MODEL}, "input is missing", "input"),
    "no model": ({"input": "a"}, "model is missing", "model"),
    "model is a number": ({"input": "a", "model": 3}, "model is the number 3", "model"),
    "empty text": ({"input": "", "model": MODEL}, "input is an empty string", "input"),
    "an empty text": ({"input": ["a", ""], "model": MODEL}, "input[1] is an empty string", "input[1]"),
    "empty list": ({"input": [], "model": MODEL}, "input is empty", "input"),
    "empty token array": ({"input": [[101, 102], []], "model": MODEL}, "input[1] is empty", "input[1]"),
    "an object": ({"input": {"a": 1}, "model": MODEL}, "input is an object", "input"),
    "texts and tokens": ({"input": ["a", 5], "model": MODEL}, "input[1] is the number 5, not a string", "input[1]"),
    "tokens and texts": ({"input": [5, "a"], "model": MODEL}, "input[1] is a string, not a token id", "input[1]"),
    "arrays and tokens": ({"input": [[5], 5], "model": MODEL}, "input[1] is the number 5, not an array", "input[1]"),
    "a text among tokens": ({"input": [[5, "a"]], "model": MODEL}, "input[0][1] is a string", "input[0][1]"),
    "a fraction": ({"input": [[5, 1.5]], "model": MODEL}, "input[0][1] is the number 1.5", "input[0][1]"),
    "a boolean": ({"input": [True], "model": MODEL}, "input[0] is a boolean", "input[0]"),
    "null": ({"input": [None], "model": MODEL}, "input[0] is null", "input[0]"),
    "dimensions": ({"input": "a", "model": MODEL, "dimensions": 256}, "dimensions is 256", "dimensions"),
    "encoding": ({"input": "a", "model": MODEL, "encoding_format": "hex"}, "not float or base64", "encoding_format"),
    "model is null": ({"input": "a", "model": None}, "model is missing", "model"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_requests_are_400(app: ModuleType, name: str) -> None:
    fields, message, param = INVALID[name]
    error = error_of(post(app, fields), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]


def test_other_models_are_404(app: ModuleType) -> None:
    for response in (
        post(app, {"input": "a", "model": "text-embedding-3-small"}),
        get(app, "/v1/models/text-embedding-3-small"),
    ):
        error = error_of(response, 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert f"set model to {MODEL}" in error["message"]


@pytest.mark.parametrize(
    "prefix",
    [
        *("openai/", "huggingface/", "text-embeddings-inference/", "hosted_vllm/", "custom_openai/", "azure/"),
        *("openai/sentence-transformers/", "openrouter/huggingface/sentence-transformers/", ""),
    ],
)
def test_prefixes_that_routers_leave_on_and_other_case_are_accepted(app: ModuleType, prefix: str) -> None:
    for name in ("all-MiniLM-L6-v2", "all-minilm-l6-v2", "ALL-MINILM-L6-V2"):
        assert body_of(post(app, {"input": "a", "model": prefix + name}))["model"] == MODEL
        assert body_of(get(app, f"/v1/models/{prefix}{name}"))["id"] == MODEL


@pytest.mark.parametrize(
    "name", ["", "/", "all-MiniLM-L6-v2/", "sentence-transformers", "all-MiniLM-L12-v2", "openai/all-mpnet-base-v2"]
)
def test_a_name_that_ends_in_another_models_is_404(app: ModuleType, name: str) -> None:
    error = error_of(post(app, {"input": "a", "model": name}), 404)
    assert f"set model to {MODEL}" in error["message"]


def azure(app: ModuleType, deployment: str, fields: dict[str, Any]) -> dict[str, Any]:
    path = f"/openai/deployments/{deployment}/embeddings"
    return app.lambda_handler(function_url_event(json.dumps(fields), path=path), None)


def test_azures_deployment_is_the_models_name(app: ModuleType) -> None:
    """Whatever the body names: there LangChain's AzureOpenAIEmbeddings has the model that it would count tokens for."""
    for deployment in ("all-MiniLM-L6-v2", MODEL, "openai%2Fall-minilm-l6-v2"):
        for fields in ({"input": "a"}, {"input": "a", "model": "text-embedding-ada-002"}):
            assert body_of(azure(app, deployment, fields))["model"] == MODEL
    error = error_of(azure(app, "text-embedding-3-small", {"input": "a", "model": MODEL}), 404)
    assert "'text-embedding-3-small' is not served" in error["message"]
    assert error_of(azure(app, MODEL, {}), 400)["param"] == "input"


def test_vectors_are_normalized_unless_told_otherwise(app: ModuleType, int8: Embedder) -> None:
    body = body_of(post(app, {"input": "vitamin d", "model": MODEL, "normalize": False}))
    expected = int8.embed_tokens(int8.tokenize(["vitamin d"]).ids, normalize=False)[0]
    np.testing.assert_array_equal(np.float32(body["data"][0]["embedding"]), expected)


@pytest.mark.parametrize("fields", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_what_clients_send_by_default_is_right(app: ModuleType, int8: Embedder, fields: dict[str, Any]) -> None:
    """OpenAI's Python client asks for base64 unless told otherwise, others for nothing; null stands for an absence."""
    fields = fields | {"dimensions": None, "user": None}
    body = body_of(post(app, {"input": [*TEXTS, "\n"], "model": MODEL} | fields))
    vectors = [row["embedding"] for row in body["data"]]
    if fields.get("encoding_format") == "base64":
        vectors = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors]
    np.testing.assert_array_equal(np.array(vectors, np.float32), int8.embed([*TEXTS, "\n"]).vectors)


def test_lists_of_2048_are_answered(app: ModuleType, int8: Embedder) -> None:
    texts = [str(number) for number in range(MAX_TEXTS)]
    body = body_of(post(app, {"input": texts, "model": MODEL, "encoding_format": "base64"}))
    assert [row["index"] for row in body["data"]] == list(range(MAX_TEXTS))
    last = np.frombuffer(base64.b64decode(body["data"][-1]["embedding"]), "<f4")
    np.testing.assert_array_equal(last, int8.embed([texts[-1]]).vectors[0])


@pytest.mark.parametrize("content", [["a"] * (MAX_TEXTS + 1), [[101, 102]] * (MAX_TEXTS + 1)])
def test_too_many_inputs_are_413(app: ModuleType, content: list[Any]) -> None:
    assert f"the limit is {MAX_TEXTS}" in error_of(post(app, {"input": content, "model": MODEL}), 413)["message"]


def test_a_response_of_floats_holds_fewer(app: ModuleType, token_ids: list[list[int]]) -> None:
    for content in (["a"] * MAX_TEXTS, [token_ids[1]] * MAX_TEXTS):
        error = error_of(post(app, {"input": content, "model": MODEL}), 413)
        assert "of 2048 with encoding_format base64" in error["message"]


def test_models_are_listed_and_found(app: ModuleType) -> None:
    (model,) = body_of(get(app, "/v1/models"))["data"]
    assert (model["id"], model["object"], model["owned_by"]) == (MODEL, "model", "sentence-transformers")
    assert model["created"] > 1_700_000_000
    for name in (MODEL, "all-MiniLM-L6-v2", MODEL.replace("/", "%2F")):
        assert body_of(get(app, f"/v1/models/{name}")) == model
