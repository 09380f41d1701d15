"""The README's shell commands, taken from it and run with the real tools: curl, the AWS CLI, sam, python -m export.

Names that stand for a reader's own are given as environment variables, or are replaced as the README says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from deploy.publish import _curl
from deploy.stack import Deployment
from handler.embedder import Embedder
from tests.support.cloud import REGION, Cloud, cloud, int8_only, moto
from tests.support.documents import BLOCKS, block
from tests.support.servers import MODEL_NAME, ROOT, Handler, Local, send, serving
from tests.support.stack import TOOLS, delete_route_table, templates_for_moto

pytestmark = pytest.mark.slow

__all__ = ["cloud", "int8_only", "moto"]  # fixtures

BEGINNINGS = (
    "make serve",  # not run here: `make test` makes the same, and tests/test_local.py runs what it starts
    "$ curl -s",
    "make deploy\n",  # tests/test_make_deploy.py runs it and
    "# The model on EFS",  # these too
    "curl --aws-sigv4",
    "KEY=$(aws apigateway get-api-key",
    ". .venv/bin/activate",
)
"""Of all blocks."""
KEY, SECRET, TOKEN = "AKID", "secret/+", "token/+="


def shell(commands: str, folder: Path, stdin: str = "", **variables: str) -> str:
    """Run them until one fails. Returns what they print."""
    nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    ran = subprocess.run(
        ["bash", "-ec", commands],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "SAM_CLI_TELEMETRY": "0", **nowhere, **variables},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture
def curl() -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")


@pytest.fixture
def signing_curl(curl: None) -> None:
    options, version = (
        subprocess.run(["curl", *asked], capture_output=True, text=True, check=True).stdout
        for asked in (["--help", "all"], ["--version"])
    )
    if "--aws-sigv4" not in options:
        pytest.skip(f"--aws-sigv4 needs curl 7.75 or newer, this is {version.splitlines()[0]}")


@dataclass
class Gate:
    """What AWS has before a function."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    """Of its answers."""


Refusal = Callable[[Gate, str, Message, bytes], str]
"""Method and path, headers and body of a request -> why it is refused; empty if it is not."""


@contextmanager
def gate(target: str, refusal: Refusal, stage: str = "") -> Iterator[Gate]:
    """A server that refuses requests or passes them on to the target, which does not see the stage in their path."""
    opened = Gate()

    class Keeper(Handler):
        def do_POST(self) -> None:  # noqa: N802  http.server calls it so
            body = self.body()
            if reason := refusal(opened, f"{self.command} {self.path}", self.headers, body):
                status, content = 403, json.dumps({"message": reason}).encode()
            else:
                path = self.path.removeprefix(stage)
                answer = send(target + path, body, content_type=self.headers.get_content_type())
                status, content = answer.status, answer.body
            opened.statuses.append(status)
            self.answer(status, {}, content)

    with serving(Keeper) as opened.url:
        yield opened


AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<day>\d{8})/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request, ?"
    r"SignedHeaders=(?P<names>[^,]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)


def signature_refusal(gate: Gate, line: str, headers: Message, body: bytes) -> str:
    """As Lambda checks a signature: it is made anew, by AWS's own library, of the request that has arrived."""
    found = AUTHORIZATION.fullmatch(headers.get("authorization", ""))
    if not found or (found["key"], found["region"], found["service"]) != (KEY, REGION, "lambda"):
        return "Forbidden"
    if headers.get("x-amz-security-token", "") not in ("", TOKEN):
        return "The security token included in the request is invalid."
    names = set(found["names"].split(";"))
    if any(name not in headers for name in names):
        return "The request signature we calculated does not match the signature you provided."
    demanded = {"host", "x-amz-date", *(name.lower() for name in headers if name.lower().startswith("x-amz-"))}
    if not demanded <= names or not headers["x-amz-date"].startswith(found["day"]):
        return "Forbidden"
    method, path = line.split(" ")
    request = AWSRequest(method, gate.url + path, data=body, headers={name: headers[name] for name in names})
    request.context["timestamp"] = headers["x-amz-date"]
    signer = SigV4Auth(Credentials(KEY, SECRET), "lambda", REGION)
    expected = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    if found["signature"] != expected:
        return "The request signature we calculated does not match the signature you provided."
    return ""


def vector(text: str, int8: Embedder) -> np.ndarray:
    found: np.ndarray = int8.embed([text]).vectors[0]
    return found


def embedding(answer: str) -> np.ndarray:
    return np.array(json.loads(answer)["embedding"], np.float32)


def test_every_block_is_known() -> None:
    for found, beginning in zip(BLOCKS, BEGINNINGS, strict=True):
        assert found.startswith(beginning)


def test_the_first_request(curl: None, start: Callable[..., Local], tmp_path: Path) -> None:
    command, answer = block("$ curl -s http://127.0.0.1:8080/embed").removeprefix("$ ").splitlines()
    found = json.loads(shell(command.replace("http://127.0.0.1:8080", start().url), tmp_path))
    shown = json.loads(answer.replace("...,", ""))
    shown_vector, found_vector = shown.pop("embedding"), found.pop("embedding")
    np.testing.assert_allclose([*found_vector[:3], found_vector[-1]], shown_vector, rtol=1e-7)
    assert found | {"latency": 0} == shown | {"latency": 0}


