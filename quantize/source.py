"""Checks the file to quantize before anything slow starts: each way to be wrong has its own message."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path, PurePath
from textwrap import shorten

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import NodeProto, TensorProto, helper

from quantize.assemble import DOMAIN
from quantize.errors import QuantizationError

INPUTS = {"input_ids": 0, "attention_mask": 1, "token_type_ids": 0}
"""What an encoder reads, and a value of each for a trial run."""
TRIALS = ((2, 3), (1, 5))
"""Texts and tokens of each trial run."""
LARGEST = 2**31 - 1
"""Maximum bytes of a protobuf message, and so of an ONNX file with its weights."""
STANDARD = ("", "ai.onnx")
OPTIMIZED = ("com.microsoft", "com.microsoft.nchwc")
"""Domains of the operators that onnxruntime's optimizer puts in the place of ONNX's own."""
QUANTIZED = re.compile("[Qq]uantize|Integer|NBits|Bnb4|FpQ4|Float8|^Q[A-Z]")
"""Operators of integers or of few bits: QuantizeLinear, MatMulIntegerToFloat, QAttention, MatMulNBits, ..."""
QUANTIZED_TYPES = re.compile("U?INT[248]$|FLOAT[48]")
OTHER_FLOATS = ("FLOAT16", "BFLOAT16", "DOUBLE")
ANEW = "download it again or export it with optimum"


def check_source(path: Path) -> None:
    """Raise QuantizationError unless a file is the float32 ONNX model of an encoder, as optimum exports it.

    Such a model reads the token ids of texts of any number and length, has one vector per token as its first output,
    and can be run by onnxruntime.
    """
    _check_runs(path, _check_graph(path))


def _check_graph(path: Path) -> str:
    """Raise QuantizationError as `check_source` does of what need not be run; the name of the first output."""
    model = _read(path)
    graph = model.graph
    nodes = list(_nodes([*graph.node, *(node for function in model.functions for node in function.node)]))
    tensors = list(_tensors(graph, nodes))
    _check_names(path, graph, nodes, tensors)
    _check_external_data(path, tensors)
    _check_operators(path, nodes, [function.name for function in model.functions])
    _check_types(path, tensors)
    _check_inputs(path, graph)
    _check_has_linears(path, graph)
    return str(graph.output[0].name)


def _read(path: Path) -> onnx.ModelProto:
    """An ONNX file without its external data."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise QuantizationError(f"cannot read {path}: it is not a file, name the model.onnx in it")
        if status.st_size > LARGEST:
            raise QuantizationError(f"{path} is too large: at most 2 GB are supported")
        content = path.read_bytes()
    except OSError as error:
        raise QuantizationError(f"cannot read {path}: {error.strerror}") from error
    if content.startswith(b"version https://git-lfs"):
        raise QuantizationError(f"{path} is a pointer of Git LFS: get the file that it stands for with git lfs pull")
    if content[4:8] == b"ORTM":
        raise QuantizationError(f"{path} is in the ORT format: start from the ONNX file that it was made from")
    if not content:
        raise QuantizationError(f"{path} is empty, {ANEW}")
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise QuantizationError(f"{path} is not an ONNX model or only a part of one ({error}), {ANEW}") from error
    if not model.graph.node or not model.graph.output:
        raise QuantizationError(f"{path} is not an ONNX model with operators and outputs, {ANEW}")
    return model


def _check_names(
    path: Path, graph: onnx.GraphProto, nodes: Sequence[NodeProto], tensors: Sequence[TensorProto]
) -> None:
    names = [name for node in nodes for name in (node.op_type, node.domain, *node.input, *node.output)]
    names += [value.name for value in (*graph.input, *graph.output, *tensors)]
    names += [text for tensor in tensors for entry in tensor.external_data for text in (entry.key, entry.value)]
    if not all(isinstance(name, str) for name in names):  # protobuf gives bytes where they are not UTF-8
        raise QuantizationError(f"{path} has names that are not text, {ANEW}")


def _check_external_data(path: Path, tensors: Sequence[TensorProto]) -> None:
    total = 0
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "")
        if name not in sizes:
            sizes[name] = _external_size(path, name)
        try:
            length = int(entries.get("length") or _size(tensor))
            end = int(entries.get("offset") or 0) + length
        except (ValueError, KeyError) as error:
            raise QuantizationError(
                f"{path} has no valid place of {tensor.name} in {name} ({error}), {ANEW}"
            ) from error
        if end > sizes[name]:
            raise QuantizationError(
                f"{path.parent / name} has {sizes[name]} of the {end} bytes that {path} needs: download it again"
            )
        total += length
    if total > LARGEST:
        raise QuantizationError(f"{path} has {total / 1e9:.1f} GB of weights: at most 2 GB are supported")


def _external_size(path: Path, name: str) -> int:
    """Bytes of a file of weights, under the rules by which onnx and onnxruntime open it."""
    if not name or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise QuantizationError(f"{path} keeps weights in {name!r}, not in its folder: save both anew in one folder")
    file = path.parent / name
    try:
        status = file.lstat()
    except (OSError, ValueError) as error:  # ValueError for a name with a zero in it
        reason = error.strerror if isinstance(error, OSError) else error
        raise QuantizationError(f"cannot read {file}, the weights of {path}: {reason}; put it there") from error
    if stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink > 1):
        raise QuantizationError(f"{file} is a link, which onnx does not follow: copy the folder with cp -rL")
    if not stat.S_ISREG(status.st_mode) or not os.access(file, os.R_OK):
        raise QuantizationError(f"cannot read {file}, the weights of {path}: not a file or not permitted")
    return status.st_size


