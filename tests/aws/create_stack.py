"""Create the stack of template.yaml in moto, as SAM would: create_stack.py ENDPOINT STACK [PARAMETER=VALUE ...]

Prints the stack's outputs as JSON. Runs in the environment that `make aws-tools` makes.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from boto3 import Session
from botocore.config import Config
from template import REGION, Resolver, Template, as_json, translate, values

UNKNOWN = "moto's CloudFormation does not know it: it makes nothing, and fails where the resource is referred to"
LEFT_OUT = {
    "AWS::ApiGateway::ApiKey": UNKNOWN,
    "AWS::ApiGateway::Stage": UNKNOWN,
    "AWS::ApiGateway::UsagePlan": UNKNOWN,
    "AWS::ApiGateway::UsagePlanKey": UNKNOWN,
    "AWS::CloudWatch::Alarm": UNKNOWN,
    "AWS::CodeDeploy::Application": UNKNOWN,
    "AWS::CodeDeploy::DeploymentGroup": UNKNOWN,
    "AWS::Lambda::Alias": f"{UNKNOWN}; it is made by Lambda's API afterwards",
    "AWS::Lambda::Permission": "it permits to call the alias, which is not there yet",
    "AWS::Lambda::Url": UNKNOWN,
    "AWS::S3::BucketPolicy": UNKNOWN,
}
"""Types of resources that are not created, and why."""
FUNCTION = "EmbeddingFunction"
ALIAS = "live"
_EFS = "arn:aws:elasticfilesystem:${AWS::Region}:${AWS::AccountId}:"
STAND_INS = {
    "AccessPoint.Arn": {"Fn::Sub": _EFS + "access-point/${AccessPoint}"},
    "ApiKey": "key",
    "EmbeddingFunctionAliaslive": {"Fn::Sub": f"${{{FUNCTION}.Arn}}:{ALIAS}"},
    "EmbeddingFunctionUrl.FunctionUrl": f"https://embeddings.lambda-url.{REGION}.on.aws/",
    "FileSystem.Arn": {"Fn::Sub": _EFS + "file-system/${FileSystem}"},
}
"""What moto cannot refer to, and what stands there instead."""
CODE = ("deployment", "code.zip")


def main(arguments: Sequence[str]) -> None:
    endpoint, stack, *settings = arguments
    parameters = dict(setting.split("=", 1) for setting in settings)
    print(as_json(create(endpoint, stack, parameters)))


def create(endpoint: str, stack: str, parameters: Mapping[str, str]) -> dict[str, str]:
    """The stack's outputs."""
    translated = translate(parameters, *CODE)
    resolver = Resolver(translated, parameters, pseudo={})
    if broken := resolver.broken_rules():
        sys.exit("\n".join(broken))
    upload_code(client("s3", endpoint))
    cloudformation = client("cloudformation", endpoint)
    # Resolved, since moto keeps what !If leaves away from a list, as null. The parameters are there to be described.
    template = known_to_moto(resolver.template()) | {"Parameters": translated["Parameters"]}
    cloudformation.create_stack(
        StackName=stack,
        TemplateBody=as_json(template),
        Parameters=[
            {"ParameterKey": name, "ParameterValue": value} for name, value in values(translated, parameters).items()
        ],
        Capabilities=["CAPABILITY_IAM"],
    )
    [made] = cloudformation.describe_stacks(StackName=stack)["Stacks"]
    if made["StackStatus"] != "CREATE_COMPLETE":
        sys.exit(f"{stack} is {made['StackStatus']}: {made.get('StackStatusReason')}")
    function = cloudformation.describe_stack_resource(StackName=stack, LogicalResourceId=FUNCTION)
    name = function["StackResourceDetail"]["PhysicalResourceId"]
    client("lambda", endpoint).create_alias(FunctionName=name, Name=ALIAS, FunctionVersion="1")
    return {output["OutputKey"]: output["OutputValue"] for output in made["Outputs"]}


def client(service: str, endpoint: str) -> Any:
    config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1})
    return Session("test", "test", region_name=REGION).client(service, endpoint_url=endpoint, config=config)


def upload_code(s3: Any) -> None:
    """What `sam package` does, here with a function that does nothing."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as package:
        package.writestr("handler/app.py", "def lambda_handler(event, context):\n    return event\n")
    bucket, key = CODE
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key=key, Body=content.getvalue())


def known_to_moto(template: Template) -> Template:
    resources = {name: made for name, made in template["Resources"].items() if made["Type"] not in LEFT_OUT}
    replaced: Template = with_stand_ins({**template, "Resources": resources})
    return replaced


def with_stand_ins(value: Any) -> Any:
    if isinstance(value, list):
        return [with_stand_ins(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() in ({"Ref"}, {"Fn::GetAtt"}):
        [target] = value.values()
        return STAND_INS.get(target if isinstance(target, str) else ".".join(target), value)
    return {key: with_stand_ins(part) for key, part in value.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
