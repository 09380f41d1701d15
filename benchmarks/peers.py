"""What other projects make of the model, each made by their own tools from the artifact's float32 file and run as
people run it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from artifact.manifest import MODEL_FILES, TOKENIZER, open_artifact
from benchmarks.corpus import read_texts
from handler.embedder import load_tokenizer
from quantize.session import feed

FOLDER = Path(__file__).parents[1] / "build" / "peers"
CALIBRATION = Path(__file__).with_name("calibration.jsonl")
"""For static scales, which ours are not: queries, questions, sentences and passages in English first, and other
scripts, code and odd input, without which unusual text would leave the ranges."""
BATCH = 32
"""sentence-transformers' default batch size."""

Vectors: TypeAlias = npt.NDArray[np.float32]
Hidden: TypeAlias = Callable[[Mapping[str, npt.NDArray[np.int64]]], Vectors]
"""A model: ids, mask and types of tokens, shape (batch, length), to last hidden states, (batch, length, dimensions)."""


def dynamic_file(model_folder: Path, per_channel: bool) -> Path:
    """The file of optimum's preset `avx512_vnni`, made if it is missing."""
    path = _made(model_folder, f"dynamic-per-{'channel' if per_channel else 'tensor'}.onnx")
    if path.exists():
        return path
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer

    with tempfile.TemporaryDirectory(dir=FOLDER) as workdir:
        source = Path(workdir) / "model.onnx"
        shutil.copyfile(open_artifact(model_folder).model("fp32"), source)
        logging.disable(logging.WARNING)  # onnxruntime advises on preprocessing
        try:
            preset = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=per_channel)
            ORTQuantizer(source).quantize(preset, save_dir=workdir)
        finally:
            logging.disable(logging.NOTSET)
        (Path(workdir) / "model_quantized.onnx").replace(path)
    return path


def torch_int8(source: Path) -> Any:
    """The SentenceTransformer of `source` with its linear layers in INT8, activation scales taken at run time."""
    import torch
    from sentence_transformers import SentenceTransformer
    from torch.ao.quantization import quantize_dynamic

    model = SentenceTransformer(str(source), device="cpu", local_files_only=True)
    with warnings.catch_warnings():
        for what in ("torch.quantize_per_tensor", "torch.ao.quantization is deprecated"):  # will go in a later torch
            warnings.filterwarnings("ignore", what)
        return quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]


def torch_int8_file(model_folder: Path, source: Path) -> Path:
    """The parameters of `torch_int8`, saved for their size if they are missing."""
    path = _made(model_folder, "torch-dynamic.pt")
    if not path.exists():
        import torch

        with tempfile.TemporaryDirectory(dir=FOLDER) as workdir:
            torch.save(torch_int8(source).state_dict(), Path(workdir) / path.name)
            (Path(workdir) / path.name).replace(path)
    return path


def float32_folder(model_folder: Path, source: Path) -> Path:
    """The source's configuration beside the artifact's `onnx/model.onnx`, made if it is missing.

    fastembed cuts texts where `tokenizer_config.json` says, which is 512 in the published file; sentence-transformers
    cuts at the maximum of its own file in any case. So that one gets the model's maximum.
    """
    path = _made(model_folder, "float32")
    if path.exists():
        return path
    artifact = open_artifact(model_folder)
    with tempfile.TemporaryDirectory(dir=FOLDER) as workdir:
        folder = Path(workdir) / path.name
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.safetensors", "onnx", "openvino", ".*"))
        (folder / "onnx").mkdir()
        shutil.copyfile(artifact.model("fp32"), folder / "onnx" / "model.onnx")
        shutil.copyfile(artifact.tokenizer, folder / TOKENIZER)
        config = folder / "tokenizer_config.json"
        limit = {"model_max_length": artifact.manifest.max_tokens, "max_length": artifact.manifest.max_tokens}
        config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | limit), "utf-8")
        folder.replace(path)
    return path


