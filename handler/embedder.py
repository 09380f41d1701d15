"""Texts to vectors: tokenize, run, pool, normalize."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

# onnxruntime's wheels report usage from a thread of their own and keep a database under $HOME unless told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from tokenizers import Encoding, Tokenizer
from tokenizers.decoders import WordPiece
from tokenizers.models import WordPiece as WordPieceModel

from artifact.manifest import REBUILD, Artifact, ArtifactCorruptError, ArtifactError, Manifest, open_artifact
from handler.errors import BadVectorError, TooManyTokensError
from handler.filecheck import FileCheck
from handler.pace import Budget, Paces
from kernels import VERSION, OperatorsError, register

if TYPE_CHECKING:  # numpy.typing takes 2 ms to import
    from typing import TypeAlias

    import numpy.typing as npt

    Vectors: TypeAlias = npt.NDArray[np.float32]

Item = TypeVar("Item", bound=Sized)
Result = TypeVar("Result")

TOKENS_PER_RUN = 384
"""Maximum tokens of one run (texts x length). In a larger run, activations no longer fit the CPU's caches, which costs
more than fewer runs save."""

PREFIX_CHARACTERS = 2048
"""Characters of a longer text that are tokenized, if they give enough tokens: otherwise 6 MB of punctuation would take
ten seconds and gigabytes for 256 tokens."""

PREFIX_MARGIN = 128
"""Tokens that a prefix must have beyond the model's maximum. Cutting a text changes at most its last word, and
WordPiece makes at most 100 tokens of a word (`max_input_chars_per_word`). Other tokenizers have no such bound: their
prefixes end with a word, if it is no longer than LONGEST_WORD."""

LONGEST_WORD = 1 << 16
"""Characters of a word, or of a text in a script without spaces, that are tokenized as a whole. A million of them would
take a gigabyte; that what follows so many changes the first tokens is possible only in texts made for it."""

CHARACTERS_AT_ONCE = 1 << 18
"""Maximum characters tokenized in one call. The tokenizer keeps over a hundred bytes for each token, even for those
beyond the model's maximum, and a character can be a token: all texts in one call could take a gigabyte."""

IDS_AT_ONCE = 1 << 14
"""Maximum token ids whose texts are tokenized in one call: few, so that a refused array wastes little work."""

NORM_TOLERANCE = 1e-3
"""Tolerance of the squared norm of a unit vector; float32 stays within 1e-6."""

LAMBDA_MB_PER_VCPU = 1769
"""Lambda memory that buys one vCPU (AWS Lambda Developer Guide, "Configure Lambda function memory")."""


_DECODER = WordPiece(prefix="##", cleanup=False)
"""Joins words by spaces and changes nothing else; with cleanup it would also remove spaces before punctuation."""

_SLOW_FUSIONS = ["SkipLayerNormFusion", "BiasSkipLayerNormFusion"]
"""Fusions whose CPU kernel is slower than the Add and LayerNormalization that they replace."""


class Tokens(NamedTuple):
    """What `Embedder.tokenize` returns; item i belongs to text i."""

    ids: list[list[int]]
    """Token ids, special tokens included, at most the model's maximum."""
    counts: list[int]
    """Token counts of the uncut texts. A very long text is counted only in part, but beyond the model's maximum."""

    @property
    def truncated(self) -> list[int]:
        """Indices of the texts that were longer than the model's maximum and were cut."""
        return [index for index, (ids, count) in enumerate(zip(self.ids, self.counts, strict=True)) if len(ids) < count]


class Embeddings(NamedTuple):
    """What `Embedder.embed` returns; row i belongs to text i."""

    vectors: Vectors
    """float32, shape (n, dimensions); unit rows where the model normalizes."""
    tokens: list[int]
    """Number of tokens embedded of each text, special tokens included, at most the model's maximum."""
    truncated: list[int]
    """Indices of the texts that were longer than the model's maximum and were cut."""


class DenseLayer(NamedTuple):
    """A layer of `Manifest.dense` in memory."""

    weights: Vectors
    """float32, shape (inputs, outputs)."""
    bias: Vectors
    """float32, shape (outputs,); shape (1,) and 0 without one."""
    activation: str

    def apply(self, vectors: Vectors) -> Vectors:
        """Vectors of shape (batch, inputs) to (batch, outputs), each by itself and added up in one order everywhere.

        Not by BLAS, which adds in another order on another CPU and in another batch, and which the deployed package
        leaves out.
        """
        rows = [np.add.reduce(row[:, None] * self.weights, axis=0) for row in vectors]
        return _ACTIVATIONS[self.activation](np.stack(rows) + self.bias)


