"""An account that `sam deploy` can deploy to: moto, with what CloudFormation and Lambda do beside.

The template of a change set is transformed. The stack that it makes has outputs, and its functions run, with the code
that was uploaded for them.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from tests.support.cloud import Cloud, Fields
from tests.support.servers import Local
from tests.support.stack import Parameters, StackTemplate, create_alias, outputs_of, templates_for_moto

FUNCTIONS = {"LoaderName": "LoaderFunction", "FunctionAlias": "EmbeddingFunction"}
"""Outputs that name functions, and the resources."""


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
        if stack in self.rolled_back:
            if fields["Action"] in ("DescribeStacks", "DescribeStackEvents"):
                return content.replace(b"CREATE_COMPLETE", b"ROLLBACK_COMPLETE")
        elif fields["Action"] == "ExecuteChangeSet":
            self._execute(stack)
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
        self.templates[stack] = made
        kept = {name: value for name, value in fields.items() if not name.startswith(("Parameters.", "TemplateURL"))}
        # All of them: moto, unlike CloudFormation, has no previous value of a parameter that was left to its default.
        for number, (parameter, value) in enumerate(made.parameters.items(), 1):
            kept[f"Parameters.member.{number}.ParameterKey"] = parameter
            kept[f"Parameters.member.{number}.ParameterValue"] = value
        return {**kept, "TemplateBody": json.dumps(made.template)}

    def _execute(self, stack: str) -> None:
        """Give a new stack its outputs and run its functions."""
        cloudformation = self.client("cloudformation")
        template = cloudformation.get_template(StackName=stack)["TemplateBody"]
        # It changes nothing: only an update has moto find out the outputs of a stack that a change set has made.
        cloudformation.update_stack(StackName=stack, TemplateBody=json.dumps(template))
        if stack in self.templates:
            outputs = self.outputs(stack)
            create_alias(self.client("lambda"), outputs)
            for output in FUNCTIONS.keys() & outputs.keys():
                self._run(outputs[output], FUNCTIONS[output], self.templates[stack])

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


def given_parameters(fields: Fields, previous: Parameters) -> Parameters:
    """What a request says of parameters: a value, or that the previous one stays."""
    given = {}
    for name, parameter in fields.items():
        if name.endswith(".ParameterKey"):
            value = fields.get(name.removesuffix("Key") + "Value")
            given[parameter] = previous[parameter] if value is None else value
    return given