def openvino_file(model_folder: Path) -> Path:
    """The model that NNCF makes with static activation scales, calibrated on CALIBRATION, made if it is
    missing: an `.xml`, with the weights beside it in a `.bin`."""
    path = _made(model_folder, "openvino-int8.xml")
    if path.exists():
        return path
    os.environ.setdefault("NNCF_CI", "1")  # otherwise it reports usage
    import nncf
    import openvino

    artifact = open_artifact(model_folder)
    tokenizer = load_tokenizer(artifact)
    feeds = [feed([encoding.ids]) for encoding in tokenizer.encode_batch(read_texts(CALIBRATION))]
    quantized = nncf.quantize(
        openvino.Core().read_model(artifact.model("fp32")),
        nncf.Dataset(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(feeds),
    )
    with tempfile.TemporaryDirectory(dir=FOLDER) as workdir:
        openvino.save_model(quantized, Path(workdir) / path.name, compress_to_fp16=False)
        for name in (path.with_suffix(".bin").name, path.name):  # the one looked for is the last to appear
            (Path(workdir) / name).replace(FOLDER / name)
    return path


def ctranslate2_folder(model_folder: Path, source: Path) -> Path:
    """What CTranslate2's converter makes of the source with weights of INT8, made if it is missing."""
    path = _made(model_folder, "ctranslate2")
    if path.exists():
        return path
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory(dir=FOLDER) as workdir:
        folder = Path(workdir) / path.name
        TransformersConverter(str(source)).convert(str(folder), quantization="int8")
        folder.replace(path)
    return path


def openvino_genai_folder(model_folder: Path, source: Path) -> Path:
    """The files of `openvino_file` as OpenVINO GenAI looks for them, with the tokenizer that OpenVINO converts, made if
    they are missing."""
    path = _made(model_folder, "openvino-genai")
    if path.exists():
        return path
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import AutoTokenizer

    model = openvino_file(model_folder)
    limit = open_artifact(model_folder).manifest.max_tokens
    with tempfile.TemporaryDirectory(dir=FOLDER) as workdir:
        folder = Path(workdir) / path.name
        folder.mkdir()
        for suffix in (".xml", ".bin"):
            shutil.copyfile(model.with_suffix(suffix), folder / f"openvino_model{suffix}")
        tokenizer = AutoTokenizer.from_pretrained(str(source))  # type: ignore[no-untyped-call]
        openvino.save_model(convert_tokenizer(tokenizer, max_length=limit), folder / "openvino_tokenizer.xml")
        folder.replace(path)
    return path


def _made(model_folder: Path, name: str) -> Path:
    """Where a file made from the artifact's float32 file is kept: its name has that file's digest."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    digest = open_artifact(model_folder).manifest.files[MODEL_FILES["fp32"]].sha256
    return FOLDER / f"{digest[:16]}-{name}"


def session_options(threads: int) -> Any:
    """onnxruntime's options with `threads` threads within an operator."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return options


def onnx_hidden(model: Path, threads: int) -> Hidden:
    """The model in onnxruntime."""
    options = session_options(threads)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)[0]


def openvino_hidden(model: Path, threads: int) -> Hidden:
    """The model in OpenVINO."""
    import openvino

    request = openvino.Core().compile_model(model, "CPU", _openvino_settings(threads)).create_infer_request()
    return lambda feeds: request.infer(feeds)[0]


def ctranslate2_hidden(folder: Path, threads: int) -> Hidden:
    """The model in CTranslate2, weights and activations of linear layers in INT8."""
    import ctranslate2

    encoder = ctranslate2.Encoder(str(folder), device="cpu", compute_type="int8", intra_threads=threads)

    def hidden(feeds: Mapping[str, npt.NDArray[np.int64]]) -> Vectors:
        lengths = feeds["attention_mask"].sum(axis=1)
        tokens = [ids[:length].tolist() for ids, length in zip(feeds["input_ids"], lengths, strict=True)]
        return np.array(encoder.forward_batch(tokens).last_hidden_state)

    return hidden


def openvino_genai_model(folder: Path, threads: int, max_tokens: int) -> Callable[[list[str]], Any]:
    """OpenVINO GenAI's pipeline from texts to vectors, set for one request at a time."""
    import openvino_genai

    config = openvino_genai.TextEmbeddingPipeline.Config()
    config.pooling_type = openvino_genai.TextEmbeddingPipeline.PoolingType.MEAN
    config.normalize, config.max_length = True, max_tokens
    pipeline = openvino_genai.TextEmbeddingPipeline(str(folder), "CPU", config, **_openvino_settings(threads))
    found: Callable[[list[str]], Any] = pipeline.embed_documents
    return found


def _openvino_settings(threads: int) -> dict[str, str]:
    """OpenVINO's settings for one request at a time.

    By default it computes what is not INT8 in bfloat16 where the CPU has it. Limited to AVX2 it is set to float32, or
    it would compute in bfloat16 without the instructions for it.
    """
    settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads)}
    if os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    return settings


def fastembed_model(folder: Path, threads: int) -> Any:
    """fastembed's TextEmbedding of a folder that `float32_folder` made. Once a process: it registers the name."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    name = "this-project/float32"
    TextEmbedding.add_custom_model(
        model=name,
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf=name),
        dim=384,
        model_file="onnx/model.onnx",
    )
    return TextEmbedding(name, specific_model_path=str(folder), threads=threads, local_files_only=True)


def in_batches(embed: Callable[[list[str]], Any], texts: Sequence[str]) -> Vectors:
    """Texts sorted by their characters and given in batches of BATCH, for what pads them to the longest."""
    rows = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    vectors: dict[int, Vectors] = {}
    for batch in (rows[start : start + BATCH] for start in range(0, len(rows), BATCH)):
        vectors |= zip(batch, np.array(embed([texts[row] for row in batch]), np.float32), strict=True)
    return np.array([vectors[row] for row in range(len(texts))])


class PaddedEncoder:
    """Texts sorted by length, in batches of BATCH padded to their longest, as sentence-transformers runs them."""

    def __init__(self, hidden: Hidden, tokenizer: Path, max_tokens: int) -> None:
        from tokenizers import Tokenizer

        self._hidden = hidden
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.no_padding()

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, float32, shape (n, dimensions)."""
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        rows = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
        vectors: dict[int, Vectors] = {}
        for batch in (rows[start : start + BATCH] for start in range(0, len(rows), BATCH)):
            vectors |= zip(batch, self._run([tokens[row] for row in batch]), strict=True)
        return np.array([vectors[row] for row in range(len(tokens))])

    def _run(self, tokens: Sequence[Sequence[int]]) -> Iterator[Vectors]:
        ids = np.zeros((len(tokens), max(map(len, tokens))), np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(tokens):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        hidden = self._hidden({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
        pooled = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1)[:, None]
        yield from (pooled / np.linalg.norm(pooled, axis=1, keepdims=True)).astype(np.float32)
