"""Runs on each CPU of tests/test_portability.py. Arguments: model folder, work folder, output file (.npz).

Embeds the texts of `texts.json` in the work folder with the INT8 model, and runs each `products/NAME.onnx` on every
array of `products/NAME.npz`. The output has `machine`, `vectors`, and the products as `NAME/<name of the array>`.
Emulation is slow, so that nothing is imported here but what is deployed.
"""

import json
import platform
import sys
from pathlib import Path

import numpy as np

from handler.embedder import Embedder  # before onnxruntime, whose telemetry it switches off

import onnxruntime  # isort: skip

from kernels import register

model_folder, workdir, output = map(Path, sys.argv[1:])
texts = json.loads((workdir / "texts.json").read_text("utf-8"))
results = {"machine": np.array(platform.machine()), "vectors": Embedder.load(model_folder).embed(texts).vectors}
options = onnxruntime.SessionOptions()
register(options)
for path in (workdir / "products").glob("*.onnx"):
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    with np.load(path.with_suffix(".npz")) as activations:
        for name, codes in activations.items():
            rest = np.array([[1, 0]] * len(codes), np.float32)  # scale and lowest value
            results[f"{path.stem}/{name}"] = session.run(None, {"activations": codes, "rest": rest})[0]
np.savez(output, allow_pickle=False, **results)
