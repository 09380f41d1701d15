"""What each part of the static recipe brings: the recipe without it, on the sets that `quality` uses."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.corpus import Corpus, Pairs
from benchmarks.results import Figures, Result
from export.manifest import file_entry
from export.verify import compare
from handler.artifact import MODEL_FILES, Artifact, open_artifact
from handler.embedder import Embedder
from quantize import OWN_TEXTS, Calibration, Settings, StaticRecipe

WHOLE = "the recipe"


@dataclass(frozen=True)
class Variant:
    """A recipe and what it is calibrated with."""

    recipe: StaticRecipe = field(default_factory=StaticRecipe)
    vocabulary: bool = True
    english_alone: bool = False


def _with(**changes: Any) -> Variant:
    return Variant(StaticRecipe(settings=replace(Settings(), **changes)))


VARIANTS: Mapping[str, Variant] = {
    WHOLE: Variant(),
    "no smoothing": _with(strength=None),
    "no centring": Variant(StaticRecipe(centre=False)),
    "no headroom above zero after GELU": _with(headrooms=(1,)),
    "no outlier channels": Variant(StaticRecipe(outliers=0)),
    "weights of 7 bits, -63..63": _with(largest=63, largest_pair=126),
    "weights of 8 bits, pairs unbounded (saturates on AVX2)": _with(largest_pair=254),
    "rounding to nearest": _with(damping=1e9),
    "calibrated without the vocabulary": Variant(vocabulary=False),
    "calibrated on English alone": Variant(vocabulary=False, english_alone=True),
    "none of these": Variant(
        StaticRecipe(
            Settings(strength=None, headrooms=(1,), largest=63, largest_pair=126, damping=1e9),
            centre=False,
            outliers=0,
        ),
        vocabulary=False,
        english_alone=True,
    ),
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
        "What each part of the static recipe brings: mean and minimum cosine to float32",
        ["", *sets],
        [
            [variant, *(_cell(cells[variant, name]) for name in sets)]
            for variant in dict.fromkeys(row["variant"] for row in result.rows)
        ],
    )


def _cell(row: Mapping[str, Any]) -> str:
    return f"{row['mean_cosine']:.5f} / {row['min_cosine']:.3f}"


def _quantized(artifact: Artifact, variant: Variant, workdir: Path) -> Embedder:
    """An embedder of the artifact's float32 file quantized by `variant`."""
    texts = OWN_TEXTS
    if variant.english_alone:
        texts = workdir / "english.jsonl"
        lines = [line for line in OWN_TEXTS.read_text("utf-8").split("\n") if line]
        kept = [line for line in lines if json.loads(line)["kind"] in ("query", "question", "sentence", "passage")]
        texts.write_text("\n".join(kept), "utf-8")
    calibration = Calibration(Path(artifact.tokenizer), artifact.manifest.max_tokens, texts, variant.vocabulary)
    for name in artifact.manifest.files:
        (workdir / name).symlink_to(Path(artifact.folder, name).absolute())
    int8 = workdir / MODEL_FILES["int8"]
    int8.unlink()
    variant.recipe.apply(Path(artifact.model("fp32")), int8, calibration.token_ids()[0], lambda done, total: None)
    files = {name: file_entry(workdir / name) for name in artifact.manifest.files}
    return Embedder.from_artifact(Artifact(str(workdir), artifact.manifest._replace(files=files)))
