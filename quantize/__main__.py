"""python -m quantize IN OUT [--recipe NAME]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from quantize import DEFAULT_RECIPE, RECIPES, QuantizationError, quantize


def main() -> int:
    arguments = _parse_arguments()
    tokenizer = arguments.tokenizer or arguments.source.with_name("tokenizer.json")
    try:
        report = quantize(
            arguments.source,
            arguments.target,
            tokenizer,
            arguments.max_tokens,
            arguments.recipe,
            _show,
            arguments.min_cosine,
        )
    except QuantizationError as error:
        print(f"quantize: {error}", file=sys.stderr)
        return 1
    before, after = arguments.source.stat().st_size, arguments.target.stat().st_size
    print(f"{arguments.target}: {after / 1e6:.1f} MB, from {before / 1e6:.1f} MB, recipe {arguments.recipe}")
    print(report)
    return 0


def _show(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\rrun {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m quantize", description="Quantize float32 ONNX to INT8 ONNX.")
    parser.add_argument("source", metavar="IN", type=Path, help="float32 ONNX file")
    parser.add_argument("target", metavar="OUT", type=Path, help="INT8 ONNX file to write")
    parser.add_argument("--recipe", choices=RECIPES, default=DEFAULT_RECIPE, help="default: %(default)s")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="default: tokenizer.json beside IN")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="longest text; default: %(default)s")
    parser.add_argument(
        "--min-cosine",
        type=float,
        metavar="X",
        help="write nothing if the mean cosine to float32 is lower; default: "
        f"{', '.join(f'{recipe.min_cosine} for {name}' for name, recipe in RECIPES.items())}; 0 to write always",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
