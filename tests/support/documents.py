"""What people read, and the commands in it."""

from __future__ import annotations

import re

from tests.support.servers import ROOT

DOCUMENTS = "\n".join(
    (ROOT / name).read_text("utf-8")
    for name in ("README.md", "docs/api.md", "docs/deploying.md", "docs/model.md", "docs/operating.md")
)
"""What people read, in one string."""

BLOCKS = re.findall(r"```(?:sh|console)\n(.*?)```", DOCUMENTS, re.DOTALL)


def block(marker: str) -> str:
    """The one block that has this in it."""
    (found,) = [each for each in BLOCKS if marker in each]
    return str(found)
