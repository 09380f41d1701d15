"""The artifact folder: its layout and its manifest, one schema for writer and reader.

    <model folder>/current              name of the version in use, one line
    <model folder>/<version>/           never changed once written; only damaged files are replaced, each at once
        manifest.json  tokenizer.json  vocab.txt  model.onnx  model_int8.onnx  model_int8.onnx_data  dense.bin

`current` is a file and not a link, so that zip archives and S3 can hold it, and so that a reader that has read it
once stays with that version when another one is put into use.

Paths are strings and records named tuples: pathlib and dataclasses would add 5 % to a cold start. Annotations are
evaluated, not strings, since the manifest is checked against them.
"""

import os
import zlib
from collections.abc import Mapping
from os.path import join
from typing import Any, NamedTuple

import orjson

FORMAT_VERSION = 5
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
VOCABULARY = "vocab.txt"
DENSE = "dense.bin"
CURRENT = "current"
CHECKSUM = "crc32"
MODEL_FILES = {"fp32": "model.onnx", "int8": "model_int8.onnx"}
WEIGHTS_SUFFIX = "_data"
"""What the name of a file of weights has after the name of the ONNX file that maps it, if there is one."""
POOLINGS = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""How token vectors become one, by sentence-transformers' names (its `Pooling`, `pooling_mode`)."""
ACTIVATIONS = ("Identity", "Tanh", "ReLU")
"""What may follow a dense layer, by torch's names."""
MAX_NAME = 255
"""Maximum characters of a name that file systems allow."""
MAX_TOKENS = 8192
"""Maximum of `max_tokens`: no request may have more token ids in a text (`handler.limits.MAX_TOKEN_IDS`)."""

REBUILD = "build and verify it again with: python -m export"
"""The remedy for a damaged artifact."""


class ArtifactError(Exception):
    """The artifact folder cannot be used; the message names the folder, what is wrong and the remedy."""


class ArtifactNotFoundError(ArtifactError):
    """There is no artifact where one was expected."""


class ArtifactCorruptError(ArtifactError):
    """There is an artifact, but a part of it is missing, changed or contradicts the manifest."""


class FileEntry(NamedTuple):
    """Size in bytes, SHA-256 (lower-case hex) and CRC-32 of one file of a version.

    SHA-256 says that a file is the one that was built; it is checked where files are copied. CRC-32, which takes 6 ms
    for the INT8 weights, finds at every start what a disk or a transfer has damaged.
    """

    size: int
    sha256: str
    crc32: int


class Parity(NamedTuple):
    """Distance of the artifact's vectors from the float32 sentence-transformers vectors of the same texts."""

    texts: int
    mean_cosine: float
    p1_cosine: float
    min_cosine: float
    max_abs_difference: float
    batch_difference: float
    """Largest change of a component when the text is embedded together with others instead of alone."""


class Precision(NamedTuple):
    """One ONNX file of a version."""

    file: str
    recipe: str | None
    """How the file was quantized, as `python -m quantize --recipe` names it; None for float32."""
    batch_independent: bool
    """False where activation scales are taken over a whole run: then every text needs a run of its own."""
    operators: int
    """Version of the operators of `kernels` that the file needs; 0 if none."""
    optimized: bool
    """True where onnxruntime's graph optimizations would change nothing, so that loading can skip them."""
    parity: Parity


class Dense(NamedTuple):
    """A linear layer over the pooled vector, with what follows it; its numbers are in `dense.bin`."""

    inputs: int
    outputs: int
    bias: bool
    activation: str
    """One of ACTIVATIONS."""

    @property
    def numbers(self) -> int:
        """How many of `dense.bin` are its own."""
        return self.outputs * (self.inputs + self.bias)


