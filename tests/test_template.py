"""template.yaml as AWS would see it, for every combination of its settings: lint, Rules, policies, network, a stack.

AWS's tools run in the environment that `make aws-tools` makes, through the programs in tests/aws.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.package import LAMBDA_PYTHON, PYTHONS
from deploy.stack import with_generation
from handler.errors import BadVectorError
from handler.log import METRICS, Record
from tests.support.cloud import Cloud, moto
from tests.support.servers import ROOT
from tests.support.stack import (
    PROGRAMS,
    Parameters,
    StackTemplate,
    create_stack,
    require_tools,
    run,
    templates_for_moto,
)

pytestmark = pytest.mark.slow

__all__ = ["moto"]  # a fixture

TEMPLATE = ROOT / "template.yaml"
SECURITY = ROOT / "docs" / "security.md"
DEPLOYER_POLICY = ROOT / "docs" / "deployer-policy.json"
MAX_POLICY_CHARACTERS = 6144
"""Of a managed policy of IAM, white space not counted."""
MAX_DESCRIPTION_CHARACTERS = 256
"""Of a version of a function."""

REPORTED_WITHOUT_URLS = ("cn-north-1", "eu-south-2", "us-iso-east-1", "us-isob-east-1")
"""Regions without Function URLs beside those of cfn-lint: by AWS's documentation, and by aws-samples/
aws-mcp-servers-samples#26 for China."""
OWN_VPC = {
    "VpcId": "vpc-0123456789abcdef0",
    "SubnetIdA": "subnet-0123456789abcdefa",
    "SubnetIdB": "subnet-0123456789abcdefb",
}
BURSTING = {"EfsThroughput": "bursting"}
ALARM_TOPIC = "arn:aws:sns:us-east-1:123456789012:alarms"
BOUNDARY = "arn:aws:iam::123456789012:policy/boundary"
SETTINGS: Sequence[Sequence[Parameters]] = (
    ({}, OWN_VPC, {"ModelStorage": "package"}, {"ModelStorage": "package", "SnapStart": "on"}),
    ({}, {"ApiGateway": "on"}),
    ({}, {"AlarmEmail": "someone@example.com"}),
    ({}, {"CorsOrigin": "https://app.example.com"}),
    ({}, {"Tracing": "Active", "AlarmTopicArn": ALARM_TOPIC}),
    ({}, {"ProvisionedConcurrency": "2"}),
    ({}, {"ReservedConcurrency": "5", "PermissionsBoundary": BOUNDARY, "Runtime": "python3.14", "FunctionUrl": "off"}),
    ({}, {"Metrics": "on", "MetricsDashboard": "on", "Deployment": "all-at-once"}),
)
"""What can be chosen apart from each other; of each the first is the default."""
EVERYTHING = {
    "ApiGateway": "on",
    "AlarmEmail": "someone@example.com",
    "CorsOrigin": "https://app.example.com",
    "MetricsDashboard": "on",
    "Metrics": "on",
    "ProvisionedConcurrency": "2",
    "ReservedConcurrency": "5",
}
IN_PACKAGE = {"ModelStorage": "package", "SnapStart": "on"}


@dataclass(frozen=True)
class Stack:
    """The template for some parameters; references are text, such as "<Bucket>" or "<Bucket.Arn>"."""

    parameters: Parameters
    resources: dict[str, Any]
    outputs: dict[str, Any]
    broken: list[str]

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.parameters.items()) or "defaults"

    @property
    def with_alarms(self) -> bool:
        return bool({"AlarmEmail", "AlarmTopicArn"} & self.parameters.keys())

    @property
    def with_canary(self) -> bool:
        return self.parameters.get("Deployment") != "all-at-once"

    @property
    def with_url(self) -> bool:
        return self.parameters.get("FunctionUrl") != "off"

    @property
    def on_efs(self) -> bool:
        return self.parameters.get("ModelStorage") != "package"

    def of_type(self, *types: str) -> dict[str, Any]:
        """Name -> properties."""
        return {name: made.get("Properties", {}) for name, made in self.resources.items() if made["Type"] in types}

    def properties(self, name: str) -> Any:
        return self.resources[name]["Properties"]


@dataclass(frozen=True)
class Statement:
    """Of a policy; `owner` is the resource that has it."""

    owner: str
    effect: str
    principals: tuple[str, ...]
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    condition: str
    """As JSON."""


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    require_tools()


def resolve(combinations: Sequence[Parameters], *options: str) -> list[dict[str, Any]]:
    program = PROGRAMS / "resolve_template.py"
    found: list[dict[str, Any]] = json.loads(run("python", program, *options, stdin=json.dumps(combinations)).stdout)
    return found


def resolved_stacks(combinations: Sequence[Parameters], *options: str) -> list[Stack]:
    return [
        Stack(parameters, found["template"]["Resources"], found["template"]["Outputs"], found["broken"])
        for parameters, found in zip(combinations, resolve(combinations, *options), strict=True)
    ]


def all_combinations() -> list[Parameters]:
    """Those that no Rule refuses."""
    chosen = (dict(itertools.chain.from_iterable(map(dict.items, each))) for each in itertools.product(*SETTINGS))
    return [each for each in chosen if not ("SnapStart" in each and "ProvisionedConcurrency" in each)]


def covering_combinations(strength: int = 3) -> list[Parameters]:
    """Few combinations, among which any `strength` settings meet in all of their values."""
    choices = [
        each
        for each in itertools.product(*SETTINGS)
        if not ("SnapStart" in each[0] and "ProvisionedConcurrency" in each[5])
    ]

    def meetings(choice: Sequence[Parameters]) -> set[str]:
        return {repr(some) for some in itertools.combinations(enumerate(choice), strength)}

    met = [(choice, meetings(choice)) for choice in choices]
    missing = set().union(*(each for _, each in met))
    covering = []
    while missing:
        choice, covered = max(met, key=lambda each: len(each[1] & missing))
        missing -= covered
        covering.append(dict(itertools.chain.from_iterable(map(dict.items, choice))))
    return covering


@pytest.fixture(scope="module")
def stacks() -> list[Stack]:
    """The stack of every combination of settings."""
    return resolved_stacks(all_combinations())


@pytest.fixture(scope="module")
def everything(stacks: list[Stack]) -> Stack:
    """The stack with its own VPC and all that is optional."""
    return resolved_stacks([{**EVERYTHING, "Tracing": "Active"}])[0]


@pytest.fixture(scope="module")
def source() -> dict[str, Any]:
    """The file itself, its short forms such as !Ref written out."""
    program = "import json, sys, template; json.dump(template.source(), sys.stdout)"
    code = f"import sys; sys.path.insert(0, {str(PROGRAMS)!r}); {program}"
    found: dict[str, Any] = json.loads(run("python", "-c", code).stdout)
    return found


# Lint


def test_sam_finds_the_template_valid() -> None:
    assert "is a valid SAM Template" in run("sam", "validate", "--lint", "--template-file", TEMPLATE).stdout


