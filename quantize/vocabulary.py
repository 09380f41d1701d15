"""The vocabulary as pieces of token ids: a model is run on these instead of texts."""

from __future__ import annotations

import math
from pathlib import Path

from tokenizers import Tokenizer

from quantize.errors import QuantizationError

REPEATED, TIMES = 16, 16
"""One token in REPEATED makes a further piece, which has it TIMES times: only this shows what one word does to all
tokens of a text at once."""
MOST = 1 << 15
"""Tokens of a larger vocabulary that are taken, spread evenly over it: eight times as many take eight times as long and
change nothing that matters."""
GOLDEN = (math.sqrt(5) - 1) / 2


def pieces(tokenizer: Path, max_tokens: int) -> list[list[int]]:
    """Each token of the vocabulary, or MOST of them, once, far from its neighbours there, with the special tokens of a
    text, and some repeated.

    They are always the same, as no random numbers are used.
    Raises QuantizationError if the tokenizer cannot be read, or texts have no room for its tokens.
    """
    try:
        found = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library raises nothing more exact
        raise QuantizationError(
            f"cannot read the tokenizer {tokenizer} ({error}): name the model's tokenizer.json with --tokenizer"
        ) from error
    found.no_padding()
    specials = found.encode("").ids
    if max_tokens <= len(specials):
        raise QuantizationError(f"texts of {max_tokens} tokens have no room beside {len(specials)} special ones")
    return cut(found.get_vocab_size(), specials, max_tokens)


def cut(tokens: int, specials: list[int], max_tokens: int) -> list[list[int]]:
    """The ids 0 to `tokens` - 1, or MOST of them, in pieces, then some repeated; `specials` are the first and last
    tokens of a text."""
    # Steps of the golden ratio spread best over a circle.
    step = max(1, round(tokens * GOLDEN))
    while math.gcd(step, tokens) != 1:
        step += 1
    order = [place * step % tokens for place in range(min(tokens, MOST))]
    made: list[list[int]] = []
    room = max_tokens - len(specials)
    start, times, made_of = 0, min(TIMES, room), dict.fromkeys(_sizes(room), 0)
    while start < len(order):
        size = min(made_of, key=made_of.__getitem__)
        made_of[size] += size + len(specials)
        made.append([*specials[:1], *order[start : start + size], *specials[1:]])
        start += size
    return made + [[*specials[:1], *[token] * times, *specials[1:]] for token in order[::REPEATED]]


def _sizes(room: int) -> list[int]:
    """Sizes of the pieces without special tokens: Fibonacci's numbers, and the most that fits, since each position of a
    text has channels that reach far too. Each size gets equally many tokens: with more of them in long pieces short
    texts would get worse vectors, and vice versa."""
    found = [1, 2]
    while found[-1] + found[-2] < room:
        found.append(found[-1] + found[-2])
    return [*(size for size in found if size < room), room]
