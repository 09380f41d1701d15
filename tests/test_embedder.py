"""The library: shapes, independence of the batch, truncation, odd input."""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace

from artifact.manifest import MANIFEST, open_artifact
from export.manifest import file_entry
from handler.embedder import (
    CHARACTERS_AT_ONCE,
    LAMBDA_MB_PER_VCPU,
    LONGEST_WORD,
    PREFIX_CHARACTERS,
    TOKENS_PER_RUN,
    Embedder,
    _by,
    _for_each,
    _parts,
    _runs,
    check_vectors,
    default_threads,
)
from handler.errors import BadVectorError, TooManyTokensError
from quantize import quantize
from tests.support.hostile import HOSTILE, LONE_SURROGATES, readable

PRECISIONS = ("int8", "fp32")


@pytest.fixture(params=PRECISIONS)
def embedder(request: pytest.FixtureRequest, int8: Embedder, float32: Embedder) -> Embedder:
    return {"int8": int8, "fp32": float32}[request.param]


def test_vectors_are_float32_unit_rows(embedder: Embedder) -> None:
    result = embedder.embed(HOSTILE)
    assert result.vectors.shape == (len(HOSTILE), 384)
    assert result.vectors.dtype == np.float32
    assert result.vectors.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(result.vectors, axis=1), 1, atol=1e-6)


def test_no_texts_give_no_vectors(embedder: Embedder) -> None:
    result = embedder.embed([])
    assert (result.vectors.shape, result.tokens, result.truncated) == ((0, 384), [], [])


@pytest.mark.real_model
def test_a_prompt_is_part_of_the_text(int8: Embedder) -> None:
    texts = ["vitamin d", "word " * 300]
    whole = int8.embed([f"query: {text}" for text in texts])
    asked = int8.embed(texts, prompt="query: ")
    np.testing.assert_array_equal(asked.vectors, whole.vectors)
    assert (asked.tokens, asked.truncated) == (whole.tokens, whole.truncated) == ([6, 256], [1])
    manifest = int8.manifest._replace(prompts={"query": "query: ", "passage": "passage: "}, default_prompt="query")
    other = Embedder(manifest, "int8", int8._tokenizer, int8._session, 1)
    np.testing.assert_array_equal(other.embed(texts).vectors, whole.vectors)
    np.testing.assert_array_equal(other.embed(texts, prompt="").vectors, int8.embed(texts).vectors)
    late = other.tokenize(texts * 3_000, deadline=time.monotonic() + 60)
    assert late.ids == other.tokenize(texts).ids * 3_000
    assert int8.tokenize(["d"], prompt="\ud83d vitamin ").ids == int8.tokenize(["\ufffd vitamin d"]).ids


def text_of(words: int, seed: int) -> str:
    """Words of one token each, or, for an odd seed, of one or several."""
    odd = ["unbelievably", "🙂", "приве́т", "漢字", "1,234.5", "-", "\u202e"] if seed % 2 else []
    return " ".join(random.Random(seed).choices(["vitamin", "d", "the", "people", "time", *odd], k=words))


# Few lengths, so that several texts of a batch share a run; longest beyond the maximum of 256 tokens.
a_text = st.builds(text_of, st.sampled_from([0, 1, 2, 3, 9, 30, 100, 254, 300]), st.integers(0, 2**16))
texts = st.lists(a_text, min_size=1, max_size=16)


@settings(max_examples=40, deadline=None)
@given(batch=texts, seed=st.randoms(use_true_random=False))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_vector_depends_on_its_text_alone(
    precision: str, batch: list[str], seed: random.Random, int8: Embedder, float32: Embedder
) -> None:
    embedder = {"int8": int8, "fp32": float32}[precision]
    alone = np.concatenate([embedder.embed([text]).vectors for text in batch])
    order = list(range(len(batch)))
    seed.shuffle(order)
    together = embedder.embed([batch[index] for index in order]).vectors
    assert np.abs(together - alone[order]).max() <= (0 if precision == "int8" else 1e-6)