class Embedder:
    """A model in memory. `Embedder.load(folder).embed(["vitamin d"]).vectors`."""

    def __init__(
        self,
        manifest: Manifest,
        precision: str,
        tokenizer: Tokenizer,
        session: onnxruntime.InferenceSession,
        threads: int,
        dense: Sequence[DenseLayer] = (),
    ):
        self.manifest = manifest
        self.precision = precision
        self.threads = threads
        self.paces = Paces()
        self._tokenizer = tokenizer
        self._has_word_pieces = isinstance(tokenizer.model, WordPieceModel)
        self._session = session
        self._dense = dense
        self._inputs = [node.name for node in session.get_inputs()]
        self._outputs = [node.name for node in session.get_outputs()]
        self.instructions: str | None = None
        """Instruction set that our operators use, such as "avx2"; None if the model has none of our operators."""
        self._longest_done = False
        self._group_texts = manifest.precisions[precision].batch_independent

    @classmethod
    def load(cls, folder: str | os.PathLike[str], precision: str = "int8", threads: int | None = None) -> Embedder:
        """Load the version in use of a model folder, or the version that `folder` is.

        `threads` is how many runs are computed at once, each by one thread; by default the vCPUs that Lambda's memory
        size buys, or, outside of Lambda, the CPUs this process may use, or as many as a container's CPU quota pays for.
        Raises ArtifactNotFoundError or ArtifactCorruptError; ValueError if `threads` is less than 1.
        """
        return cls.from_artifact(open_artifact(folder), precision, threads)

    @classmethod
    def from_artifact(
        cls, artifact: Artifact, precision: str = "int8", threads: int | None = None, check: FileCheck | None = None
    ) -> Embedder:
        """Like `load`, for an artifact that is open; `check` is the check of its files, if one has been started."""
        threads = default_threads() if threads is None else threads
        if threads < 1:
            raise ValueError(f"threads is {threads}, not at least 1")
        check = check or FileCheck(artifact, precision)
        try:
            tokenizer = load_tokenizer(artifact)
            # Before the weights are mapped: a mapped page that cannot be read ends the process.
            check.finish()
            session = load_session(artifact, precision)
            _check_session(session, artifact.manifest, precision)
            dense = load_dense(artifact) if artifact.manifest.dense else ()
        except (ArtifactError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # both libraries raise plain Exceptions; a panic in Rust is a BaseException
            check.finish()
            raise ArtifactCorruptError(f"cannot load {artifact.folder}: {error}: {REBUILD}") from error
        embedder = cls(artifact.manifest, precision, tokenizer, session, threads, dense)
        if artifact.manifest.precisions[precision].operators:
            embedder.instructions = session.get_session_options().get_session_config_entry("kernels.instructions")
        return embedder

    def embed(self, texts: Sequence[str], prompt: str | None = None) -> Embeddings:
        """Embed texts, each with `prompt` before it; each vector depends on its own text and the prompt alone.

        Texts of one token length share a run, so nothing is padded and no token attends to padding; runs are shared
        out among the threads, the longest first. Texts longer than the model's maximum are cut there. Lone
        surrogates, which no tokenizer can encode, count as U+FFFD. A prompt is one of `manifest.prompts`, or any other
        text; None is the model's default prompt, "" is none.
        Raises TypeError if `texts` is a str or holds anything but str, BadVectorError as `embed_tokens` does.
        """
        tokens = self.tokenize(texts, prompt=prompt)
        return Embeddings(self.embed_tokens(tokens.ids), [len(ids) for ids in tokens.ids], tokens.truncated)

    def tokenize(
        self,
        texts: Sequence[str],
        counted_characters: int | None = None,
        deadline: float | None = None,
        prompt: str | None = None,
    ) -> Tokens:
        """Token ids of texts, each with `prompt` before it as in `embed`, cut at the model's maximum.

        The prompt is part of the text. All tokens are counted of a text of up to `counted_characters` (default:
        PREFIX_CHARACTERS); of a longer one perhaps only those of its beginning. `deadline` is a value of
        `time.monotonic()`.
        Raises TypeError if `texts` is a str or holds anything but str, TooManyTokensError past the deadline.
        """
        if isinstance(texts, str):
            raise TypeError("texts is one str: pass a list of them")
        prefix = self.manifest.prompt(None) if prompt is None else _well_formed(prompt)
        if deadline is None or len(prefix) * len(texts) + sum(map(len, texts)) <= CHARACTERS_AT_ONCE:
            return self._tokenize(texts, prefix, counted_characters, threading.Event())
        return _by(deadline, lambda late: self._tokenize(texts, prefix, counted_characters, late))

    def tokens_of(self, arrays: Sequence[Sequence[int]], deadline: float | None = None) -> tuple[Tokens, list[str]]:
        """Check token ids made by a client: what `tokenize` would return, and the texts (the beginning of long ones).

        The ids include special tokens, and the prompt if one is wanted, and all are counted. Both results end before
        the first array that this tokenizer would not make: special tokens are missing, or its text gives other ids
        when tokenized. `deadline` is a value of `time.monotonic()`.
        Raises TooManyTokensError past the deadline.
        """
        if deadline is None:
            return self._tokens_of(arrays, threading.Event())
        return _by(deadline, lambda late: self._tokens_of(arrays, late))

    def _tokens_of(self, arrays: Sequence[Sequence[int]], late: threading.Event) -> tuple[Tokens, list[str]]:
        """Like `tokens_of`; `late` as in `_tokenize`."""
        tokens = Tokens([], [])
        texts: list[str] = []
        longest = self.manifest.max_tokens
        for part in _parts(arrays, IDS_AT_ONCE):
            if late.is_set():
                break
            beginnings: list[str] = []
            for array in part:
                if (beginning := self._beginning(array)) is None:
                    break
                beginnings.append(beginning)
            encodings: list[Encoding] = self._tokenizer.encode_batch_fast(beginnings)
            for array, text, encoding in zip(part, beginnings, encodings, strict=False):
                ids = list(array) if len(array) <= longest else [*array[: longest - 1], array[-1]]
                if encoding.ids != ids:
                    return tokens, texts
                tokens.ids.append(ids)
                tokens.counts.append(len(array))
                texts.append(text)
            if len(beginnings) < len(part):
                break
        return tokens, texts

    def _beginning(self, ids: Sequence[int]) -> str | None:
        """The text of token ids, at least up to the model's maximum; None if one is not in the vocabulary."""
        # The tokenizer takes ids of 32 bits. Asking for the size of its vocabulary would take 10 ms.
        if not ids or min(ids) < 0 or (last := max(ids)) >> 32 or self._tokenizer.id_to_token(last) is None:
            return None
        inside = ids[1:-1][: self.manifest.max_tokens + PREFIX_MARGIN]
        tokens = [self._tokenizer.id_to_token(token) for token in inside]
        decoder = _DECODER if self._has_word_pieces else self._tokenizer.decoder or _DECODER
        text: str | None = None if None in tokens else decoder.decode(tokens)
        return text

    def _tokenize(
        self, texts: Sequence[str], prompt: str, counted_characters: int | None, late: threading.Event
    ) -> Tokens:
        """Like `tokenize`. Once `late` is set, nobody waits for the result any more, and it stops at the next text."""
        ids: list[list[int]] = []
        counts: list[int] = []
        size = PREFIX_CHARACTERS if counted_characters is None else counted_characters
        shortened = []
        for text in texts:
            if late.is_set():
                return Tokens([], [])
            whole = _well_formed(text)
            shortened.append(self._shorten(prompt + whole if prompt else whole, size))
        for part in _parts(shortened, CHARACTERS_AT_ONCE):
            if late.is_set():
                return Tokens([], [])
            encodings: list[Encoding] = self._tokenizer.encode_batch_fast(part)
            ids += [encoding.ids for encoding in encodings]
            counts += [_count(encoding) for encoding in encodings]
        return Tokens(ids, counts)

    def embed_tokens(
        self,
        ids: Sequence[Sequence[int]],
        normalize: bool | None = None,
        deadline: float | None = None,
        dimensions: int | None = None,
    ) -> Vectors:
        """Token ids to vectors, float32 of shape (n, dimensions).

        `normalize` says whether to make unit vectors; None for what the model does. `dimensions` is how many are kept
        before that, at most the model's; None for all. `deadline` is a value of
        `time.monotonic()`; before each run it is checked that the rest can be done by then.
        Raises BadVectorError if a vector is not finite or has a wrong norm; TooManyTokensError if the tokens take too
        long even at the best speed measured here; DeadlineError if they only take too long at the present speed.
        """
        lengths = [len(text) for text in ids]
        size = self.manifest.dimensions if dimensions is None else dimensions
        vectors = np.empty((len(ids), size), np.float32)
        runs = list(_runs(lengths, TOKENS_PER_RUN if self._group_texts else 0))[::-1]

        def tokens_of_run(rows: list[int]) -> int:
            return len(rows) * lengths[rows[0]]

        until = float("inf") if deadline is None else deadline
        budget = Budget(self.paces, self.threads, list(map(tokens_of_run, runs)), until)

        def infer(rows: list[int]) -> None:
            tokens = tokens_of_run(rows)
            began = budget.begin(tokens)
            vectors[rows] = self._infer(np.array([ids[row] for row in rows], np.int64), normalize, size)
            budget.end(tokens, began)

        _for_each(infer, runs, self.threads)
        check_vectors(vectors, self.manifest.normalize if normalize is None else normalize)
        return vectors

    def _shorten(self, text: str, size: int) -> str:
        """A prefix of a very long text that has the same first tokens up to the model's maximum."""
        while size < len(text):
            end = size if self._has_word_pieces or size > LONGEST_WORD else _end_of_word(text, size)
            (prefix,) = self._tokenizer.encode_batch_fast([text[:end]])
            tokens = len(prefix.ids) + sum(len(rest.ids) for rest in prefix.overflowing)
            if tokens >= self.manifest.max_tokens + PREFIX_MARGIN:
                return text[:end]
            size *= 4
        return text

    def check_longest(self) -> None:
        """Compute the longest text that the manifest allows, once: nothing else shows how many positions the model has.

        Raises ArtifactCorruptError if the model cannot; what onnxruntime raises if it cannot compute even one token.
        """
        if self._longest_done:
            return
        length = self.manifest.max_tokens
        try:
            self._compute_text(length)
        except Exception as error:
            self._compute_text(1)
            raise ArtifactCorruptError(
                f"{self.manifest.precisions[self.precision].file} cannot compute a text of {length} tokens, which the "
                f"manifest's max_tokens allows: {error}: {REBUILD}"
            ) from error
        self._longest_done = True

    def _infer(self, ids: npt.NDArray[np.int64], normalize: bool | None, dimensions: int) -> Vectors:
        """Token ids of shape (batch, length) to vectors of shape (batch, dimensions); `normalize` as in `embed_tokens`.

        Raises what onnxruntime raises, ArtifactCorruptError as `check_longest` does.
        """
        feeds = {name: _FEEDS[name](ids) for name in self._inputs}
        try:
            hidden = self._session.run(self._outputs, feeds)[0]
        except Exception:
            self.check_longest()
            raise
        manifest = self.manifest
        vectors = pool(hidden, manifest.pooling)
        for layer in self._dense:
            vectors = layer.apply(vectors)
        if manifest.unit_before_truncation and normalize is None:
            vectors = unit_rows(vectors)
        if vectors.shape[1] > dimensions:
            vectors = vectors[:, :dimensions]
        unit = manifest.normalize if normalize is None else normalize
        return unit_rows(vectors) if unit else vectors

    def _compute_text(self, length: int) -> None:
        ids = np.zeros((1, length), np.int64)
        self._session.run(self._outputs, {name: _FEEDS[name](ids) for name in self._inputs})


def pool(hidden: Vectors, pooling: str) -> Vectors:
    """Last hidden states of shape (batch, length, dimensions), none of them padding, to (batch, dimensions).

    As sentence-transformers' Pooling does: `mean` averages over all tokens, special tokens included;
    `mean_sqrt_len_tokens` divides their sum by the square root of their number; `weightedmean` counts the first token
    once, the second twice and so on; `max` takes the largest of each component, `cls` the first token, `lasttoken` the
    last.
    """
    length = np.float32(hidden.shape[1])
    if pooling == "mean":
        average: Vectors = np.add.reduce(hidden, axis=1) / length
        return average
    if pooling in ("cls", "lasttoken"):
        return hidden[:, 0 if pooling == "cls" else -1]
    if pooling == "max":
        largest: Vectors = np.maximum.reduce(hidden, axis=1)
        return largest
    if pooling == "mean_sqrt_len_tokens":
        root: Vectors = np.add.reduce(hidden, axis=1) / np.sqrt(length)
        return root
    weights = np.arange(1, hidden.shape[1] + 1, dtype=np.float32)
    weighted: Vectors = np.add.reduce(hidden * weights[:, None], axis=1) / weights.sum()
    return weighted


def unit_rows(vectors: Vectors) -> Vectors:
    """Divide each row by its Euclidean norm, at least 1e-12 (torch.nn.functional.normalize)."""
    norms = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
    unit: Vectors = vectors / np.maximum(norms, np.float32(1e-12))
    return unit


def check_vectors(vectors: Vectors, unit: bool) -> None:
    """Raise BadVectorError, with the number of the first bad row, if a vector is not finite or not of unit norm."""
    squares = np.add.reduce(vectors * vectors, axis=1)  # not by BLAS, which the deployed package leaves out
    good = np.abs(squares - 1) < NORM_TOLERANCE if unit else (squares > 0) & (squares < np.inf)  # false for NaN
    if not good.all():
        row = int(np.argmin(good))
        raise BadVectorError(f"the model gave a bad vector for text {row}: its squared norm is {squares[row]}")


# After a run the CPU's caches hold the model and little of Python, so each numpy function that is written in Python
# (mean, linalg.norm) takes a percent or more of a short text's time. Hence the ufuncs above.
_FEEDS: Mapping[str, Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]] = {
    "input_ids": lambda ids: ids,
    "attention_mask": np.ones_like,
    "token_type_ids": np.zeros_like,
}
"""Model input -> its value for token ids of shape (batch, length)."""


