"""The manifest of a version being built, and the table that closes an export."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path

import orjson
from rich import box
from rich.table import Table

from artifact.manifest import (
    FORMAT_VERSION,
    MODEL_FILES,
    TOKENIZER,
    Artifact,
    FileEntry,
    Manifest,
    Parity,
    Precision,
    sha256,
)
from export.source import Source
from quantize import RECIPES

TOOLS = ("onnx", "onnxruntime", "optimum", "optimum-onnx", "sentence-transformers", "tokenizers", "torch")
_DECISIVE = ("model", "revision", "max_tokens", "pooling", "normalize", "wordpiece")
_DECISIVE_IF_SET = (
    "dense",
    "truncated_from",
    "matryoshka_dimensions",
    "unit_before_truncation",
    "prompts",
    "default_prompt",
)
"""Left out of the name where a model has nothing of it."""
_UNVERIFIED = Parity(0, 0.0, 0.0, 0.0, 0.0, 0.0)


def describe(source: Source, built: Path, recipe: str, wordpiece: str | None) -> Manifest:
    """The manifest of the files in `built`, with zeros for parity figures until they are measured."""
    config = source.config
    is_cut = config.dimensions < config.full_dimensions
    files = {path.name: file_entry(path) for path in sorted(built.iterdir())}
    precisions = {
        name: Precision(
            file=file,
            recipe=recipe if name == "int8" else None,
            batch_independent=name == "fp32" or RECIPES[recipe].batch_independent,
            operators=RECIPES[recipe].operators if name == "int8" else 0,
            optimized=name == "int8" and RECIPES[recipe].optimized,
            parity=_UNVERIFIED,
        )
        for name, file in MODEL_FILES.items()
        if file in files
    }
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        version="",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=source.model,
        revision=source.revision,
        source=source.origin,
        license=source.card.license,
        dimensions=config.dimensions,
        max_tokens=config.max_tokens,
        pooling=config.pooling,
        normalize=config.normalize and not is_cut,
        wordpiece=wordpiece,
        precisions=precisions,
        files=files,
        tools={tool: version_of(tool) for tool in TOOLS},
        dense=config.dense,
        truncated_from=config.full_dimensions if is_cut else 0,
        unit_before_truncation=config.normalize and is_cut,
        matryoshka_dimensions=config.matryoshka,
        prompts=config.prompts,
        default_prompt=config.default_prompt,
        similarity=config.similarity,
        languages=source.card.languages,
        limitations=source.card.limitations,
    )
    return manifest._replace(version=_name(manifest))


def file_entry(path: Path) -> FileEntry:
    """Size and checksums of a file."""
    return FileEntry(path.stat().st_size, sha256(path), zlib.crc32(path.read_bytes()))


def verified(draft: Manifest, parities: Mapping[str, Parity]) -> Manifest:
    """The manifest with the parity figures of each precision."""
    precisions = {name: entry._replace(parity=parities[name]) for name, entry in draft.precisions.items()}
    return draft._replace(precisions=precisions)


def reduced(manifest: Manifest, precisions: Sequence[str]) -> Manifest:
    """The manifest of a version that has some of another's precisions, and the files that these need."""
    artifact = Artifact("", manifest)
    names = {TOKENIZER, *(name for precision in precisions for name in artifact.files_of(precision))}
    part = manifest._replace(
        precisions={name: manifest.precisions[name] for name in precisions},
        files={name: entry for name, entry in manifest.files.items() if name in names},
    )
    return part._replace(version=_name(part))


def summary(manifest: Manifest) -> Table:
    """A table of files, sizes, cosines to the reference, and the largest change of a component by batching."""
    table = Table(box=box.SIMPLE)
    for header in ("file", "MB", "mean cosine", "1st pct.", "minimum", "batch"):
        table.add_column(header, no_wrap=True)
    parities = {precision.file: precision.parity for precision in manifest.precisions.values()}
    for name, entry in manifest.files.items():
        row = [name, f"{entry.size / 1e6:.1f}"]
        if name in parities:
            parity = parities[name]
            row += [f"{parity.mean_cosine:.5f}", f"{parity.p1_cosine:.5f}", f"{parity.min_cosine:.5f}"]
            row += [f"{parity.batch_difference:.0e}"]
        table.add_row(*row)
    return table


def _name(manifest: Manifest) -> str:
    """A version's name: the model's revision, and a digest of all that decides its vectors.

    The same model and tools give the same name, so a repeated export finds its version in place.
    """
    defaults = Manifest._field_defaults
    decisive = {
        **{key: getattr(manifest, key) for key in _DECISIVE},
        **{key: value for key in _DECISIVE_IF_SET if (value := getattr(manifest, key)) != defaults[key]},
        "precisions": {
            name: [getattr(precision, key) for key in Precision._fields if key != "parity"]
            for name, precision in manifest.precisions.items()
        },
        "files": {name: entry._asdict() for name, entry in manifest.files.items()},
    }
    digest = hashlib.sha256(orjson.dumps(decisive, default=tuple, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return f"{manifest.revision[:8]}-{digest[:8]}"
