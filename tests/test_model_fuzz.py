"""Model files that somebody has damaged, by accident or not: they are refused or computed, and the process stays.

`make sanitize` runs this file too, where a read or write beside an array ends the process. FUZZ_MODELS says how many
models are tried. FUZZ_SEED repeats one: the last number in the file that FUZZ_LOG names.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper

import kernels
from quantize.assemble import DOMAIN
from tests.support.operators import EXAMPLES, model_of

MODELS = int(os.environ.get("FUZZ_MODELS", "3000"))
SEED = os.environ.get("FUZZ_SEED")
LOG = os.environ.get("FUZZ_LOG", os.devnull)

TYPES = [TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64]
TYPES += [TensorProto.DOUBLE, TensorProto.STRING, TensorProto.FLOAT16, TensorProto.BOOL]
SIZES = [0, 1, 2, 3, 5, 15, 16, 17, 31, 32, 48, 96, 384, 1536, 1 << 20, 1 << 31, (1 << 62) + 1, -1]
NUMBERS = [0.0, -1.0, 1e-45, 1e12, -3e38, float("inf"), float("nan")]
KINDS = [*EXAMPLES, "Relu", "NoSuchOperator"]

Feeds = dict[str, np.ndarray]
Mutation = Callable[[random.Random, ModelProto, Feeds], None]


def reshape(dice: random.Random, model: ModelProto, _: Feeds) -> None:
    """A constant of other sizes, with as many bytes as they need, or not."""
    tensor = dice.choice(model.graph.initializer)
    sizes = [dice.choice([*SIZES, *tensor.dims]) for _ in range(dice.randrange(4))]
    del tensor.dims[:]
    tensor.dims.extend(sizes)
    count = int(np.prod([abs(size) for size in sizes], dtype=object))
    if count < 1 << 16 and dice.random() < 0.9:
        bytes_each = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        tensor.raw_data = (tensor.raw_data * (count * bytes_each // max(1, len(tensor.raw_data)) + 1))[
            : count * bytes_each
        ]


def retype(dice: random.Random, model: ModelProto, _: Feeds) -> None:
    dice.choice(model.graph.initializer).data_type = dice.choice(TYPES)


def spoil(dice: random.Random, model: ModelProto, feeds: Feeds) -> None:
    """Some bytes of a constant."""
    tensor = dice.choice(model.graph.initializer)
    content = bytearray(tensor.raw_data)
    for _ in range(dice.randrange(1, 9)):
        if content:
            content[dice.randrange(len(content))] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])
    tensor.raw_data = bytes(content)


def number(dice: random.Random, model: ModelProto, _: Feeds) -> None:
    """A constant full of one number."""
    tensor = dice.choice(model.graph.initializer)
    if tensor.data_type == TensorProto.FLOAT:
        tensor.raw_data = np.full(len(tensor.raw_data) // 4, dice.choice(NUMBERS), np.float32).tobytes()


def compute(dice: random.Random, model: ModelProto, feeds: Feeds) -> None:
    """A constant is fed instead."""
    tensor = dice.choice(model.graph.initializer)
    try:
        feeds[tensor.name] = onnx.numpy_helper.to_array(tensor)
    except Exception:  # noqa: BLE001  it has been mutated before
        return
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, None))
    if dice.random() < 0.7:  # else it can be overridden, and is no constant either
        model.graph.initializer.remove(tensor)


def rewire(dice: random.Random, model: ModelProto, _: Feeds) -> None:
    """Inputs of a node are missing, swapped, doubled or too many."""
    node = dice.choice(model.graph.node)
    inputs = list(node.input)
    if not inputs:
        return
    place, other = dice.randrange(len(inputs)), dice.choice(inputs)
    change = dice.randrange(5)
    if change == 0:
        inputs[place] = ""
    elif change == 1:
        inputs = inputs[:place]
    elif change == 2:
        inputs[place] = other
    elif change == 3:
        inputs.append(other)
    else:
        inputs.reverse()
    del node.input[:]
    node.input.extend(inputs)


def outputs(dice: random.Random, model: ModelProto, _: Feeds) -> None:
    """A node with fewer outputs, or more."""
    node = dice.choice(model.graph.node)
    if dice.random() < 0.5:
        node.output.append("another")
    elif node.output:
        name = node.output.pop()
        for value in list(model.graph.output):
            if value.name == name and len(model.graph.output) > 1:
                model.graph.output.remove(value)


def attribute(dice: random.Random, model: ModelProto, _: Feeds) -> None:
    node = dice.choice(model.graph.node)
    for item in list(node.attribute):
        change = dice.randrange(4)
        if change == 0:
            node.attribute.remove(item)
        elif change == 1:
            item.type = dice.choice([AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.STRING])
        else:
            item.i = dice.choice([*SIZES, -(1 << 63)])
            item.f = dice.choice(NUMBERS)


def kind(dice: random.Random, model: ModelProto, _: Feeds) -> None:
    node = dice.choice(model.graph.node)
    node.op_type, node.domain = dice.choice(KINDS), dice.choice([DOMAIN, DOMAIN, ""])


def feed(dice: random.Random, _: ModelProto, feeds: Feeds) -> None:
    """Something else is fed: other sizes, other numbers."""
    name = dice.choice(sorted(feeds))
    value = feeds[name]
    if dice.random() < 0.5:
        shape = [dice.choice([*SIZES[:12], *value.shape]) for _ in range(dice.randrange(4))]
        feeds[name] = np.zeros([size if np.prod(shape) < 1 << 18 else min(size, 16) for size in shape], value.dtype)
    elif value.size:
        copy = value.copy()
        bad = NUMBERS if value.dtype == np.float32 else [np.iinfo(value.dtype).min, np.iinfo(value.dtype).max]
        copy.flat[dice.randrange(value.size)] = dice.choice(bad)
        feeds[name] = copy


WITHOUT_CONSTANTS: list[Mutation] = [rewire, outputs, attribute, kind, feed, feed]
MUTATIONS: list[Mutation] = [reshape, retype, spoil, number, compute, *WITHOUT_CONSTANTS]


@cache
def options() -> onnxruntime.SessionOptions:
    """Of all sessions: a session takes a copy."""
    made = onnxruntime.SessionOptions()
    made.log_severity_level = 4
    made.intra_op_num_threads = made.inter_op_num_threads = 1
    kernels.register(made)
    return made


def attempt(model: bytes, feeds: Feeds) -> bool:
    """Make a session and run it. False if that was refused; anything but a Python exception ends the process."""
    try:
        session = onnxruntime.InferenceSession(model, options(), providers=["CPUExecutionProvider"], enable_fallback=0)
        session.run(None, feeds)
    except Exception:  # noqa: BLE001  onnxruntime has a class for each code of its own
        return False
    return True


def mutated(seed: int, content: bytes, feeds: Feeds) -> tuple[bytes, Feeds]:
    """A model that is wrong in one to three ways; one of sixteen also in a byte of the file."""
    dice = random.Random(seed)
    feeds = dict(feeds)
    model = ModelProto.FromString(content)
    for _ in range(dice.choice([1, 1, 2, 3])):
        dice.choice(MUTATIONS if model.graph.initializer else WITHOUT_CONSTANTS)(dice, model, feeds)
    content = model.SerializeToString()
    if dice.random() < 1 / 16:
        place = dice.randrange(len(content))
        content = content[:place] + bytes([dice.randrange(256)]) + content[place + 1 :]
    return content, feeds


@pytest.mark.parametrize("operator", EXAMPLES)
def test_damaged_models_do_not_end_the_process(operator: str) -> None:
    made, names, attributes = EXAMPLES[operator]
    original = model_of(operator, made(), names, **attributes)
    assert attempt(*original)
    seeds = [int(SEED)] if SEED else range(MODELS // len(EXAMPLES))
    accepted = 0
    with Path(LOG).open("w") as log:
        for seed in seeds:
            log.write(f"{operator} {seed}\n")
            log.flush()
            accepted += attempt(*mutated(seed, *original))
    if not SEED:  # both must happen, or nothing has been tried
        assert 0.02 < accepted / len(seeds) < 0.9
