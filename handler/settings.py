"""The environment variables of the function. README.md documents each of them in one table."""

from __future__ import annotations

import os
from typing import NamedTuple


class ConfigurationError(Exception):
    """An environment variable has a value that cannot be used; the message names both and the remedy."""


class Settings(NamedTuple):
    """What the environment says."""

    model_folder: str
    """MODEL_CACHE_DIR / MODEL_NAME."""
    precision: str
    """MODEL_PRECISION."""
    threads: int | None
    """MODEL_THREADS; None for the vCPUs of the memory size."""

    @classmethod
    def from_environment(cls) -> Settings:
        """Raises ConfigurationError."""
        return cls(
            model_folder=os.path.join(
                os.environ.get("MODEL_CACHE_DIR", "/mnt/ml-models"), os.environ.get("MODEL_NAME", "all-MiniLM-L6-v2")
            ),
            precision=os.environ.get("MODEL_PRECISION", "int8"),
            threads=_threads(os.environ.get("MODEL_THREADS", "")),
        )


def _threads(value: str) -> int | None:
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ConfigurationError(f"MODEL_THREADS is {value!r}: set it to a whole number from 1, or leave it unset")
    return int(value)
