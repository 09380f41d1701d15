"""python -m deploy publish: real boto3 calls to S3, CloudFormation and our own functions under the runtime client."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import ClientError

from artifact.manifest import MODEL_FILES, TOKENIZER, open_artifact
from deploy import publish, stack, upload
from deploy.__main__ import main
from export.texts import VERIFICATION_TEXTS
from handler.embedder import Embedder
from tests.support.cloud import BUCKET, FILES, WEIGHTS, Cloud, cloud, int8_only, isolated, moto
from tests.support.servers import MODEL_NAME, ROOT, Local
from tests.support.stack import StackTemplate, create_stack, templates_for_moto

__all__ = ["cloud", "int8_only", "moto"]  # fixtures

STACK = "embeddings"
VARIABLES = {
    "MODEL_CACHE_DIR": "/mnt/ml-models",
    "MODEL_PRECISION": "int8",
    "METRICS_NAMESPACE": "",
    "CORS_ORIGIN": "",
    "BASE_PATH": "",
}
"""Of the function that embeds, beside MODEL_GENERATION."""


@dataclass
class Deployed:
    """The stack of this project's template with its functions, and a folder of models to publish, with two versions."""

    cloud: Cloud
    parameters: dict[str, str]
    outputs: dict[str, str]
    """The stack's, as its parameters."""
    efs: Path
    output: Path
    versions: list[str]
    capsys: pytest.CaptureFixture[str]

    def take(self, version: str) -> str:
        """Put a local version into use."""
        (self.output / MODEL_NAME / "current").write_text(f"{version}\n")
        return version

    def deploy(
        self, *arguments: str, command: tuple[str, ...] = ("publish",), where: tuple[str, ...] = ("--stack", STACK)
    ) -> tuple[int, str, str]:
        """Exit status, standard output and error."""
        status = main([*command, *where, "--output", str(self.output), *arguments])
        captured = self.capsys.readouterr()
        return status, captured.out, captured.err

    def embed(self, text: str) -> np.ndarray:
        """What the deployed function answers, as any caller asks it."""
        client = self.cloud.client("lambda", self.cloud.lambda_url)
        answer = client.invoke(FunctionName=self.outputs["FunctionAlias"], Payload=json.dumps({"text": text}))
        return np.array(json.load(answer["Payload"])["embedding"], np.float32)

    def variables(self, output: str) -> dict[str, str]:
        """Of the function that an output names: what the stack gives it, of its unpublished version."""
        function = self.outputs[output].removesuffix(":live")
        made = self.cloud.client("lambda").get_function_configuration(FunctionName=function)
        variables: dict[str, str] = made["Environment"]["Variables"]
        return variables

    @property
    def bucket(self) -> str:
        return self.outputs["ArtifactBucketName"]

    @property
    def in_use(self) -> str:
        return (self.efs / MODEL_NAME / "current").read_text().strip()

    def modified(self) -> dict[str, Any]:
        """Key -> when S3 got the object, for those of the model."""
        found = self.cloud.client("s3").list_objects_v2(Bucket=self.bucket, Prefix=MODEL_NAME)
        return {each["Key"]: (each["LastModified"], each["ETag"]) for each in found.get("Contents", [])}


@pytest.fixture(scope="module")
def templates() -> dict[str, StackTemplate]:
    """By Precision or ModelStorage, if it is not the default."""
    settings = {"default": {}, "fp32": {"Precision": "fp32"}, "package": {"ModelStorage": "package"}}
    settings["no_url"] = {"FunctionUrl": "off"}
    return dict(zip(settings, templates_for_moto(list(settings.values())), strict=True))


