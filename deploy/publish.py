"""Publish a version of the model to a deployed stack: upload, load, compare the vectors; list versions, roll back."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from artifact.manifest import Artifact, Manifest, open_artifact
from deploy.stack import Aws, Deployment, PublishError, Served
from deploy.upload import upload
from export.progress import Steps
from export.texts import VERIFICATION_TEXTS
from handler.embedder import Embedder

MIN_COSINE = 0.99999
"""Minimum cosine of float32 vectors, which may differ in their last bits between CPU types."""
VERIFICATION_TRIES = 3


@dataclass(frozen=True)
class Version:
    """A version to publish, or one in the stack, which this machine may have too."""

    name: str
    manifest: Manifest | None = None
    folder: Path | None = None
    """The folder of its files on this machine; None if it is not here."""


def publish(arguments: argparse.Namespace, deployment: Deployment, aws: Aws) -> None:
    """Put the version in use on this machine into use in the stack. Raises PublishError, ArtifactError."""
    steps = Steps(total=2 if deployment.loader is None else 3 + bool(deployment.function) + arguments.restart)
    with steps.step(f"check the version in use in {arguments.output / arguments.model}"):
        version = _local_version(arguments.output / arguments.model, arguments.precision)
        manifest, folder = _published(version)
        if deployment.precision and deployment.precision not in manifest.precisions:
            raise PublishError(
                f"the function of stack {deployment.stack} runs {deployment.precision}, but version {version.name} has "
                f"only {', '.join(manifest.precisions)}: build it with python -m export --precision int8,fp32, or "
                "deploy the stack with another Precision"
            )
    with steps.step(f"upload version {version.name} to s3://{deployment.bucket}") as advance:
        sent = upload(aws.client("s3"), deployment.bucket, arguments.model, folder, manifest, advance)
    print(f"{sent / 1e6:.1f} MB sent" if sent else "all files were there already")
    if deployment.loader is None:
        print("It is only in the bucket: to put it into use, name the loader with --loader, or the stack with --stack")
        return
    with steps.step(f"load it with {deployment.loader}"):
        event = {"action": "load", "model": arguments.model, "version": version.name}
        result = aws.invoke(deployment.loader, event)
    _tell_result(result)
    _verify(arguments, deployment, version, result["previous"], aws, steps)


def roll_back(arguments: argparse.Namespace, deployment: Deployment, aws: Aws) -> None:
    """Put another version that the stack has into use. Raises PublishError, ArtifactError."""
    loader = _loader(deployment, "rollback")
    steps = Steps(total=1 + bool(deployment.function) + arguments.restart)
    with steps.step(f"put version {arguments.version} into use with {loader}"):
        result = aws.invoke(loader, {"action": "use", "model": arguments.model, "version": arguments.version})
    _tell_result(result)
    folder = arguments.output / arguments.model / arguments.version
    version = Version(arguments.version)
    if folder.is_dir():
        version = Version(arguments.version, open_artifact(folder).manifest, folder)
    _verify(arguments, deployment, version, result["previous"], aws, steps)


def list_versions(arguments: argparse.Namespace, deployment: Deployment, aws: Aws) -> None:
    """Print the versions that the stack has. Raises PublishError."""
    loader = _loader(deployment, "list")
    result = aws.invoke(loader, {"action": "list", "model": arguments.model})
    table = Table(box=box.SIMPLE)
    for header in ("version", "created", "MB", "in use", "intact"):
        table.add_column(header, no_wrap=True)
    for each in result["versions"]:
        state = ("yes" if each["current"] else "", "yes" if each["intact"] else f"no: {each['problem']}")
        table.add_row(each["version"], each["created"], f"{each['size'] / 1e6:.1f}", *state)
    Steps(0).console.print(table)
    if not result["versions"]:
        print(f"{loader} has no version of {arguments.model}: put one there with: python -m deploy publish")


def _verify(
    arguments: argparse.Namespace,
    deployment: Deployment,
    version: Version,
    previous: str | None,
    aws: Aws,
    steps: Steps,
) -> None:
    """Ask the deployed function for its version and vectors, and print how they compare."""
    if arguments.restart:
        with steps.step("replace all environments of the function (some minutes, where traffic moves step by step)"):
            if deployment.stack is None:
                raise PublishError("--restart changes the stack: name it with --stack")
            aws.restart(deployment.stack, deployment.bucket, f"{version.name}.{int(time.time())}")
    if deployment.function is None:
        print("Not verified: name the stack with --stack to embed with its function")
        return
    with steps.step("compare the deployed function's vectors with those of this machine") as advance:
        served, outcome = _compare(deployment.function, version, aws, advance)
    print(f"{deployment.function} answers with version {served.version}, {served.precision}: {outcome}")
    if served.version != version.name or (previous not in (None, version.name) and not arguments.restart):
        print(
            f"Environments that are running keep the version they started with until Lambda recycles them, within "
            f"hours; new ones take {version.name}. To replace all of them now: {_restart_command(arguments)}"
        )
    if deployment.url is None:
        print(f"It has no Function URL: invoke {deployment.function}, or use the API if the stack has one")
    else:
        print(f"URL: {deployment.url}\n{_curl(deployment)}")


def _compare(function: str, version: Version, aws: Aws, advance: Any) -> tuple[Served, str]:
    """What the function serves, and in words how its vectors compare.

    Raises PublishError if it serves the version but its vectors are different.
    """
    for attempt in range(VERIFICATION_TRIES):
        advance(attempt, VERIFICATION_TRIES)
        served = aws.served(function)
        if version.manifest is not None and served.model != version.manifest.model:
            raise PublishError(f"{function} serves {served.model}, not {version.manifest.model}: set its MODEL_NAME")
        if served.version != version.name:
            return served, "not yet the one in use"
        if version.folder is None:
            return served, "vectors not compared, as this machine does not have that version"
        vectors = np.array(aws.embed(function, VERIFICATION_TEXTS), np.float32)
        difference, outcome = _difference(vectors, Embedder.load(version.folder, served.precision))
        if not difference:
            return served, outcome
        # An environment with another version may have answered.
    raise PublishError(
        f"{function} serves {served.version}, and {difference}: check that its package was built from this source "
        "(sam build, sam deploy); to go back: python -m deploy rollback VERSION"
    )


def _difference(vectors: np.ndarray, embedder: Embedder) -> tuple[str, str]:
    """Two texts: how the vectors differ from this machine's, empty if they do not; and how they agree."""
    expected = embedder.embed(VERIFICATION_TEXTS).vectors
    count = len(VERIFICATION_TEXTS)
    precision = embedder.manifest.precisions[embedder.precision]
    if vectors.shape != expected.shape:
        return f"its vectors have the shape {vectors.shape}, not {expected.shape}", ""
    if embedder.precision == "int8" and precision.batch_independent:
        differing = int((vectors != expected).any(axis=1).sum())
        text = f"{differing} of {count} vectors are not this machine's to the bit" if differing else ""
        return text, f"{count} vectors equal this machine's to the bit"
    lowest = float((vectors * expected).sum(axis=1).min())
    text = f"its vectors have a cosine of {lowest:.6f} to this machine's" if lowest < MIN_COSINE else ""
    return text, f"{count} vectors have a cosine of at least {lowest:.6f} to this machine's"


