"""Real clients over HTTP: their vectors against sentence-transformers, token counts, order, and errors.

Each program in tests/clients is run by the environment that `make clients` makes, never by this one.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handler.embedder import Embedder
from tests.support.hostile import HOSTILE
from tests.support.servers import CLIENTS, ROOT, Local, send
from tests.support.vectors import cosines

pytestmark = pytest.mark.slow

MIN_COSINE = 0.99
ORDINARY = (
    "vitamin d",
    "How do I undo the last commit in git?",
    "Das Größte ist die Gelassenheit.\nZweite Zeile.",
    "The quick brown fox 🦊 jumps over the lazy dog",
    "Rainfall in the Atacama desert is measured in millimetres a decade.",
)
# No client has a meaning for an empty text: OpenAI's API refuses it.
TEXTS = (*ORDINARY, *(text for text in HOSTILE if text))
JAVA = json.loads((ROOT / "tests" / "clients" / "java.json").read_text())
WRONG_MODEL = ("--model", "text-embedding-3-small")

Reference = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Client:
    """A program of tests/clients and what its answers carry."""

    name: str
    program: str
    option: str = ""
    float32: bool = False
    """True where the vectors travel as base64, so that the client has the very float32 numbers."""
    counts_tokens: bool = False
    invokes: bool = False
    """True where it speaks Lambda's Invoke API."""
    errors: tuple[str, str] = ("NotFoundError", "BadRequestError")
    """The classes of what it raises at 404 and 400."""

    def __str__(self) -> str:
        return self.name


OPENAI = Client("openai-python", "use_openai.py", float32=True, counts_tokens=True)
OPENAI_FLOAT = Client("openai-python, float", "use_openai.py", "float", counts_tokens=True)
OPENAI_ASYNC = Client("openai-python, async", "use_openai_async.py", float32=True, counts_tokens=True)
AZURE = Client("openai-python, Azure", "use_azure_openai.py", float32=True, counts_tokens=True)
OPENAI_JS = Client("openai-js", "use_openai.cjs", float32=True, counts_tokens=True)
OPENAI_JS_FLOAT = Client("openai-js, float", "use_openai.cjs", "float", counts_tokens=True)
LANGCHAIN = Client("langchain-openai", "use_langchain_openai.py", float32=True)
LANGCHAIN_JS = Client("langchain-js", "use_langchain.cjs", float32=True)
LANGCHAIN_HF = Client("langchain-community", "use_langchain_community.py")
LANGCHAIN_TEI = Client("langchain-huggingface", "use_langchain_huggingface.py")
HAYSTACK_TEXT = Client("haystack, text", "use_haystack_text.py")
HAYSTACK_DOCUMENTS = Client("haystack, documents", "use_haystack_documents.py")
LLAMA_INDEX = Client("llama-index-openai-like", "use_llama_index.py", float32=True)
LLAMA_INDEX_TEI = Client("llama-index-text-embeddings-inference", "use_llama_index_tei.py")
LITELLM = Client("litellm", "use_litellm.py", counts_tokens=True)
LITELLM_VLLM = Client("litellm, hosted_vllm/", "use_litellm.py", "hosted_vllm", counts_tokens=True)
LITELLM_LM_STUDIO = Client("litellm, lm_studio/", "use_litellm.py", "lm_studio", counts_tokens=True)
LITELLM_AZURE = Client("litellm, azure/", "use_litellm.py", "azure", float32=True, counts_tokens=True)
LITELLM_HF = Client("litellm, huggingface/", "use_litellm.py", "huggingface")
CHROMA = Client("chroma", "use_chroma.py", float32=True)
PYDANTIC_ERRORS = ("ModelNotFoundError", "ModelRequestRejectedError")
PYDANTIC_AI = Client("pydantic-ai", "use_pydantic_ai.py", float32=True, counts_tokens=True, errors=PYDANTIC_ERRORS)
AI_SDK = Client("ai-sdk", "use_ai_sdk.cjs", counts_tokens=True, errors=("APICallError", "APICallError"))
HUGGINGFACE_JS = Client("huggingface-js", "use_huggingface.cjs")
BOTO3 = Client("boto3", "use_boto3.py", invokes=True)

LIKE_OPENAI = (
    *(OPENAI, OPENAI_ASYNC, AZURE, OPENAI_JS, LANGCHAIN, LANGCHAIN_JS, LLAMA_INDEX, CHROMA, PYDANTIC_AI, AI_SDK),
    *(LITELLM, LITELLM_AZURE),
)
ALL = (
    *(*LIKE_OPENAI, OPENAI_FLOAT, OPENAI_JS_FLOAT, LANGCHAIN_HF, LANGCHAIN_TEI, HAYSTACK_TEXT, HAYSTACK_DOCUMENTS),
    *(LLAMA_INDEX_TEI, LITELLM_VLLM, LITELLM_LM_STUDIO, LITELLM_HF, HUGGINGFACE_JS, BOTO3),
)


