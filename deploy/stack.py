"""A deployed stack, as publishing needs it: names of its resources, calls of its functions, and AWS's errors in words.

The caller's credentials must allow: cloudformation:DescribeStacks on the stack; s3:GetObject, s3:PutObject and
s3:ListBucket on the bucket; lambda:InvokeFunction on the loader and on the function's alias. `restart` alone needs
more: cloudformation:GetTemplate and cloudformation:UpdateStack, and, unless the stack has a service role, what a
deployment needs.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import boto3
from botocore import exceptions as boto
from botocore.config import Config

from deploy import DeployError

GENERATION = "MODEL_GENERATION"
"""Environment variable that the function does not read: a new value makes a new version of the function."""
RESTART_SECONDS = 1800.0
POLL_SECONDS = 3.0
WAKE_SECONDS = 600.0
WAKE_POLL_SECONDS = 10.0

_GENERATION_LINE = re.compile(rf"""(["']?\b{GENERATION}["']?\s*:\s*)("[^"]*"|'[^']*'|[\w.-]+)""")
_DONE = ("UPDATE_COMPLETE", "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS")
_CONFIG = Config(connect_timeout=10, retries={"mode": "standard", "total_max_attempts": 3})
# A load takes minutes. Asking for it twice does no harm.
_INVOKE_CONFIG = _CONFIG.merge(Config(read_timeout=910, tcp_keepalive=True))


_NOT_READY = frozenset(
    (
        *("ResourceNotReadyException", "ENINotReadyException", "ResourceConflictException", "EC2ThrottledException"),
        *("EFSMountConnectivityException", "EFSMountTimeoutException", "CodeArtifactUserPendingException"),
    )
)
"""What Lambda answers while it makes a function's network interfaces anew, of which it takes back those that had no
request for 14 days, or while it changes the function."""


class PublishError(DeployError):
    """Publishing cannot go on; the message says what is wrong and what to do."""


class FunctionFailedError(PublishError):
    """A deployed function raised an error."""


@dataclass(frozen=True)
class Deployment:
    """Names of what publishing needs of a stack."""

    region: str
    bucket: str
    loader: str | None
    """Name of the loader function; None if it was not given."""
    function: str | None = None
    """The alias of the function that embeds; None if no stack was named."""
    url: str | None = None
    """None, too, where the stack has no Function URL."""
    stack: str | None = None
    precision: str | None = None
    """Precision that the function runs."""


@dataclass(frozen=True)
class Served:
    """What the deployed function's `GET /info` says."""

    model: str
    version: str
    precision: str


class Aws:
    """The calls. Each raises PublishError."""

    def __init__(self) -> None:
        with aws_errors("use your AWS profile"):
            # Unlike AWS's other tools, boto3 does not read AWS_REGION.
            self._session = boto3.Session(region_name=os.environ.get("AWS_REGION") or None)
        if not self._session.region_name:
            raise PublishError(
                "no region is set: set AWS_REGION to the stack's, such as us-east-1, or region in your profile"
            )
        self.region: str = self._session.region_name

    def account(self) -> str:
        """Number of the credentials' account."""
        with aws_errors("sign in to AWS"):
            return str(self.client("sts").get_caller_identity()["Account"])

    def client(self, service: str, config: Config = _CONFIG) -> Any:
        with aws_errors(f"use {service}"):
            return self._session.client(service, config=config)

    def outputs(self, stack: str) -> dict[str, str]:
        """A stack's outputs."""
        return _outputs(self._describe(stack))

    def parameters(self, stack: str) -> dict[str, str]:
        """A stack's parameters; empty if there is no such stack."""
        return _parameters(self._look_for(stack))

    def tags(self, stack: str) -> dict[str, str]:
        """A stack's tags; empty if there is no such stack."""
        return {each["Key"]: each["Value"] for each in self._look_for(stack).get("Tags", ())}

    def _look_for(self, stack: str) -> dict[str, Any]:
        """The description of a stack; empty if there is no such stack."""
        client = self.client("cloudformation")
        with aws_errors(f"look for stack {stack}"):
            try:
                found: dict[str, Any] = client.describe_stacks(StackName=stack)["Stacks"][0]
            except boto.ClientError as error:
                if "does not exist" not in str(error):
                    raise
                return {}
        return found

    def deleting(self, stack: str) -> list[str]:
        """The names of what a stack is deleting."""
        with aws_errors(f"look at stack {stack}"):
            pages = self.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=stack)
            return [
                each["LogicalResourceId"]
                for page in pages
                for each in page["StackResourceSummaries"]
                if each["ResourceStatus"] == "DELETE_IN_PROGRESS"
            ]

    def empty(self, bucket: str) -> int:
        """Delete all objects of a bucket, older versions too. Their number; 0 if there is no such bucket."""
        client = self.client("s3")
        deleted = 0
        with aws_errors(f"empty s3://{bucket}"):
            try:
                for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
                    found = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
                    objects = [{"Key": each["Key"], "VersionId": each["VersionId"]} for each in found]
                    if objects:
                        answer = client.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
                        for refusal in answer.get("Errors", ()):
                            raise boto.ClientError({"Error": refusal}, "DeleteObjects")
                    deleted += len(objects)
            except client.exceptions.NoSuchBucket:
                return 0
        return deleted

    def find(self, stack: str) -> Deployment:
        """The deployment that a stack's outputs describe."""
        found = self._describe(stack)
        outputs = _outputs(found)
        if outputs.get("ModelStorage") == "package":
            raise PublishError(
                f"stack {stack} has the model in the function's package (ModelStorage=package), so nothing can be "
                "published to it: deploy it again with your model (make model, sam build, sam deploy), or with "
                "ModelStorage=efs"
            )
        missing = [name for name in ("ArtifactBucketName", "LoaderName", "FunctionAlias") if name not in outputs]
        if missing:
            raise PublishError(
                f"stack {stack}, now {found['StackStatus']}, has no output {', '.join(missing)}: wait until it is "
                "deployed, or deploy it again with this project's template.yaml"
            )
        return Deployment(
            region=self.region,
            bucket=outputs["ArtifactBucketName"],
            loader=outputs["LoaderName"],
            function=outputs["FunctionAlias"],
            url=outputs["Url"].rstrip("/") if "Url" in outputs else None,
            stack=stack,
            precision=_parameters(found).get("Precision"),
        )

    def invoke(self, function: str, event: Mapping[str, Any]) -> Any:
        """The function's result. Raises FunctionFailedError with what the function raised."""
        client = self.client("lambda", _INVOKE_CONFIG)
        with aws_errors(f"invoke {function}"):
            response = _once_ready(function, partial(client.invoke, FunctionName=function, Payload=json.dumps(event)))
            result = json.loads(response["Payload"].read())
        if "FunctionError" in response:
            kind, message = result.get("errorType", "error"), result.get("errorMessage", "without a message")
            remedy = (
                ": run it again; if it lasts, give it more Timeout or MemorySize" if kind == "Sandbox.Timedout" else ""
            )
            raise FunctionFailedError(f"{function} failed: {kind}: {message}{remedy}")
        return result

    def served(self, function: str) -> Served:
        """What `GET /info` says, as an event of the Function URL."""
        http = {"method": "GET", "path": "/info"}
        event = {"version": "2.0", "rawPath": "/info", "headers": {}, "requestContext": {"http": http}}
        response = self.invoke(function, {**event, "rawQueryString": "", "isBase64Encoded": False})
        body = json.loads(response["body"])
        if response["statusCode"] != 200:
            raise PublishError(f"{function} answers {response['statusCode']}: {body['error']['message']}")
        return Served(body["model"], body["artifact_version"], body["precision"])

    def embed(self, function: str, texts: Sequence[str]) -> Any:
        """Vectors of texts, as nested lists. Raises FunctionFailedError with what the function refused."""
        result = self.invoke(function, {"texts": list(texts)})
        if "error" in result:
            raise FunctionFailedError(
                f"{function} refused the texts: {result['error']['code']}: {result['error']['message']}"
            )
        return result["embeddings"]

    def restart(self, stack: str, bucket: str, generation: str) -> None:
        """Replace all environments of the function, by a new version of it that differs only in MODEL_GENERATION.

        No call ends running environments, and published versions of a function never change: only a new version gets
        new environments. CloudFormation makes it, not PublishVersion and UpdateAlias, so that traffic is shifted,
        watched and shifted back as in a deployment, and the alias is where the next deployment's CodeDeploy expects it.
        The template is changed, not a parameter, because SAM names versions by the template's text (issue 3820 of
        aws/serverless-application-model); and the original template, since only that is transformed.
        """
        client = self.client("cloudformation")
        with aws_errors(f"restart the function of stack {stack}"):
            parameters = self._describe(stack).get("Parameters", ())
            template = client.get_template(StackName=stack, TemplateStage="Original")["TemplateBody"]
            client.update_stack(
                StackName=stack,
                TemplateURL=self._put_template(stack, bucket, with_generation(template, generation)),
                Parameters=[{"ParameterKey": each["ParameterKey"], "UsePreviousValue": True} for each in parameters],
                Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"],
            )
        self._wait_for_update(stack)

    def _put_template(self, stack: str, bucket: str, template: str) -> str:
        """The URL of a template: this project's has nearly the 51,200 bytes that a request may have."""
        client = self.client("s3")
        key = f".templates/{stack}"  # no model's name begins so
        client.put_object(Bucket=bucket, Key=key, Body=template.encode())
        return f"{client.meta.endpoint_url}/{bucket}/{key}"

    def _wait_for_update(self, stack: str) -> None:
        deadline = time.monotonic() + RESTART_SECONDS
        while (found := self._describe(stack))["StackStatus"] not in _DONE:
            status, reason = found["StackStatus"], found.get("StackStatusReason", "")
            if not status.endswith("_IN_PROGRESS") or "ROLLBACK" in status:
                raise PublishError(
                    f"the restart failed, stack {stack} is {status} ({reason}): its old environments keep running; see "
                    f"the stack's events: aws cloudformation describe-stack-events --stack-name {stack}"
                )
            if time.monotonic() > deadline:
                raise PublishError(f"stack {stack} is {status} after {RESTART_SECONDS:.0f} s: see the stack's events")
            time.sleep(POLL_SECONDS)

    def _describe(self, stack: str) -> dict[str, Any]:
        client = self.client("cloudformation")
        with aws_errors(
            f"find stack {stack}", {"ValidationError": f"in region {self.region}: see sam list, AWS_REGION"}
        ):
            found: dict[str, Any] = client.describe_stacks(StackName=stack)["Stacks"][0]
        return found


def _outputs(described: Mapping[str, Any]) -> dict[str, str]:
    return {each["OutputKey"]: each["OutputValue"] for each in described.get("Outputs", ())}


def _parameters(described: Mapping[str, Any]) -> dict[str, str]:
    return {each["ParameterKey"]: each["ParameterValue"] for each in described.get("Parameters", ())}


def _once_ready(function: str, call: Callable[[], Any]) -> Any:
    """What a call of a function gives, as soon as Lambda has made its network interfaces. Raises ClientError."""
    started = time.monotonic()
    while True:
        try:
            return call()
        except boto.ClientError as error:
            seconds, code = time.monotonic() - started, error.response["Error"]["Code"]
            if code not in _NOT_READY or seconds >= WAKE_SECONDS:
                raise
        print(
            f"{function} is not ready yet ({code}), tried for {seconds:.0f} s of at most {WAKE_SECONDS:.0f} s",
            flush=True,
        )
        time.sleep(WAKE_POLL_SECONDS)


def with_generation(template: str | Mapping[str, Any], generation: str) -> str:
    """A template with a new value of MODEL_GENERATION. boto3 returns a template in JSON as a mapping.

    >>> with_generation("Variables:\\n  MODEL_GENERATION: '0'\\n", "v2")
    'Variables:\\n  MODEL_GENERATION: "v2"\\n'
    """
    text = template if isinstance(template, str) else json.dumps(template)
    text, found = _GENERATION_LINE.subn(lambda match: f'{match[1]}"{generation}"', text)
    if found != 1:
        raise PublishError(
            f"the stack's template sets {GENERATION} {found} times, not once: deploy the stack again with this "
            "project's template.yaml; that replaces all environments too"
        )
    return text


_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or sign in with: aws sso login"
_NETWORK = "check that this machine reaches AWS, and that AWS_REGION is a region"
_REMEDIES: Mapping[type[Exception], str] = {
    boto.NoCredentialsError: _CREDENTIALS,
    boto.PartialCredentialsError: _CREDENTIALS,
    boto.CredentialRetrievalError: _CREDENTIALS,
    boto.SSOError: "sign in with: aws sso login",
    boto.ProfileNotFound: "set AWS_PROFILE to a name from: aws configure list-profiles",
    boto.NoRegionError: "set AWS_REGION to the stack's, such as us-east-1",
    boto.ConnectionError: _NETWORK,
    boto.HTTPClientError: _NETWORK,
    boto.ParamValidationError: "use the name from the stack's outputs",
}
_CODE_REMEDIES: Mapping[str, str] = {
    **dict.fromkeys(
        ("AccessDenied", "AccessDeniedException", "403"),
        "your credentials need the permissions that the first lines of deploy/stack.py list",
    ),
    **dict.fromkeys(
        (
            *("ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidAccessKeyId", "InvalidClientTokenId"),
            *("SignatureDoesNotMatch", "InvalidSignatureException", "UnrecognizedClientException"),
        ),
        _CREDENTIALS,
    ),
    **dict.fromkeys(("NoSuchBucket", "404"), "give the stack's output ArtifactBucketName as --bucket, or use --stack"),
    "ResourceNotFoundException": "give the stack's output LoaderName as --loader, or use --stack",
    **dict.fromkeys(
        _NOT_READY,
        "if it lasts, see its State and StateReason: aws lambda get-function-configuration --function-name",
    ),
    "TooManyRequestsException": "all environments are busy: run it again later",
}


@contextmanager
def aws_errors(doing: str, remedies: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn boto3's errors into a PublishError of one sentence. `remedies` are for codes of this call in particular."""
    try:
        yield
    except boto.ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        remedy = {**_CODE_REMEDIES, **(remedies or {})}.get(code, "if it lasts, see AWS's documentation of the code")
        raise PublishError(f"cannot {doing}: {_in_a_line(error)}: {remedy}") from error
    except boto.BotoCoreError as error:
        known = [remedy for kind, remedy in _REMEDIES.items() if isinstance(error, kind)]
        raise PublishError(f"cannot {doing}: {_in_a_line(error)}: {known[0] if known else 'run it again'}") from error


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())
