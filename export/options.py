"""Options that more than one command has."""

from __future__ import annotations

import argparse

from artifact.manifest import MODEL_FILES


def dimensions(value: str) -> tuple[int, ...]:
    """The numbers in a list such as `256,128`. Raises ArgumentTypeError for one that is not a number from 1."""
    found = value.split(",")
    if not all(number.isascii() and number.isdecimal() and int(number) for number in found):
        raise argparse.ArgumentTypeError(f"{value!r} is not a list of dimensions such as 256,128")
    return tuple(map(int, found))


def precisions(value: str) -> list[str]:
    """The names in a list such as `int8,fp32`. Raises ArgumentTypeError for one that is not a precision."""
    names = value.split(",")
    if not set(names) <= set(MODEL_FILES):
        raise argparse.ArgumentTypeError(f"{value} is not a list of {', '.join(MODEL_FILES)}")
    return names
