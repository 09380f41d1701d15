"""What template.yaml becomes for given parameters. Standard input: a list of {PARAMETER: VALUE} as JSON, in which the
pseudo parameters AWS::Region and AWS::Partition may be given too.

Prints for each, as JSON: "template", its references as text; "broken", the sentences of the Rules that refuse it; and,
with --lint, "lint", what cfn-lint says of it. With --uploaded '{RESOURCE: "s3://..."}' these have other code. Runs in
the environment that `make aws-tools` makes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from cfnlint.api import ManualArgs, lint
from template import PSEUDO, REGION, Resolver, as_json, plain, source, translate


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lint", action="store_true")
    parser.add_argument("--uploaded", type=json.loads)
    options = parser.parse_args()
    translated = translate(source(options.uploaded))
    found = []
    for parameters in json.load(sys.stdin):
        pseudo = {name: value for name, value in parameters.items() if name in PSEUDO}
        own = {name: value for name, value in parameters.items() if name not in PSEUDO}
        resolver = Resolver(translated, own, {**PSEUDO, **pseudo})
        template = resolver.template()
        resolved = {"template": plain(template), "broken": resolver.broken_rules()}
        found.append(resolved | ({"lint": problems(template)} if options.lint else {}))
    json.dump(found, sys.stdout)


def problems(template: Mapping[str, Any]) -> list[str]:
    found = lint(as_json(template), config=ManualArgs(regions=[REGION]))
    return [f"{match.rule.id} {match.message} at {match.path}" for match in found]


if __name__ == "__main__":
    main()