def test_a_dynamic_recipe_is_embedded_one_text_at_a_time(copy_model: Callable[[str], Path]) -> None:
    """Its activation scales are taken over a whole run, which must then hold no other text."""
    version = copy_model("v1") / "v1"
    artifact = open_artifact(version)
    int8 = version / "model_int8.onnx"
    quantize(version / "model.onnx", int8, version / "tokenizer.json", recipe="avx512_vnni")
    dynamic = artifact.manifest.precisions["int8"]._replace(
        recipe="avx512_vnni", batch_independent=False, optimized=False
    )
    manifest = artifact.manifest._replace(
        files={**artifact.manifest.files, int8.name: file_entry(int8)},
        precisions={**artifact.manifest.precisions, "int8": dynamic},
    )
    (version / MANIFEST).write_bytes(manifest.to_json())
    batch = ["the cat sat", "§ @ ~", "? ? ?"]  # of one length
    embedder = Embedder.load(version)
    together = embedder.embed(batch).vectors
    alone = np.concatenate([embedder.embed([text]).vectors for text in batch])
    np.testing.assert_array_equal(together, alone)
    unsafe = manifest._replace(precisions={"int8": dynamic._replace(batch_independent=True)})
    (version / MANIFEST).write_bytes(unsafe.to_json())
    assert np.abs(Embedder.load(version).embed(batch).vectors - alone).max() > 1e-3


@pytest.mark.parametrize(("words", "tokens", "truncated"), [(253, 255, []), (254, 256, []), (255, 256, [0])])
def test_truncates_at_256_tokens_and_says_so(int8: Embedder, words: int, tokens: int, truncated: list[int]) -> None:
    result = int8.embed(["word " * words])
    assert (result.tokens, result.truncated) == ([tokens], truncated)


def test_what_is_cut_off_does_not_count(float32: Embedder) -> None:
    vectors = float32.embed(["word " * 254, "word " * 254 + "something else entirely"]).vectors
    np.testing.assert_array_equal(vectors[0], vectors[1])


LONG_TEXTS = {
    "words": "the history of medicine " * 3_000,
    "punctuation": "!" * 100_000,
    "spaces, then words": " " * 60_000 + "word " * 300,
    "one word": "x" * 100_000,
    "long words": ("x" * 99 + " ") * 1_000,
    "too long words": ("x" * 16_000 + " ") * 20 + "end",
    "han": "漢字仮名" * 10_000,
    "accents": "e\u0301" * 50_000,
    "emoji": "👩‍👩‍👧 " * 10_000,
    "controls": "\x00\u200b" * 40_000 + "word",
    "special tokens": "[MASK]" * 5_000,
}


@pytest.mark.parametrize("name", LONG_TEXTS)
def test_long_texts_have_the_tokens_of_the_whole_text(int8: Embedder, name: str) -> None:
    text = LONG_TEXTS[name]
    whole, prefix = int8._tokenizer.encode(text), int8._tokenizer.encode(int8._shorten(text, PREFIX_CHARACTERS))
    assert prefix.ids == whole.ids
    assert bool(prefix.overflowing) == bool(whole.overflowing)


def test_a_word_is_not_cut_where_its_end_decides_on_its_beginning(float32: Embedder) -> None:
    """In a Unigram model the best pieces of a word depend on all of it: here on whether its length is odd."""
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("a", -10.0), ("b", -10.0), ("ab", -2.0), ("ba", -1.99)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.enable_truncation(float32.manifest.max_tokens)
    embedder = Embedder(float32.manifest, "fp32", tokenizer, float32._session, 1)
    word = "a" + "ba" * 5_000
    assert tokenizer.encode(word[:PREFIX_CHARACTERS]).ids != tokenizer.encode(word).ids
    assert embedder.tokenize([word]).ids == [tokenizer.encode(word).ids]
    # But no more than that is kept in memory.
    words = ["ba" * 500_000, "a " + "ba" * 500_000, "  " + "ba" * 500_000]
    assert max(embedder.tokenize(words).counts) <= 2 * LONGEST_WORD
    # Of several words the first ones are enough.
    several = "ab " * 999 + word
    tokens = embedder.tokenize([several])
    assert tokens.ids == [tokenizer.encode(several).ids]
    assert 256 + 128 <= tokens.counts[0] < 2_000


@given(sizes=st.lists(st.integers(0, CHARACTERS_AT_ONCE * 2), max_size=8))
def test_texts_are_tokenized_in_parts_of_bounded_size(sizes: list[int]) -> None:
    texts = ["x" * size for size in sizes]
    parts = list(_parts(texts, CHARACTERS_AT_ONCE))
    assert [text for part in parts for text in part] == texts
    for part in parts:
        assert len([text for text in part if text]) <= 1 or sum(map(len, part)) <= CHARACTERS_AT_ONCE


def test_truncated_texts_are_counted_over_all_parts(int8: Embedder) -> None:
    """The later parts' indices go on from the earlier ones'."""
    texts = ["x " * 2_000 if row % 50 == 7 else "y" * 2_000 for row in range(200)]
    assert len(list(_parts([text[:2_048] for text in texts], CHARACTERS_AT_ONCE))) > 1
    assert int8.embed(texts).truncated == [7, 57, 107, 157]