def test_cfn_lint_finds_nothing_in_the_template() -> None:
    assert run("cfn-lint", TEMPLATE, check=False).stdout == ""


def test_cfn_lint_finds_nothing_where_any_three_settings_meet() -> None:
    combinations = covering_combinations()
    for parameters, found in zip(combinations, resolve(combinations, "--lint"), strict=True):
        assert found["lint"] == [], parameters


def test_checkov_passes_and_every_waiver_has_a_reason_and_a_use(tmp_path: Path) -> None:
    combinations = [EVERYTHING, IN_PACKAGE]
    waived: set[tuple[str, str]] = set()
    for number, found in enumerate(resolve(combinations)):
        (tmp_path / f"{number}.json").write_text(json.dumps(found["template"]))
        for name, made in found["template"]["Resources"].items():
            for waiver in made.get("Metadata", {}).get("checkov", {}).get("skip", ()):
                assert len(waiver["comment"].split()) >= 6, (name, waiver)
                waived.add((name, waiver["id"]))
    report = run(
        "checkov",
        "--directory",
        tmp_path,
        "--framework",
        "cloudformation",
        "--output",
        "json",
        "--skip-download",
        check=False,
    )
    results = json.loads(report.stdout)["results"]
    assert [(check["check_id"], check["resource"]) for check in results["failed_checks"]] == []
    assert len(results["passed_checks"]) > 100
    assert {(check["resource"].split(".")[1], check["check_id"]) for check in results["skipped_checks"]} == waived


# Rules

RULE_FUNCTIONS = {
    *("Fn::And", "Fn::Contains", "Fn::EachMemberEquals", "Fn::EachMemberIn", "Fn::Equals", "Fn::Not", "Fn::Or"),
    *("Fn::RefAll", "Fn::ValueOf", "Fn::ValueOfAll", "Ref"),
}
"""What CloudFormation documents for the section Rules."""
REFUSED = [
    ({"SnapStart": "on"}, "SnapStart is on and ModelStorage is efs"),
    ({**IN_PACKAGE, "ProvisionedConcurrency": "1"}, "SnapStart is on and ProvisionedConcurrency is not 0"),
    ({"ModelStorage": "package", "Precision": "fp32"}, "Precision is fp32 and ModelStorage is package"),
    ({"SubnetIdA": "subnet-0123456789abcdefa"}, "SubnetIdA or SubnetIdB is set and VpcId is not"),
    ({"SubnetIdB": "subnet-0123456789abcdefb"}, "SubnetIdA or SubnetIdB is set and VpcId is not"),
    (
        {"VpcId": "vpc-0123456789abcdef0", "SubnetIdA": "subnet-0123456789abcdefa"},
        "VpcId is set: name two of its subnets",
    ),
    (
        {"VpcId": "vpc-0123456789abcdef0", "SubnetIdB": "subnet-0123456789abcdefb"},
        "VpcId is set: name two of its subnets",
    ),
    ({**OWN_VPC, "SubnetIdB": OWN_VPC["SubnetIdA"]}, "SubnetIdA and SubnetIdB are the same"),
    ({**OWN_VPC, "ModelStorage": "package"}, "VpcId is set and ModelStorage is package"),
    ({"ZoneA": "us-east-1a"}, "ZoneA or ZoneB is set: set both"),
    ({"ZoneB": "us-east-1b"}, "ZoneA or ZoneB is set: set both"),
    ({"ZoneA": "us-east-1a", "ZoneB": "us-east-1a"}, "ZoneA and ZoneB are the same"),
    ({**OWN_VPC, "ZoneA": "us-east-1a", "ZoneB": "us-east-1b"}, "VpcId is set, whose subnets have zones of their own"),
    ({"ReservedConcurrency": "0", "ProvisionedConcurrency": "1"}, "ReservedConcurrency 0 stops the function"),
]


def test_rules_refuse_with_a_sentence_what_cannot_be() -> None:
    for (parameters, sentence), stack in zip(REFUSED, resolved_stacks([each for each, _ in REFUSED]), strict=True):
        assert len(stack.broken) == 1, (parameters, stack.broken)
        assert stack.broken[0].startswith(sentence)


def test_every_rule_is_tested(source: dict[str, Any]) -> None:
    sentences = [each["AssertDescription"] for rule in source["Rules"].values() for each in rule["Assertions"]]
    untested = [each for each in sentences if not any(each.startswith(sentence) for _, sentence in REFUSED)]
    assert untested == []


def test_rules_refuse_no_combination_that_can_be(stacks: list[Stack]) -> None:
    assert [(str(stack), stack.broken) for stack in stacks if stack.broken] == []


def test_rules_use_only_functions_that_cloudformation_knows_there(source: dict[str, Any]) -> None:
    conditions = [
        condition
        for rule in source["Rules"].values()
        for condition in [rule["RuleCondition"], *(each["Assert"] for each in rule["Assertions"])]
    ]
    functions = {key for condition in conditions for value in values_in(condition) for key in value}
    assert functions <= RULE_FUNCTIONS
    references = {value["Ref"] for condition in conditions for value in values_in(condition) if "Ref" in value}
    assert references <= source["Parameters"].keys()


def values_in(value: Any) -> Iterator[dict[str, Any]]:
    """All mappings in some JSON."""
    if isinstance(value, list):
        for one in value:
            yield from values_in(one)
    elif isinstance(value, dict):
        yield value
        yield from values_in(list(value.values()))


# Policies

WILD_DENIALS = {
    ("FileSystem", "*"): "all that is not over TLS is refused",
    ("ArtifactBucketPolicy", "s3:*"): "all that is not over TLS is refused",
}
WILD_RESOURCES = {
    ("EmbeddingRole", ("xray:PutTraceSegments", "xray:PutTelemetryRecords")): "X-Ray knows no resources",
    ("DeploymentRole", ("cloudwatch:DescribeAlarms",)): "listing alarms cannot be limited to some",
    ("FileSystem", ("elasticfilesystem:ClientMount",)): "in a file system's policy it is that file system",
    (
        "FileSystem",
        ("elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"),
    ): "in a file system's policy it is that file system",
    (
        "NetworkPolicy",
        (
            "ec2:CreateNetworkInterface",
            "ec2:DescribeNetworkInterfaces",
            "ec2:DescribeSubnets",
            "ec2:DeleteNetworkInterface",
            "ec2:AssignPrivateIpAddresses",
            "ec2:UnassignPrivateIpAddresses",
        ),
    ): "Lambda refuses a role that names resources; a denial keeps the code itself from it",
}
ANYONE = {
    "S3Endpoint": "a gateway endpoint names roles in its condition, and gives nobody a permission",
}
"""Owners of statements that allow something to every principal, within a condition."""


def statements(stack: Stack) -> list[Statement]:
    """Of all policies in the stack."""
    return [
        parse_statement(name, statement)
        for name, made in stack.resources.items()
        for value in values_in(made["Properties"])
        for statement in value.get("Statement", ())
    ]