_ACTIVATIONS: Mapping[str, Callable[[Vectors], Vectors]] = {
    "Identity": lambda vectors: vectors,
    # In float64, since the last bit of its float32 form differs by CPU.
    "Tanh": lambda vectors: np.tanh(vectors.astype(np.float64)).astype(np.float32),
    "ReLU": lambda vectors: np.maximum(vectors, np.float32(0)),
}


def default_threads() -> int:
    """vCPUs of the Lambda memory size, else the CPUs this process may use, or those its quota pays for. At least 1."""
    memory = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "")
    if memory.isdigit():
        return max(1, round(int(memory) / LAMBDA_MB_PER_VCPU))
    from handler.cgroup import cpu_quota  # here, because Lambda should not load it

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cpus if quota is None else max(1, min(cpus, round(quota)))


def load_tokenizer(artifact: Artifact) -> Tokenizer:
    """The tokenizer, which cuts texts at the model's maximum and pads nothing.

    Raises what `tokenizers` raises, ValueError if the model's maximum leaves no room beside special tokens.
    """
    rest = artifact.manifest.wordpiece
    tokenizer = Tokenizer.from_file(artifact.tokenizer) if rest is None else join_wordpiece(rest, artifact.vocabulary)
    # The published tokenizer.json cuts at 128 tokens and pads to 128; the model's own maximum counts.
    tokenizer.enable_truncation(artifact.manifest.max_tokens)
    tokenizer.no_padding()
    special = tokenizer.num_special_tokens_to_add(False)
    if artifact.manifest.max_tokens <= special:
        raise ValueError(f"max_tokens is {artifact.manifest.max_tokens}, of which {special} are special tokens")
    return tokenizer


