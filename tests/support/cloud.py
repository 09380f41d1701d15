"""AWS on this machine for tests: moto's server for S3 and CloudFormation, our functions behind Lambda's Invoke API.

Real boto3 clients reach it by AWS_ENDPOINT_URL_S3, _CLOUDFORMATION and _LAMBDA.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import boto3
import psutil
import pytest

from artifact.manifest import MANIFEST, MODEL_FILES, TOKENIZER, VOCABULARY, Manifest, open_artifact
from export.manifest import reduced
from tests.support.servers import MODEL_NAME, Handler, Local, serving
from tests.support.stack import TOOLS, StackTemplate, create_stack, require_tools

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
REGION = "us-east-1"
BUCKET = "artifacts"

Fields = dict[str, str]
"""Of a request to CloudFormation: Action, StackName, Parameters.member.1.ParameterKey, ..."""


@contextmanager
def moto_server() -> Iterator[str]:
    """The URL of a running moto."""
    require_tools()
    command = [str(TOOLS / "python"), "-m", "moto.server", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = None
        for line in process.stderr:
            if found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", line):
                break
        assert found, "moto did not start"
        drain = threading.Thread(target=lambda: list(process.stderr or ()), daemon=True)
        drain.start()
        yield found[1]
        process.terminate()


def isolated(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """No AWS settings but these: nothing of this machine's, and nothing is asked of the network."""
    for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_CA_BUNDLE"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # which has credentials of earlier
    nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    for name, value in {**nowhere, "AWS_EC2_METADATA_DISABLED": "true", **variables}.items():
        monkeypatch.setenv(name, value)


def reset(moto: str) -> None:
    """Empty it."""
    with urllib.request.urlopen(urllib.request.Request(f"{moto}/moto-api/reset", method="POST"), timeout=10):
        pass


def put_version(s3: Any, model_folder: Path, version: str) -> None:
    """Put the files of a version into the bucket as they are."""
    for path in (model_folder / version).iterdir():
        s3.put_object(Bucket=BUCKET, Key=f"{model_folder.name}/{version}/{path.name}", Body=path.read_bytes())


def write_int8(model_folder: Path, target: Path, **changes: Any) -> Manifest:
    """Write the INT8 part of the version in use as a version of its own, with other values in the manifest.

    `revision` is the harmless and decisive one: it makes a version of another name with the same vectors.
    """
    artifact = open_artifact(model_folder)
    manifest = reduced(artifact.manifest._replace(**changes), ["int8"])
    folder = target / manifest.version
    folder.mkdir(parents=True)
    for name in manifest.files:
        shutil.copyfile(Path(artifact.folder, name), folder / name)
    (folder / MANIFEST).write_bytes(manifest.to_json())
    (target / "current").write_text(manifest.version + "\n")
    return manifest


@dataclass
class Cloud:
    """What stands for an account: clients of it, and the functions that are deployed."""

    moto: str
    functions: dict[str, Local] = field(default_factory=dict)
    """By the names or ARNs that they are invoked by."""
    lambda_url: str = ""
    asleep: dict[str, list[str]] = field(default_factory=dict)
    """Codes of errors that a function's next invocations end with."""
    updates: list[Fields] = field(default_factory=list)
    """Of stacks."""

    def refusal(self, function: str) -> tuple[int, str, str] | None:
        """What Lambda answers instead of the function: status, code and message."""
        if self.asleep.get(function):
            return 409, self.asleep[function].pop(0), "The function is not active"
        if function not in self.functions:
            return 404, "ResourceNotFoundException", f"Function not found: {function}"
        return None

    def asked(self, fields: Fields) -> Fields:
        """What moto is asked instead of this."""
        return fields

    def answered(self, fields: Fields, content: bytes) -> bytes:
        """What is answered instead of this, which moto answers: an update of a stack replaces environments."""
        if fields["Action"] == "UpdateStack":
            self.updates.append(fields)
            self.replace_environments()
        return content

    def client(self, service: str, url: str | None = None) -> Any:
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        return boto3.client(service, region_name=REGION, endpoint_url=url or self.moto, **keys)

    @property
    def variables(self) -> dict[str, str]:
        """What lets boto3 reach it."""
        return {
            **CREDENTIALS,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": self.moto,
            "AWS_ENDPOINT_URL_CLOUDFORMATION": self.lambda_url,
            "AWS_ENDPOINT_URL_LAMBDA": self.lambda_url,
            "AWS_ENDPOINT_URL_STS": self.moto,
        }

    def deploy(self, stack: str, of: StackTemplate, start: Callable[..., Local], mounted: Path) -> dict[str, str]:
        """Create a stack and run its functions as it has them, but for the file system, whose place a folder takes.

        Returns the stack's outputs.
        """
        outputs = create_stack(self.client, stack, of)
        for function in (outputs["LoaderName"], outputs["FunctionAlias"]):
            self.run(function, start, lambda place: mounted)
        return outputs

    def run(self, function: str, start: Callable[..., Local], mount: Callable[[str], Path], *options: str) -> None:
        """Run a function as the stack has it. `mount` gives the folder here for the place of its models there."""
        made = self.client("lambda").get_function_configuration(FunctionName=function.removesuffix(":live"))
        variables = made["Environment"]["Variables"]
        variables["MODEL_CACHE_DIR"] = str(mount(variables["MODEL_CACHE_DIR"]))
        limits = ("--timeout", str(made["Timeout"]), "--memory", str(made["MemorySize"]))
        self.functions[function] = start(made["Handler"], "--invoke-port", "0", *limits, *options, **variables)

    def replace_environments(self) -> None:
        """Of what is behind an alias, as a new version does."""
        for name, function in self.functions.items():
            if name.endswith(":live"):
                recycle(function)


