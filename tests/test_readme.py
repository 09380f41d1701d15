"""The programs in README and docs do what is said, with nothing changed but names that stand for a reader's own."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from handler.embedder import Embedder
from tests.support.documents import DOCUMENTS
from tests.support.servers import CLIENTS, ROOT, Local

pytestmark = pytest.mark.slow

PROGRAMS = re.findall(r"```python\n(.*?)```", DOCUMENTS, re.DOTALL)
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "eu-west-1"}


def program(marker: str) -> str:
    """The one program that has this in it."""
    (found,) = [each for each in PROGRAMS if marker in each]
    return found


def run(python: Path, code: str, **variables: str) -> list[str]:
    """The lines that it prints."""
    bare = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [str(python), "-c", code]
    ran = subprocess.run(command, cwd=ROOT, env={**bare, **variables}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@pytest.fixture
def clients() -> Path:
    if not (CLIENTS / ".done").exists():
        pytest.skip("the clients are not installed: make clients")
    return CLIENTS / "bin" / "python"


def test_library() -> None:
    printed = run(Path(sys.executable), program("Embedder.load(") + "print(vectors.dtype, vectors.shape)")
    assert printed == ["float32 (2, 384)"]


def test_openai(start: Callable[..., Local], clients: Path, int8: Embedder) -> None:
    code = program('base_url="http://127.0.0.1:8080/v1"').replace("http://127.0.0.1:8080", start().url)
    code = code.replace("client.embeddings.create", "answer = client.embeddings.create")
    (line,) = run(clients, code + "print([each.embedding for each in answer.data])")
    expected = int8.embed(["vitamin d", "how to undo a commit"]).vectors
    np.testing.assert_array_equal(np.float32(json.loads(line)), expected)


def test_boto3(start: Callable[..., Local], clients: Path, int8: Embedder) -> None:
    local = start("--invoke-port", "0")
    code = program("ALIAS").replace("ALIAS,", "'local',")
    variables = {**CREDENTIALS, "AWS_ENDPOINT_URL_LAMBDA": str(local.invoke_url)}
    (line,) = run(clients, code + "print(vector)", **variables)
    np.testing.assert_array_equal(np.float32(json.loads(line)), int8.embed(["vitamin d"]).vectors[0])


def test_openai_with_signed_requests(start: Callable[..., Local], clients: Path, int8: Embedder) -> None:
    """The signature is what AWS's own library makes of the very request that arrives. One session signs them all."""
    url = start().url + "/"
    echo = start("tests.programs.functions.handler").url + "/echo/"
    ask = "client.embeddings.create(model='all-MiniLM-L6-v2', input='vitamin d', encoding_format='float')"
    code = program("class Signed").replace("URL +", f"{url!r} +")
    counted = "import boto3; made = []; new = boto3.Session; boto3.Session = lambda: made.append(1) or new()\n"
    line, again, sessions = run(
        clients, counted + code + 2 * f"print({ask}.data[0].embedding)\n" + "print(sum(made))", **CREDENTIALS
    )
    np.testing.assert_array_equal(np.float32(json.loads(line)), int8.embed(["vitamin d"]).vectors[0])
    assert (again, sessions) == (line, "1")

    code = program("class Signed").replace("URL +", f"{echo!r} +")
    check = """
import json
event = client.post("/embeddings", body={"a": "ü"}, cast_to=httpx.Response).json()
sent = event["headers"]
signed = {name: sent[name] for name in ("content-type", "host", "x-amz-date")}
again = AWSRequest("POST", "http://" + sent["host"] + event["rawPath"], data=event["body"].encode(), headers=signed)
signer = SigV4Auth(boto3.Session().get_credentials(), "lambda", "eu-west-1")
again.context["timestamp"] = sent["x-amz-date"]
signature = signer.signature(signer.string_to_sign(again, signer.canonical_request(again)), again)
print(json.dumps([sent["authorization"], signature]))
"""
    (line,) = run(clients, code + check, **CREDENTIALS)
    authorization, signature = json.loads(line)
    assert re.match(r"AWS4-HMAC-SHA256 Credential=AKID/\d{8}/eu-west-1/lambda/aws4_request, ", authorization)
    assert authorization.endswith(f"Signature={signature}")


def test_every_program_is_run() -> None:
    assert len(PROGRAMS) == 4
