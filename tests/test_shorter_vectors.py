"""Models that were trained so that the first numbers of a vector do, against sentence-transformers' truncate_dim."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifact.manifest import open_artifact
from export.__main__ import main
from handler import limits
from handler.requests import SIZES
from tests.support.events import body_of, error_of, function_url_event
from tests.support.models import WIDTH, edit_json, save_model
from tests.support.served import FORMS, TEXTS, Served, build, check, rows_of, serve, served

__all__ = ["served"]  # a fixture

pytestmark = pytest.mark.slow

TEXTS_OF_FORMS = {form: TEXTS[:-1] if form == "input" else TEXTS for form in FORMS}
MODELS: Mapping[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unit": ({}, ("--matryoshka", "8,16")),
    "raw": ({"normalize": False, "prompts": {"query": "query: "}}, ("--matryoshka", "16,8")),
    "cut": ({"truncate_dim": 24}, ("--matryoshka", "16,8")),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, (settings, options) in MODELS.items():
        build(folder, name, *options, **settings)
    return folder


@serve(*MODELS)
@pytest.mark.parametrize("form", FORMS)
def test_vectors_are_cut_and_then_normalized_as_the_model_does(served: Served, form: str) -> None:
    texts = TEXTS_OF_FORMS[form]
    for size in (16, 8):
        unit = served.reference.encode(texts, truncate_dim=size, normalize_embeddings=True)
        own = unit if served.name == "unit" else served.reference.encode(texts, truncate_dim=size)
        for field in SIZES:
            body = check(served.post(form, texts, **{field: size}), own)
            if form == "texts":
                assert body["dimensions"] == size
        check(served.post(form, texts, dimensions=size, normalize=True), unit)
        body = body_of(served.post(form, texts, dimensions=size, encoding_format="base64"))
        coded = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows_of(body)]
        np.testing.assert_allclose(coded, own, rtol=0, atol=1e-5)
    whole = served.reference.encode(texts)
    for fields in ({}, {"dimensions": whole.shape[1]}, {"dimensions": None}):
        check(served.post(form, texts, **fields), whole)


@serve("raw")
def test_a_prompt_and_a_size_go_together(served: Served) -> None:
    response = served.post("texts", prompt_name="query", dimensions=16)
    check(response, served.reference.encode(TEXTS, prompt_name="query", truncate_dim=16))


@serve("unit")
def test_one_text_and_a_direct_invocation_may_ask_for_a_size(served: Served) -> None:
    expected = served.reference.encode("vitamin d", truncate_dim=8, normalize_embeddings=True)
    over_http = served.app.lambda_handler(function_url_event(json.dumps({"text": "vitamin d", "dimensions": 8})), None)
    for body in (body_of(over_http), served.app.lambda_handler({"text": "vitamin d", "dimensions": 8}, None)):
        np.testing.assert_allclose(body["embedding"], expected, rtol=0, atol=1e-5)
        assert body["dimensions"] == 8


@serve("unit")
@pytest.mark.parametrize("form", FORMS)
def test_other_sizes_are_refused_with_the_list(served: Served, form: str) -> None:
    for field in SIZES:
        for size in (12, 0, -8, WIDTH + 1, 2**62):
            error = error_of(served.post(form, ["a"], **{field: size}), 400)
            assert error["param"] == field
            assert error["message"] == f"{field} is {size}: this model's vectors have 32, 16 or 8 dimensions"
        assert "8.0" in error_of(served.post(form, ["a"], **{field: 8.0}), 400)["message"]
        assert "a boolean" in error_of(served.post(form, ["a"], **{field: True}), 400)["message"]
    error = error_of(served.post(form, ["a"], dimensions=16, truncate_dim=8), 400)
    assert error["message"] == "dimensions and truncate_dim ask for different sizes: send one of them"
    assert served.post(form, ["a"], dimensions=16, truncate_dim=16)["statusCode"] == 200


@serve("unit")
def test_the_size_counts_for_the_limit_of_a_response(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_RESPONSE_BYTES", 1000 * (16 * limits.BYTES_PER_NUMBER + limits.BYTES_PER_VECTOR))
    texts = ["a"] * 1001
    message = error_of(served.post("texts", texts, dimensions=16), 413)["message"]
    assert message.startswith("texts has 1001 texts; a response holds the vectors of 1000, or of 1809 with")
    assert len(body_of(served.post("texts", texts, dimensions=8))["embeddings"]) == 1001


@serve("unit")
def test_info_lists_the_sizes(served: Served) -> None:
    info = body_of(served.app.lambda_handler(function_url_event(None, path="/info", method="GET"), None))
    assert (info["dimensions"], info["matryoshka_dimensions"]) == (32, [16, 8])


def test_the_models_own_configuration_may_list_the_sizes(root: Path, tmp_path: Path) -> None:
    """As Jina's and Snowflake's do, with or without the whole vector's."""
    model = save_model(tmp_path, "bert", truncate_dim=24)
    edit_json(model / "config.json", matryoshka_dimensions=[8, 32, 24, 16, 8])
    options = ["--model", str(model), "--model-id", "my/model", "--precision", "fp32", "--output", str(tmp_path)]
    assert main(options) == 0
    own = open_artifact(tmp_path / "model").manifest
    assert (own.dimensions, own.matryoshka_dimensions) == (24, (16, 8))
    assert main([*options, "--matryoshka", "4"]) == 0
    named = open_artifact(tmp_path / "model").manifest
    assert named.matryoshka_dimensions == (4,)
    assert named.version != own.version


@pytest.mark.parametrize("sizes", ["24", "8,32", "100"])
def test_sizes_that_do_not_shorten_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], sizes: str) -> None:
    model = save_model(tmp_path, "bert", truncate_dim=24)
    options = ["--model", str(model), "--model-id", "my/model", "--precision", "fp32", "--output", str(tmp_path)]
    assert main([*options, "--matryoshka", sizes]) == 1
    too_large = sizes.rpartition(",")[2]
    assert capsys.readouterr().err == (
        f"export: --matryoshka has {too_large}, the model's vectors have 24: name fewer dimensions\n"
    )
    assert not (tmp_path / "model" / "current").exists()


@pytest.mark.parametrize("sizes", ["", "8,", "a", "0", "-8", "8;4", "1.5", "²"])
def test_sizes_that_are_no_numbers_are_refused(capsys: pytest.CaptureFixture[str], sizes: str) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "no/model", f"--matryoshka={sizes}"])
    assert f"{sizes!r} is not a list of dimensions such as 256,128" in capsys.readouterr().err


@pytest.mark.parametrize("value", [8, "8", [0], [True], ["8"], [8.0], {"8": 1}])
def test_a_configuration_that_is_no_list_of_sizes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: Any
) -> None:
    model = save_model(tmp_path, "bert")
    edit_json(model / "config.json", matryoshka_dimensions=value)
    assert main(["--model", str(model), "--model-id", "my/model", "--output", str(tmp_path)]) == 1
    assert f"has matryoshka_dimensions {value!r}, not a list of whole numbers from 1" in capsys.readouterr().err
