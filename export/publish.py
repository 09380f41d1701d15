"""python -m export publish: a version of the model into a deployed stack: upload, load, and compare the vectors."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import numpy as np
    from rich import box
    from rich.table import Table

    from export import ExportError
    from export.deployment import Aws, Deployment, PublishError, Served
    from export.options import precisions
    from export.progress import Steps
    from export.texts import VERIFICATION_TEXTS
    from export.upload import upload
    from handler.artifact import Artifact, ArtifactError, Manifest, open_artifact
    from handler.embedder import Embedder
except ModuleNotFoundError as error:
    sys.exit(f"export: {error.name} is missing, install what publishing needs with: pip install '.[aws]'")

MIN_COSINE = 0.99999
"""Of float32 vectors, which may differ in their last bits between CPU types."""
VERIFICATION_TRIES = 3


@dataclass(frozen=True)
class Version:
    """A version to publish, or one that is in the stack already and that this machine may have too."""

    name: str
    manifest: Manifest | None = None
    folder: Path | None = None
    """Where its files are on this machine."""


def main(command_line: Sequence[str]) -> int:
    arguments = _parse_arguments(command_line)
    try:
        run(arguments)
    except (ExportError, ArtifactError) as error:
        print(f"export publish: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"export publish: cannot read {error.filename or arguments.output}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("export publish: interrupted: run it again, it goes on where it was", file=sys.stderr)
        return 130
    return 0


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for. Raises ExportError, ArtifactError."""
    aws = Aws()
    deployment = (
        aws.find(arguments.stack) if arguments.stack else Deployment(aws.region, arguments.bucket, arguments.loader)
    )
    if arguments.list:
        _show(_loader(deployment, "--list"), deployment, arguments.model, aws)
    elif arguments.rollback:
        _roll_back(arguments, deployment, aws)
    else:
        _publish(arguments, deployment, aws)


def _publish(arguments: argparse.Namespace, deployment: Deployment, aws: Aws) -> None:
    """The steps in order."""
    steps = Steps(total=2 if deployment.loader is None else 3 + bool(deployment.function) + arguments.restart)
    with steps.step(f"check the version in use in {arguments.output / arguments.model}"):
        version = _local_version(arguments.output / arguments.model, arguments.precision)
        manifest, folder = _published(version)
        if deployment.precision and deployment.precision not in manifest.precisions:
            raise PublishError(
                f"the function of stack {deployment.stack} runs {deployment.precision}, and version {version.name} has "
                f"only {', '.join(manifest.precisions)}: build it with python -m export --precision int8,fp32, or "
                "deploy the stack with another Precision"
            )
    with steps.step(f"upload version {version.name} to s3://{deployment.bucket}") as advance:
        sent = upload(aws.client("s3"), deployment.bucket, arguments.model, folder, manifest, advance)
    print(f"{sent / 1e6:.1f} MB sent" if sent else "all of it was there already")
    if deployment.loader is None:
        print("It is in the bucket alone: to put it into use, name the loader with --loader, or the stack with --stack")
        return
    with steps.step(f"load it with {deployment.loader}"):
        event = {"action": "load", "model": arguments.model, "version": version.name}
        result = aws.invoke(deployment.loader, event)
    _tell_result(result)
    _verify(arguments, deployment, version, result["previous"], aws, steps)


def _roll_back(arguments: argparse.Namespace, deployment: Deployment, aws: Aws) -> None:
    loader = _loader(deployment, "--rollback")
    steps = Steps(total=1 + bool(deployment.function) + arguments.restart)
    with steps.step(f"put version {arguments.rollback} into use with {loader}"):
        result = aws.invoke(loader, {"action": "use", "model": arguments.model, "version": arguments.rollback})
    _tell_result(result)
    folder = arguments.output / arguments.model / arguments.rollback
    version = Version(arguments.rollback)
    if folder.is_dir():
        version = Version(arguments.rollback, open_artifact(folder).manifest, folder)
    _verify(arguments, deployment, version, result["previous"], aws, steps)


