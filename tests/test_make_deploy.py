"""`make deploy` to its end: the real recipe and sam, a stand-in for AWS, and functions that run what sam has uploaded.

The stand-in is moto; tests/support/account.py adds what it lacks, tests/aws/template_for_moto.py names the resources
left out.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks.runtime import lambda_python
from handler.embedder import Embedder
from tests.support.account import Account
from tests.support.cloud import FILES, int8_only, moto, signed_in
from tests.support.documents import block
from tests.support.packages import no_python
from tests.support.servers import MODEL_NAME, ROOT, Local
from tests.support.stack import TOOLS, delete_route_table, outputs_of, require_tools

pytestmark = pytest.mark.slow

__all__ = ["int8_only", "moto"]  # fixtures

ON_EFS, IN_PACKAGE, _ = [line for line in block("make deploy PARAMETERS").splitlines() if line[0] != "#"]
"""The commands of docs/deploying.md. The third is for a processor that is not this one."""
PLAIN = "make deploy"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Lambda's, with the runtime client and the boto3 that Lambda gives to functions."""
    require_tools()
    if platform.machine() != "x86_64":
        pytest.skip(f"the functions are deployed for x86_64 and run here, and this is {platform.machine()}")
    if reason := no_python():
        pytest.skip(reason)
    return lambda_python(tmp_path_factory.mktemp("python"), "boto3")


@pytest.fixture
def account(
    python: str, moto: str, start: Callable[..., Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Account]:
    account = Account(moto, folder=tmp_path, python=python, start=start)
    account.efs.mkdir(parents=True)
    with signed_in(account, monkeypatch):
        yield account


@pytest.fixture(scope="module")
def clone(int8_only: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this project in which all that `make deploy` makes before it deploys is up to date."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "build", "docs", "__pycache__", "*.egg-info"))
    link(folder / ".venv", Path(sys.prefix), ("serve", "publish"))
    for library in (folder / "kernels").glob("*.so"):
        library.touch()
    link(folder / "build" / "aws", TOOLS.parent, (".done",))
    model, versions = int8_only
    link(folder / "build" / "ml-models" / MODEL_NAME, model, ("current",))
    (folder / "build" / "ml-models" / MODEL_NAME / "current").write_text(versions[0])
    return folder


def link(folder: Path, target: Path, made: tuple[str, ...]) -> None:
    """A folder with the target's folders, and with the files that make looks for, newer than what they are made of."""
    folder.mkdir(parents=True)
    for each in target.iterdir():
        if each.is_dir() or each.name == "pyvenv.cfg":
            (folder / each.name).symlink_to(each)
    for name in made:
        (folder / name).touch()


def make_deploy(account: Account, clone: Path, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    environment |= {"AWS_ENDPOINT_URL": account.moto, "PYTHON": sys.executable, **variables}
    environment["SAM_CLI_POLL_DELAY"] = "0.1"  # instead of 5 s, after which all has long been done here
    return subprocess.run(
        ["sh", "-c", command], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )


def test_a_model_on_efs(account: Account, clone: Path, int8_only: tuple[Path, list[str]], int8: Embedder) -> None:
    """And once more, when nothing has changed since; with other code; and its removal."""
    version = int8_only[1][0]
    ran = make_deploy(account, clone, ON_EFS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    outputs = account.outputs("embeddings")
    assert outputs["ModelStorage"] == "efs"
    assert f"version {version} copied, in use; before it: none" in ran.stdout
    assert "83 vectors equal this machine's to the bit" in ran.stdout
    assert f"\nURL: {outputs['Url'].rstrip('/')}\n" in ran.stdout
    published = {f"{MODEL_NAME}/{version}/{name}" for name in FILES}
    assert account.keys(outputs["ArtifactBucketName"]) == published
    assert (account.efs / MODEL_NAME / "current").read_text().strip() == version
    assert_embeds(account.functions[outputs["FunctionAlias"]], int8)

    ran = make_deploy(account, clone, ON_EFS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "No changes to deploy. Stack embeddings is up to date" in ran.stdout
    assert "all files were there already" in ran.stdout
    assert account.outputs("embeddings") == outputs

    live = account.live["embeddings"]
    with changed(clone / "handler" / "app.py", lambda text: f"{text}# changed\n"):
        ran = make_deploy(account, clone, ON_EFS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert account.live["embeddings"] != live
    assert account.versions["embeddings"] == [account.live["embeddings"]]
    assert "83 vectors equal this machine's to the bit" in ran.stdout

    delete_route_table(account.client("ec2"))
    ran = make_deploy(account, clone, "make remove STACK=embeddings YES=1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Deleted successfully" in ran.stdout
    [sams] = account.client("cloudformation").describe_stacks()["Stacks"]
    [bucket] = [each["Name"] for each in account.client("s3").list_buckets()["Buckets"]]
    assert bucket == outputs_of(sams)["SourceBucket"]
    assert account.keys(bucket) == set()


def test_a_model_in_the_package(
    account: Account, clone: Path, int8_only: tuple[Path, list[str]], int8: Embedder
) -> None:
    """And another one after it, whose deployment an alarm stops; the second try, without
    parameters, puts it into use."""
    first, second = int8_only[1]
    ran = make_deploy(account, clone, IN_PACKAGE)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    outputs = account.outputs("embeddings")
    assert outputs["ModelStorage"] == "package"
    assert list(account.functions) == [outputs["FunctionAlias"]]
    assert_embeds(account.functions[outputs["FunctionAlias"]], int8)
    assert served(account) == first

    with changed(clone / "build" / "ml-models" / MODEL_NAME / "current", lambda _: second):
        account.stopped.add("embeddings")
        ran = make_deploy(account, clone, IN_PACKAGE)
        assert "Failed to create/update the stack: embeddings" in ran.stderr
        assert account.refusals["embeddings"] == "The deployment was stopped by an alarm"
        assert served(account) == first

        account.stopped.clear()
        ran = make_deploy(account, clone, PLAIN)
        assert ran.returncode == 0, (account.refusals, ran.stdout + ran.stderr)
        assert served(account) == second
        assert account.outputs("embeddings")["ModelStorage"] == "package"
    assert account.versions["embeddings"] == [account.live["embeddings"]]


def test_nothing_is_published_to_a_stack_that_could_not_be_created(account: Account, clone: Path) -> None:
    account.rolled_back.add("refused")
    ran = make_deploy(account, clone, ON_EFS, STACK="refused")
    assert ran.returncode != 0
    assert "Failed to create/update the stack: refused" in ran.stderr
    assert "ROLLBACK_COMPLETE" in ran.stdout
    assert "upload version" not in ran.stdout


@contextmanager
def changed(path: Path, change: Callable[[str], str]) -> Iterator[None]:
    """The file has other text for a while."""
    before = path.read_text()
    path.write_text(change(before))
    yield
    path.write_text(before)


def served(account: Account, stack: str = "embeddings") -> str:
    """The version of the model that the alias answers with."""
    version: str = account.functions[account.outputs(stack)["FunctionAlias"]].send("/info").json()["artifact_version"]
    return version


def assert_embeds(function: Local, int8: Embedder) -> None:
    answer = function.send("/embed", b'{"text": "vitamin d"}', content_type="application/json")
    assert answer.status == 200
    np.testing.assert_array_equal(np.float32(answer.json()["embedding"]), int8.embed(["vitamin d"]).vectors[0])