def join_wordpiece(rest: str, vocabulary: str) -> Tokenizer:
    """The tokenizer made of `Manifest.wordpiece` and its vocabulary file. Raises what `tokenizers` raises."""
    tokenizer = Tokenizer.from_str(rest)
    model = tokenizer.model
    tokenizer.model = WordPieceModel.from_file(
        vocabulary,
        unk_token=model.unk_token,
        max_input_chars_per_word=model.max_input_chars_per_word,
        continuing_subword_prefix=model.continuing_subword_prefix,
    )
    return tokenizer


def load_dense(artifact: Artifact) -> list[DenseLayer]:
    """The layers of `Manifest.dense`. Raises OSError."""
    numbers = np.fromfile(artifact.dense, "<f4")
    layers = []
    for layer in artifact.manifest.dense:
        own, numbers = numbers[: layer.numbers], numbers[layer.numbers :]
        weights = own[: layer.inputs * layer.outputs].reshape(layer.inputs, layer.outputs)
        bias = own[weights.size :] if layer.bias else np.zeros(1, np.float32)
        layers.append(DenseLayer(weights, bias, layer.activation))
    return layers


def load_session(artifact: Artifact, precision: str) -> onnxruntime.InferenceSession:
    """A session of one thread.

    Raises ArtifactNotFoundError as `Artifact.model` does, ArtifactError if the operators that the model needs cannot be
    loaded, and what onnxruntime raises.
    """
    model = artifact.model(precision)
    entry = artifact.manifest.precisions[precision]
    options = onnxruntime.SessionOptions()
    if entry.operators:
        _register_operators(options, entry.operators, artifact.folder)
    if entry.optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # An operator is too short to be worth splitting among threads: one thread for each run is much faster.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOW_FUSIONS
    )


