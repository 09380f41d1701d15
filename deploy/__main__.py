"""python -m deploy apply|remove: the stack. python -m deploy publish|list|rollback: the versions of the model in it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from artifact.manifest import ArtifactError
    from deploy import DeployError
    from deploy.deployment import apply, remove
    from deploy.package import ARCHITECTURES
    from deploy.publish import list_versions, publish, roll_back
    from deploy.stack import Aws, Deployment
    from export.options import precisions
except ModuleNotFoundError as error:
    sys.exit(f"deploy: {error.name} is missing, install what publishing needs with: pip install '.[aws]'")


def main(command_line: Sequence[str] | None = None) -> int:
    arguments = _parse_arguments(command_line)
    try:
        aws = Aws()
        if arguments.command in ("apply", "remove"):
            {"apply": apply, "remove": remove}[arguments.command](arguments, aws)
            return 0
        deployment = (
            aws.find(arguments.stack) if arguments.stack else Deployment(aws.region, arguments.bucket, arguments.loader)
        )
        {"publish": publish, "list": list_versions, "rollback": roll_back}[arguments.command](
            arguments, deployment, aws
        )
    except (DeployError, ArtifactError) as error:
        print(f"deploy: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"deploy: cannot read {error.filename or arguments.output}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("deploy: interrupted: run it again, it continues where it stopped", file=sys.stderr)
        return 130
    return 0


def _parse_arguments(command_line: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy", description="Deploy the stack, publish versions of the model to it, and switch them."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    applying = commands.add_parser("apply", help="build, create or change the stack, and publish; make deploy calls it")
    removing = commands.add_parser("remove", help="delete the stack and all models that it has")
    removing.add_argument("--yes", action="store_true", help="without being asked")
    for each in (applying, removing):
        each.add_argument("--stack", metavar="NAME", required=True)
        each.add_argument("--sam", default="build/aws/bin/sam", metavar="PROGRAM", help="%(default)s")
    applying.add_argument("--architecture", choices=ARCHITECTURES, help="default: the stack's, or x86_64 for a new one")
    applying.add_argument("--tags", nargs="*", default=(), metavar="NAME=VALUE", help="of all resources")
    applying.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="parameters of template.yaml")
    applying.set_defaults(precision=None, restart=False)
    publishing = commands.add_parser("publish", help="upload the version in use here, and put it into use there")
    listing = commands.add_parser("list", help="show the versions that the stack has")
    rollback = commands.add_parser("rollback", help="put another version of the stack into use")
    rollback.add_argument("version", metavar="VERSION")
    for each in (publishing, listing, rollback):
        where = each.add_mutually_exclusive_group(required=True)
        where.add_argument("--stack", metavar="NAME", help="name of the deployed stack, in AWS_REGION")
        where.add_argument("--bucket", metavar="NAME", help="instead of a stack: the bucket for the versions")
        each.add_argument("--loader", metavar="FUNCTION", help="with --bucket: the function that puts them into use")
    for each in (applying, publishing, listing, rollback):
        each.add_argument("--output", type=Path, default=Path("build/ml-models"), metavar="DIR", help="%(default)s")
        each.add_argument("--model", default="all-MiniLM-L6-v2", metavar="NAME", help="its folder; %(default)s")
    publishing.add_argument(
        "--precision", type=precisions, metavar="int8[,fp32]", help="publish only these; default: all of the version"
    )
    for each in (publishing, rollback):
        each.add_argument(
            "--restart", action="store_true", help="replace running environments, which otherwise keep their version"
        )
    return parser.parse_args(command_line)


if __name__ == "__main__":
    sys.exit(main())
