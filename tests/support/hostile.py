"""The one list of hostile texts, and those that only JSON can bring."""

from export.texts import HOSTILE

LONE_SURROGATES = (
    "\ud800",
    "cut inside an emoji \ud83d",
    "\ude00 starts with the second half",
    "swapped \ude00\ud83d halves",
    "two whole ones \ud83d\ude00 \U0001f600 as one and as a pair",
)


def readable(text: str) -> str:
    """What lone surrogates count as: U+FFFD, as JavaScript's String.prototype.toWellFormed does it."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


__all__ = ["HOSTILE", "LONE_SURROGATES", "readable"]