def _check_session(session: onnxruntime.InferenceSession, manifest: Manifest, precision: str) -> None:
    """Raise ValueError if the model has inputs that are not known here, or not the manifest's dimensions."""
    file = manifest.precisions[precision].file
    for node in session.get_inputs():
        if node.name not in _FEEDS:
            raise ValueError(f"{file} has an input {node.name}, which is not one of {', '.join(_FEEDS)}")
    dimensions = session.get_outputs()[0].shape[-1:]
    expected = manifest.pooled_dimensions
    if dimensions and isinstance(dimensions[0], int) and dimensions[0] != expected:
        raise ValueError(f"{file} has {dimensions[0]} dimensions, the manifest says {expected}")


def _register_operators(options: onnxruntime.SessionOptions, version: int, folder: str) -> None:
    if version != VERSION:
        raise ArtifactError(
            f"{folder} needs the operators of version {version}, this code has version {VERSION}: deploy the code that "
            f"the model was built with, or {REBUILD}"
        )
    try:
        register(options)
    except OperatorsError as error:
        raise ArtifactError(str(error)) from error


def _for_each(work: Callable[[list[int]], None], runs: Sequence[list[int]], threads: int) -> None:
    """Call `work` with each run, in `threads` threads. The first exception ends it: runs not yet begun are dropped."""
    threads = min(threads, len(runs))
    if threads < 2:
        for run in runs:
            work(run)
        return
    from concurrent.futures import ThreadPoolExecutor  # here, because a cold start must not wait for it

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, runs):
            pass