class Service:
    """A running service and the clients that can be sent to it."""

    def __init__(self, local: Local, home: Path) -> None:
        self.local = local
        self.home = home

    def ask(self, client: Client, texts: Sequence[str], *arguments: str) -> dict[str, Any]:
        """What a client's program prints for some texts."""
        url = self.local.invoke_url if client.invokes else self.local.url
        option = ["--option", client.option] if client.option else []
        ran = subprocess.run(
            [*interpreter(client), str(ROOT / "tests" / "clients" / client.program), url, *option, *arguments],
            input=json.dumps(texts),
            env=self._variables(),
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    def count_requests(self) -> int:
        """How many requests the function has been given."""
        # The log comes through a pipe: it is complete when it tells of a request sent after all others.
        answer = send(f"{self.local.invoke_url}/2015-03-31/functions/local/invocations", b"{}")
        self.local.wait_for_log(f"REPORT RequestId: {answer.headers['x-amzn-requestid']}")
        return sum(line.startswith("START ") for line in self.local.log) - 1

    def _variables(self) -> dict[str, str]:
        """Nothing of ours, no telemetry, and a dead end for whatever would leave this machine."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "NODE_PATH": str(CLIENTS / "node_modules"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HTTP_PROXY": "http://127.0.0.1:9",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "127.0.0.1",
            "HAYSTACK_TELEMETRY_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "LANGSMITH_TRACING": "false",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MODE": "PRODUCTION",
        }


@pytest.fixture
def service(start: Callable[..., Local], tmp_path: Path) -> Service:
    return Service(start("--invoke-port", "0"), tmp_path)


def interpreter(client: Client) -> list[str]:
    """What runs a client's program, or a skip that tells what is missing."""
    if not (CLIENTS / ".done").exists():
        pytest.skip("the clients are not installed: make clients")
    if not client.program.endswith(".cjs"):
        return [str(CLIENTS / "bin" / "python")]
    node = shutil.which("node")
    if node is None or not (CLIENTS / "node_modules").exists():
        pytest.skip("node or its packages are missing: install Node.js 20 and npm, then make -B clients")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < 20:
        pytest.skip(f"Node.js is {version}, and its packages need 20: install it, then make -B clients")
    return [node]


def assert_vectors(client: Client, vectors: list[list[float]], expected: np.ndarray) -> None:
    """Compare with what the embedder itself gives, shape (n, 384), float32."""
    if client.float32:
        np.testing.assert_array_equal(np.array(vectors, np.float64), expected.astype(np.float64))
    else:
        np.testing.assert_allclose(vectors, expected, rtol=1e-6)


def count_tokens(reference: Reference, texts: Sequence[str]) -> int:
    """Tokens that sentence-transformers gives to its model, [CLS] and [SEP] among them."""
    model = reference.model  # type: ignore[attr-defined]
    ids = model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length)["input_ids"]
    return sum(map(len, ids))


@dataclass(frozen=True)
class Thousand:
    """Texts that are all different, and what is expected of them."""

    texts: list[str]
    vectors: np.ndarray
    tokens: int


@pytest.fixture(scope="module")
def thousand(int8: Embedder, reference: Reference) -> Thousand:
    texts = [f"{number} bottles of beer on wall {number % 7}" for number in range(1000)]
    vectors = int8.embed(texts).vectors
    assert cosines(vectors, reference(texts)).min() >= MIN_COSINE
    return Thousand(texts, vectors, count_tokens(reference, texts))


@pytest.mark.parametrize("client", ALL, ids=str)
def test_vectors_and_token_counts(service: Service, client: Client, int8: Embedder, reference: Reference) -> None:
    result = service.ask(client, TEXTS)
    assert "error" not in result, result
    assert_vectors(client, result["vectors"], int8.embed(TEXTS).vectors)
    # Odd texts have a bar of their own, in tests/test_parity.py.
    ordinary = np.array(result["vectors"][: len(ORDINARY)])
    assert cosines(ordinary, reference(ORDINARY)).min() >= MIN_COSINE
    assert ("prompt_tokens" in result) == client.counts_tokens
    if client.counts_tokens:
        assert result["prompt_tokens"] == count_tokens(reference, TEXTS)


@pytest.mark.parametrize("client", [OPENAI, OPENAI_FLOAT, OPENAI_JS, LANGCHAIN, LANGCHAIN_TEI, BOTO3], ids=str)
def test_a_thousand_texts_come_back_in_order(service: Service, client: Client, thousand: Thousand) -> None:
    result = service.ask(client, thousand.texts)
    assert "error" not in result, result
    assert_vectors(client, result["vectors"], thousand.vectors)
    if client.counts_tokens:
        assert result["prompt_tokens"] == thousand.tokens


