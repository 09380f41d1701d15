"""What CloudFormation needs of its caller to make resources, by AWS's own schemas: list_permissions.py TYPE [...]

Prints {TYPE: [ACTION, ...]} as JSON. Runs in the environment that `make aws-tools` makes.
"""

from __future__ import annotations

import json
import sys

from cfnlint.schema import PROVIDER_SCHEMA_MANAGER
from template import REGION


def permissions(resource_type: str) -> list[str]:
    handlers = PROVIDER_SCHEMA_MANAGER.get_resource_schema(REGION, resource_type).schema["handlers"]
    needed = (handlers.get(name, {}) for name in ("create", "read", "update", "delete"))
    return sorted({action for handler in needed for action in handler.get("permissions", ())})


if __name__ == "__main__":
    json.dump({name: permissions(name) for name in sys.argv[1:]}, sys.stdout)
