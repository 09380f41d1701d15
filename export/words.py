"""The words of a model's vocabulary, and the texts that one word makes.

A word that drives a channel far beyond its usual range gets a bad vector from a quantization that does not allow for
it, most of all alone and repeated, where no other word hides it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tokenizers import Tokenizer

FORMS: Mapping[str, Callable[[str], str]] = {
    "alone": lambda word: word,
    "after he": lambda word: f"he {word}",
    "2 times": lambda word: _repeated(word, 2),
    "8 times": lambda word: _repeated(word, 8),
    "250 times": lambda word: _repeated(word, 250),
}
"""Each word is embedded in all of these. 250 repetitions and the two special tokens stay below the maximum of 256."""


def forms(word: str) -> list[str]:
    """The word as a text of its own, in each of `FORMS`.

    >>> forms("nods")[:3]
    ['nods', 'he nods', 'nods nods']
    """
    return [form(word) for form in FORMS.values()]


def words(tokenizer: Tokenizer) -> list[str]:
    """The tokens that are words, as texts, in the order of their ids: each, tokenized, is that token alone.

    Parts of words (`##ing`), special tokens (`[PAD]`) and tokens that no text has (`[unused0]`) are not.
    `tokenizer` must not pad.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    for special in tokenizer.get_added_tokens_decoder().values():
        vocabulary.pop(special.content, None)
    ids = sorted(vocabulary.values())
    texts = [tokenizer.decode([token]) for token in ids]
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [text for text, token, encoding in zip(texts, ids, encodings, strict=True) if encoding.ids == [token]]


def spread(items: Sequence[str], count: int, place: float = 0.0) -> list[str]:
    """At most `count` of the items at equal distances; `place`, from 0 to 1, is where in its part each is taken.

    >>> spread("abcdefgh", 2), spread("abcdefgh", 2, place=0.5), spread("abc", 9)
    (['a', 'e'], ['c', 'g'], ['a', 'b', 'c'])
    """
    count = min(count, len(items))
    return [items[int((index + place) * len(items) / count)] for index in range(count)]


def _repeated(word: str, times: int) -> str:
    return " ".join([word] * times)