def _size(tensor: TensorProto) -> int:
    """Bytes of a tensor."""
    return int(prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _check_operators(path: Path, nodes: Sequence[NodeProto], functions: Sequence[str]) -> None:
    for node in nodes:
        if node.domain == DOMAIN or QUANTIZED.search(node.op_type):
            raise QuantizationError(f"{path} is quantized already ({node.op_type}): start from the float32 model")
    for node in nodes:
        if node.domain in OPTIMIZED:
            raise QuantizationError(
                f"{path} is optimized for onnxruntime already ({node.op_type}): start from the model as it was, with "
                "optimum without --optimize"
            )
    if functions:
        raise QuantizationError(
            f"{path} has functions of its own ({functions[0]}): inline them with "
            "onnx.inliner.inline_local_functions, or export it with optimum"
        )
    for node in nodes:
        if node.domain not in STANDARD:
            raise QuantizationError(
                f"{path} has operators that are not ONNX's ({node.domain}.{node.op_type}): export it with optimum"
            )


def _check_types(path: Path, tensors: Sequence[TensorProto]) -> None:
    for tensor in tensors:
        kind = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in TensorProto.DataType.values() else "?"
        if len(tensor.dims) < 2:
            continue  # a number or a bias: exporters write some in other types
        if QUANTIZED_TYPES.match(kind):
            raise QuantizationError(
                f"{path} is quantized already ({tensor.name} is {kind.lower()}): start from the float32 model"
            )
        if kind in OTHER_FLOATS:
            raise QuantizationError(
                f"{path} has {kind.lower()} weights ({tensor.name}): export it in float32, optimum's default"
            )


def _check_inputs(path: Path, graph: onnx.GraphProto) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]  # older exporters name weights there too
    names = [value.name for value in inputs]
    if "input_ids" not in names or set(names) - set(INPUTS):
        read = ", ".join([*names[:5], *(["..."] if names[5:] else [])]) or "nothing"
        raise QuantizationError(
            f"{path} reads {read}, and not input_ids, attention_mask and token_type_ids: export a text encoder with "
            "optimum, task feature-extraction"
        )
    for value in inputs:
        kind = value.type.tensor_type
        if kind.elem_type != TensorProto.INT64:
            found = TensorProto.DataType.Name(kind.elem_type).lower() if kind.elem_type else "no tensor"
            raise QuantizationError(f"{path} reads {value.name} as {found}, and not int64: export it with optimum")
        if not kind.HasField("shape"):
            continue
        if len(kind.shape.dim) != 2:
            raise QuantizationError(
                f"{path} reads {value.name} of {len(kind.shape.dim)} axes, and not of (texts, tokens): export it with "
                "optimum"
            )
        for dimension, axis in zip(kind.shape.dim, ("texts", "tokens"), strict=True):
            if dimension.dim_value > 0:
                raise QuantizationError(
                    f"{path} takes exactly {dimension.dim_value} {axis} at a time ({value.name}): export it with "
                    "dynamic axes, optimum's default"
                )


def _check_has_linears(path: Path, graph: onnx.GraphProto) -> None:
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    matrices |= {node.output[0] for node in graph.node if node.op_type == "Constant" and node.output}
    if not any(node.op_type in ("MatMul", "Gemm") and set(node.input[1:2]) & matrices for node in graph.node):
        raise QuantizationError(f"{path} has no MatMul with weights to quantize: is it a transformer's model.onnx?")


def _check_runs(path: Path, name: str) -> None:
    for shape, output in zip(TRIALS, _trial(path, name), strict=True):
        found = f"its first output {name}, for {shape[0]} texts of {shape[1]} tokens,"
        if not isinstance(output, np.ndarray) or output.dtype != np.float32:
            kind = output.dtype if isinstance(output, np.ndarray) else type(output).__name__
            raise QuantizationError(f"{path}: {found} is {kind} and not float32: export it with optimum")
        if output.shape[:-1] != shape:
            raise QuantizationError(
                f"{path}: {found} has shape {output.shape}, not a vector a token: export it with optimum, task "
                "feature-extraction"
            )
        if not np.isfinite(output).all():
            raise QuantizationError(f"{path}: {found} is not finite, {ANEW}")


def _trial(path: Path, name: str) -> list[object]:
    """The output `name` for token ids of each shape of TRIALS."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, so they need no line in the log
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        read = [node.name for node in session.get_inputs()]
        return [session.run([name], {key: np.full(shape, INPUTS[key]) for key in read})[0] for shape in TRIALS]
    except Exception as error:  # onnxruntime's errors have no class in common but this
        raise QuantizationError(f"{path} cannot be run by onnxruntime ({shorten(str(error), 300)}), {ANEW}") from error


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes, and those of the graphs that they hold."""
    for node in nodes:
        yield node
        for graph in _subgraphs(node):
            yield from _nodes(graph.node)


def _subgraphs(node: NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _tensors(graph: onnx.GraphProto, nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    """The constants of a graph and of `nodes`, which are all that it holds."""
    sparse = list(graph.sparse_initializer)
    yield from graph.initializer
    for node in nodes:
        for subgraph in _subgraphs(node):
            yield from subgraph.initializer
            sparse += subgraph.sparse_initializer
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("sparse_tensor"):
                sparse.append(attribute.sparse_tensor)
            yield from attribute.tensors
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)
