"""A WordPiece tokenizer in two parts: its vocabulary as lines, and all else.

The reader of tokenizer.json copies a vocabulary several times over; lines take half the time.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from handler.embedder import join_wordpiece


def split_wordpiece(tokenizer: Path, vocabulary: Path) -> str | None:
    """Write the tokens of a tokenizer.json, one a line, ids from 0 upwards; returns the JSON of the rest.

    Returns None and writes nothing if it is not WordPiece, or has tokens that are not one line each.
    """
    whole = json.loads(tokenizer.read_bytes())
    ids = whole["model"].get("vocab")
    if whole["model"].get("type") != "WordPiece" or sorted(ids.values()) != list(range(len(ids))):
        return None
    special = {token["content"] for token in whole["added_tokens"]}
    whole["model"]["vocab"] = {token: index for token, index in ids.items() if token in special}
    rest = json.dumps(whole, ensure_ascii=False, separators=(",", ":"))
    vocabulary.write_text("".join(f"{token}\n" for token in sorted(ids, key=ids.__getitem__)), "utf-8", newline="\n")
    if join_wordpiece(rest, str(vocabulary)).to_str() != Tokenizer.from_file(str(tokenizer)).to_str():
        vocabulary.unlink()
        return None
    return rest