@pytest.fixture
def deployed(
    cloud: Cloud,
    templates: dict[str, StackTemplate],
    tmp_path: Path,
    int8_only: tuple[Path, list[str]],
    start: Callable[..., Local],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Deployed:
    efs = tmp_path / "efs"
    efs.mkdir()
    outputs = cloud.deploy(STACK, templates["default"], start, efs)
    monkeypatch.setattr(stack, "POLL_SECONDS", 0.01)
    return Deployed(cloud, templates["default"].parameters, outputs, efs, int8_only[0].parent, int8_only[1], capsys)


def test_functions_and_outputs_are_the_stacks(deployed: Deployed, templates: dict[str, StackTemplate]) -> None:
    """What the tests below rest on: of the template nothing is replaced here but the file system and two outputs."""
    assert deployed.outputs.keys() == {
        *("Url", "CallerPolicyArn", "FunctionAlias", "ModelStorage", "ArtifactBucketName", "LoaderName")
    }
    assert templates["default"].by_name == ["Url", "FunctionAlias"]
    assert deployed.cloud.functions.keys() == {deployed.outputs["LoaderName"], deployed.outputs["FunctionAlias"]}
    assert deployed.variables("LoaderName") == {"MODEL_CACHE_DIR": "/mnt/ml-models", "ARTIFACT_BUCKET": deployed.bucket}
    assert deployed.variables("FunctionAlias") == {**VARIABLES, "MODEL_GENERATION": "0"}


@pytest.mark.real_model
def test_versions_come_into_use_and_go_back(deployed: Deployed, int8: Embedder) -> None:
    first, second = deployed.versions
    alias, url = deployed.outputs["FunctionAlias"], deployed.outputs["Url"]
    deployed.take(first)
    status, out, err = deployed.deploy()
    assert (status, err) == (0, "")
    assert [line.split("]")[0] for line in out.splitlines() if line.startswith("[")] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    assert f"version {first} copied, in use; before it: none" in out
    assert f"{alias} answers with version {first}, int8: 83 vectors equal this machine's to the bit" in out
    assert "Environments that are running" not in out
    assert f"URL: {url.rstrip('/')}\n" in out
    curl = out.splitlines()[-1]
    assert curl.startswith('curl --aws-sigv4 "aws:amz:us-east-1:lambda" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS')
    assert curl.endswith(f"""{url}embed -d '{{"text":"vitamin d"}}'""")
    uploaded = deployed.modified()
    assert set(uploaded) == {f"{MODEL_NAME}/{first}/{name}" for name in FILES}
    expected = int8.embed(["vitamin d"]).vectors[0]
    np.testing.assert_array_equal(deployed.embed("vitamin d"), expected)

    status, out, _ = deployed.deploy()
    assert (status, deployed.modified()) == (0, uploaded)
    assert "all files were there already" in out
    assert f"version {first} was there already, in use" in out

    deployed.take(second)
    status, out, _ = deployed.deploy()
    assert (status, deployed.in_use) == (0, second)
    assert f"answers with version {first}, int8: not yet the one in use" in out
    assert (
        f"new ones take {second}. To replace all of them now: python -m deploy publish --stack {STACK} --restart" in out
    )

    status, out, err = deployed.deploy("--restart")
    assert (status, err, len(deployed.cloud.updates)) == (0, "", 1)
    assert f"answers with version {second}, int8: 83 vectors equal" in out
    assert "Environments that are running" not in out
    assert_updated(deployed, second)

    status, out, _ = deployed.deploy("--restart", command=("rollback", first))
    assert (status, deployed.in_use) == (0, first)
    assert f"answers with version {first}, int8: 83 vectors equal" in out
    np.testing.assert_array_equal(deployed.embed("vitamin d"), expected)

    status, out, _ = deployed.deploy(command=("list",))
    assert status == 0
    assert re.search(rf"{second} +2026-01-02T00:00:00\+00:00 +\d\d\.\d +yes", out)
    assert re.search(rf"{first} +2026-01-01T00:00:00\+00:00 +\d\d\.\d +yes +yes", out)

    status, _, err = deployed.deploy(command=("rollback", "absent"))
    assert (status, deployed.in_use) == (1, first)
    assert f"{deployed.outputs['LoaderName']} failed: VersionMissingError: " in err


def assert_updated(deployed: Deployed, version: str) -> None:
    """The stack's function has another MODEL_GENERATION, and nothing else is changed."""
    [update] = deployed.cloud.updates
    cloudformation = deployed.cloud.client("cloudformation")
    [stack] = cloudformation.describe_stacks(StackName=STACK)["Stacks"]
    numbers = range(1, len(stack["Parameters"]) + 1)
    assert {update[f"Parameters.member.{number}.UsePreviousValue"] for number in numbers} == {"true"}
    assert {each["ParameterKey"]: each["ParameterValue"] for each in stack["Parameters"]} == deployed.parameters
    assert {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]} == deployed.outputs
    variables = deployed.variables("FunctionAlias")
    assert variables.pop("MODEL_GENERATION").startswith(f"{version}.")
    assert variables == VARIABLES


