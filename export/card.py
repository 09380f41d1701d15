"""What a model card, the README.md of a model, says of licence, languages and limits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.repocard import metadata_load

from export import ExportError

MAX_LIMITATIONS = 2000
"""Characters that are kept of what a card says of limits."""


@dataclass(frozen=True)
class Card:
    license: str = "unknown"
    """An identifier such as `apache-2.0`; where it is `other`, the licence's own name."""
    languages: tuple[str, ...] = ()
    limitations: str = ""


def read_card(folder: Path) -> Card:
    """The card in a model's folder. Raises ExportError if its metadata are not YAML."""
    path = folder / "README.md"
    if not path.is_file():
        return Card()
    try:
        metadata = metadata_load(path) or {}
        text = path.read_text("utf-8")
    except Exception as error:  # PyYAML's and the hub's, which have no common base
        reason = " ".join(str(error).split())
        raise ExportError(f"cannot read the metadata of {path} ({reason}): mend them, or remove the file") from error
    licenses = _texts(metadata.get("license"))
    if licenses == ("other",) and isinstance(metadata.get("license_name"), str):
        licenses = (metadata["license_name"],)
    return Card(", ".join(licenses) or "unknown", _texts(metadata.get("language")), find_limitations(text))


def find_limitations(card: str) -> str:
    """The text below the first heading that has the word limitation, up to the next one of its rank.

    >>> find_limitations("# A model\\n## Limitations\\nEnglish only.\\n### Bias\\nMuch.\\n## Citation\\n")
    'English only.\\n### Bias\\nMuch.'
    """
    rank = 0
    found: list[str] = []
    is_code = False
    for line in re.sub(r"<!--.*?-->", "", card, flags=re.DOTALL).splitlines():
        if line.lstrip().startswith("```"):
            is_code = not is_code
        heading = None if is_code else re.match(r"(#{1,6})\s+(.*)", line)
        if heading and rank and len(heading[1]) <= rank:
            break
        if rank:
            found.append(line)
        elif heading and "limitation" in heading[2].lower():
            rank = len(heading[1])
    text = "\n".join(found).strip()
    return text if len(text) <= MAX_LIMITATIONS else text[: MAX_LIMITATIONS - 1].rstrip() + "…"


def _texts(value: object) -> tuple[str, ...]:
    """A text or a list of them. YAML takes the language code `no` for false."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple("no" if each is False else str(each) for each in values)