class Manifest(NamedTuple):
    """Everything a reader needs to know about a version. Stored as `manifest.json`."""

    format_version: int
    version: str
    created: str
    model: str
    revision: str
    source: str
    license: str
    dimensions: int
    max_tokens: int
    pooling: str
    normalize: bool
    wordpiece: str | None
    """JSON of a WordPiece tokenizer without its vocabulary, which is in `vocab.txt`, one token per line in the order of
    their ids; None if `tokenizer.json` is read instead."""
    precisions: Mapping[str, Precision]
    files: Mapping[str, FileEntry]
    tools: Mapping[str, str]
    # What follows is left out of manifest.json where it is the default.
    dense: tuple[Dense, ...] = ()
    """Layers between pooling and normalization. `dense.bin` has of each the weights (inputs, outputs) and then, if
    there is one, the bias (outputs): little-endian float32."""
    truncated_from: int = 0
    """Dimensions that the model computes where it keeps the first `dimensions` of them (sentence-transformers'
    `truncate_dim`); 0 where it keeps all."""
    unit_before_truncation: bool = False
    """Whether they are normalized before that, so that the vectors, which `normalize` is about, are shorter than 1."""
    matryoshka_dimensions: tuple[int, ...] = ()
    """Smaller numbers of dimensions that the model was trained for, the largest first. A request may ask for one: each
    vector is cut to that length and, where `normalize` is true, normalized again."""
    prompts: Mapping[str, str] = {}
    """Texts that the model was trained to find before its texts, by names such as `query`."""
    default_prompt: str | None = None
    """Name of the prompt of a text that comes without; None for none."""
    similarity: str | None = None
    """How the model's vectors are to be compared, such as `cosine` or `dot`; None if it does not tell."""
    languages: tuple[str, ...] = ()
    """As the model card has them, such as `en`; none if it does not tell."""
    limitations: str = ""
    """What the model card says of the model's limits, in Markdown; possibly its beginning."""

    @property
    def pooled_dimensions(self) -> int:
        """Length of a pooled vector, and of the encoder's of a token."""
        return self.dense[0].inputs if self.dense else self.truncated_from or self.dimensions

    def prompt(self, name: str | None) -> str:
        """The prompt of that name; of None the model's default prompt, "" if it has none. Raises KeyError."""
        name = self.default_prompt if name is None else name
        return "" if name is None else self.prompts[name]

    def to_json(self) -> bytes:
        """The bytes of `manifest.json`: its fields, and `crc32`, the CRC-32 of these as compact JSON."""
        data = _plain(self)
        for name, default in self._field_defaults.items():
            if getattr(self, name) == default:
                del data[name]
        data[CHECKSUM] = zlib.crc32(orjson.dumps(data))
        return orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


