"""The environment variables of the function. docs/operating.md documents each of them in one table."""

from __future__ import annotations

import os
from typing import NamedTuple


class ConfigurationError(Exception):
    """An environment variable has a value that cannot be used; the message names both and the remedy."""


class Settings(NamedTuple):
    """The environment variables about the model."""

    model_folder: str
    """MODEL_CACHE_DIR / MODEL_NAME."""
    precision: str
    """MODEL_PRECISION."""
    threads: int | None
    """MODEL_THREADS; None for `handler.embedder.default_threads`."""

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the environment. Raises ConfigurationError."""
        return cls(
            model_folder=os.path.join(
                os.environ.get("MODEL_CACHE_DIR", "/mnt/ml-models"), os.environ.get("MODEL_NAME", "all-MiniLM-L6-v2")
            ),
            precision=os.environ.get("MODEL_PRECISION", "int8"),
            threads=_threads(os.environ.get("MODEL_THREADS", "")),
        )


class Surroundings(NamedTuple):
    """What the environment says of logs, browsers and paths. No value is wrong, so that they hold for errors too."""

    namespace: str
    """METRICS_NAMESPACE; empty for no metrics."""
    log_texts: bool
    """LOG_TEXTS; anything but `true` keeps texts out of the log."""
    origins: tuple[str, ...]
    """CORS_ORIGIN, several separated by commas; `*` for all."""
    base_path: str
    """BASE_PATH, with a slash before it and none behind; empty for none."""

    @classmethod
    def from_environment(cls) -> Surroundings:
        """Read once, at the start."""
        base_path = os.environ.get("BASE_PATH", "").strip("/")
        origins = (origin.strip() for origin in os.environ.get("CORS_ORIGIN", "").split(","))
        return cls(
            namespace=os.environ.get("METRICS_NAMESPACE", "LambdaEmbeddings"),
            log_texts=os.environ.get("LOG_TEXTS", "").lower() == "true",
            origins=tuple(origin for origin in origins if origin),
            base_path=f"/{base_path}" if base_path else "",
        )


def _threads(value: str) -> int | None:
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ConfigurationError(f"MODEL_THREADS is {value!r}: set it to a whole number from 1, or leave it unset")
    return int(value)
