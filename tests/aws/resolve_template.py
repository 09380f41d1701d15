"""What template.yaml becomes for given parameters. Standard input: a list of {PARAMETER: VALUE} as JSON.

Prints for each, as JSON: "template", its references as text; "broken", the sentences of the Rules that refuse it; and,
with --lint, "lint", what cfn-lint says of it. Runs in the environment that `make aws-tools` makes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from cfnlint.api import ManualArgs, lint
from template import REGION, Resolver, as_json, plain, source, translate


def main(options: list[str]) -> None:
    translated = translate(source())
    found = []
    for parameters in json.load(sys.stdin):
        resolver = Resolver(translated, parameters)
        template = resolver.template()
        resolved = {"template": plain(template), "broken": resolver.broken_rules()}
        found.append(resolved | ({"lint": problems(template)} if "--lint" in options else {}))
    json.dump(found, sys.stdout)


def problems(template: Mapping[str, Any]) -> list[str]:
    found = lint(as_json(template), config=ManualArgs(regions=[REGION]))
    return [f"{match.rule.id} {match.message} at {match.path}" for match in found]


if __name__ == "__main__":
    main(sys.argv[1:])
