"""The one error of this package."""


class QuantizationError(Exception):
    """The model cannot be quantized; the message says why and what to do."""