class Artifact(NamedTuple):
    """A version's folder whose manifest has been read and whose files have the sizes it states."""

    folder: str
    manifest: Manifest

    @property
    def tokenizer(self) -> str:
        """Path of the tokenizer."""
        return join(self.folder, TOKENIZER)

    @property
    def vocabulary(self) -> str:
        """Path of the vocabulary that belongs to `manifest.wordpiece`."""
        return join(self.folder, VOCABULARY)

    @property
    def dense(self) -> str:
        """Path of the numbers of `manifest.dense`."""
        return join(self.folder, DENSE)

    def model(self, precision: str) -> str:
        """Path of the ONNX file of a precision.

        Raises ArtifactNotFoundError if this version does not have it.
        """
        if precision not in self.manifest.precisions:
            has = ", ".join(sorted(self.manifest.precisions))
            raise ArtifactNotFoundError(
                f"{self.folder} has no precision {precision!r}, only {has}: set MODEL_PRECISION to one of these "
                f"or build it with: python -m export --precision {has.replace(' ', '')},{precision}"
            )
        return join(self.folder, self.manifest.precisions[precision].file)

    def files_of(self, precision: str) -> list[str]:
        """Names of the files that a precision is loaded from, the tokenizer's among them.

        Raises ArtifactNotFoundError as `model` does.
        """
        self.model(precision)
        model = self.manifest.precisions[precision].file
        tokenizer = TOKENIZER if self.manifest.wordpiece is None else VOCABULARY
        return [name for name in (tokenizer, model, model + WEIGHTS_SUFFIX, DENSE) if name in self.manifest.files]

    def check_digests(self) -> None:
        """Read every file and compare its SHA-256 with the manifest.

        Raises ArtifactCorruptError for the first file that differs or cannot be read.
        """
        for name, entry in self.manifest.files.items():
            path = join(self.folder, name)
            try:
                found = sha256(path)
            except OSError as error:
                raise ArtifactCorruptError(f"cannot read {path}: {error.strerror}: {REBUILD}") from error
            if found != entry.sha256:
                raise ArtifactCorruptError(f"{path} has SHA-256 {found}, the manifest says {entry.sha256}: {REBUILD}")


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in lower-case hex."""
    import hashlib  # not at the top: it loads OpenSSL, and a cold start checks sizes only

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_artifact(folder: str | os.PathLike[str]) -> Artifact:
    """Open a version, or the version in use of a model folder, and check manifest and file sizes.

    `folder` is `.../all-MiniLM-L6-v2` or `.../all-MiniLM-L6-v2/<version>`.
    Raises ArtifactNotFoundError or ArtifactCorruptError.
    """
    path = os.fspath(folder)
    if os.path.isfile(join(path, MANIFEST)):
        return open_version(path)
    version = current_version(path)
    return open_version(join(path, version), version)


def open_version(folder: str, version: str | None = None) -> Artifact:
    """Open the folder of a version, and check manifest and file sizes; its name too, if that is known.

    Raises ArtifactNotFoundError or ArtifactCorruptError.
    """
    manifest = _read_manifest(folder)
    if version not in (None, manifest.version):
        raise ArtifactCorruptError(f"{join(folder, MANIFEST)} is of another version, {manifest.version}: {REBUILD}")
    for name, entry in manifest.files.items():
        _check_size(join(folder, name), entry.size)
    return Artifact(folder, manifest)


def current_version(model_folder: str) -> str:
    """The name of the version in use.

    Raises ArtifactNotFoundError or ArtifactCorruptError.
    """
    path = join(model_folder, CURRENT)
    try:
        name = _read(path).decode().strip()
    except (FileNotFoundError, NotADirectoryError):
        parent = os.path.dirname(model_folder.rstrip(os.sep)) or os.curdir
        raise ArtifactNotFoundError(
            f"no model in {model_folder}: fill it with: python -m export --output {parent} "
            f"(or set MODEL_CACHE_DIR and MODEL_NAME to a folder that has one)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactCorruptError(f"cannot read {path}: {error}: {REBUILD}") from error
    if not is_name(name):
        raise ArtifactCorruptError(f"{path} holds {name[:80]!r}, not a version's name: {REBUILD}")
    return name


def _read_manifest(folder: str) -> Manifest:
    path = join(folder, MANIFEST)
    try:
        data = orjson.loads(_read(path))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactNotFoundError(f"{path} does not exist: {REBUILD}") from None
    except OSError as error:
        raise ArtifactCorruptError(f"cannot read {path}: {error.strerror}: {REBUILD}") from error
    except orjson.JSONDecodeError as error:
        raise ArtifactCorruptError(f"{path} is not JSON ({error}): {REBUILD}") from error
    try:
        return parse_manifest(data)
    except ValueError as error:
        raise ArtifactCorruptError(f"{path}: {error}: {REBUILD}") from error


def _read(path: str) -> bytes:
    with open(path, "rb", opener=_open_at_once) as file:
        return file.read() or b""


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting, since there may be a pipe in its place; that reads as empty."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # which Windows does not have


def _check_size(path: str, size: int) -> None:
    try:
        found = os.stat(path).st_size
    except OSError as error:
        raise ArtifactCorruptError(f"cannot read {path}: {error.strerror}: {REBUILD}") from error
    if found != size:
        raise ArtifactCorruptError(f"{path} has {found} bytes, the manifest says {size}: {REBUILD}")


def parse_manifest(data: Any) -> Manifest:
    """Check the decoded JSON of a manifest wholly and turn it into a Manifest.

    Raises ValueError that names the first field that is missing, unknown or of a wrong value.
    """
    if not isinstance(data, dict):
        raise ValueError(f"the manifest is a {type(data).__name__}, not an object")
    if data.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"format_version is {data.get('format_version')!r}, this reader knows {FORMAT_VERSION}")
    data = dict(data)
    checksum = data.pop(CHECKSUM, None)
    values = _fields_of(Manifest, data, "manifest")
    manifest = Manifest(
        **{
            **values,
            "precisions": {
                name: _precision(name, entry) for name, entry in _object(data["precisions"], "precisions").items()
            },
            "files": {
                name: FileEntry(**_fields_of(FileEntry, entry, f"files.{name}"))
                for name, entry in _object(data["files"], "files").items()
            },
            "dense": tuple(
                Dense(**_fields_of(Dense, layer, f"dense[{place}]")) for place, layer in enumerate(values["dense"])
            ),
            "matryoshka_dimensions": tuple(values["matryoshka_dimensions"]),
            "languages": tuple(values["languages"]),
        }
    )
    _check_values(manifest)
    if checksum != (found := zlib.crc32(orjson.dumps(data))):
        raise ValueError(f"{CHECKSUM} is {checksum!r}, the manifest's fields give {found}: one of them was changed")
    return manifest


def _precision(name: str, data: Any) -> Precision:
    where = f"precisions.{name}"
    values = _fields_of(Precision, data, where)
    return Precision(**{**values, "parity": Parity(**_fields_of(Parity, data["parity"], f"{where}.parity"))})


_JSON_TYPES: Mapping[object, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    str: (str,),
    str | None: (str, type(None)),
    bool: (bool,),
    tuple[str, ...]: (list,),
    tuple[int, ...]: (list,),
    tuple[Dense, ...]: (list,),
}


def _fields_of(schema: Any, data: Any, where: str) -> dict[str, Any]:
    """The object's values and the defaults, with exactly the fields of a named tuple and of their JSON types."""
    values = _object(data, where)
    known = schema.__annotations__
    if defaults := schema._field_defaults:
        values = {**_plain(defaults), **values}
    for name in [*known, *values]:
        if name not in values:
            raise ValueError(f"{where}.{name} is missing")
        if name not in known:
            raise ValueError(f"{where}.{name} is not a known field")
    for name, declared in known.items():
        expected = _JSON_TYPES.get(declared, (dict,))
        if not isinstance(values[name], expected) or (type(values[name]) is bool and bool not in expected):
            names = " or ".join(each.__name__ for each in expected)
            raise ValueError(f"{where}.{name} is {values[name]!r}, not of type {names}")
    return values