def parse_statement(owner: str, statement: Mapping[str, Any]) -> Statement:
    principal = statement.get("Principal", {})
    principals = principal.values() if isinstance(principal, dict) else [principal]
    return Statement(
        owner=owner,
        effect=statement["Effect"],
        principals=tuple(itertools.chain.from_iterable(map(listed, principals))),
        actions=listed(statement["Action"]),
        resources=listed(statement.get("Resource", ())),
        condition=json.dumps(statement.get("Condition", {})),
    )


def listed(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def role_statements(stack: Stack, role: str) -> list[Statement]:
    """What a role may do: by its own policies, by those attached to it, and by those of resources that name it."""
    attached = {name.strip("<>") for name in stack.properties(role).get("ManagedPolicyArns", ())}
    attached |= {name for name, made in stack.of_type("AWS::IAM::Policy").items() if f"<{role}>" in made["Roles"]}
    return [
        each
        for each in statements(stack)
        if (each.owner in {role, *attached} and each.actions != ("sts:AssumeRole",))
        or f"<{role}.Arn>" in each.principals
    ]


def allowed_actions(stack: Stack, role: str) -> set[str]:
    found = [each for each in role_statements(stack, role) if each.effect == "Allow"]
    return set(itertools.chain.from_iterable(each.actions for each in found))


def test_policies_allow_no_wildcard_of_actions(stacks: list[Stack]) -> None:
    for stack in stacks:
        wild = [(each, action) for each in statements(stack) for action in each.actions if "*" in action]
        for statement, action in wild:
            assert statement.effect == "Deny", (str(stack), statement)
            assert (statement.owner, action) in WILD_DENIALS


def test_policies_allow_all_resources_only_where_aws_knows_no_others(stacks: list[Stack]) -> None:
    found = {
        (each.owner, each.actions)
        for stack in stacks
        for each in statements(stack)
        if each.effect == "Allow" and "*" in each.resources
    }
    assert found == WILD_RESOURCES.keys()


def test_policies_allow_nothing_to_everybody(stacks: list[Stack]) -> None:
    found = [
        each for stack in stacks for each in statements(stack) if each.effect == "Allow" and "*" in each.principals
    ]
    assert {each.owner for each in found} == ANYONE.keys()
    assert {each.condition for each in found} == {'{"ArnEquals": {"aws:PrincipalArn": "<LoaderRole.Arn>"}}'}


def test_the_function_that_embeds_cannot_write_to_the_file_system(stacks: list[Stack]) -> None:
    for stack in stacks:
        of_efs = {action for action in allowed_actions(stack, "EmbeddingRole") if action.startswith("elasticfile")}
        assert of_efs == ({"elasticfilesystem:ClientMount"} if stack.on_efs else set()), str(stack)


def test_the_file_system_is_entered_over_tls_and_by_the_access_point_alone(everything: Stack) -> None:
    denials = {
        each.actions: each.condition
        for each in statements(everything)
        if each.owner == "FileSystem" and each.effect == "Deny" and each.principals == ("*",)
    }
    assert denials == {
        ("*",): '{"Bool": {"aws:SecureTransport": "false"}}',
        ("elasticfilesystem:ClientMount",): '{"Null": {"elasticfilesystem:AccessPointArn": "true"}}',
    }
    for role in ("EmbeddingRole", "LoaderRole"):
        conditions = [
            each.condition for each in role_statements(everything, role) if each.resources == ("<FileSystem.Arn>",)
        ]
        assert conditions == ['{"StringEquals": {"elasticfilesystem:AccessPointArn": "<AccessPoint.Arn>"}}']


def test_the_code_of_the_functions_cannot_use_what_lambda_needs_for_the_network(everything: Stack) -> None:
    allowed, denied = (each for each in statements(everything) if each.owner == "NetworkPolicy")
    assert (allowed.effect, denied.effect) == ("Allow", "Deny")
    assert allowed.actions == denied.actions
    arn = "arn:aws:lambda:us-east-1:123456789012:function:*"
    assert json.loads(denied.condition) == {"ArnLike": {"lambda:SourceFunctionArn": arn}}


def test_callers_get_the_two_permissions_of_a_function_url(stacks: list[Stack]) -> None:
    for stack in (stack for stack in stacks if stack.with_url):
        policy = stack.properties("CallerPolicy")["PolicyDocument"]
        assert {each["Action"]: (each["Resource"], each["Condition"]) for each in policy["Statement"]} == {
            "lambda:InvokeFunctionUrl": (
                "<EmbeddingFunctionAliaslive>",
                {"StringEquals": {"lambda:FunctionUrlAuthType": "AWS_IAM"}},
            ),
            "lambda:InvokeFunction": (
                "<EmbeddingFunctionAliaslive>",
                {"Bool": {"lambda:InvokedViaFunctionUrl": "true"}},
            ),
        }


def test_roles_are_taken_by_one_service_each(everything: Stack) -> None:
    trusted = {each.owner: each.principals for each in statements(everything) if each.actions == ("sts:AssumeRole",)}
    assert trusted == {
        "EmbeddingRole": ("lambda.amazonaws.com",),
        "LoaderRole": ("lambda.amazonaws.com",),
        "DeploymentRole": ("codedeploy.amazonaws.com",),
    }


def test_the_security_review_lists_what_each_role_may_do(everything: Stack) -> None:
    rows = re.findall(r"^\| `(\w+Role)` \|(.*)$", SECURITY.read_text(), re.MULTILINE)
    documented = {role: set(re.findall(r"`(\w+:\w+)`", row)) for role, row in rows}
    assert documented == {role: allowed_actions(everything, role) for role in everything.of_type("AWS::IAM::Role")}


def test_every_role_has_the_boundary_that_is_asked_for(stacks: list[Stack]) -> None:
    for stack in stacks:
        boundaries = {each.get("PermissionsBoundary") for each in stack.of_type("AWS::IAM::Role").values()}
        assert boundaries == {stack.parameters.get("PermissionsBoundary")}, str(stack)


# Who can call


def test_the_function_url_asks_for_signatures(stacks: list[Stack]) -> None:
    for stack in (stack for stack in stacks if stack.with_url):
        url = stack.properties("EmbeddingFunctionUrl")
        assert (url["AuthType"], url["TargetFunctionArn"]) == ("AWS_IAM", "<EmbeddingFunctionAliaslive>"), str(stack)


def test_there_is_no_function_url_where_it_is_not_wanted_or_aws_has_none(stacks: list[Stack]) -> None:
    for stack in stacks:
        assert bool(stack.of_type("AWS::Lambda::Url")) == ("CallerPolicy" in stack.resources) == stack.with_url, str(
            stack
        )
    listed = json.loads(run("python", PROGRAMS / "list_permissions.py", "--missing", "AWS::Lambda::Url").stdout)
    regions = {*listed["AWS::Lambda::Url"], *REPORTED_WITHOUT_URLS}
    partitions = {"cn": "aws-cn", "us-gov": "aws-us-gov", "us-iso": "aws-iso", "eusc": "aws-eusc"}
    without = [
        {
            "AWS::Region": region,
            "AWS::Partition": next((name for start, name in partitions.items() if region.startswith(start)), "aws"),
        }
        for region in sorted(regions)
    ]
    assert len(without) > 15
    for stack in resolved_stacks(without):
        assert not stack.of_type("AWS::Lambda::Url"), str(stack)
        assert not {"Url", "CallerPolicyArn"} & stack.outputs.keys(), str(stack)
    [forced] = resolved_stacks([{**without[0], "FunctionUrl": "on"}])
    assert forced.of_type("AWS::Lambda::Url")


def test_nothing_is_written_for_one_partition(source: dict[str, Any], deployer: list[Statement]) -> None:
    assert "arn:aws" not in TEMPLATE.read_text()
    named = [resource for each in deployer for resource in each.resources if resource != "*"]
    assert [resource for resource in named if not resource.startswith("arn:*:")] == []


def test_the_api_demands_its_key_of_all_but_preflights(stacks: list[Stack]) -> None:
    for stack in stacks:
        methods = stack.of_type("AWS::ApiGateway::Method").values()
        assert bool(methods) == (stack.parameters.get("ApiGateway") == "on")
        without_key = [each for each in methods if not each["ApiKeyRequired"]]
        assert all(each["HttpMethod"] == "OPTIONS" for each in without_key), str(stack)


def test_only_the_api_of_this_stack_may_call_the_function_from_outside(everything: Stack) -> None:
    [permission] = everything.of_type("AWS::Lambda::Permission").values()
    assert permission["Principal"] == "apigateway.amazonaws.com"
    assert permission["SourceArn"] == "arn:aws:execute-api:us-east-1:123456789012:<Api>/live/*"


DEPLOYED = {"ApiDeployment2": "02a65833"}


def test_the_api_is_deployed_anew_where_its_methods_or_answers_change(everything: Stack) -> None:
    [(name, _)] = everything.of_type("AWS::ApiGateway::Deployment").items()
    types = ("AWS::ApiGateway::GatewayResponse", "AWS::ApiGateway::Method", "AWS::ApiGateway::Resource")
    parts = everything.of_type(*types)
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
    assert {name: digest} == DEPLOYED, "it changed: count the deployment's name up, in the template and here"
    made = {name for name in parts if not everything.resources[name]["Type"].endswith("Resource")}
    assert set(everything.resources[name]["DependsOn"]) == made


def test_what_is_deployed_of_the_api_depends_on_no_parameter(stacks: list[Stack]) -> None:
    """Else the API would stay as it was deployed first."""
    types = ("AWS::ApiGateway::GatewayResponse", "AWS::ApiGateway::Method", "AWS::ApiGateway::Resource")
    found = [parts for stack in stacks if (parts := stack.of_type(*types))]
    assert all(parts == found[0] for parts in found)


def test_the_answers_of_the_api_itself_can_be_read_by_pages(stacks: list[Stack]) -> None:
    for stack in stacks:
        answers = stack.of_type("AWS::ApiGateway::GatewayResponse").values()
        with_api = stack.parameters.get("ApiGateway") == "on"
        # All other types are one of these two, unless they have an answer of their own.
        assert {each["ResponseType"] for each in answers} == ({"DEFAULT_4XX", "DEFAULT_5XX"} if with_api else set())
        for each in answers:
            assert each["ResponseParameters"] == {"gatewayresponse.header.Access-Control-Allow-Origin": "'*'"}


def test_the_function_url_lets_pages_send_any_header(stacks: list[Stack]) -> None:
    """In browsers `*` is all but `authorization`, and AWS documents it for methods and origins alone."""
    signed = {"authorization", "content-type", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token"}
    openai = {"arch", "lang", "os", "package-version", "retry-count", "runtime", "runtime-version", "timeout"}
    for stack in stacks:
        if stack.with_url and (cors := stack.properties("EmbeddingFunctionUrl").get("Cors")):
            assert set(cors["AllowHeaders"]) == {"*", *signed, *(f"x-stainless-{name}" for name in openai)}


def test_cors_is_answered_once(stacks: list[Stack]) -> None:
    for stack in stacks:
        origin = stack.parameters.get("CorsOrigin", "")
        url = stack.properties("EmbeddingFunctionUrl") if stack.with_url else {}
        by_url = url.get("Cors", {}).get("AllowOrigins", [])
        by_function = variables(stack)["CORS_ORIGIN"]
        on_api = stack.parameters.get("ApiGateway") == "on"
        assert by_url == ([origin] if origin and stack.with_url and not on_api else []), str(stack)
        assert by_function == (origin if on_api else ""), str(stack)


# Network and storage

NETWORK_TYPES = {
    "AWS::EC2::RouteTable",
    "AWS::EC2::SecurityGroup",
    "AWS::EC2::SecurityGroupIngress",
    "AWS::EC2::Subnet",
    "AWS::EC2::SubnetRouteTableAssociation",
    "AWS::EC2::VPC",
    "AWS::EC2::VPCEndpoint",
}
"""No gateway to the internet, no NAT, and no route but the endpoint's."""
NFS = {"IpProtocol": "tcp", "FromPort": 2049, "ToPort": 2049}


def test_the_network_has_no_way_to_the_internet(stacks: list[Stack]) -> None:
    for stack in stacks:
        made = {each["Type"] for each in stack.resources.values() if each["Type"].startswith("AWS::EC2::")}
        own = stack.on_efs and "VpcId" not in stack.parameters
        groups = {"AWS::EC2::SecurityGroup", "AWS::EC2::SecurityGroupIngress"}
        assert made == (NETWORK_TYPES if own else groups if stack.on_efs else set()), str(stack)


def test_security_groups_admit_only_nfs_from_the_two_functions(stacks: list[Stack]) -> None:
    for stack in (stack for stack in stacks if stack.on_efs):
        groups = stack.of_type("AWS::EC2::SecurityGroup")
        assert not any("SecurityGroupIngress" in each for each in groups.values())
        admitted = [without_words(each) for each in stack.of_type("AWS::EC2::SecurityGroupIngress").values()]
        to = {**NFS, "GroupId": "<FileSystemSecurityGroup>"}
        assert admitted == [
            {**to, "SourceSecurityGroupId": "<FunctionSecurityGroup>"},
            {**to, "SourceSecurityGroupId": "<LoaderSecurityGroup>"},
        ]


def test_security_groups_let_out_nfs_and_of_the_loader_https(stacks: list[Stack]) -> None:
    nfs = {**NFS, "DestinationSecurityGroupId": "<FileSystemSecurityGroup>"}
    for stack in (stack for stack in stacks if stack.on_efs):
        let_out = {
            name: [without_words(rule) for rule in each["SecurityGroupEgress"]]
            for name, each in stack.of_type("AWS::EC2::SecurityGroup").items()
        }
        assert let_out == {
            # Without a rule AWS lets out everything.
            "FileSystemSecurityGroup": [{"IpProtocol": "-1", "CidrIp": "127.0.0.1/32"}],
            "FunctionSecurityGroup": [nfs],
            "LoaderSecurityGroup": [nfs, {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "CidrIp": "0.0.0.0/0"}],
        }


def without_words(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in rule.items() if key != "Description"}


def test_the_way_to_s3_leads_to_the_bucket_alone(everything: Stack) -> None:
    [endpoint] = everything.of_type("AWS::EC2::VPCEndpoint").values()
    assert (endpoint["VpcEndpointType"], endpoint["ServiceName"]) == ("Gateway", "com.amazonaws.us-east-1.s3")
    [statement] = [each for each in statements(everything) if each.owner == "S3Endpoint"]
    assert statement.actions == ("s3:GetObject", "s3:ListBucket")
    assert statement.resources == ("<ArtifactBucket.Arn>", "<ArtifactBucket.Arn>/*")


def test_the_bucket_is_private_versioned_encrypted_and_asks_for_tls(everything: Stack) -> None:
    bucket = everything.properties("ArtifactBucket")
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert bucket["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    [encryption] = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert encryption == {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    [refusal] = [each for each in statements(everything) if each.owner == "ArtifactBucketPolicy"]
    assert (refusal.effect, refusal.actions) == ("Deny", ("s3:*",))
    assert json.loads(refusal.condition) == {"Bool": {"aws:SecureTransport": "false"}}


def test_the_end_of_a_bursting_file_systems_credits_is_told() -> None:
    """Without them a cold start reads 24 MB at 1 MiB/s."""
    told = {"AlarmTopicArn": ALARM_TOPIC}
    elastic, bursting, unwatched = resolved_stacks([told, {**told, **BURSTING}, BURSTING])
    assert "BurstCreditAlarm" not in {*elastic.resources, *unwatched.resources}
    assert bursting.properties("FileSystem")["ThroughputMode"] == "bursting"
    alarm = bursting.properties("BurstCreditAlarm")
    assert (alarm["Namespace"], alarm["MetricName"], alarm["Statistic"]) == ("AWS/EFS", "BurstCreditBalance", "Minimum")
    assert alarm["Dimensions"] == [{"Name": "FileSystemId", "Value": "<FileSystem>"}]
    assert (alarm["Threshold"], alarm["ComparisonOperator"]) == (200_000_000_000, "LessThanThreshold")
    assert alarm["AlarmActions"] == [ALARM_TOPIC]


def test_the_file_system_is_encrypted_elastic_and_reached_in_both_zones(stacks: list[Stack]) -> None:
    for stack in (stack for stack in stacks if stack.on_efs):
        file_system = stack.properties("FileSystem")
        assert (file_system["Encrypted"], file_system["ThroughputMode"]) == (True, "elastic")
        targets = [each["SubnetId"] for each in stack.of_type("AWS::EFS::MountTarget").values()]
        expected = (
            [OWN_VPC["SubnetIdA"], OWN_VPC["SubnetIdB"]] if "VpcId" in stack.parameters else ["<SubnetA>", "<SubnetB>"]
        )
        assert targets == expected
        for function in ("EmbeddingFunction", "LoaderFunction"):
            assert stack.properties(function)["VpcConfig"]["SubnetIds"] == targets, str(stack)
    zones = [each["AvailabilityZone"] for each in stacks[0].of_type("AWS::EC2::Subnet").values()]
    assert zones == [{"Fn::Select": [0, {"Fn::GetAZs": ""}]}, {"Fn::Select": [1, {"Fn::GetAZs": ""}]}]
    [chosen] = resolved_stacks([{"ZoneA": "us-east-1c", "ZoneB": "us-east-1d"}])
    zones = [each["AvailabilityZone"] for each in chosen.of_type("AWS::EC2::Subnet").values()]
    assert zones == ["us-east-1c", "us-east-1d"]


# The functions


def variables(stack: Stack, function: str = "EmbeddingFunction") -> dict[str, str]:
    found: dict[str, str] = stack.properties(function)["Environment"]["Variables"]
    return found


def test_functions_look_for_the_model_where_it_is(stacks: list[Stack]) -> None:
    for stack in stacks:
        function = stack.properties("EmbeddingFunction")
        if stack.on_efs:
            [mounted] = function["FileSystemConfigs"]
            assert mounted == {"Arn": "<AccessPoint.Arn>", "LocalMountPath": variables(stack)["MODEL_CACHE_DIR"]}
            assert variables(stack, "LoaderFunction")["MODEL_CACHE_DIR"] == mounted["LocalMountPath"]
            assert variables(stack, "LoaderFunction")["ARTIFACT_BUCKET"] == "<ArtifactBucket>"
            assert "Layers" not in function
        else:
            [layer] = function["Layers"]
            assert layer.strip("<>") in stack.of_type("AWS::Lambda::LayerVersion")
            assert variables(stack)["MODEL_CACHE_DIR"] == "/opt/ml-models"
            assert not function.keys() & {"FileSystemConfigs", "VpcConfig"}, str(stack)


def test_functions_wait_for_what_they_mount(stacks: list[Stack]) -> None:
    waits = {"EmbeddingFunction": "<ReadModelPolicy>", "LoaderFunction": "<WriteModelPolicy>"}
    for stack in stacks:
        for function, policy in waits.items():
            if function in stack.resources:
                expected = ["<MountTargetA>", "<MountTargetB>", policy] if stack.on_efs else []
                assert stack.resources[function]["Metadata"]["After"] == expected, str(stack)


def test_snapstart_and_provisioned_concurrency_are_set_as_asked(stacks: list[Stack]) -> None:
    for stack in stacks:
        snapstart = stack.properties("EmbeddingFunction").get("SnapStart")
        assert snapstart == ({"ApplyOn": "PublishedVersions"} if "SnapStart" in stack.parameters else None), str(stack)
        assert not (snapstart and stack.on_efs)
        provisioned = stack.properties("EmbeddingFunctionAliaslive").get("ProvisionedConcurrencyConfig")
        wanted = stack.parameters.get("ProvisionedConcurrency")
        assert provisioned == ({"ProvisionedConcurrentExecutions": wanted} if wanted else None), str(stack)


def test_functions_run_on_the_python_that_is_asked_for(stacks: list[Stack], source: dict[str, Any]) -> None:
    for stack in stacks:
        runtimes = {each["Runtime"] for each in stack.of_type("AWS::Lambda::Function").values()}
        assert runtimes == {stack.parameters.get("Runtime", "python3.13")}, str(stack)
    assert source["Parameters"]["Runtime"]["AllowedValues"] == [f"python{each}" for each in PYTHONS]
    assert source["Resources"]["ModelLayer"]["Properties"]["CompatibleRuntimes"] == [
        f"python{each}" for each in PYTHONS
    ]
    assert source["Parameters"]["Runtime"]["Default"] == f"python{LAMBDA_PYTHON}"


CODE = {"EmbeddingFunction": [True, True], "LoaderFunction": [False, False], "ModelLayer": [False, True]}
"""What is uploaded, and whether the function changes with it: the model on EFS, the model in the package."""
CHANGES = [
    {"ModelStorage": "package"},
    {**IN_PACKAGE},
    {"Architecture": "arm64"},
    {"MemorySize": "3008"},
    {"Timeout": "60"},
    {"Precision": "fp32"},
    {"LogRetentionDays": "7"},
    {"ProvisionedConcurrency": "1"},
    {"ReservedConcurrency": "1"},
    {"ApiGateway": "on"},
    {"FunctionUrl": "off"},
    {"ApiRequestsPerSecond": "1", "ApiRequestsPerMonth": "1"},
    {"AlarmEmail": "someone@example.com"},
    {"CorsOrigin": "*"},
    {"CorsOrigin": "*", "ApiGateway": "on"},
    {"BasePath": "/ml"},
    OWN_VPC,
    {"Tracing": "Active"},
    {"Metrics": "on"},
    {"Metrics": "on", "MetricsNamespace": "Search"},
    {"MetricsNamespace": "Search"},
    {"MetricsDashboard": "on"},
    {"AlarmTopicArn": ALARM_TOPIC},
    BURSTING,
    {"Runtime": "python3.14"},
    {"Deployment": "all-at-once"},
    {"PermissionsBoundary": BOUNDARY},
    {"ZoneA": "us-east-1c", "ZoneB": "us-east-1d"},
]


def test_a_version_is_replaced_where_the_function_changes_and_nowhere_else(source: dict[str, Any]) -> None:
    """Lambda publishes no second version of an unchanged function, and SAM does not see changed parameters."""
    before, *after = resolved_stacks([{}, *CHANGES])
    assert source["Parameters"].keys() == set().union(*CHANGES)
    for stack in after:
        assert (versioned(stack) != versioned(before)) == (version(stack) != version(before)), str(stack)


def test_a_version_goes_when_it_is_live_no_more(stacks: list[Stack]) -> None:
    """One that a rollback left behind would keep the same version from being published by the next try."""
    for stack in stacks:
        assert stack.resources[version(stack)[0]]["DeletionPolicy"] == "Delete", str(stack)


@pytest.mark.parametrize("uploaded", CODE)
def test_a_version_is_replaced_where_what_was_uploaded_for_it_changes(uploaded: str) -> None:
    """Code, or with the model in the package the model, whose layer SAM does not look at behind a condition (aws/
    serverless-application-model#3610)."""
    settings = [{}, IN_PACKAGE]
    after = resolved_stacks(settings, "--uploaded", json.dumps({uploaded: "s3://deployment/other.zip"}))
    changed = []
    for before, stack in zip(resolved_stacks(settings), after, strict=True):
        assert (versioned(stack) != versioned(before)) == (version(stack) != version(before)), str(stack)
        changed.append(version(stack) != version(before))
    assert changed == CODE[uploaded]


def test_a_restart_makes_another_version() -> None:
    """SAM names a version by the template's text, in which `python -m deploy publish --restart` changes one word."""
    code = f"""
import json, pathlib, sys
sys.path.insert(0, {str(PROGRAMS)!r})
import template
found = []
for text in json.load(sys.stdin):
    resources = template.translate(template.with_code(template.parse(text)))["Resources"].items()
    found.append([name for name, made in resources if made["Type"] == "AWS::Lambda::Version"])
json.dump(found, sys.stdout)
"""
    text = TEMPLATE.read_text()
    changed = [text, text, with_generation(text, "v2.18"), with_generation(text, "v2.19")]
    versions = [name for (name,) in json.loads(run("python", "-c", code, stdin=json.dumps(changed)).stdout)]
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


def versioned(stack: Stack) -> dict[str, Any]:
    """What a version of the function keeps."""
    return {
        key: value
        for key, value in stack.properties("EmbeddingFunction").items()
        if key != "ReservedConcurrentExecutions"
    }


def version(stack: Stack) -> tuple[str, str]:
    """Name and description, by which CloudFormation tells whether it is another one."""
    [(name, made)] = stack.of_type("AWS::Lambda::Version").items()
    return name, made["Description"]


def test_the_longest_description_of_a_version_is_short_enough(source: dict[str, Any]) -> None:
    longest = {
        **OWN_VPC,
        "SubnetIdA": "subnet-" + 17 * "a",
        "SubnetIdB": "subnet-" + 17 * "b",
        "MemorySize": "10240",
        "Timeout": "900",
        "Tracing": "PassThrough",
        "ApiGateway": "on",
        "CorsOrigin": "https://" + 60 * "a",
        "Metrics": "on",
        "MetricsNamespace": 50 * "a",
        "BasePath": "/" + 20 * "a",
    }
    for name in ("CorsOrigin", "MetricsNamespace", "BasePath"):
        pattern = source["Parameters"][name]["AllowedPattern"]
        assert re.fullmatch(pattern, longest[name])
        assert not re.fullmatch(pattern, longest[name] + "a")
    packaged = {name: value for name, value in longest.items() if name not in OWN_VPC} | IN_PACKAGE
    for stack in resolved_stacks([longest, packaged]):
        described = re.sub("<ModelLayer.*:$", 10 * "9", version(stack)[1])
        assert "<" not in described
        assert len(described) <= MAX_DESCRIPTION_CHARACTERS


def test_traffic_moves_by_a_role_for_this_function_alone(everything: Stack) -> None:
    [group] = everything.of_type("AWS::CodeDeploy::DeploymentGroup").values()
    assert group["ServiceRoleArn"] == "<DeploymentRole.Arn>"
    shift = next(each for each in statements(everything) if "lambda:UpdateAlias" in each.actions)
    assert shift.resources == ("<EmbeddingFunction.Arn>", "<EmbeddingFunction.Arn>:*")


def test_traffic_moves_step_by_step_or_at_once(stacks: list[Stack]) -> None:
    for stack in stacks:
        [group] = stack.of_type("AWS::CodeDeploy::DeploymentGroup").values()
        kind = "AllAtOnce" if stack.parameters.get("Deployment") == "all-at-once" else "Canary10Percent5Minutes"
        assert group["DeploymentConfigName"] == f"CodeDeployDefault.Lambda{kind}", str(stack)


def test_only_the_version_being_deployed_can_stop_its_deployment(stacks: list[Stack]) -> None:
    """CodeDeploy starts nothing while an alarm that it watches goes off, and what is live may be what is to be mended
    (aws/serverless-application-model#716). An alarm that is changed keeps its state: one of another name has none."""
    for stack in stacks:
        [group] = stack.of_type("AWS::CodeDeploy::DeploymentGroup").values()
        watched = {each["Name"].strip("<>") for each in group.get("AlarmConfiguration", {}).get("Alarms", ())}
        assert watched == ({"CanaryAlarm", "CanaryFaultAlarm"} if stack.with_canary else set()), str(stack)
        of_version = f"<{version(stack)[0]}.Version>"
        for name in watched:
            alarm = stack.properties(name)
            assert of_version in [each["Value"] for each in alarm["Dimensions"]], (str(stack), name)
            assert alarm["AlarmName"].startswith("embeddings-"), (str(stack), name)
            assert alarm["AlarmName"].endswith(f"-{of_version}"), (str(stack), name)


# What watches it


def test_every_log_group_forgets_and_every_function_has_one(stacks: list[Stack]) -> None:
    for stack in stacks:
        groups = stack.of_type("AWS::Logs::LogGroup")
        assert all(each["RetentionInDays"] == "30" for each in groups.values())
        functions = stack.of_type("AWS::Lambda::Function").values()
        used = {each["LoggingConfig"]["LogGroup"] for each in functions}
        assert used == {f"<{name}>" for name in groups}, str(stack)


def test_alarms_watch_metrics_that_are_published(stacks: list[Stack]) -> None:
    version = next(iter(stacks[0].of_type("AWS::Lambda::Version")))
    dimensions = {
        "CanaryAlarm": {
            "FunctionName": "<EmbeddingFunction>",
            "Resource": "<EmbeddingFunction>:live",
            "ExecutedVersion": f"<{version}.Version>",
        },
        "CanaryFaultAlarm": {"version": f"<{version}.Version>"},
        "FaultAlarm": {},
        "FileSystemAlarm": {"FileSystemId": "<FileSystem>"},
    }
    for stack in stacks:
        alarms = stack.of_type("AWS::CloudWatch::Alarm")
        expected = {"CanaryAlarm", "CanaryFaultAlarm"} if stack.with_canary else set()
        if stack.with_alarms:
            expected |= {"ConcurrencyAlarm", "DurationAlarm", "ErrorAlarm", "FaultAlarm", "ThrottleAlarm"}
            expected |= {"FileSystemAlarm"} if stack.on_efs else set()
        assert alarms.keys() == expected, str(stack)
        for name, alarm in alarms.items():
            if "MetricName" in alarm:
                found = {each["Name"]: each["Value"] for each in alarm.get("Dimensions", ())}
                assert found == dimensions.get(name, {"FunctionName": "<EmbeddingFunction>"})
            told = {"AlarmEmail": "<AlarmTopic>", "AlarmTopicArn": ALARM_TOPIC}
            actions = [action for parameter, action in told.items() if parameter in stack.parameters]
            if name.startswith("Canary"):  # CodeDeploy heeds it, and the others tell the same
                actions = []
            assert alarm.get("AlarmActions", []) == actions, (str(stack), name)
            assert alarm["TreatMissingData"] == "notBreaching"


def test_faults_are_counted_in_the_log_with_metrics_and_without(stacks: list[Stack], capsys: Any) -> None:
    """By a field of the line that a fault of ours has alone, so that nothing is charged while there is none."""
    record = Record("id", namespace="", with_texts=False)
    record.write(500, BadVectorError("not finite"))
    line = json.loads(capsys.readouterr().out)
    for stack in stacks:
        filters = stack.of_type("AWS::Logs::MetricFilter")
        counted = {}
        for each in filters.values():
            [(field, value)] = re.findall(r"^{ \$\.(\w+) = (\d) }$", each["FilterPattern"])
            assert line[field] == int(value)
            [metric] = each["MetricTransformations"]
            for dimension in metric.get("Dimensions", ()):
                assert dimension["Value"].removeprefix("$.") in line
            counted[metric["MetricName"]] = metric["MetricNamespace"]
            assert (each["LogGroupName"], metric["MetricValue"]) == ("<EmbeddingLogs>", "1")
        watching = {
            name: stack.properties(name) for name in ("FaultAlarm", "CanaryFaultAlarm") if name in stack.resources
        }
        assert {each["MetricName"]: each["Namespace"] for each in watching.values()} == counted, str(stack)


def test_metrics_and_dashboard_are_there_where_they_are_wanted(stacks: list[Stack]) -> None:
    for stack in stacks:
        wanted = stack.parameters.get("Metrics") == "on"
        assert variables(stack)["METRICS_NAMESPACE"] == ("LambdaEmbeddings" if wanted else ""), str(stack)
        assert ("Dashboard" in stack.resources) == (stack.parameters.get("MetricsDashboard") == "on"), str(stack)


def test_lambda_writes_no_lines_of_its_own_for_a_request(stacks: list[Stack]) -> None:
    for stack in stacks:
        for function in stack.of_type("AWS::Lambda::Function").values():
            logging = function["LoggingConfig"]
            assert (logging["LogFormat"], logging["SystemLogLevel"]) == ("JSON", "WARN"), str(stack)


def test_the_dashboard_is_json_and_shows_latency_cold_starts_tokens_and_errors(stacks: list[Stack]) -> None:
    for stack in (stack for stack in stacks if "Dashboard" in stack.resources):
        body = json.loads(stack.properties("Dashboard")["DashboardBody"])
        shown = [spelled_out(each["properties"]["metrics"]) for each in body["widgets"]]
        names = {metric[1] for metrics in shown for metric in metrics}
        assert names >= {"Duration", "Invocations", "Errors", "Throttles", "cold_starts", "tokens", "server_errors"}
        for namespace, name, dimension, value in itertools.chain.from_iterable(shown):
            assert value == "<EmbeddingFunction>"
            if namespace == "AWS/Lambda":
                assert dimension == "FunctionName"
            else:
                assert (namespace, dimension) == (variables(stack)["METRICS_NAMESPACE"] or "none", "function")
                assert name in METRICS


def spelled_out(metrics: Sequence[Sequence[Any]]) -> list[list[str]]:
    """A widget's metrics, where "." and "..." stand for what the metric before has."""
    found: list[list[str]] = []
    for metric in metrics:
        parts = [part for part in metric if isinstance(part, str)]
        if parts[0] == "...":
            parts = found[-1]
        found.append(
            [before if part == "." else part for part, before in zip(parts, found[-1] if found else parts, strict=True)]
        )
    return found


def test_every_output_is_there(stacks: list[Stack]) -> None:
    for stack in stacks:
        expected = {"FunctionAlias", "ModelStorage"}
        expected |= {"Url", "CallerPolicyArn"} if stack.with_url else set()
        expected |= {"ArtifactBucketName", "LoaderName"} if stack.on_efs else set()
        expected |= {"ApiUrl", "ApiKeyId"} if stack.parameters.get("ApiGateway") == "on" else set()
        assert stack.outputs.keys() == expected, str(stack)


# A stack in moto


MADE = {"all": EVERYTHING, "efs": {"Tracing": "Active"}, "package": IN_PACKAGE}


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[Stack, StackTemplate]]:
    """What the stack should be, and what moto makes it of."""
    combinations = list(MADE.values())
    pairs = zip(resolved_stacks(combinations), templates_for_moto(combinations), strict=True)
    return dict(zip(MADE, pairs, strict=True))


@pytest.mark.parametrize("name", MADE)
def test_the_stack_can_be_created(moto: str, made: dict[str, tuple[Stack, StackTemplate]], name: str) -> None:
    """Of the resources that moto knows; tests/aws/template_for_moto.py names the others."""
    stack, template = made[name]
    outputs = create_stack(Cloud(moto).client, name, template)
    assert outputs.keys() == stack.outputs.keys()
    assert set(template.by_name) == {"Url", "FunctionAlias", "ApiKeyId"} & stack.outputs.keys()
    assert outputs["ModelStorage"] == stack.parameters.get("ModelStorage", "efs")
    assert f":function:{name}-EmbeddingFunction-" in outputs["FunctionAlias"]
    if stack.on_efs:
        assert outputs["LoaderName"].startswith(f"{name}-LoaderFunction-")
        assert outputs["ArtifactBucketName"].startswith(f"{name}-artifactbucket-")


# Who deploys

NOT_NEEDED = {
    "kms:*": "what is encrypted is so with AWS's own keys",
    "s3files:*": "no S3 file system is mounted",
    "s3tables:*": "the bucket has no tables",
    "s3:*Table*": "the bucket has no tables",
    "vpc-lattice:*": "the endpoint is one of S3",
    "vpce:AllowMultiRegion": "the endpoint is one of its own region",
    "firehose:*": "logs stay in CloudWatch",
    "s3:REST.PUT.OBJECT": "logs stay in CloudWatch",
    "apigateway:UpdateRestApiPolicy": "the API has no policy of its own",
    "codedeploy:RegisterOnPremisesInstance": "it deploys a function",
    "ec2:*CidrBlock": "subnets keep the addresses that they were made with",
    "ec2:CreateVpcEncryptionControl": "not used",
    "elasticfilesystem:UpdateFileSystemProtection": "the file system is no replica",
    "iam:*Group*": "policies are attached to roles",
    "iam:*User*": "policies are attached to roles",
    "lambda:*CodeSigning*": "code is not signed",
    "lambda:*CapacityProvider*": "functions run on Lambda's own machines",
    "lambda:PutFunctionScalingConfig": "functions run on Lambda's own machines",
    "lambda:AssociateRuntimeAlias": "the runtime is updated by AWS, as is the default",
    "lambda:PutRuntimeManagementConfig": "the runtime is updated by AWS, as is the default",
    "lambda:PutFunctionRecursionConfig": "the default stays",
    "logs:*KmsKey": "logs are encrypted with AWS's own keys",
    "logs:*DataProtection*": "logs have none",
    "logs:*Ind*Polic*": "logs have none",
    "logs:*ResourcePolic*": "logs have none",
    "logs:CreateLogDelivery": "logs stay in CloudWatch",
    "logs:PutBearerTokenAuthentication": "not used",
    "logs:PutLogGroupDeletionProtection": "not used",
    "sns:PutDataProtectionPolicy": "the topic has none",
    "s3:DeleteBucket?*": "set once, with the bucket",
    "s3:Put*Acl": "the bucket has no access lists",
    **{
        f"s3:*{feature}*": "the bucket does not use it"
        for feature in (
            *("Abac", "Accelerate", "Analytics", "Cors", "CORS", "IntelligentTiering", "Inventory", "Logging"),
            *("Metrics", "Notification", "ObjectLock", "Replication", "Website"),
        )
    },
}
"""What AWS's schemas demand for features that the template does not use, and why they are not."""
DEPLOYING = {
    "cloudformation:CreateChangeSet",
    "cloudformation:DeleteStack",
    "cloudformation:DescribeChangeSet",
    "cloudformation:DescribeStackEvents",
    "cloudformation:DescribeStacks",
    "cloudformation:ExecuteChangeSet",
    "cloudformation:GetTemplate",
    "cloudformation:GetTemplateSummary",
    "cloudformation:ListStackResources",
    "cloudformation:UpdateStack",
    "lambda:InvokeFunction",
    "s3:DeleteObject",
    "s3:DeleteObjectVersion",
    "s3:GetObject",
    "s3:ListBucket",
    "s3:ListBucketVersions",
    "s3:PutObject",
}
"""What `sam deploy`, `sam delete` and `python -m deploy` call themselves."""
ONLY_BY_PREFIX = ("cloudformation", "codedeploy", "iam", "lambda", "s3", "sns")
"""Services whose resources have the stack's name in theirs."""


@pytest.fixture(scope="module")
def deployer() -> list[Statement]:
    policy = json.loads(DEPLOYER_POLICY.read_text())
    assert policy["Version"] == "2012-10-17"
    return [parse_statement(each["Sid"], each) for each in policy["Statement"]]


def test_the_deployers_policy_fits_and_has_no_blank_cheque(deployer: list[Statement]) -> None:
    assert len(re.sub(r"\s", "", DEPLOYER_POLICY.read_text())) <= MAX_POLICY_CHARACTERS
    assert {each.effect for each in deployer} == {"Allow"}
    for statement in deployer:
        for action in statement.actions:
            assert re.fullmatch(r"[a-z0-9]+:[A-Z][A-Za-z]+\*?", action), (statement.owner, action)
        if "*" in statement.resources:
            read_only = all(re.match(r"\w+:(Get|Validate)", action) for action in statement.actions)
            assert read_only or "aws:CalledVia" in statement.condition, statement.owner
            assert not any(action.startswith(ONLY_BY_PREFIX[1:]) for action in statement.actions), statement.owner


def test_the_deployers_policy_allows_what_deploying_and_publishing_call(deployer: list[Statement]) -> None:
    by_hand = [each for each in deployer if "aws:CalledVia" not in each.condition]
    assert [action for action in sorted(DEPLOYING) if not allows(by_hand, action)] == []


def test_the_deployers_policy_allows_what_each_type_of_resource_needs(
    deployer: list[Statement], everything: Stack
) -> None:
    [package] = resolved_stacks([IN_PACKAGE])
    types = {each["Type"] for stack in (everything, package) for each in stack.resources.values()}
    needed = json.loads(run("python", PROGRAMS / "list_permissions.py", *sorted(types)).stdout)
    assert all(needed.values())
    unused = {pattern for pattern in NOT_NEEDED if not any(matches(action, pattern) for action in all_of(needed))}
    assert unused == set()
    missing = {
        (resource_type, action)
        for resource_type, actions in needed.items()
        for action in actions
        if not allows(deployer, action) and not any(matches(action, pattern) for pattern in NOT_NEEDED)
    }
    assert missing == set()


def test_the_deployers_policy_allows_nothing_that_nothing_needs(deployer: list[Statement], everything: Stack) -> None:
    [package] = resolved_stacks([IN_PACKAGE])
    types = {each["Type"] for stack in (everything, package) for each in stack.resources.values()}
    needed = all_of(json.loads(run("python", PROGRAMS / "list_permissions.py", *sorted(types)).stdout)) | DEPLOYING
    services = {action.split(":")[0] for action in needed}
    for statement in deployer:
        for action in statement.actions:
            assert action.split(":")[0] in services
            if not action.startswith("cloudformation:"):
                assert any(matches(each, action) for each in needed), (statement.owner, action)


def all_of(needed: Mapping[str, Sequence[str]]) -> set[str]:
    return set(itertools.chain.from_iterable(needed.values()))


def allows(policy: Sequence[Statement], action: str) -> bool:
    return any(matches(action, pattern) for statement in policy for pattern in statement.actions)


def matches(action: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(action, pattern)