def _by(deadline: float, work: Callable[[threading.Event], Result]) -> Result:
    """Call `work` in a thread of its own, since the tokenizer cannot be interrupted, and return its result.

    Raises what `work` raises; TooManyTokensError, after setting the event, if it has not ended by `deadline`.
    """
    late = threading.Event()
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(late))
        except BaseException as error:  # noqa: BLE001  raised again below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    ended = results or errors  # read before the event is set: work that it stops has no complete result
    late.set()
    if not ended:
        raise TooManyTokensError(
            "the texts cannot even be split into tokens in the time that the function has: send fewer or shorter "
            "texts, or raise the function's timeout or memory"
        )
    if errors:
        raise errors[0]
    return results[0]


def _well_formed(text: Any) -> str:
    """The text with surrogate pairs joined and each lone surrogate replaced by U+FFFD (Unicode 3.9, D93b)."""
    if not isinstance(text, str):
        raise TypeError(f"texts holds {text!r} of type {type(text).__name__}, not str")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _end_of_word(text: str, size: int) -> int:
    """The last end of a word before which at most `size` characters are; LONGEST_WORD if there is none.

    A tokenizer that splits texts at spaces gives what is before it the same tokens as in the whole text.

    >>> _end_of_word("iron  rich foods", 12), _end_of_word("iron  rich foods", 5), _end_of_word("鉄分の多い食品", 3)
    (10, 4, 65536)
    """
    space = max(text.rfind(" ", 0, size + 1), text.rfind("\n", 0, size + 1))
    return len(text[: max(0, space)].rstrip(" \n")) or LONGEST_WORD


def _count(encoding: Encoding) -> int:
    """Number of a text's tokens, including those that were cut off."""
    count = len(encoding.ids)
    for rest in encoding.overflowing:
        count += len(rest.ids) - sum(rest.special_tokens_mask)
    return count


def _parts(items: Sequence[Item], at_once: int) -> Iterator[Sequence[Item]]:
    """The items in order, in parts of one item or of a total length of at most `at_once`.

    >>> list(_parts(["ab", "c", "defg", "h"], 3))
    [['ab', 'c'], ['defg'], ['h']]
    """
    begin = size = 0
    for end, item in enumerate(items):
        if size and size + len(item) > at_once:
            yield items[begin:end]
            begin, size = end, 0
        size += len(item)
    if begin < len(items):
        yield items[begin:]


def _runs(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows that share a run: of equal length, and one row or at most `budget` tokens together.

    >>> list(_runs([3, 5, 3, 3], budget=6))
    [[0, 2], [3], [1]]
    """
    run: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if run and (lengths[row] != lengths[run[0]] or (len(run) + 1) * lengths[row] > budget):
            yield run
            run = []
        run.append(row)
    if run:
        yield run
