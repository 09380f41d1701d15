"""What every machine must make of the default model: digests of the INT8 files, and the version's name.

After an intended change `python -m export.pins` prints what to write here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from artifact.manifest import MODEL_FILES, WEIGHTS_SUFFIX, ArtifactError, Manifest, open_artifact
from export.source import DEFAULT_MODEL
from quantize import DEFAULT_RECIPE

INT8_FILES = (MODEL_FILES["int8"], MODEL_FILES["int8"] + WEIGHTS_SUFFIX)

VERSION = "c9745ed1-fd7a8eee"
DIGESTS: Mapping[str, str] = {
    "model_int8.onnx": "68a3869b7979f548fe355e1b7149f5816dd452042803a3c9d0ae4eb315fd3416",
    "model_int8.onnx_data": "b0202c36c388ea9e046173d1e09407a255d00203fae5a3b74831417204780ca7",
}
"""SHA-256 of the files."""


def differences(manifest: Manifest) -> list[str]:
    """How a version differs from the pins, one sentence each; empty for another model or recipe, which has no pins.

    Its name is compared only if it has both precisions.
    """
    int8 = manifest.precisions.get("int8")
    if manifest.model != DEFAULT_MODEL or int8 is None or int8.recipe != DEFAULT_RECIPE:
        return []
    found = {name: manifest.files[name].sha256 for name in INT8_FILES if name in manifest.files}
    pairs = [(f"SHA-256 of {name}", found.get(name), pinned) for name, pinned in DIGESTS.items()]
    if set(manifest.precisions) == set(MODEL_FILES):
        pairs.append(("the version's name", manifest.version, VERSION))
    return [f"{what} is {made}, pinned is {pinned}" for what, made, pinned in pairs if made != pinned]


def warning(manifest: Manifest) -> str:
    """A warning about a version that is not the pinned one; empty for the pinned one."""
    found = differences(manifest)
    if not found:
        return ""
    return (
        f"export: warning: {'; '.join(found)}. Vectors of two builds must not be mixed. Install the versions in "
        "constraints.txt; after an intended change, write what `python -m export.pins` prints into export/pins.py"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m export.pins", description="Print the pins of a built version.")
    default = Path("build/ml-models", DEFAULT_MODEL.split("/")[-1])
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="model folder; default: %(default)s")
    try:
        manifest = open_artifact(parser.parse_args().folder).manifest
    except ArtifactError as error:
        print(f"export.pins: {error}", file=sys.stderr)
        return 1
    print(f'VERSION = "{manifest.version}"')
    print("DIGESTS: Mapping[str, str] = {")
    for name in INT8_FILES:
        print(f'    "{name}": "{manifest.files[name].sha256}",')
    print("}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
