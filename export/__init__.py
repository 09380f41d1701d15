"""Builds an artifact folder from a sentence-transformers model. Never deployed."""


class ExportError(Exception):
    """The export cannot go on; the message says what is wrong and what to do."""
