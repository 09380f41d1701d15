"""Requests that name a prompt, answered by models that have some, against sentence-transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handler.limits import MAX_PROMPT_CHARACTERS
from tests.support.events import body_of, error_of, function_url_event
from tests.support.served import FORMS, TEXTS, TOKENS, Served, build, check, serve, served

__all__ = ["served"]  # a fixture

pytestmark = pytest.mark.slow

MODELS: Mapping[str, dict[str, Any]] = {
    "passages": {"prompts": {"query": "query: ", "passage": "passage: "}},
    "queries": {"prompts": {"query": "Represent this sentence: "}},
    "default": {
        "prompts": {"query": "search_query: ", "document": "search_document: ", "Clustering": "clustering: "},
        "default_prompt_name": "query",
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, settings in MODELS.items():
        build(folder, name, **settings)
    return folder


@serve(*MODELS)
@pytest.mark.parametrize("form", [f for f in FORMS if f != "input"])
def test_a_prompt_is_named_as_in_sentence_transformers(served: Served, form: str) -> None:
    for name, prompt in MODELS[served.name]["prompts"].items():
        expected = served.reference.encode(TEXTS, prompt_name=name)
        for fields in ({"prompt_name": name}, {"prompt": prompt}, {"prompt_name": name, "prompt": prompt}):
            response = served.post(form, **fields)
            check(response, expected)
            assert not {"x-warnings", "x-ignored-fields"} & set(response["headers"])
    for prompt in ("anything else: ", "\ud83d", ""):
        shown = prompt.replace("\ud83d", "\ufffd")
        check(served.post(form, prompt=prompt), served.reference.encode(TEXTS, prompt=shown))


@serve(*MODELS)
def test_openais_form_takes_the_same_fields(served: Served) -> None:
    texts = TEXTS[:-1]
    for name in MODELS[served.name]["prompts"]:
        expected = served.reference.encode(texts, prompt_name=name)
        for fields in ({"prompt_name": name}, {"input_type": name}):
            assert "warnings" not in check(served.post("input", texts, **fields), expected)


@serve(*MODELS)
@pytest.mark.parametrize("form", FORMS)
def test_input_types_are_the_models_prompts(served: Served, form: str) -> None:
    """Those of NVIDIA, Voyage and Cohere. Where a model has no prompt for documents, they get none."""
    texts = TEXTS[:-1]
    query = served.reference.encode_query(texts)
    prompts = MODELS[served.name]["prompts"]
    # encode_document itself takes the empty `document` that sentence-transformers adds, and never sees `passage`.
    document = (
        served.reference.encode(texts, prompt_name="passage")
        if "passage" in prompts
        else served.reference.encode_document(texts)
    )
    for kind, expected in {
        **dict.fromkeys(("query", "search_query"), query),
        **dict.fromkeys(("document", "passage", "search_document"), document),
    }.items():
        response = served.post(form, texts, input_type=kind)
        check(response, expected)
        assert not {"x-warnings", "x-ignored-fields"} & set(response["headers"])


@serve(*MODELS)
@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_has_prompts_and_gets_none_says_so(served: Served, form: str) -> None:
    texts = TEXTS[:-1]
    has_default = "default_prompt_name" in MODELS[served.name]
    response = served.post(form, texts, prompt_name=None, input_type=None)
    body = check(response, served.reference.encode(texts))
    warning = (
        "the model has prompts and the request names none: send prompt_name or input_type, or an empty prompt if there "
        "shall be none; GET /info lists them"
    )
    assert response["headers"].get("x-warnings") == (None if has_default else warning)
    if form != "inputs":  # a bare array
        assert body.get("warnings", []) == ([] if has_default else [warning])
    assert "x-warnings" not in served.post(form, texts, prompt="")["headers"]


@serve("passages")
def test_a_direct_invocation_warns_too(served: Served) -> None:
    warned = served.app.lambda_handler({"text": "vitamin d"}, None)
    assert [text[:21] for text in warned["warnings"]] == ["the model has prompts"]
    asked = served.app.lambda_handler({"text": "vitamin d", "prompt_name": "query"}, None)
    assert "warnings" not in asked
    np.testing.assert_allclose(asked["embedding"], served.reference.encode_query("vitamin d"), rtol=0, atol=1e-5)


@serve("passages")
def test_parameters_of_hugging_faces_inference_api_may_name_a_prompt(served: Served) -> None:
    response = served.post("inputs", parameters={"prompt_name": "query"})
    check(response, served.reference.encode(TEXTS, prompt_name="query"))


@serve("passages")
def test_a_prompts_tokens_count(served: Served) -> None:
    almost = "word " * 200
    while served.tokens(almost := almost[5:]) > TOKENS - 1:
        pass
    texts = ["vitamin d", almost]
    body = body_of(served.post("texts", texts, prompt_name="passage"))
    assert (body["tokens"], body["truncated"]) == (sum(served.tokens("passage: " + text) for text in texts), [1])
    assert body_of(served.post("texts", texts, prompt=""))["truncated"] == []
    body = body_of(served.post("input", texts, input_type="passage"))
    assert body["usage"]["prompt_tokens"] == sum(served.tokens("passage: " + text) for text in texts)
    error = error_of(served.post("texts", texts, prompt_name="passage", truncate=False), 400)
    count = len(served.reference.tokenizer("passage: " + almost)["input_ids"])
    assert (error["code"], f"texts[1] has {count}" in error["message"]) == ("text_too_long", True)


WRONG: Mapping[str, tuple[dict[str, Any], str, str]] = {
    "unknown name": ({"prompt_name": "title"}, "prompt_name", "prompt_name is 'title', not document, passage or query"),
    "a name in another case": ({"prompt_name": "Query"}, "prompt_name", "prompt_name is 'Query', not document"),
    "a name that is a number": ({"prompt_name": 1}, "prompt_name", "prompt_name is the number 1, not a string"),
    "a prompt that is a list": ({"prompt": ["a"]}, "prompt", "prompt is a list, not a string"),
    "unknown type": (
        {"input_type": "classification"},
        "input_type",
        "input_type is 'classification', not query, passage, document, search_query or search_document",
    ),
    "a type that is an object": ({"input_type": {}}, "input_type", "input_type is an object, not a string"),
    "two prompts": (
        {"prompt_name": "query", "input_type": "passage"},
        "input_type",
        "prompt_name and input_type ask for different prompts: send one of them",
    ),
    "a name and no prompt": (
        {"prompt": "", "prompt_name": "query"},
        "prompt_name",
        "prompt and prompt_name ask for different prompts",
    ),
}


@serve("passages")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_prompts_are_refused_with_the_list(served: Served, name: str) -> None:
    fields, param, message = WRONG[name]
    for form in FORMS:
        error = error_of(served.post(form, ["a"], **fields), 400)
        assert (error["param"], error["code"]) == (param, "invalid_request")
        assert message in error["message"]


@serve("passages")
def test_a_prompt_has_a_limit(served: Served) -> None:
    for form in FORMS:
        assert served.post(form, ["a"], prompt="ä" * MAX_PROMPT_CHARACTERS)["statusCode"] == 200
        error = error_of(served.post(form, ["a"], prompt="ä" * (MAX_PROMPT_CHARACTERS + 1)), 413)
        assert (error["code"], error["param"]) == ("too_large", "prompt")
        assert (
            f"prompt has {MAX_PROMPT_CHARACTERS + 1} characters, the limit is {MAX_PROMPT_CHARACTERS}"
            in (error["message"])
        )


@serve("passages", "default")
def test_no_prompt_can_be_put_before_token_ids(served: Served) -> None:
    """They are taken as they are; the prompt's own may be among them, so nothing is said if none is named."""
    texts = ["vitamin d", "iron rich foods"]
    prompt = MODELS[served.name]["prompts"]["query"]
    ids = served.reference.tokenizer([prompt + text for text in texts])["input_ids"]
    response = served.post("input", ids)
    assert "warnings" not in check(response, served.reference.encode(texts, prompt_name="query"))
    assert "x-warnings" not in response["headers"]
    for fields in ({"prompt_name": "query"}, {"input_type": "query"}, {"prompt": prompt}):
        error = error_of(served.post("input", ids, **fields), 400)
        assert error["param"] == next(iter(fields))
        assert "input holds token ids, before which no prompt is put: " in error["message"]
    assert served.post("input", ids, prompt="")["statusCode"] == 200


@serve("passages")
def test_a_prompt_counts_for_the_deadline(served: Served) -> None:
    class Context:
        aws_request_id = "one"

        def get_remaining_time_in_millis(self) -> float:
            return 1000 * served.app.RESERVED_SECONDS + 1

    texts, prompt = ["a"] * 2048, "! " * (MAX_PROMPT_CHARACTERS // 2)
    request = {"texts": texts, "prompt": prompt, "encoding_format": "base64", "truncate": False}
    error = error_of(served.app.lambda_handler(function_url_event(json.dumps(request)), Context()), 413)
    assert "cannot even be split into tokens" in error["message"]
