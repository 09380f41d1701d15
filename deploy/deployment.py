"""The whole stack: build, deploy and publish it, or remove it, by `sam` in the environment of `make aws-tools`."""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from deploy import DeployError
from deploy.package import ARCHITECTURES, PYTHONS
from deploy.publish import publish
from deploy.stack import Aws, PublishError

BUILT_FOR = {"Architecture": tuple(ARCHITECTURES), "Runtime": tuple(f"python{each}" for each in PYTHONS)}
"""Parameters that the packages are built for, and their values; the first is a new stack's."""
TELL_SECONDS = 60.0
NETWORK = "Lambda can take 40 minutes to give back the network interfaces of functions on EFS"


def apply(arguments: argparse.Namespace, aws: Aws) -> None:
    """Build for the stack, create or change it, and publish where its model lies on EFS. Raises DeployError."""
    print(f"deploying to account {aws.account()} in {aws.region}", flush=True)
    before = aws.parameters(arguments.stack)
    if before:
        print(f"stack {arguments.stack} is there: what is not given stays as it has it", flush=True)
    settings = _settings(arguments, before)
    tags = {**aws.tags(arguments.stack), **_pairs("tag", arguments.tags)}
    overrides = ["--parameter-overrides", *quoted(settings)]
    variables = {
        "ARCHITECTURE": settings["Architecture"],
        "RUNTIME": settings["Runtime"],
        "AWS_DEFAULT_REGION": aws.region,
    }
    _sam(arguments.sam, ["build", *overrides], variables)
    command = ["deploy", "--stack-name", arguments.stack, "--resolve-s3", "--capabilities", "CAPABILITY_IAM"]
    # A folder of its own in the bucket: `sam delete` removes what it finds, of another stack with the same code too.
    command += ["--s3-prefix", arguments.stack, "--no-confirm-changeset", "--no-fail-on-empty-changeset"]
    command += overrides
    if tags:  # sam, given none, takes those away that the stack has
        command += ["--tags", *quoted(tags)]
    _sam(arguments.sam, command, variables)
    if aws.outputs(arguments.stack).get("ModelStorage") == "package":
        print(f"stack {arguments.stack} has the model in its package: there is nothing to publish")
    else:
        publish(arguments, aws.find(arguments.stack), aws)


def remove(arguments: argparse.Namespace, aws: Aws) -> None:
    """Delete the stack and all that it holds. Raises DeployError. What was interrupted goes on where it was."""
    stack = arguments.stack
    outputs = aws.outputs(stack)
    where = f"account {aws.account()} in {aws.region}"
    if not (arguments.yes or _agreed(f"Remove stack {stack} and all models that it has from {where}? [y/N] ")):
        raise DeployError(f"stack {stack} stays: to remove it without being asked, say --yes")
    if bucket := outputs.get("ArtifactBucketName"):
        print(f"{aws.empty(bucket)} objects deleted from s3://{bucket}, older versions counted", flush=True)
    command = ["delete", "--stack-name", stack, "--region", aws.region, "--no-prompts"]
    _sam(arguments.sam, command, {}, lambda: aws.deleting(stack))


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _settings(arguments: argparse.Namespace, before: Mapping[str, str]) -> dict[str, str]:
    """The parameters to give to sam: those that were asked for, and those of BUILT_FOR, by default the stack's own.

    sam keeps the stack's values of all others. `before` are the stack's parameters; empty if there is no stack yet.
    """
    given = _pairs("parameter", arguments.settings)
    if arguments.architecture and given.get("Architecture", arguments.architecture) != arguments.architecture:
        raise DeployError(
            f"the architecture is given as {arguments.architecture} and as {given['Architecture']}: give one of them"
        )
    if arguments.architecture:
        given["Architecture"] = arguments.architecture
    settings = {name: given.get(name, before.get(name, values[0])) for name, values in BUILT_FOR.items()}
    for name, values in BUILT_FOR.items():
        if settings[name] not in values:
            raise DeployError(f"there is no package for {settings[name]}: give {name}={' or '.join(values)}")
    return settings | given


def quoted(pairs: Mapping[str, str]) -> list[str]:
    """Pairs as sam takes them. Without quotes it refuses an empty value, and ends a value at its first space.

    >>> quoted({"AlarmEmail": ""})
    ['AlarmEmail=""']
    """
    return ['{}="{}"'.format(name, value.replace('"', r"\"")) for name, value in pairs.items()]


def _pairs(what: str, texts: Sequence[str]) -> dict[str, str]:
    """Of NAME=VALUE. Raises DeployError."""
    pairs = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise DeployError(f"{what} {text!r} has no value: write NAME=VALUE")
        pairs[name] = value
    return pairs


def _sam(
    program: str,
    command: Sequence[str],
    variables: Mapping[str, str],
    awaited: Callable[[], Sequence[str]] | None = None,
) -> None:
    """Run it, to be seen. Raises DeployError if it fails, which sam has given the reason of.

    `awaited` names what it is waiting for, where it does not do so itself.
    """
    print("sam", *command, flush=True)
    environment = {**os.environ, "SAM_CLI_TELEMETRY": "0", **variables}
    started = time.monotonic()
    try:
        with subprocess.Popen([program, *command], env=environment) as process:  # noqa: S603
            while process.poll() is None:
                try:
                    process.wait(TELL_SECONDS if awaited else None)
                except subprocess.TimeoutExpired:
                    _tell(awaited, time.monotonic() - started)
    except FileNotFoundError as error:
        raise DeployError(f"{program} is missing: install AWS's tools with: make aws-tools") from error
    if process.returncode != 0:
        raise DeployError(
            f"sam {command[0]} failed (status {process.returncode}), for the reason above; once that is mended, the "
            "same command goes on where it was"
        )


def _tell(awaited: Callable[[], Sequence[str]] | None, seconds: float) -> None:
    try:
        names = awaited() if awaited else ()
    except PublishError:  # the stack has just gone
        return
    if names:
        print(f"after {seconds / 60:.0f} min, still being deleted: {', '.join(names)} ({NETWORK})", flush=True)