def _verify(
    arguments: argparse.Namespace,
    deployment: Deployment,
    version: Version,
    previous: str | None,
    aws: Aws,
    steps: Steps,
) -> None:
    """Ask the deployed function, and say what it answers with."""
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
    print(f"URL: {deployment.url}\n{_curl(deployment)}")


def _compare(function: str, version: Version, aws: Aws, advance: Any) -> tuple[Served, str]:
    """What the function serves, and in words how its vectors compare.

    Raises PublishError if it serves the version and its vectors are others.
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
        # It may be that an environment with another version gave them.
    raise PublishError(
        f"{function} serves {served.version}, and {difference}: see whether its package is of this source (sam build, "
        "sam deploy); --rollback VERSION goes back"
    )


def _difference(vectors: np.ndarray, embedder: Embedder) -> tuple[str, str]:
    """In words, how vectors differ from those of this machine; empty if they do not. And how they agree."""
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
    """The version in use, every byte checked, or of it some precisions, as a version of their own."""
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


def _show(loader: str, deployment: Deployment, model: str, aws: Aws) -> None:
    result = aws.invoke(loader, {"action": "list", "model": model})
    table = Table(box=box.SIMPLE)
    for header in ("version", "created", "MB", "in use", "intact"):
        table.add_column(header, no_wrap=True)
    for each in result["versions"]:
        state = ("yes" if each["current"] else "", "yes" if each["intact"] else f"no: {each['problem']}")
        table.add_row(each["version"], each["created"], f"{each['size'] / 1e6:.1f}", *state)
    Steps(0).console.print(table)
    if not result["versions"]:
        print(f"{loader} has no version of {model}: put one there with: python -m export publish")


def _tell_result(result: dict[str, Any]) -> None:
    copied = {True: "copied, ", False: "was there already, "}.get(result.get("copied"), "")  # type: ignore[arg-type]
    removed = f"; removed: {', '.join(result['removed'])}" if result.get("removed") else ""
    print(f"version {result['version']} {copied}in use; before it: {result['previous'] or 'none'}{removed}")


def _loader(deployment: Deployment, option: str) -> str:
    if deployment.loader is None:
        raise PublishError(f"{option} asks the stack's loader: name it with --loader, or the stack with --stack")
    return deployment.loader


def _restart_command(arguments: argparse.Namespace) -> str:
    what = f" --rollback {arguments.rollback}" if arguments.rollback else ""
    return f"python -m export publish --stack {shlex.quote(arguments.stack)}{what} --restart"


def _curl(deployment: Deployment) -> str:
    """A signed request. Temporary credentials, as those of roles are, have a token; without one there must be no header
    for it, as curl signs an empty one and does not send it.
    """
    return (
        f'curl --aws-sigv4 "aws:amz:{deployment.region}:lambda" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" '
        '${AWS_SESSION_TOKEN:+"-Hx-amz-security-token:$AWS_SESSION_TOKEN"} -H "content-type: application/json" '
        f'{deployment.url}/embed -d \'{{"text":"vitamin d"}}\''
    )


def _parse_arguments(command_line: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export publish", description="Put a version of the model into a deployed stack."
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--stack", metavar="NAME", help="of the deployed template.yaml, in AWS_REGION")
    where.add_argument("--bucket", metavar="NAME", help="instead of a stack: where the versions go")
    parser.add_argument("--loader", metavar="FUNCTION", help="with --bucket: the function that puts them into use")
    parser.add_argument("--output", type=Path, default=Path("build/ml-models"), metavar="DIR", help="%(default)s")
    parser.add_argument("--model", default="all-MiniLM-L6-v2", metavar="NAME", help="its folder; %(default)s")
    parser.add_argument(
        "--precision", type=precisions, metavar="int8[,fp32]", help="only these; default: all of the version"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--rollback", metavar="VERSION", help="put a version into use that the stack has")
    what.add_argument("--list", action="store_true", help="show the versions that the stack has")
    parser.add_argument("--restart", action="store_true", help="replace the environments that are running")
    return parser.parse_args(command_line)