def _object(data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {data!r}, not an object")
    return data


def _check_values(manifest: Manifest) -> None:
    if not is_name(manifest.version):
        raise ValueError(f"manifest.version {manifest.version!r} is not a file name")
    for field in ("dimensions", "max_tokens"):
        if getattr(manifest, field) < 1:
            raise ValueError(f"manifest.{field} is {getattr(manifest, field)}, not at least 1")
    if manifest.pooling not in POOLINGS:
        raise ValueError(f"manifest.pooling is {manifest.pooling!r}, not one of {', '.join(POOLINGS)}")
    for size in manifest.matryoshka_dimensions:
        if type(size) is not int or not 0 < size < manifest.dimensions:
            raise ValueError(
                f"manifest.matryoshka_dimensions has {size!r}, not a whole number between 0 and {manifest.dimensions}"
            )
    _check_files(manifest)
    _check_head(manifest)
    if not manifest.precisions:
        raise ValueError("manifest.precisions is empty")
    for name, precision in manifest.precisions.items():
        if precision.file not in manifest.files:
            raise ValueError(f"precisions.{name}.file {precision.file!r} is not listed in files")
    _check_description(manifest)


def _check_head(manifest: Manifest) -> None:
    """What becomes of a pooled vector."""
    cut = manifest.truncated_from
    if cut and cut <= manifest.dimensions:
        raise ValueError(f"manifest.truncated_from is {cut}, not more than the {manifest.dimensions} dimensions")
    if manifest.unit_before_truncation and (manifest.normalize or not cut):
        raise ValueError("manifest.unit_before_truncation is true of vectors that are unit vectors, or not truncated")
    if not manifest.dense:
        return
    ends = [*(layer.inputs for layer in manifest.dense[1:]), cut or manifest.dimensions]
    for place, (layer, end) in enumerate(zip(manifest.dense, ends, strict=True)):
        if layer.inputs < 1 or layer.outputs < 1:
            raise ValueError(f"dense[{place}] is of {layer.inputs} inputs and {layer.outputs} outputs, not at least 1")
        if layer.outputs != end:
            raise ValueError(f"dense[{place}].outputs is {layer.outputs}, what follows has {end}")
        if layer.activation not in ACTIVATIONS:
            raise ValueError(f"dense[{place}].activation is {layer.activation!r}, not one of {', '.join(ACTIVATIONS)}")
    size = 4 * sum(layer.numbers for layer in manifest.dense)
    if DENSE not in manifest.files or manifest.files[DENSE].size != size:
        raise ValueError(f"files has no {DENSE} of {size} bytes, which manifest.dense needs")


def _check_description(manifest: Manifest) -> None:
    if manifest.max_tokens > MAX_TOKENS:
        raise ValueError(f"manifest.max_tokens is {manifest.max_tokens}, not at most {MAX_TOKENS}")
    if not manifest.model.rpartition("/")[2]:
        raise ValueError(f"manifest.model is {manifest.model!r}, not a name")
    if manifest.default_prompt not in (None, *manifest.prompts):
        raise ValueError(f"manifest.default_prompt is {manifest.default_prompt!r}, which is not one of its prompts")
    if not _is_time(manifest.created):
        raise ValueError(f"manifest.created is {manifest.created!r}, not an ISO 8601 date and time with an offset")
    languages = dict(enumerate(manifest.languages))
    for field, texts in (("tools", manifest.tools), ("prompts", manifest.prompts), ("languages", languages)):
        for name, text in texts.items():
            if not isinstance(text, str):
                raise ValueError(f"manifest.{field}.{name} is {text!r}, not of type str")


def _is_time(text: str) -> bool:
    import datetime  # loaded by orjson

    try:
        return datetime.datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _check_files(manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        _check_entry(name, entry)
    for name in (TOKENIZER,) if manifest.wordpiece is None else (TOKENIZER, VOCABULARY):
        if name not in manifest.files:
            raise ValueError(f"files has no {name}")
    lower = {name.lower(): name for name in manifest.files}
    if MANIFEST in lower:
        raise ValueError(f"files.{lower[MANIFEST]} is the manifest itself")
    for name in manifest.files:
        if lower[name.lower()] != name:
            raise ValueError(f"files.{name} and files.{lower[name.lower()]} differ in case alone")


def _check_entry(name: str, entry: FileEntry) -> None:
    if not is_name(name):
        raise ValueError(f"files.{name} is not a plain file name")
    if entry.size < 0:
        raise ValueError(f"files.{name}.size is {entry.size}, not at least 0")
    if not 0 <= entry.crc32 < 1 << 32:
        raise ValueError(f"files.{name}.crc32 is {entry.crc32}, not a CRC-32")
    if len(entry.sha256) != 64 or set(entry.sha256) - set("0123456789abcdef"):
        raise ValueError(f"files.{name}.sha256 is {entry.sha256!r}, not 64 hex digits")


def is_name(text: str) -> bool:
    """Whether a text is safe as a file name everywhere.

    It has ASCII letters and digits, and after the first character also dots, dashes and underscores, but no dot at the
    end. Neither `current` nor a device of Windows, such as NUL or com1.txt, is a name.
    """
    return (
        text[:1].isalnum()
        and text[-1] != "."
        and len(text) <= MAX_NAME
        and text.isascii()
        and text.translate(_INSIDE_NAMES).isalnum()
        and (lower := text.lower()) != CURRENT
        and lower.partition(".")[0] not in _DEVICES
    )


_INSIDE_NAMES = str.maketrans("._-", "000")
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}


def _plain(value: Any) -> Any:
    """Named tuples inside as the dicts that JSON knows, other tuples as lists."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value
