"""An account that `sam deploy` can deploy to: moto, with what CloudFormation and Lambda do beside.

The template of a change set is transformed. The stack that it makes has outputs, and its functions run, with the code
that was uploaded for them. What is behind the alias runs anew where CloudFormation would publish another version, and
nowhere else.
"""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from tests.support.cloud import Cloud, Fields
from tests.support.servers import Local
from tests.support.stack import Parameters, StackTemplate, outputs_of, templates_for_moto


@dataclass(frozen=True)
class Published:
    """A version of a function, as JSON."""

    resource: str
    """The template's, which CloudFormation replaces where the name or a property is another."""
    function: str
    """What the version keeps: Lambda makes no second version of it."""

    @classmethod
    def of(cls, template: StackTemplate) -> Published:
        function = template.template["Resources"]["EmbeddingFunction"]["Properties"]
        kept = {name: value for name, value in function.items() if name != "ReservedConcurrentExecutions"}
        return cls(json.dumps(template.version), json.dumps(kept))


@dataclass
class Account(Cloud):
    """Functions run on `python`, which is Lambda's version, and `folder` has their files."""

    folder: Path = field(kw_only=True)
    python: str = field(kw_only=True)
    start: Callable[..., Local] = field(kw_only=True)
    rolled_back: set[str] = field(default_factory=set)
    """Names of stacks whose creation fails."""
    templates: dict[str, StackTemplate] = field(default_factory=dict)
    """By the names of stacks."""
    proposed: dict[str, StackTemplate] = field(default_factory=dict)
    """Of the last change set."""
    live: dict[str, Published] = field(default_factory=dict)
    """What the alias has, by the names of stacks."""
    versions: dict[str, list[Published]] = field(default_factory=dict)
    """What Lambda has, by the names of stacks."""
    stopped: set[str] = field(default_factory=set)
    """Names of stacks whose deployments an alarm stops, once they are there."""
    refusals: dict[str, str] = field(default_factory=dict)
    """Why the last update of a stack was rolled back."""

    @property
    def efs(self) -> Path:
        """What /mnt/ml-models is to the functions."""
        return self.folder / "mnt" / "ml-models"

    def asked(self, fields: Fields) -> Fields:
        # The template of the stack that has sam's bucket is in the request itself: there is nothing to transform in it.
        if fields["Action"] == "CreateChangeSet" and "TemplateURL" in fields:
            return self._transformed(fields)
        return super().asked(fields)

    def answered(self, fields: Fields, content: bytes) -> bytes:
        stack = fields.get("StackName", "")
        if fields["Action"] == "ExecuteChangeSet" and stack not in self.rolled_back:
            self._execute(stack)
        if fields["Action"] in ("DescribeStacks", "DescribeStackEvents"):
            if stack in self.rolled_back:
                return content.replace(b"CREATE_COMPLETE", b"ROLLBACK_COMPLETE")
            if stack in self.refusals:
                return content.replace(b"UPDATE_COMPLETE", b"UPDATE_ROLLBACK_COMPLETE")
        return super().answered(fields, content)

    def outputs(self, stack: str) -> dict[str, str]:
        [described] = self.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
        return outputs_of(described)

    def keys(self, bucket: str) -> set[str]:
        found = self.client("s3").list_objects_v2(Bucket=bucket)
        return {each["Key"] for each in found.get("Contents", [])}

    def _transformed(self, fields: Fields) -> Fields:
        stack = fields["StackName"]
        bucket, _, key = urlsplit(fields["TemplateURL"]).path.lstrip("/").partition("/")
        packaged = self.folder / f"{stack}.yaml"
        packaged.write_bytes(self._object(bucket, key))
        previous = self.templates[stack].parameters if stack in self.templates else {}
        [made] = templates_for_moto([given_parameters(fields, previous)], packaged)
        self.proposed[stack] = made
        self.refusals.pop(stack, None)
        kept = {name: value for name, value in fields.items() if not name.startswith(("Parameters.", "TemplateURL"))}
        # All of them: moto, unlike CloudFormation, has no previous value of a parameter that was left to its default.
        for number, (parameter, value) in enumerate(made.parameters.items(), 1):
            kept[f"Parameters.member.{number}.ParameterKey"] = parameter
            kept[f"Parameters.member.{number}.ParameterValue"] = value
        return {**kept, "TemplateBody": json.dumps(without_layers(made.template))}

    def _execute(self, stack: str) -> None:
        """Give a stack its outputs and run its functions."""
        cloudformation = self.client("cloudformation")
        template = cloudformation.get_template(StackName=stack)["TemplateBody"]
        # It changes nothing: only an update has moto find out the outputs of a stack that a change set has made.
        cloudformation.update_stack(StackName=stack, TemplateBody=json.dumps(template))
        if stack not in self.proposed:  # sam's own, of its bucket
            return
        made = self.proposed.pop(stack)
        new = self._published(stack, made)
        if stack in self.refusals:
            before = self.templates[stack]
            parameters = [{"ParameterKey": name, "ParameterValue": value} for name, value in before.parameters.items()]
            body = json.dumps(without_layers(before.template))
            cloudformation.update_stack(StackName=stack, TemplateBody=body, Parameters=parameters)
            return
        self.templates[stack] = made
        outputs = self.outputs(stack)
        if "LoaderName" in outputs:
            self._run(outputs["LoaderName"], "LoaderFunction", made)
        if new:
            self._run(outputs["FunctionAlias"], "EmbeddingFunction", made)

    def _published(self, stack: str, made: StackTemplate) -> bool:
        """Whether the alias has got another version, if it should and nothing prevents it."""
        wanted, live, versions = Published.of(made), self.live.get(stack), self.versions.setdefault(stack, [])
        if live and live.resource == wanted.resource:
            return False
        if versions and versions[-1].function == wanted.function:
            self.refusals[stack] = "A version for this Lambda function exists"
            return False
        versions.append(wanted)
        [resource] = made.version.values()
        deletes = resource.get("DeletionPolicy", "Delete") == "Delete"
        if live and stack in self.stopped:
            if deletes:
                versions.remove(wanted)
            self.refusals[stack] = "The deployment was stopped by an alarm"
            return False
        if live and deletes:
            versions.remove(live)
        self.live[stack] = wanted
        return True

    def _run(self, function: str, resource: str, of: StackTemplate) -> None:
        roots = {"mnt": self.folder / "mnt"}
        for layer in of.template["Resources"][resource]["Properties"].get("Layers", []):
            roots["opt"] = self._unpacked(of, layer["Ref"])

        def mount(place: str) -> Path:
            _, root, *folders = PurePosixPath(place).parts
            return Path(roots[root], *folders)

        code = self._unpacked(of, resource)
        self.run(function, self.start, mount, "--folder", str(code), "--python", self.python)

    def _unpacked(self, of: StackTemplate, resource: str) -> Path:
        """The folder with what was uploaded for a function or a layer."""
        bucket, key = of.code(resource)
        folder = self.folder / resource / key
        with zipfile.ZipFile(io.BytesIO(self._object(bucket, key))) as package:
            package.extractall(folder)
        return folder

    def _object(self, bucket: str, key: str) -> bytes:
        content: bytes = self.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        return content


def without_layers(template: dict[str, Any]) -> dict[str, Any]:
    """A template whose functions have no layers: moto cannot update one that has."""
    resources = copy.deepcopy(template["Resources"])
    for made in resources.values():
        made["Properties"].pop("Layers", None)
    return {**template, "Resources": resources}


def given_parameters(fields: Fields, previous: Parameters) -> Parameters:
    """What a request says of parameters: a value, or that the previous one stays."""
    given = {}
    for name, parameter in fields.items():
        if name.endswith(".ParameterKey"):
            value = fields.get(name.removesuffix("Key") + "Value")
            given[parameter] = previous[parameter] if value is None else value
    return given
