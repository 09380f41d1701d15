"""python -m deploy apply and remove: what they ask sam for, by what they are given and what the stack has.

tests/test_make_deploy.py and tests/test_readme_commands.py run sam itself.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import deployment
from deploy.__main__ import main
from tests.support.cloud import BUCKET, Cloud, cloud, moto
from tests.support.servers import ROOT, Handler, serving
from tests.support.stack import StackTemplate, create_stack, run, templates_for_moto

__all__ = ["cloud", "moto"]  # fixtures

ARM_IN_PACKAGE = {"Architecture": "arm64", "Runtime": "python3.14", "ModelStorage": "package"}
TAGS = [{"Key": "team", "Value": "search"}, {"Key": "cost", "Value": "a b"}]
SAM = """#!/bin/sh
echo "$1 $ARCHITECTURE $RUNTIME:" "$@" >> "$0.log"
sleep "${SECONDS_ASLEEP:-0}"
[ "$1" != "$FAILS" ]
"""
"""In the place of sam: it writes down what it is asked for, and fails at the command FAILS."""


@pytest.fixture(scope="module")
def template() -> StackTemplate:
    [template] = templates_for_moto([ARM_IN_PACKAGE])
    return template


@pytest.fixture
def sam(tmp_path: Path) -> Path:
    path = tmp_path / "sam"
    path.write_text(SAM)
    path.chmod(0o755)
    return path


def asked(sam: Path) -> list[str]:
    log = sam.with_name("sam.log")
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize(
    ("given", "built_for", "overrides"),
    [
        ([], "arm64 python3.14", "Architecture=arm64 Runtime=python3.14"),
        (["MemorySize=1024"], "arm64 python3.14", "Architecture=arm64 Runtime=python3.14 MemorySize=1024"),
        (["--architecture", "x86_64"], "x86_64 python3.14", "Architecture=x86_64 Runtime=python3.14"),
        (["Architecture=x86_64"], "x86_64 python3.14", "Architecture=x86_64 Runtime=python3.14"),
        (["Runtime=python3.13"], "arm64 python3.13", "Architecture=arm64 Runtime=python3.13"),
        (["AlarmEmail="], "arm64 python3.14", "Architecture=arm64 Runtime=python3.14 AlarmEmail="),
    ],
)
def test_a_stack_keeps_what_is_not_given(
    cloud: Cloud, template: StackTemplate, sam: Path, given: list[str], built_for: str, overrides: str
) -> None:
    create_stack(cloud.client, "arm", template)
    assert main(["apply", "--stack", "arm", "--sam", str(sam), *given]) == 0
    build, deploy = asked(sam)
    overrides = re.sub(r"=(\S*)", r'="\1"', overrides)
    assert build == f"build {built_for}: build --parameter-overrides {overrides}"
    assert deploy.startswith(f"deploy {built_for}: deploy --stack-name arm --resolve-s3 ")
    assert " --s3-prefix arm " in deploy
    assert deploy.endswith(f" --parameter-overrides {overrides}")


@pytest.mark.parametrize(
    ("given", "tags"),
    [
        ([], '--tags team="search" cost="a b"'),
        (["--tags", "owner=me"], '--tags team="search" cost="a b" owner="me"'),
        (["--tags", "team=ads"], '--tags team="ads" cost="a b"'),
    ],
)
def test_a_stack_keeps_its_tags(cloud: Cloud, sam: Path, given: list[str], tags: str) -> None:
    """Which sam, that always sends a list, would take away."""
    template = {
        "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
        "Outputs": {"ModelStorage": {"Value": "package"}},
    }
    body = json.dumps(template)
    cloud.client("cloudformation").create_stack(StackName="tagged", TemplateBody=body, Tags=TAGS)
    assert main(["apply", "--stack", "tagged", "--sam", str(sam), *given]) == 0
    assert asked(sam)[1].endswith(f" {tags}")


@pytest.mark.parametrize("kind", ["CfnParameterOverridesType", "CfnTags"])
def test_sam_reads_what_it_is_given(kind: str) -> None:
    values = {
        "Empty": "",
        "Words": "a b",
        "Any": "*",
        "Url": "https://a.b:1/?c=d&e",
        "Quote": 'a "b"',
        "Arn": "a:b:c/d,e=f",
    }
    code = f"import json, sys, samcli.cli.types as t; print(json.dumps(t.{kind}().convert(sys.argv[1:], None, None)))"
    assert json.loads(run("python", "-c", code, *deployment.quoted(values)).stdout) == values


def test_the_package_is_built_for_what_sam_is_given() -> None:
    for target in ("build-EmbeddingFunction", "build-LoaderFunction"):
        command = [
            "make",
            "--no-print-directory",
            "--dry-run",
            target,
            "ARTIFACTS_DIR=folder",
            "ARCHITECTURE=arm64",
            "RUNTIME=python3.14",
        ]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert ran.stdout.strip().endswith(" folder --architecture arm64 --python 3.14")


def test_nothing_is_published_where_the_model_is_in_the_package(
    cloud: Cloud, template: StackTemplate, sam: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_stack(cloud.client, "arm", template)
    assert main(["apply", "--stack", "arm", "--sam", str(sam)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("deploying to account 123456789012 in us-east-1\nstack arm is there: what is not given stays")
    assert "stack arm has the model in its package: there is nothing to publish" in out


def test_a_new_stack_is_x86_64(cloud: Cloud, sam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILS", "deploy")  # as there is nothing that would make the stack
    assert main(["apply", "--stack", "new", "--sam", str(sam)]) == 1
    overrides = 'Architecture="x86_64" Runtime="python3.13"'
    assert asked(sam)[0] == f"build x86_64 python3.13: build --parameter-overrides {overrides}"


@pytest.mark.parametrize(
    ("arguments", "fails", "message", "commands"),
    [
        (["MemorySize"], "", "parameter 'MemorySize' has no value: write NAME=VALUE", 0),
        (["Runtime=python3.9"], "", "there is no package for python3.9: give Runtime=python3.13 or python3.14", 0),
        (["Architecture=mips"], "", "there is no package for mips: give Architecture=x86_64 or arm64", 0),
        (["--tags", "team"], "", "tag 'team' has no value: write NAME=VALUE", 0),
        (["--architecture", "arm64", "Architecture=x86_64"], "", "given as arm64 and as x86_64: give one of them", 0),
        (["--sam", "absent/sam"], "", "absent/sam is missing: install AWS's tools with: make aws-tools", 0),
        ([], "build", "sam build failed (status 1), for the reason above", 1),
        ([], "deploy", "sam deploy failed (status 1), for the reason above", 2),
    ],
)
def test_what_fails_is_told_and_nothing_follows_it(
    cloud: Cloud,
    sam: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    fails: str,
    message: str,
    commands: int,
) -> None:
    monkeypatch.setenv("FAILS", fails)
    assert main(["apply", "--stack", "new", "--sam", str(sam), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert len(asked(sam)) == commands


def test_without_a_region_nothing_is_built(
    cloud: Cloud, sam: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AWS_REGION")
    assert main(["apply", "--stack", "new", "--sam", str(sam)]) == 1
    assert "no region is set" in capsys.readouterr().err
    assert asked(sam) == []


# Removal


@pytest.fixture
def bucket(cloud: Cloud) -> str:
    """The stack `removed` has it, with objects, older versions and what deleting left."""
    template = {
        "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
        "Outputs": {"ArtifactBucketName": {"Value": BUCKET}},
    }
    cloud.client("cloudformation").create_stack(StackName="removed", TemplateBody=json.dumps(template))
    s3 = cloud.client("s3")
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    for body in (b"1", b"2"):
        s3.put_object(Bucket=BUCKET, Key="model/v1/manifest.json", Body=body)
    s3.delete_object(Bucket=BUCKET, Key="model/v1/manifest.json")
    s3.put_object(Bucket=BUCKET, Key="model/v2/manifest.json", Body=b"3")
    return BUCKET


def objects(cloud: Cloud) -> int:
    found = cloud.client("s3").list_object_versions(Bucket=BUCKET)
    return len([*found.get("Versions", ()), *found.get("DeleteMarkers", ())])


def test_a_bucket_is_emptied_before_its_stack_is_deleted(
    cloud: Cloud, bucket: str, sam: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["remove", "--stack", "removed", "--sam", str(sam), "--yes"]) == 0
    assert "4 objects deleted from s3://artifacts, older versions counted" in capsys.readouterr().out
    assert objects(cloud) == 0
    assert asked(sam) == ["delete  : delete --stack-name removed --region us-east-1 --no-prompts"]

    # A second try, where the bucket went in the first.
    cloud.client("s3").delete_bucket(Bucket=bucket)
    assert main(["remove", "--stack", "removed", "--sam", str(sam), "--yes"]) == 0
    assert "0 objects deleted" in capsys.readouterr().out


@pytest.mark.parametrize("answer", ["", "n\n", "no\n"])
def test_nothing_is_removed_without_a_yes(
    cloud: Cloud,
    bucket: str,
    sam: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    assert main(["remove", "--stack", "removed", "--sam", str(sam)]) == 1
    captured = capsys.readouterr()
    assert "Remove stack removed and all models that it has from account 123456789012 in us-east-1?" in captured.out
    assert "stack removed stays: to remove it without being asked, say --yes" in captured.err
    assert (objects(cloud), asked(sam)) == (4, [])


def test_a_stack_that_is_not_there_is_told(cloud: Cloud, sam: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["remove", "--stack", "absent", "--sam", str(sam), "--yes"]) == 1
    assert "cannot find stack absent" in capsys.readouterr().err
    assert asked(sam) == []


def test_a_long_removal_tells_what_it_waits_for(
    cloud: Cloud, bucket: str, sam: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deployment, "TELL_SECONDS", 0.2)
    monkeypatch.setenv("SECONDS_ASLEEP", "3")
    monkeypatch.setattr(
        cloud, "answered", lambda _, content: content.replace(b"CREATE_COMPLETE", b"DELETE_IN_PROGRESS")
    )
    assert main(["remove", "--stack", "removed", "--sam", str(sam), "--yes"]) == 0
    assert "still being deleted: Topic (Lambda can take 40 minutes to give back" in capsys.readouterr().out


def test_objects_that_may_not_be_deleted_are_told(
    cloud: Cloud, bucket: str, sam: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Denying(Handler):
        """S3 as it is to those who may list objects and not delete them."""

        def do_GET(self) -> None:  # noqa: N802  http.server calls it so
            version = "<Version><Key>model</Key><VersionId>1</VersionId></Version>"
            self.answer(200, {}, f"<ListVersionsResult>{version}</ListVersionsResult>".encode())

        def do_POST(self) -> None:  # noqa: N802
            self.body()
            denied = "<Error><Key>model</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.answer(200, {}, f"<DeleteResult>{denied}</DeleteResult>".encode())

    with serving(Denying) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        assert main(["remove", "--stack", "removed", "--sam", str(sam), "--yes"]) == 1
    assert "cannot empty s3://artifacts: " in (err := capsys.readouterr().err)
    assert "AccessDenied" in err
    assert asked(sam) == []