@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize("of", ["README", "publish"])
def test_a_signed_request(
    of: str, token: str, signing_curl: None, start: Callable[..., Local], int8: Embedder, tmp_path: Path
) -> None:
    """With a key that lasts and with a temporary one; the README's command, and the one that publishing prints."""
    with gate(start().url, signature_refusal) as function_url:
        printed = _curl(Deployment(REGION, "bucket", "loader", url=function_url.url))
        command = block("--aws-sigv4") if of == "README" else printed
        right = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": token}

        def ask(**wrong: str) -> str:
            return shell(command, tmp_path, **{"URL": f"{function_url.url}/", "AWS_REGION": REGION, **right, **wrong})

        np.testing.assert_array_equal(embedding(ask()), vector("vitamin d", int8))
        assert "The request signature we calculated does not match" in ask(AWS_SECRET_ACCESS_KEY=SECRET.upper())
        assert json.loads(ask(AWS_ACCESS_KEY_ID="OTHER")) == {"message": "Forbidden"}
        assert "security token" in ask(**{"AWS_SESSION_TOKEN": "other"})
        assert function_url.statuses == [200, 403, 403, 403]


def key_refusal(key: str) -> Refusal:
    """As API Gateway checks a key."""
    return lambda gate, line, headers, body: "" if headers.get("x-api-key") == key else "Forbidden"


def test_a_request_with_an_api_key(
    curl: None, cloud: Cloud, start: Callable[..., Local], int8: Embedder, tmp_path: Path
) -> None:
    # As the template makes it, which moto's CloudFormation does not.
    made = cloud.client("apigateway").create_api_key(description="Calls the API of embeddings", enabled=True)
    commands = block("aws apigateway get-api-key")
    variables = {**aws_variables(cloud, tmp_path), "API_KEY_ID": made["id"]}
    with gate(start("--payload-format", "1.0").url, key_refusal(made["value"]), stage="/live") as api:
        answer = shell(commands, tmp_path, API_URL=f"{api.url}/live", **variables)
        np.testing.assert_array_equal(embedding(answer), vector("vitamin d", int8))
        [_, request] = commands.splitlines()
        assert json.loads(shell(request, tmp_path, API_URL=f"{api.url}/live", KEY="wrong")) == {"message": "Forbidden"}
        assert api.statuses == [200, 403]


def aws_variables(cloud: Cloud, folder: Path) -> dict[str, str]:
    """With the AWS CLI in the path, which the README takes for installed."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "aws").symlink_to(TOOLS / "aws")
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    return {**cloud.variables, "AWS_DEFAULT_REGION": REGION, "AWS_ENDPOINT_URL": cloud.moto, "PATH": path}


def test_publishing_and_removing(
    cloud: Cloud, start: Callable[..., Local], int8_only: tuple[Path, list[str]], int8: Embedder, tmp_path: Path
) -> None:
    efs, folder = tmp_path / "efs", reader_folder(tmp_path / "reader", int8_only[0])
    efs.mkdir()
    [template] = templates_for_moto([{}])
    outputs = cloud.deploy("embeddings", template, start, efs)
    bucket = outputs["ArtifactBucketName"]
    variables = {**aws_variables(cloud, tmp_path), "PYTHONPATH": str(ROOT)}
    commands = block("python -m deploy remove")
    publishing, removing = re.split(r"^(?=python -m deploy remove)", commands, flags=re.MULTILINE)
    removing = f"{commands.splitlines()[0]}\n{removing}"

    for version in int8_only[1]:
        (folder / "build" / "ml-models" / MODEL_NAME / "current").write_text(version)
        printed = shell(publishing.replace("VERSION", int8_only[1][0]), folder, **variables)
        assert f"version {version} copied, in use" in printed
        assert re.search(rf"{version} .* yes +yes", printed)
        assert (efs / MODEL_NAME / "current").read_text().strip() == int8_only[1][0]

    invoke = f'aws lambda invoke --function-name {outputs["FunctionAlias"]} --payload \'{{"text":"vitamin d"}}\' answer'
    assert json.loads(shell(invoke, folder, **variables))["StatusCode"] == 200
    np.testing.assert_array_equal(embedding((folder / "answer").read_text()), vector("vitamin d", int8))

    # An older version of an object, which the bucket keeps.
    key = f"{MODEL_NAME}/{int8_only[1][0]}/manifest.json"
    cloud.client("s3").put_object(Bucket=bucket, Key=key, Body=b"changed")
    delete_route_table(cloud.client("ec2"))
    printed = shell(removing, folder, stdin="y\n", **variables)
    assert f" objects deleted from s3://{bucket}, older versions counted" in printed
    assert "Deleted successfully" in printed
    assert cloud.client("cloudformation").describe_stacks()["Stacks"] == []
    assert bucket not in [each["Name"] for each in cloud.client("s3").list_buckets()["Buckets"]]
    assert cloud.client("lambda").list_functions()["Functions"] == []
    assert cloud.client("efs").describe_file_systems()["FileSystems"] == []
    assert [each["IsDefault"] for each in cloud.client("ec2").describe_vpcs()["Vpcs"]] == [True]


def reader_folder(folder: Path, model_folder: Path) -> Path:
    """What is in a reader's clone when the stack is deployed, with the given model for the one that was built."""
    models = folder / "build" / "ml-models" / MODEL_NAME
    models.mkdir(parents=True)
    for version in model_folder.iterdir():
        if version.is_dir():
            (models / version.name).symlink_to(version)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "build" / "aws").symlink_to(TOOLS.parent)
    (folder / "samconfig.toml").symlink_to(ROOT / "samconfig.toml")
    return folder


def test_make_gives_sam_the_region_that_publishing_takes() -> None:
    command = ["make", "--silent", "--eval", "region: ; @echo $$AWS_REGION $$AWS_DEFAULT_REGION", "region"]
    for variables, expected in (
        ({"AWS_REGION": "eu-west-1"}, "eu-west-1 eu-west-1"),
        ({"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "us-east-1"}, "eu-west-1 eu-west-1"),
        ({"AWS_DEFAULT_REGION": "us-east-1"}, "us-east-1"),
    ):
        environment = {"PATH": os.environ["PATH"], **variables}
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == expected