def _local_version(model_folder: Path, precisions: Sequence[str] | None) -> Version:
    """The version in use, after checking every byte, or a version with only some of its precisions."""
    artifact = open_artifact(model_folder)
    artifact.check_digests()
    manifest = artifact.manifest
    if precisions is not None and set(precisions) != set(manifest.precisions):
        manifest = _reduced(artifact, precisions)
    return Version(manifest.version, manifest, Path(artifact.folder))


def _reduced(artifact: Artifact, precisions: Sequence[str]) -> Manifest:
    try:
        from export.manifest import reduced  # which needs what builds models
    except ModuleNotFoundError as error:
        raise PublishError(f"{error.name} is missing, --precision needs: pip install '.[aws,export]'") from error
    return reduced(artifact.manifest, precisions)


def _published(version: Version) -> tuple[Manifest, Path]:
    if version.manifest is None or version.folder is None:
        raise PublishError(f"version {version.name} is not on this machine")
    return version.manifest, version.folder


def _tell_result(result: dict[str, Any]) -> None:
    copied = {True: "copied, ", False: "was there already, "}.get(result.get("copied"), "")  # type: ignore[arg-type]
    removed = f"; removed: {', '.join(result['removed'])}" if result.get("removed") else ""
    print(f"version {result['version']} {copied}in use; before it: {result['previous'] or 'none'}{removed}")


def _loader(deployment: Deployment, option: str) -> str:
    if deployment.loader is None:
        raise PublishError(f"{option} needs the stack's loader: name it with --loader, or the stack with --stack")
    return deployment.loader


def _restart_command(arguments: argparse.Namespace) -> str:
    what = "publish" if arguments.command == "publish" else f"rollback {arguments.version}"
    return f"python -m deploy {what} --stack {shlex.quote(arguments.stack)} --restart"


def _curl(deployment: Deployment) -> str:
    """A signed request. Temporary credentials, such as a role's, have a token. Without one there must be no header for
    it, since curl would sign an empty header but not send it.
    """
    return (
        f'curl --aws-sigv4 "aws:amz:{deployment.region}:lambda" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" '
        '${AWS_SESSION_TOKEN:+"-Hx-amz-security-token:$AWS_SESSION_TOKEN"} -H "content-type: application/json" '
        f'{deployment.url}/embed -d \'{{"text":"vitamin d"}}\''
    )