def test_tokens_of_a_whole_text_are_counted_on_request(int8: Embedder) -> None:
    texts = ["vitamin d", "word " * 254, "word " * 255, "word " * 20_000]
    assert int8.tokenize(texts[:3]).counts == [4, 256, 257]
    assert 256 < int8.tokenize(texts).counts[3] < 20_002
    counted = int8.tokenize(texts, counted_characters=1 << 18)
    assert counted.counts == [4, 256, 257, 20_002]
    assert [len(ids) for ids in counted.ids] == [4, 256, 256, 256]
    assert counted.truncated == [2, 3]


@pytest.mark.parametrize("text", HOSTILE)
def test_token_ids_have_a_text_that_gives_them(int8: Embedder, text: str) -> None:
    tokens = int8.tokenize([text])
    found, texts = int8.tokens_of(tokens.ids)
    assert found.ids == tokens.ids
    assert int8.tokenize(texts).ids == tokens.ids


@pytest.mark.parametrize(
    "ids",
    [
        [],
        [101],
        [102, 101],
        [7592, 2088],  # this vocabulary's "hello world" without the special tokens
        [9906, 1917],  # "Hello world" in cl100k_base
        [101, 7592],
        [101, 7592, 2088],
        [101, 30522, 102],  # the first id beyond the vocabulary
        [101, -1, 102],
        [101, 8840, 7, 102],  # ids of the vocabulary that no text has
        [101, 2102, 102],  # a word cannot begin with "##t"
    ],
)
def test_other_token_ids_have_no_text(int8: Embedder, ids: list[int]) -> None:
    """In cl100k_base 101 is the byte A8, with which no UTF-8 text begins: its arrays never begin as ours do."""
    (before,) = int8.tokenize(["vitamin d"]).ids
    tokens, texts = int8.tokens_of([before, ids, before])
    assert (tokens.ids, tokens.counts, len(texts)) == ([before], [4], 1)


@pytest.fixture(scope="module")
def uncut(int8: Embedder) -> Tokenizer:
    """The tokenizer without the model's maximum."""
    tokenizer = Tokenizer.from_str(int8._tokenizer.to_str())
    tokenizer.no_truncation()
    return tokenizer


@pytest.mark.parametrize("name", LONG_TEXTS)
@pytest.mark.parametrize("count", [257, 385, 8192])
def test_token_ids_of_a_long_text_are_cut_as_the_text_is(
    int8: Embedder, uncut: Tokenizer, name: str, count: int
) -> None:
    text = LONG_TEXTS[name]
    ids = uncut.encode(text).ids
    if len(ids) > count:  # at a word's end, or no text has these ids
        last = max(place for place in range(count) if not uncut.id_to_token(ids[place]).startswith("##"))
        ids = [*ids[:last], ids[-1]]
    tokens, _ = int8.tokens_of([ids])
    assert tokens.ids == int8.tokenize([_decoded(uncut, ids)]).ids
    assert tokens.counts == [len(ids)]
    assert tokens.truncated == [0] * (len(ids) > 256)


def _decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    return " ".join(map(tokenizer.id_to_token, ids[1:-1])).replace(" ##", "")


@settings(max_examples=40, deadline=None)
@given(text=st.builds(text_of, st.integers(0, 900), st.integers(0, 2**16)))
def test_token_ids_and_their_text_give_the_same_tokens(int8: Embedder, uncut: Tokenizer, text: str) -> None:
    tokens, _ = int8.tokens_of([uncut.encode(text).ids])
    assert tokens == int8.tokenize([text], counted_characters=1 << 18)


@pytest.mark.parametrize("change", [lambda ids: [ids[0], 2102, *ids[2:]], lambda ids: [*ids[:300], 2088]])
def test_long_arrays_of_other_token_ids_have_no_text(
    int8: Embedder, uncut: Tokenizer, change: Callable[[list[int]], list[int]]
) -> None:
    ids = uncut.encode("word " * 400).ids
    assert int8.tokens_of([ids])[0].ids
    assert int8.tokens_of([change(ids)])[0].ids == []


