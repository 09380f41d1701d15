"""The tokenizer that transformers makes of a model's files, which may differ from tokenizer.json itself."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase, Sequence

from export import ExportError
from export.config import TOKENIZER, Config


def write_tokenizer(config: Config, target: Path) -> None:
    """Write the tokenizer that sentence-transformers uses to `target`: the file itself, or what is made of it.

    transformers changes what it reads from tokenizer.json to agree with tokenizer_config.json and with the model's
    class, and sentence-transformers lower-cases texts where the model asks for it.
    Raises ExportError.
    """
    file = config.encoder / TOKENIZER
    used = _uniform(load_tokenizer(config))
    try:
        stored = _uniform(Tokenizer.from_file(str(file)))
    except Exception as error:  # tokenizers raises plain Exceptions
        raise ExportError(f"cannot read {file}: {error}") from error
    if used == stored:
        target.write_bytes(file.read_bytes())
    else:
        target.write_text(used, "utf-8", newline="\n")


def load_tokenizer(config: Config) -> Tokenizer:
    """As sentence-transformers has it. Raises ExportError."""
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(config.encoder, local_files_only=True)  # type: ignore[no-untyped-call]
    except Exception as error:  # transformers raises whatever its files lead to
        raise ExportError(f"transformers cannot load the tokenizer in {config.encoder}: {error}") from error
    if not loaded.is_fast:
        raise ExportError(f"{config.encoder} has a {type(loaded).__name__}, which the library tokenizers cannot run")
    tokenizer: Tokenizer = loaded.backend_tokenizer
    normalizer = tokenizer.normalizer
    own = list(normalizer) if isinstance(normalizer, Sequence) else [] if normalizer is None else [normalizer]
    if config.lower_case and not any(isinstance(each, Lowercase) for each in own):
        tokenizer.normalizer = Sequence([Lowercase(), *own])
    return tokenizer


def _uniform(tokenizer: Tokenizer) -> str:
    """As JSON, without what each caller sets."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    whole: str = tokenizer.to_str()
    return whole
