"""What each part of the recipe brings: the recipe without it, on the sets that `quality` uses."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from artifact.manifest import MODEL_FILES, Artifact, open_artifact
from benchmarks.corpus import Corpus, Pairs
from benchmarks.results import Figures, Result
from export.manifest import file_entry
from export.verify import compare
from handler.embedder import Embedder
from quantize import PerTokenRecipe
from quantize.vocabulary import pieces

WHOLE = "the recipe"


VARIANTS: Mapping[str, PerTokenRecipe] = {
    WHOLE: PerTokenRecipe(),
    "no smoothing": PerTokenRecipe(smooth=False),
    "no outlier channels": PerTokenRecipe(outliers=0),
    "rounding to nearest": PerTokenRecipe(compensate=False),
    "none of these": PerTokenRecipe(smooth=False, outliers=0, compensate=False),
}


def run(model_folder: Path, corpora: Sequence[Corpus], pairs: Sequence[Pairs], advance: Callable[[], None]) -> Result:
    """Quantize anew with every variant, and compare with the artifact's float32 file."""
    texts = {corpus.name: list(corpus.texts) for corpus in corpora}
    texts |= {pair.name: sorted({*pair.left, *pair.right}) for pair in pairs}
    exact = Embedder.load(model_folder, "fp32")
    reference = {name: exact.embed(each).vectors for name, each in texts.items()}
    rows = []
    for variant in VARIANTS:
        with tempfile.TemporaryDirectory() as workdir:
            embedder = _quantized(open_artifact(model_folder), VARIANTS[variant], Path(workdir))
            for name, each in texts.items():
                parity = compare(embedder.embed(each).vectors, reference[name], batch_difference=0.0)
                rows.append({"variant": variant, "set": name, **parity._asdict()})
        advance()
    return Result.new("ablation", model_folder, {"sets": {name: len(each) for name, each in texts.items()}}, rows)


def figures(result: Result) -> Figures:
    sets = list(result.parameters["sets"])
    cells = {(row["variant"], row["set"]): row for row in result.rows}
    return Figures(
        "What each part of the recipe brings: mean and minimum cosine to float32",
        ["", *sets],
        [
            [variant, *(_cell(cells[variant, name]) for name in sets)]
            for variant in dict.fromkeys(row["variant"] for row in result.rows)
        ],
    )


def _cell(row: Mapping[str, Any]) -> str:
    return f"{row['mean_cosine']:.5f} / {row['min_cosine']:.3f}"


def _quantized(artifact: Artifact, recipe: PerTokenRecipe, workdir: Path) -> Embedder:
    """An embedder of the artifact's float32 file quantized by `recipe`."""
    for name in artifact.manifest.files:
        (workdir / name).symlink_to(Path(artifact.folder, name).absolute())
    int8 = workdir / MODEL_FILES["int8"]
    int8.unlink()
    ids = pieces(Path(artifact.tokenizer), artifact.manifest.max_tokens)
    recipe.apply(Path(artifact.model("fp32")), int8, ids, lambda done, total: None)
    files = {name: file_entry(workdir / name) for name in artifact.manifest.files}
    return Embedder.from_artifact(Artifact(str(workdir), artifact.manifest._replace(files=files)))