def test_a_stack_without_a_function_url_is_published_to(
    cloud: Cloud,
    templates: dict[str, StackTemplate],
    int8_only: tuple[Path, list[str]],
    start: Callable[..., Local],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    outputs = cloud.deploy(STACK, templates["no_url"], start, tmp_path)
    assert main(["publish", "--stack", STACK, "--output", str(int8_only[0].parent)]) == 0
    out = capsys.readouterr().out
    assert out.endswith(
        f"It has no Function URL: invoke {outputs['FunctionAlias']}, or use the API if the stack has one\n"
    )


def test_functions_that_lambda_has_taken_the_network_of_are_waited_for(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after 14 days without a request, by all who ask a function."""
    monkeypatch.setattr(stack, "WAKE_POLL_SECONDS", 0.01)
    loader, alias = deployed.outputs["LoaderName"], deployed.outputs["FunctionAlias"]
    first = deployed.take(deployed.versions[0])
    codes = ["ResourceNotReadyException", "ENINotReadyException", "ResourceConflictException"]
    deployed.cloud.asleep = {loader: [*codes], alias: ["EFSMountTimeoutException", "EFSMountConnectivityException"]}
    status, out, err = deployed.deploy()
    assert (status, err, deployed.in_use) == (0, "", first)
    assert "83 vectors equal" in out
    for code in codes:
        assert f"{loader} is not ready yet ({code}), tried for 0 s of at most 600 s" in out
    for command in (("rollback", first), ("list",)):
        deployed.cloud.asleep = {loader: ["ResourceNotReadyException"]}
        status, out, _ = deployed.deploy(command=command)
        assert (status, f"{loader} is not ready yet" in out) == (0, True)


def test_a_function_whose_network_does_not_come_back_is_told(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "WAKE_SECONDS", 0.0)
    loader = deployed.outputs["LoaderName"]
    deployed.cloud.asleep = {loader: ["ResourceNotReadyException"]}
    status, _, err = deployed.deploy(command=("list",))
    assert status == 1
    assert f"cannot invoke {loader}: " in err
    assert "see its State and StateReason: aws lambda get-function-configuration --function-name" in err


def test_two_publishers_at_once_both_finish(deployed: Deployed, start: Callable[..., Local]) -> None:
    command = [sys.executable, "-m", "deploy", "publish", "--stack", STACK, "--output"]
    outputs = []
    for version in deployed.versions:
        outputs.append(deployed.efs.parent / version)
        (outputs[-1] / MODEL_NAME).mkdir(parents=True)
        (outputs[-1] / MODEL_NAME / version).symlink_to(deployed.output / MODEL_NAME / version)
        (outputs[-1] / MODEL_NAME / "current").write_text(version)

    def run(output: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, str(output)], cwd=ROOT, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(2) as pool:
        for ran in pool.map(run, outputs):
            assert (ran.returncode, ran.stderr) == (0, "")
    assert deployed.in_use in deployed.versions
    for version in deployed.versions:
        open_artifact(deployed.efs / MODEL_NAME / version).check_digests()


def test_an_interrupted_upload_goes_on_where_it_was(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    version = deployed.take(deployed.versions[0])
    put = upload._put

    def interrupt(client: Any, bucket: str, key: str, *rest: Any) -> None:
        if key.endswith(WEIGHTS):
            raise KeyboardInterrupt
        put(client, bucket, key, *rest)

    monkeypatch.setattr(upload, "_put", interrupt)
    status, _, err = deployed.deploy()
    assert (status, err) == (130, "deploy: interrupted: run it again, it continues where it stopped\n")
    before = deployed.modified()
    assert set(before) == {f"{MODEL_NAME}/{version}/{MODEL_FILES['int8']}"}
    assert not (deployed.efs / MODEL_NAME).exists()
    monkeypatch.setattr(upload, "_put", put)
    status, out, _ = deployed.deploy()
    assert (status, deployed.in_use) == (0, version)
    assert {key: deployed.modified()[key] for key in before} == before
    assert "83 vectors equal" in out


def test_a_damaged_object_is_sent_again(deployed: Deployed) -> None:
    version = deployed.take(deployed.versions[0])
    assert deployed.deploy(where=("--bucket", deployed.bucket))[0] == 0
    key = f"{MODEL_NAME}/{version}/{WEIGHTS}"
    s3 = deployed.cloud.client("s3")
    content = bytearray(s3.get_object(Bucket=deployed.bucket, Key=key)["Body"].read())
    content[1_000_000] ^= 1
    s3.put_object(Bucket=deployed.bucket, Key=key, Body=bytes(content))
    status, out, _ = deployed.deploy(where=("--bucket", deployed.bucket, "--loader", deployed.outputs["LoaderName"]))
    assert (status, deployed.in_use) == (0, version)
    assert "Not verified: name the stack with --stack" in out
    head = s3.head_object(Bucket=deployed.bucket, Key=key, ChecksumMode="ENABLED")
    digest = hashlib.sha256((deployed.output / key).read_bytes()).digest()
    assert head["ChecksumSHA256"] == base64.b64encode(digest).decode()


def test_a_bucket_alone_only_gets_the_files(deployed: Deployed) -> None:
    deployed.take(deployed.versions[0])
    status, out, _ = deployed.deploy(where=("--bucket", deployed.bucket))
    assert status == 0
    assert out.endswith("to put it into use, name the loader with --loader, or the stack with --stack\n")
    assert not (deployed.efs / MODEL_NAME).exists()
    for command in (("list",), ("rollback", "v1")):
        status, _, err = deployed.deploy(command=command, where=("--bucket", deployed.bucket))
        assert (status, "needs the stack's loader: name it with --loader" in err) == (1, True)
    status, _, err = deployed.deploy(
        "--restart", where=("--bucket", deployed.bucket, "--loader", deployed.outputs["LoaderName"])
    )
    assert (status, "--restart changes the stack: name it with --stack" in err) == (1, True)


def test_other_vectors_are_found(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "VERIFICATION_TEXTS", VERIFICATION_TEXTS[:9])
    deployed.take(deployed.versions[0])
    embed = stack.Aws.embed

    def change(self: stack.Aws, *arguments: Any) -> Any:
        vectors = embed(self, *arguments)
        vectors[3][100] = vectors[3][100] * 1.0001
        return vectors

    monkeypatch.setattr(stack.Aws, "embed", change)
    status, _, err = deployed.deploy()
    assert status == 1
    assert "1 of 9 vectors are not this machine's to the bit" in err
    assert "to go back: python -m deploy rollback VERSION" in err


def test_texts_that_the_function_refuses_are_told(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "VERIFICATION_TEXTS", ("a",) * 1153)
    deployed.take(deployed.versions[0])
    status, _, err = deployed.deploy()
    assert status == 1
    assert "refused the texts: too_large: texts has 1153 texts" in err


def test_a_precision_that_the_function_needs_must_be_there(
    deployed: Deployed, templates: dict[str, StackTemplate]
) -> None:
    deployed.outputs = create_stack(deployed.cloud.client, "float", templates["fp32"])
    deployed.take(deployed.versions[0])
    status, _, err = deployed.deploy(where=("--stack", "float"))
    assert (status, deployed.modified()) == (1, {})
    assert f"the function of stack float runs fp32, but version {deployed.versions[0]} has only int8: build it" in err


def test_precision_reduces_the_version(
    cloud: Cloud, model_folder: Path, capsys: pytest.CaptureFixture[str], int8_only: tuple[Path, list[str]]
) -> None:
    whole = open_artifact(model_folder).manifest
    if "fp32" not in whole.precisions:
        pytest.skip("build/ml-models has no fp32")
    arguments = ["publish", "--bucket", BUCKET, "--output", str(model_folder.parent), "--precision", "int8"]
    assert main(arguments) == 0
    keys = [each["Key"] for each in cloud.client("s3").list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert {key.rsplit("/", 1)[1] for key in keys} == set(FILES)
    assert not any(f"/{whole.version}/" in key for key in keys)


def test_a_damaged_local_version_is_not_published(cloud: Cloud, copy_model: Callable[[str], Path]) -> None:
    folder = copy_model("v1")
    path = folder / "v1" / TOKENIZER
    path.write_bytes(bytes(path.stat().st_size))
    assert main(["publish", "--bucket", BUCKET, "--output", str(folder.parent)]) == 1
    assert cloud.client("s3").list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0


TO_STACK = ("publish", "--stack", STACK)


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        (
            {"AWS_ACCESS_KEY_ID": ""},
            TO_STACK,
            r"Unable to locate credentials: set AWS_ACCESS_KEY_ID and",
        ),
        (
            {"AWS_SECRET_ACCESS_KEY": ""},
            TO_STACK,
            r"Partial credentials found.*: set AWS_ACCESS_KEY_ID and",
        ),
        (
            {"AWS_REGION": ""},
            TO_STACK,
            r"no region is set: set AWS_REGION to the stack's, such as us-east-1",
        ),
        (
            {"AWS_PROFILE": "absent"},
            TO_STACK,
            r"\(absent\) could not be found: set AWS_PROFILE to a name",
        ),
        ({}, ("publish", "--stack", "other"), r"cannot find stack other: .*does not exist: in region us-east-1: see"),
        ({}, ("publish", "--stack", "no/name"), r"cannot find stack no/name: "),
        (
            {"AWS_ENDPOINT_URL_CLOUDFORMATION": "http://127.0.0.1:9"},
            TO_STACK,
            r"cannot find stack embeddings: Could not connect .*: check that this machine reaches AWS",
        ),
        (
            {},
            ("publish", "--bucket", "absent"),
            r"cannot write s3://absent/.*NoSuchBucket.*: give the stack's output ArtifactBuck",
        ),
        (
            {},
            ("publish", "--bucket", "No Bucket"),
            r"cannot look at s3://No Bucket/.*Invalid bucket name.*: use the name",
        ),
        (
            {},
            ("list", "--bucket", BUCKET, "--loader", "absent"),
            r"cannot invoke absent: .*Function not found: absent: give the stack's output LoaderName as --loader",
        ),
        (
            {},
            ("publish", "--stack", "packaged"),
            r"stack packaged has the model in the function's package \(ModelStorage=package\)",
        ),
        (
            {},
            ("publish", "--stack", "foreign"),
            r"stack foreign, now CREATE_COMPLETE, has no output LoaderName, FunctionAlias: wait until",
        ),
    ],
)
def test_what_is_missing_is_named_in_a_sentence(
    variables: dict[str, str],
    arguments: tuple[str, ...],
    message: str,
    cloud: Cloud,
    templates: dict[str, StackTemplate],
    int8_only: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    create_stack(cloud.client, STACK, templates["default"])
    create_stack(cloud.client, "packaged", templates["package"])
    foreign = {
        "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
        "Outputs": {name: {"Value": name} for name in ("ArtifactBucketName", "Url")},
    }
    cloud.client("cloudformation").create_stack(StackName="foreign", TemplateBody=json.dumps(foreign))
    merged = {**cloud.variables, **variables}
    isolated(monkeypatch, **{name: value for name, value in merged.items() if value})
    assert main([*arguments, "--output", str(int8_only[0].parent)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("deploy: ")
    assert err.count("\n") == 1
    assert re.search(message, err), err


@pytest.mark.parametrize("code", ["AccessDenied", "ExpiredToken", "Unheard"])
def test_codes_of_aws_have_remedies(code: str) -> None:
    remedies = {"AccessDenied": "permissions", "ExpiredToken": "aws sso login", "Unheard": "documentation of the code"}
    error = ClientError({"Error": {"Code": code, "Message": "no"}}, "PutObject")
    message = f"cannot write: .*{code}.*{remedies[code]}"
    with pytest.raises(stack.PublishError, match=message), stack.aws_errors("write"):
        raise error


@pytest.mark.parametrize(
    "template",
    [
        "Variables:\n  MODEL_GENERATION: 0\n",
        "Variables:\n  MODEL_GENERATION: '0'\n",
        'Variables:\n  MODEL_GENERATION: "v1.17"\n',
        {"Variables": {"MODEL_GENERATION": "0"}},
    ],
)
def test_a_restart_changes_one_word_of_the_template(template: str | dict[str, Any]) -> None:
    changed = stack.with_generation(template, "v2.18")
    assert changed in ('Variables:\n  MODEL_GENERATION: "v2.18"\n', '{"Variables": {"MODEL_GENERATION": "v2.18"}}')


def test_this_projects_template_is_what_publishing_expects() -> None:
    template = (ROOT / "template.yaml").read_text("utf-8")
    assert stack.with_generation(template, "v2.18").replace('"v2.18"', '"0"') == template
    parameters, outputs = re.split(r"^Resources:$|^Outputs:$", template, flags=re.MULTILINE)[::2]
    assert "\n  Precision:\n" in parameters
    for name in ("Url", "FunctionAlias", "ModelStorage", "ArtifactBucketName", "LoaderName"):
        assert f"\n  {name}:\n" in outputs


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Resources: {}\n", "sets MODEL_GENERATION 0 times, not once: deploy the stack again"),
        ("MODEL_GENERATION: 0\nMODEL_GENERATION: 1\n", "sets MODEL_GENERATION 2 times"),
    ],
)
def test_a_template_that_cannot_be_changed_is_refused(template: str, message: str) -> None:
    with pytest.raises(stack.PublishError, match=message):
        stack.with_generation(template, "v2")


@pytest.mark.parametrize("status", ["UPDATE_ROLLBACK_IN_PROGRESS", "UPDATE_ROLLBACK_COMPLETE", "UPDATE_FAILED"])
def test_a_restart_that_is_rolled_back_is_told(status: str, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"StackStatus": status, "StackStatusReason": "an alarm went off"}
    monkeypatch.setattr(stack.Aws, "_describe", lambda *arguments: found)
    with pytest.raises(stack.PublishError, match=f"is {status} .an alarm went off.: its old environments keep running"):
        stack.Aws()._wait_for_update(STACK)


def test_on_a_terminal_there_is_a_bar(cloud: Cloud, int8_only: tuple[Path, list[str]]) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "deploy", "publish", "--bucket", BUCKET, "--output", str(int8_only[0].parent)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, cwd=ROOT, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                shown += os.read(leader, 65536)
            except OSError:  # the other side has ended
                break
        assert process.wait(30) == 0
    os.close(leader)
    assert "━" in shown.decode()
    assert b"MB sent" in shown


@pytest.mark.parametrize(
    ("package", "missing", "message"),
    [
        ("deploy", "boto3", "deploy: boto3 is missing, install what publishing needs with: pip install '.[aws]'"),
        ("deploy", "rich", "deploy: rich is missing, install what publishing needs with: pip install '.[aws]'"),
        ("deploy", "onnx", ""),  # it needs nothing of what builds models
        ("export", "boto3", ""),  # which needs nothing of AWS
    ],
)
def test_what_is_not_installed_is_named(package: str, missing: str, message: str) -> None:
    code = (
        f"import runpy, sys; sys.modules[{missing!r}] = None; sys.argv[1:] = ['--help'];"
        f"runpy.run_module({package!r}, run_name='__main__', alter_sys=True)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.strip()) == (1 if message else 0, message)
    assert ("python -m deploy" in ran.stdout) is not bool(message)


def test_float32_vectors_may_differ_in_their_last_bits(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = VERIFICATION_TEXTS[:9]
    monkeypatch.setattr(publish, "VERIFICATION_TEXTS", texts)
    embedder = Embedder.load(model_folder, "fp32")
    vectors = embedder.embed(texts).vectors
    difference, outcome = publish._difference(vectors * 1.0000001, embedder)
    assert (difference, outcome) == ("", "9 vectors have a cosine of at least 1.000000 to this machine's")
    vectors[5] = vectors[6]
    assert publish._difference(vectors, embedder)[0].startswith("its vectors have a cosine of 0.")
    assert "shape" in publish._difference(vectors[:5], embedder)[0]
