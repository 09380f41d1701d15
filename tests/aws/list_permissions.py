"""What CloudFormation needs of its caller to make resources, by AWS's own schemas: list_permissions.py TYPE [...]

Prints {TYPE: [ACTION, ...]} as JSON; with --missing instead {TYPE: [REGION, ...]}, the regions that lack the type.
Runs in the environment that `make aws-tools` makes.
"""

from __future__ import annotations

import json
import sys

from cfnlint.helpers import REGIONS
from cfnlint.schema import PROVIDER_SCHEMA_MANAGER, ResourceNotFoundError
from template import REGION


def permissions(resource_type: str) -> list[str]:
    handlers = PROVIDER_SCHEMA_MANAGER.get_resource_schema(REGION, resource_type).schema["handlers"]
    needed = (handlers.get(name, {}) for name in ("create", "read", "update", "delete"))
    return sorted({action for handler in needed for action in handler.get("permissions", ())})


def missing(resource_type: str) -> list[str]:
    found = []
    for region in REGIONS:
        try:
            PROVIDER_SCHEMA_MANAGER.get_resource_schema(region, resource_type)
        except ResourceNotFoundError:
            found.append(region)
    return found


if __name__ == "__main__":
    options = sys.argv[1:]
    tell = missing if "--missing" in options else permissions
    json.dump({name: tell(name) for name in options if name != "--missing"}, sys.stdout)
