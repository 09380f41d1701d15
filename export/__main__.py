"""python -m export builds an artifact folder, python -m export publish puts its version into a deployed stack."""

from __future__ import annotations

import sys


def main() -> int:
    # Imported where they are called, since each needs packages that the other does not.
    if sys.argv[1:2] == ["publish"]:
        from export import publish

        return publish.main(sys.argv[2:])
    from export import build

    return build.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
