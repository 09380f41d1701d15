"""Schemathesis: requests that the OpenAPI document allows and forbids, and whether the answers are what it says.

build/clients/bin/python tests/clients/check_openapi.py URL [--max-examples N] [--seed N]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.cli import schemathesis as command

FLOAT_TEXTS = 1152
"""So many vectors a response holds as numbers: beyond it a request is valid, and refused unless it asks for base64."""

# Of what schemathesis expects, 413 is ours: which of the valid requests may get one, `fits` below tells.
CONFIGURATION = """
[checks.negative_data_rejection]
expected-statuses = ["400", "404", "405", "413"]

[[operations]]
include-method = "GET"
checks.positive_data_acceptance.expected-statuses = ["200", "404"]

[[operations]]
include-method = "POST"
checks.positive_data_acceptance.expected-statuses = ["200", "413"]
"""


@schemathesis.hook
def before_load_schema(context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    """Leave token ids out: no schema can tell which are this model's, and all others must be refused."""
    forms = raw_schema["components"]["schemas"]["EmbeddingsRequest"]["properties"]["input"]["anyOf"]
    forms[:] = [form for form in forms if form["type"] == "string" or form["items"]["type"] == "string"]


@schemathesis.check
def fits(context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """Of valid requests only those are too large that have more texts than a response holds."""
    if response.status_code == 413 and case.meta is not None and case.meta.generation.mode.is_positive:
        texts = next(case.body[field] for field in ("texts", "inputs", "input") if field in case.body)
        assert isinstance(texts, list)
        assert len(texts) > FLOAT_TEXTS
        assert case.body.get("encoding_format") != "base64"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url", help="of the service, without a path")
    parser.add_argument("--max-examples", default="100", help="of each operation; default: %(default)s")
    parser.add_argument("--seed", default="1", help="default: %(default)s")
    arguments = parser.parse_args()
    options = {
        "--url": arguments.url,
        "--checks": "all",
        "--phases": "examples,coverage,fuzzing",
        "--max-examples": arguments.max_examples,
        "--seed": arguments.seed,
        "--generation-database": "none",
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # where schemathesis leaves its files
        Path("schemathesis.toml").write_text(CONFIGURATION)
        flags = [part for option in options.items() for part in option]
        sys.exit(command(["--no-color", "run", *flags, "--continue-on-failure", f"{arguments.url}/openapi.json"]))


if __name__ == "__main__":
    main()
