"""python -m quantize IN OUT [--recipe NAME]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from quantize import DEFAULT_RECIPE, RECIPES, QuantizationError, quantize


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m quantize", description="Float32 ONNX to INT8 ONNX.")
    parser.add_argument("source", metavar="IN", type=Path, help="float32 ONNX file")
    parser.add_argument("target", metavar="OUT", type=Path, help="INT8 ONNX file to write")
    parser.add_argument("--recipe", choices=RECIPES, default=DEFAULT_RECIPE, help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        quantize(arguments.source, arguments.target, arguments.recipe)
    except QuantizationError as error:
        print(f"quantize: {error}", file=sys.stderr)
        return 1
    before, after = arguments.source.stat().st_size, arguments.target.stat().st_size
    print(f"{arguments.target}: {after / 1e6:.1f} MB, from {before / 1e6:.1f} MB, recipe {arguments.recipe}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
