"""This project's stack in moto: the real template, translated by SAM's own code, less what moto does not know.

AWS's tools run in the environment that `make aws-tools` makes, through the programs in tests/aws.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import ROOT

TOOLS = ROOT / "build" / "aws" / "bin"
PROGRAMS = ROOT / "tests" / "aws"

Parameters = dict[str, str]


def require_tools() -> None:
    if not (TOOLS.parent / ".done").exists():
        pytest.skip("AWS's tools are not installed: make aws-tools")


def run(program: str, *arguments: object, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a tool without network, credentials or anything else of this machine's AWS settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "SAM_CLI_TELEMETRY": "0",
    }
    ran = subprocess.run(
        [TOOLS / program, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert ran.returncode == 0 or not check, f"{program}: {ran.stdout[-2000:]}{ran.stderr[-2000:]}"
    return ran


@dataclass(frozen=True)
class StackTemplate:
    """What moto makes a stack of."""

    template: dict[str, Any]
    parameters: Parameters
    version: dict[str, Any]
    """Name and resource of the function's version, which moto does not make."""
    by_name: list[str]
    """Outputs that are given by name, as their resources are among those that moto does not know."""

    def code(self, resource: str) -> tuple[str, str]:
        """Bucket and key of a function's code or a layer's content."""
        properties = self.template["Resources"][resource]["Properties"]
        place = properties["Content" if "Content" in properties else "Code"]
        return place["S3Bucket"], place["S3Key"]


def templates_for_moto(combinations: Sequence[Parameters], *packaged: Path) -> list[StackTemplate]:
    """The template for each of some parameters; tests/aws/template_for_moto.py names what is left out.

    `packaged` is a file with the template as `sam deploy` has uploaded it, if it has.
    """
    require_tools()
    program = PROGRAMS / "template_for_moto.py"
    found = json.loads(run("python", program, *packaged, stdin=json.dumps(combinations)).stdout)
    return [StackTemplate(**each) for each in found]


def create_stack(client: Callable[[str], Any], name: str, of: StackTemplate) -> dict[str, str]:
    """Create it, its functions without their code. `client` makes clients by the names of services.

    Returns the stack's outputs.
    """
    upload_code(client("s3"), *of.code("EmbeddingFunction"))
    cloudformation = client("cloudformation")
    # All of them: moto, unlike CloudFormation, has no previous value of a parameter that was left to its default.
    parameters = [{"ParameterKey": key, "ParameterValue": value} for key, value in of.parameters.items()]
    capabilities = ["CAPABILITY_IAM"]
    body = json.dumps(of.template)
    cloudformation.create_stack(StackName=name, TemplateBody=body, Parameters=parameters, Capabilities=capabilities)
    [made] = cloudformation.describe_stacks(StackName=name)["Stacks"]
    assert made["StackStatus"] == "CREATE_COMPLETE", made.get("StackStatusReason")
    return outputs_of(made)


def outputs_of(described: Mapping[str, Any]) -> dict[str, str]:
    return {output["OutputKey"]: output["OutputValue"] for output in described.get("Outputs", ())}


def upload_code(s3: Any, bucket: str, key: str) -> None:
    """What `sam deploy` does, here with a function that does nothing: it never runs there."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as package:
        package.writestr("handler/app.py", "def lambda_handler(event, context):\n    return event\n")
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key=key, Body=content.getvalue())


def delete_route_table(ec2: Any) -> None:
    """Moto's CloudFormation makes route tables, but does not delete them, and fails to delete their VPC then."""
    found = ec2.describe_route_tables()["RouteTables"]
    [table] = [each for each in found if not any(association["Main"] for association in each["Associations"])]
    for association in table["Associations"]:
        ec2.disassociate_route_table(AssociationId=association["RouteTableAssociationId"])
    ec2.delete_route_table(RouteTableId=table["RouteTableId"])