def recycle(function: Local) -> None:
    """End the environment of a function, as Lambda does when it likes."""
    for child in psutil.Process(function.process.pid).children():
        child.send_signal(signal.SIGKILL)
        child.wait(10)


@contextmanager
def front(cloud: Cloud) -> Iterator[None]:
    """Serve `cloud.lambda_url`: Lambda by the functions' own Invoke APIs, CloudFormation by moto."""

    class Front(Handler):
        def do_POST(self) -> None:  # noqa: N802  http.server calls it so
            body = self.body()
            found = re.fullmatch(r"/2015-03-31/functions/([^/]+)/invocations", urlsplit(self.path).path)
            if found:
                self.invoke(unquote(found[1]), body)
            else:
                self.ask_cloudformation(dict(parse_qsl(body.decode(), keep_blank_values=True)))

        def invoke(self, name: str, body: bytes) -> None:
            if refusal := cloud.refusal(name):
                status, code, message = refusal
                self.answer(status, {"x-amzn-ErrorType": code}, json.dumps({"Message": message}).encode())
            else:
                url = f"{cloud.functions[name].invoke_url}/2015-03-31/functions/{quote('local')}/invocations"
                self.answer(*self.pass_on(url, body))

        def ask_cloudformation(self, fields: Fields) -> None:
            fields = cloud.asked(fields)
            if "TemplateURL" in fields:
                # Moto takes the first part of any other host for the bucket.
                fields["TemplateURL"] = fields["TemplateURL"].replace("//127.0.0.1:", "//localhost:")
            status, headers, content = self.pass_on(cloud.moto + self.path, urlencode(fields).encode())
            if status == 200:
                content = cloud.answered(fields, content)
            self.answer(status, headers, content)

        def pass_on(self, url: str, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
            kept = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "content-length")}
            request = urllib.request.Request(url, data=body, method="POST", headers=kept)
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    return response.status, dict(response.headers), response.read()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, dict(error.headers), error.read()

    with serving(Front) as cloud.lambda_url:
        yield


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    with moto_server() as url:
        yield url


@contextmanager
def signed_in(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The account is empty, and this process uses it."""
    reset(cloud.moto)
    with front(cloud):
        isolated(monkeypatch, **cloud.variables)
        yield


@pytest.fixture
def cloud(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """An account with an empty bucket, and this process signed in."""
    cloud = Cloud(moto)
    with signed_in(cloud, monkeypatch):
        cloud.client("s3").create_bucket(Bucket=BUCKET)
        yield cloud


@pytest.fixture(scope="module")
def int8_only(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder of models with two versions that are INT8 alone and differ in their names alone: path and names."""
    folder = tmp_path_factory.mktemp("versions") / MODEL_NAME
    revisions = (("a" * 40, "2026-01-01T00:00:00+00:00"), ("b" * 40, "2026-01-02T00:00:00+00:00"))
    names = [
        write_int8(model_folder, folder, revision=revision, created=created).version for revision, created in revisions
    ]
    return folder, names


WEIGHTS = f"{MODEL_FILES['int8']}_data"


FILES = (TOKENIZER, VOCABULARY, MODEL_FILES["int8"], WEIGHTS, "manifest.json")
