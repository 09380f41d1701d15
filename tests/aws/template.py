"""template.yaml as CloudFormation sees it: translated by SAM's own code, then resolved for given parameters.

Runs in the environment that `make aws-tools` makes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from boto3 import Session
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

TEMPLATE = Path(__file__).parents[2] / "template.yaml"
REGION = "us-east-1"
PSEUDO = {
    "AWS::AccountId": "123456789012",
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::StackName": "embeddings",
    "AWS::URLSuffix": "amazonaws.com",
}
NO_VALUE = {"Ref": "AWS::NoValue"}
CODE = {"EmbeddingFunction": "CodeUri", "LoaderFunction": "CodeUri", "ModelLayer": "ContentUri"}
"""Where `sam deploy` puts the S3 address of what it has uploaded."""

Template = dict[str, Any]


def source(uploaded: Mapping[str, str] | None = None) -> Template:
    """The file itself, as if its code had been uploaded; `uploaded` gives addresses by the names of resources."""
    return with_code(parse(TEMPLATE.read_text()), uploaded)


def parse(text: str) -> Template:
    """A template, its short forms such as !Ref written out."""
    template: Template = yaml_parse(text)
    return template


def with_code(template: Template, uploaded: Mapping[str, str] | None = None) -> Template:
    addresses = {**dict.fromkeys(CODE, "s3://deployment/code.zip"), **(uploaded or {})}
    for name, where in CODE.items():
        template["Resources"][name]["Properties"][where] = addresses[name]
    return template


def translate(template: Template) -> Template:
    """What SAM makes of a template, which parameters change nothing of."""
    translator = Translator({}, Parser(), boto_session=Session(region_name=REGION))
    translated: Template = translator.translate(template, {})
    return translated


def values(template: Template, parameters: Mapping[str, str]) -> dict[str, str]:
    """The value of every parameter. Raises ValueError for one that the template does not have."""
    unknown = parameters.keys() - template["Parameters"].keys()
    if unknown:
        raise ValueError(f"no parameter {', '.join(sorted(unknown))}")
    return {name: str(parameters.get(name, made.get("Default"))) for name, made in template["Parameters"].items()}


class Resolver:
    """Answers conditions and replaces parameters; references to resources stay as they are."""

    def __init__(self, template: Template, parameters: Mapping[str, str], pseudo: Mapping[str, str] = PSEUDO) -> None:
        self._template = template
        self._values = {**values(template, parameters), **pseudo}
        self._functions: dict[str, Callable[[Any], Any]] = {
            "Ref": self._ref,
            "Fn::If": self._if,
            "Fn::Sub": self._sub,
            "Fn::Equals": lambda pair: self.resolve(pair[0]) == self.resolve(pair[1]),
            "Fn::Not": lambda one: not self.resolve(one[0]),
            "Fn::And": lambda all_of: all(self.resolve(one) for one in all_of),
            "Fn::Or": lambda any_of: any(self.resolve(one) for one in any_of),
            "Condition": self.holds,
        }

    def holds(self, condition: str) -> bool:
        return bool(self.resolve(self._template["Conditions"][condition]))

    def template(self) -> Template:
        """The resources and outputs that there are, without conditions and parameters."""
        resolved = {key: self._template[key] for key in ("AWSTemplateFormatVersion", "Description")}
        for section in ("Resources", "Outputs"):
            resolved[section] = {
                name: self.resolve({key: value for key, value in made.items() if key != "Condition"})
                for name, made in self._template[section].items()
                if "Condition" not in made or self.holds(made["Condition"])
            }
        return resolved

    def broken_rules(self) -> list[str]:
        """The descriptions of the assertions that do not hold."""
        return [
            assertion["AssertDescription"]
            for rule in self._template["Rules"].values()
            if self.resolve(rule.get("RuleCondition", True))
            for assertion in rule["Assertions"]
            if not self.resolve(assertion["Assert"])
        ]

    def resolve(self, value: Any) -> Any:
        if isinstance(value, list):
            return [found for found in map(self.resolve, value) if found != NO_VALUE]
        if not isinstance(value, dict):
            return value
        # {"Condition": name} is a function inside conditions; inside a policy it is a key like any other.
        if len(value) == 1 and not isinstance(value.get("Condition"), dict):
            [(name, argument)] = value.items()
            if name in self._functions:
                return self._functions[name](argument)
        return {key: found for key, part in value.items() if (found := self.resolve(part)) != NO_VALUE}

    def _ref(self, name: str) -> Any:
        return self._values.get(name, {"Ref": name})

    def _if(self, arguments: list[Any]) -> Any:
        condition, then, otherwise = arguments
        return self.resolve(then if self.holds(condition) else otherwise)

    def _sub(self, argument: Any) -> Any:
        text, given = argument if isinstance(argument, list) else (argument, {})
        known = {name: self.resolve(value) for name, value in given.items()}
        left = {name: value for name, value in known.items() if not isinstance(value, str)}
        known = {**self._values, **{name: value for name, value in known.items() if isinstance(value, str)}}
        text = re.sub(r"\$\{([^}]+)}", lambda found: known.get(found[1], found[0]), text)
        if "${" not in text:
            return text
        return {"Fn::Sub": [text, left] if left else text}


def plain(value: Any) -> Any:
    """References to resources as text: "<Bucket>" for its name or ID, "<Bucket.Arn>" for an attribute."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"Ref"}:
        return f"<{value['Ref']}>"
    if value.keys() == {"Fn::GetAtt"}:
        return "<{}.{}>".format(*value["Fn::GetAtt"])
    if value.keys() == {"Fn::Select"} and value["Fn::Select"][1].keys() == {"Fn::Split"}:
        number, split = value["Fn::Select"]
        separator, text = split["Fn::Split"]
        return f"{plain(text)} at {number} between {separator}"
    if value.keys() == {"Fn::Sub"}:
        text, given = value["Fn::Sub"] if isinstance(value["Fn::Sub"], list) else (value["Fn::Sub"], {})
        return re.sub(
            r"\$\{([^}]+)}", lambda found: plain(given[found[1]]) if found[1] in given else f"<{found[1]}>", text
        )
    return {key: plain(part) for key, part in value.items()}


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True)
