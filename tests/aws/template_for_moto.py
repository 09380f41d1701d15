"""What moto can create of template.yaml, for given parameters. Standard input: a list of {PARAMETER: VALUE} as JSON.

template_for_moto.py [FILE] takes the template from FILE, as `sam deploy` has written and uploaded it.

Prints for each, as JSON: "template"; "parameters", the value of each; "version", the resource of the function's
version; and "by_name", the outputs that this file gives instead of moto. What a Rule refuses ends it with the Rule's
sentence. Runs in the environment that `make aws-tools` makes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from template import REGION, Resolver, Template, parse, source, translate, values

UNKNOWN = "moto's CloudFormation does not know it: it makes nothing, and fails where the resource is referred to"
LEFT_OUT = {
    "AWS::ApiGateway::ApiKey": UNKNOWN,
    "AWS::ApiGateway::GatewayResponse": UNKNOWN,
    "AWS::ApiGateway::Stage": UNKNOWN,
    "AWS::ApiGateway::UsagePlan": UNKNOWN,
    "AWS::ApiGateway::UsagePlanKey": UNKNOWN,
    "AWS::CloudWatch::Alarm": UNKNOWN,
    "AWS::CodeDeploy::Application": UNKNOWN,
    "AWS::CodeDeploy::DeploymentGroup": UNKNOWN,
    "AWS::Lambda::Alias": UNKNOWN,
    "AWS::Lambda::Permission": "it permits to call the alias, which is not there yet",
    "AWS::Lambda::Url": UNKNOWN,
    "AWS::Lambda::Version": "moto replaces none of which the description changes",
    "AWS::S3::BucketPolicy": UNKNOWN,
}
"""Types of resources that are not created, and why."""
_EFS = "arn:aws:elasticfilesystem:${AWS::Region}:${AWS::AccountId}:"
STAND_INS = {
    "AccessPoint.Arn": {"Fn::Sub": _EFS + "access-point/${AccessPoint}"},
    "ApiKey": "key",
    "EmbeddingFunctionAliaslive": {"Fn::Sub": "${EmbeddingFunction.Arn}:live"},
    "EmbeddingFunctionUrl.FunctionUrl": f"https://embeddings.lambda-url.{REGION}.on.aws/",
    "FileSystem.Arn": {"Fn::Sub": _EFS + "file-system/${FileSystem}"},
}
"""What moto cannot refer to, and what stands there instead."""


def main(files: list[str]) -> None:
    combinations = json.load(sys.stdin)
    translated = translate(parse(Path(files[0]).read_text()) if files else source())
    json.dump([for_moto(translated, parameters) for parameters in combinations], sys.stdout)


def for_moto(translated: Template, parameters: Mapping[str, str]) -> dict[str, Any]:
    # Not the account and the stack, which moto knows.
    resolver = Resolver(translated, parameters, pseudo={"AWS::Partition": "aws", "AWS::Region": REGION})
    if broken := resolver.broken_rules():
        sys.exit("\n".join(broken))
    # Resolved, since moto keeps what !If leaves away from a list, as null. The parameters are there to be described.
    template = resolver.template() | {"Parameters": translated["Parameters"]}
    known = {name: made for name, made in template["Resources"].items() if made["Type"] not in LEFT_OUT}
    replaced = with_stand_ins({**template, "Resources": known})
    by_name = [name for name, output in template["Outputs"].items() if replaced["Outputs"][name] != output]
    version = {name: made for name, made in template["Resources"].items() if made["Type"] == "AWS::Lambda::Version"}
    given = values(translated, parameters)
    return {"template": replaced, "parameters": given, "version": version, "by_name": by_name}


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