@pytest.mark.parametrize("client", LIKE_OPENAI, ids=str)
def test_a_wrong_model_is_not_found_and_not_asked_for_again(service: Service, client: Client) -> None:
    error = service.ask(client, ["vitamin d"], *WRONG_MODEL)["error"]
    assert (error["class"], error["status"]) == (client.errors[0], 404)
    assert "text-embedding-3-small" in error["message"]
    if client.program.startswith("use_openai"):
        assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert service.count_requests() == 1


@pytest.mark.parametrize("client", LIKE_OPENAI, ids=str)
def test_a_bad_request_is_told_and_not_sent_again(service: Service, client: Client) -> None:
    error = service.ask(client, [""])["error"]
    assert (error["class"], error["status"]) == (client.errors[1], 400)
    assert "empty" in error["message"]
    if client.program.startswith("use_openai"):
        assert error["param"].startswith("input")
    assert service.count_requests() == 1


# Not LlamaIndex's TextEmbeddingsInference, LangChain's HuggingFaceInferenceAPIEmbeddings and litellm's huggingface/,
# which do not look at the status and take any JSON for vectors.
@pytest.mark.parametrize("client", [LANGCHAIN_TEI, HAYSTACK_TEXT, HAYSTACK_DOCUMENTS, HUGGINGFACE_JS], ids=str)
def test_clients_of_text_embeddings_inference_are_told_of_a_fault(service: Service, client: Client) -> None:
    error = service.ask(client, ["x" * 1_048_577])["error"]
    assert error["status"] == 413, error
    assert service.count_requests() == 1


@pytest.mark.parametrize("recorded", JAVA, ids=[recorded["client"] for recorded in JAVA])
def test_requests_of_java_clients(
    start: Callable[..., Local], recorded: dict[str, Any], int8: Embedder, reference: Reference
) -> None:
    """The fields are those of the clients' sources: EmbeddingRequest in LangChain4j and Spring AI 1, openai-java."""
    body = recorded["body"]
    answer = start().send(recorded["path"], json.dumps(body).encode(), content_type="application/json")
    assert answer.status == 200, answer.body
    vectors = [item["embedding"] for item in answer.json()["data"]]
    if body.get("encoding_format") == "base64":
        vectors = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors]
    np.testing.assert_allclose(vectors, int8.embed(body["input"]).vectors, rtol=1e-6)
    assert cosines(np.array(vectors), reference(body["input"])).min() >= MIN_COSINE
    assert answer.json()["usage"]["prompt_tokens"] == count_tokens(reference, body["input"])


def test_haystacks_default_is_vectors_that_are_not_normalized(service: Service, int8: Embedder) -> None:
    vectors = np.array(service.ask(HAYSTACK_TEXT, ORDINARY, "--option", "raw")["vectors"])
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).min() > 0.1
    assert cosines(vectors, int8.embed(ORDINARY).vectors).min() > 0.999999


def test_langchains_token_ids_are_refused_with_the_setting_that_helps(service: Service) -> None:
    error = service.ask(LANGCHAIN, ["vitamin d", "two"], "--option", "token-ids")["error"]
    assert (error["class"], error["status"]) == ("BadRequestError", 400)
    assert "check_embedding_ctx_length=False" in error["message"]
    assert service.count_requests() == 1


def test_boto3_raises_what_lambda_refuses(service: Service) -> None:
    error = service.ask(BOTO3, ["vitamin d"], "--model", "other")["error"]
    assert error["class"] == "ResourceNotFoundException"
    error = service.ask(BOTO3, ["x" * 6 * 1024 * 1024])["error"]
    assert error["class"] == "RequestTooLargeException"
    assert service.count_requests() == 0


def test_boto3_is_told_of_the_functions_error(service: Service) -> None:
    error = service.ask(BOTO3, [])["error"]
    assert (error["class"], error["status"]) == ("invalid_request", 400)
    assert "texts is empty" in error["message"]
    assert service.count_requests() == 1


def test_curl_as_in_the_readme(service: Service, int8: Embedder) -> None:
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"^\$ (curl (?:.*\\\n)*.*127\.0\.0\.1:8080.*)$", readme, re.MULTILINE)
    assert commands
    for command in commands:
        here = command.replace("http://127.0.0.1:8080", service.local.url).replace("curl ", "curl --fail ", 1)
        ran = subprocess.run(["sh", "-c", here], capture_output=True, text=True, check=True, timeout=60)
        sent = re.search(r'\{"text": ?"([^"]*)"\}', command)
        if sent:
            vector = json.loads(ran.stdout)["embedding"]
            np.testing.assert_array_equal(np.float32(vector), int8.embed([sent.group(1)]).vectors[0])