def test_what_follows_a_refused_array_is_not_tokenized(int8: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    tokenizer = int8._tokenizer

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def encode_batch_fast(self, texts: list[str]) -> Any:
            encoded.extend(texts)
            return tokenizer.encode_batch_fast(texts)

    good = tokenizer.encode("word " * 300).ids
    monkeypatch.setattr(int8, "_tokenizer", Counting())
    assert len(int8.tokens_of([good] * 100)[0].ids) == 100
    assert len(encoded) == 100
    assert int8.tokens_of([[101, 2102, 102], *[good] * 1000])[0].ids == []
    assert len(encoded) < 200


def test_a_result_that_comes_with_the_deadline_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told to end may do so before anybody looks, and has nothing whole to give."""

    class Slow(threading.Event):
        def set(self) -> None:
            super().set()
            time.sleep(0.05)

    def work(late: threading.Event) -> list[str]:
        while not late.is_set():
            time.sleep(0.001)
        return []

    monkeypatch.setattr(threading, "Event", Slow)
    with pytest.raises(TooManyTokensError, match="cannot even be split into tokens"):
        _by(time.monotonic() + 0.02, work)


def test_vectors_that_are_not_normalized_have_the_same_direction(int8: Embedder) -> None:
    texts = ["vitamin d", "how to undo a commit"]
    raw = int8.embed_tokens(int8.tokenize(texts).ids, normalize=False)
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    assert (norms > 1.5).all()
    np.testing.assert_allclose(raw / norms, int8.embed(texts).vectors, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value|overflow:RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_vectors_that_are_not_finite_are_refused(value: float) -> None:
    vectors = np.zeros((3, 4), np.float32)
    vectors[:, 0] = 1
    check_vectors(vectors, unit=True)
    vectors[1, 2] = value
    for unit in (True, False):
        with pytest.raises(BadVectorError, match="for text 1"):
            check_vectors(vectors, unit=unit)


@pytest.mark.parametrize("norm", [0, 0.99, 1.01])
def test_unit_vectors_of_another_norm_are_refused(norm: float) -> None:
    vectors = np.array([[0, 1], [norm, 0]], np.float32)
    if norm:
        check_vectors(vectors, unit=False)
    with pytest.raises(BadVectorError, match="for text 1"):
        check_vectors(vectors, unit=True)


def test_short_texts_are_not_padded(int8: Embedder) -> None:
    assert int8.embed(["vitamin d", ""]).tokens == [4, 2]


@pytest.mark.parametrize("text", LONE_SURROGATES)
def test_lone_surrogates_count_as_replacement_characters(int8: Embedder, text: str) -> None:
    np.testing.assert_array_equal(int8.embed([text]).vectors, int8.embed([readable(text)]).vectors)


def test_a_single_string_is_refused(int8: Embedder) -> None:
    with pytest.raises(TypeError, match="pass a list"):
        int8.embed("vitamin d")


@pytest.mark.parametrize("item", [None, 1, b"bytes", ["nested"]])
def test_items_that_are_not_strings_are_refused(int8: Embedder, item: object) -> None:
    with pytest.raises(TypeError, match="not str"):
        int8.embed(["fine", item])  # type: ignore[list-item]


@given(lengths=st.lists(st.integers(1, 256), max_size=60), budget=st.integers(0, TOKENS_PER_RUN))
def test_runs_cover_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    runs = list(_runs(lengths, budget))
    assert sorted(row for run in runs for row in run) == list(range(len(lengths)))
    for run in runs:
        assert len({lengths[row] for row in run}) == 1
        assert len(run) == 1 or len(run) * lengths[run[0]] <= budget


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(model_folder: Path, int8: Embedder, threads: int) -> None:
    texts = ["word " * count for count in range(60)] * 2
    found = Embedder.load(model_folder, threads=threads).embed(texts)
    np.testing.assert_array_equal(found.vectors, np.concatenate([int8.embed([text]).vectors for text in texts]))
    assert found.tokens == [count + 2 for count in range(60)] * 2


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_that_fails_drops_those_not_yet_begun(threads: int) -> None:
    begun: list[int] = []

    def work(run: list[int]) -> None:
        begun.append(run[0])
        time.sleep(0.001)
        if run[0] == 3:
            raise MemoryError("run 3")

    with pytest.raises(MemoryError, match="run 3"):
        _for_each(work, [[number] for number in range(5000)], threads)
    assert 3 in begun
    assert len(begun) < 2500


@pytest.mark.parametrize(
    ("memory", "threads"),
    [("128", 1), ("512", 1), (str(LAMBDA_MB_PER_VCPU), 1), ("3008", 2), ("3538", 2), ("10240", 6)],
)
def test_threads_follow_the_memory_size(monkeypatch: pytest.MonkeyPatch, memory: str, threads: int) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", memory)
    assert default_threads() == threads


def test_threads_outside_of_lambda_are_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", raising=False)
    assert default_threads() >= 1


def test_zero_threads_are_refused(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="threads is 0"):
        Embedder.load(model_folder, threads=0)
