"""python -m export builds an artifact folder: source -> ONNX -> INT8 -> verified -> installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

try:
    from artifact import store
    from artifact.manifest import DENSE, MANIFEST, MODEL_FILES, TOKENIZER, VOCABULARY, Artifact, ArtifactError, Parity
    from export import ExportError
    from export.dense import write_dense
    from export.manifest import describe, summary, verified
    from export.mapping import map_weights
    from export.options import dimensions, precisions
    from export.pins import warning
    from export.progress import Steps
    from export.source import DEFAULT_MODEL, fetch, identify
    from export.to_onnx import to_onnx
    from export.tokenizer import write_tokenizer
    from export.verify import gate_texts, reference_vectors, verify
    from export.wordpiece import split_wordpiece
    from quantize import DEFAULT_RECIPE, RECIPES, QuantizationError, quantize
except ModuleNotFoundError as error:
    sys.exit(f"export: {error.name} is missing, install what the export needs with: pip install '.[export]'")


def main(command_line: Sequence[str] | None = None) -> int:
    arguments = _parse_arguments(command_line)
    try:
        build(arguments)
    except (ExportError, store.StoreError, QuantizationError, ArtifactError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"export: cannot write {error.filename or arguments.output}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def build(arguments: argparse.Namespace) -> None:
    """The steps in order."""
    steps = Steps(total=6)
    model_folder = arguments.output / identify(arguments.model, arguments.model_id).split("/")[-1]
    with store.staging(model_folder) as workdir:
        built = workdir / "version"
        built.mkdir()
        with steps.step(f"get {arguments.model}", live=False):
            source = fetch(arguments.model, arguments.model_id, arguments.revision, workdir)
            if arguments.matryoshka:
                source = replace(source, config=source.config.with_matryoshka(arguments.matryoshka))
            tokenizer = built / TOKENIZER
            write_tokenizer(source.config, tokenizer)
            wordpiece = split_wordpiece(tokenizer, built / VOCABULARY)
            write_dense(source.config, built / DENSE)
        float32 = (built if "fp32" in arguments.precision else workdir) / MODEL_FILES["fp32"]
        with steps.step("export to float32 ONNX"):
            to_onnx(source.config.encoder, float32, workdir)
        with steps.step(f"quantize to INT8, recipe {arguments.recipe}") as advance:
            if "int8" in arguments.precision:
                int8 = built / MODEL_FILES["int8"]
                quantize(float32, int8, tokenizer, source.config.max_tokens, arguments.recipe, advance)
                map_weights(int8)
        with steps.step("embed the verification texts with sentence-transformers"):
            texts = gate_texts(tokenizer)
            reference = reference_vectors(source.folder, texts, source.config.max_tokens)
        draft = describe(source, built, arguments.recipe, wordpiece)
        parities: dict[str, Parity] = {}
        with steps.step("compare the artifact's vectors with them") as advance:
            for precision in draft.precisions:
                artifact = Artifact(str(built), draft)
                parities[precision] = verify(artifact, precision, texts, reference, advance)
        manifest = verified(draft, parities)
        with steps.step(f"install version {manifest.version} in {model_folder}"):
            (built / MANIFEST).write_bytes(manifest.to_json())
            is_new = store.install(built, model_folder, manifest.version)
    steps.console.print(summary(manifest))
    print(f"{model_folder}: version {manifest.version} is in use{'' if is_new else ', unchanged'}")
    if differs := warning(manifest):
        print(differs, file=sys.stderr)


def _parse_arguments(command_line: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Build an artifact folder.",
        epilog="To put the version into a deployed stack: python -m deploy publish --help",
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="ID|FOLDER", help="default: %(default)s")
    parser.add_argument("--model-id", metavar="ID", help="the model in a FOLDER; default: the default model")
    parser.add_argument("--revision", help="commit on the hub; default: the pinned one, else the newest")
    parser.add_argument(
        "--output", type=Path, default=Path("build/ml-models"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--precision", type=precisions, default="int8,fp32", help="default: %(default)s")
    parser.add_argument(
        "--matryoshka",
        type=dimensions,
        metavar="N,N",
        help="smaller dimensions that the model was trained for; default: what its configuration lists",
    )
    parser.add_argument("--recipe", choices=RECIPES, default=DEFAULT_RECIPE, help="for INT8; default: %(default)s")
    return parser.parse_args(command_line)


if __name__ == "__main__":
    sys.exit(main())
