"""python -m quantize: what it writes, and what it refuses."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from handler.artifact import open_artifact
from quantize import DEFAULT_RECIPE, RECIPES, QuantizationError, quantize


@pytest.fixture(scope="module")
def float32_file(model_folder: Path) -> Path:
    return open_artifact(model_folder).model("fp32")


def weights(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_quantize_every_linear_per_channel(recipe: str, float32_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "int8.onnx"
    quantize(float32_file, target, recipe)
    model = onnx.load(target)
    linears = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert len(linears) == 36
    tensors = weights(target)
    for node in linears:
        weight, scale = tensors[node.input[1]], tensors[node.input[1].replace("_quantized", "_scale")]
        assert weight.dtype == (np.int8 if RECIPES[recipe].signed_weights else np.uint8)
        assert scale.shape == (weight.shape[1],)
    assert target.stat().st_size < float32_file.stat().st_size / 3.9


def test_the_same_input_gives_the_same_bytes(float32_file: Path, tmp_path: Path, model_folder: Path) -> None:
    quantize(float32_file, tmp_path / "int8.onnx")
    assert (tmp_path / "int8.onnx").read_bytes() == open_artifact(model_folder).model("int8").read_bytes()


def test_unknown_recipe(float32_file: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="no recipe 'int4': choose one of avx2, avx512_vnni, arm64"):
        quantize(float32_file, tmp_path / "out.onnx", "int4")


def test_quantized_input_is_refused(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="is quantized already"):
        quantize(open_artifact(model_folder).model("int8"), tmp_path / "out.onnx")


@pytest.mark.parametrize(("content", "message"), [(b"\xff" * 99, "not an ONNX model"), (b"", "no MatMul to quantize")])
def test_files_that_are_no_transformer_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(content)
    with pytest.raises(QuantizationError, match=message):
        quantize(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


def test_missing_input(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"cannot read .*in.onnx: No such file"):
        quantize(tmp_path / "in.onnx", tmp_path / "out.onnx")


def test_unwritable_output_leaves_nothing(float32_file: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=r"cannot write .*out.onnx: No such file or directory"):
        quantize(float32_file, tmp_path / "no" / "out.onnx")
    (tmp_path / "taken").mkdir()
    with pytest.raises(QuantizationError, match=r"cannot write .*taken: Is a directory"):
        quantize(float32_file, tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_command_line(float32_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quantize"]
    shutil.copy(float32_file, tmp_path / "in.onnx")
    arguments = [str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--recipe", "avx2"]
    ran = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    assert "out.onnx: 23.0 MB, from 90.4 MB, recipe avx2" in ran.stdout
    assert ran.stderr == ""
    ran = subprocess.run([*command, arguments[1], arguments[0]], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"quantize: {arguments[1]} is quantized already")
    assert DEFAULT_RECIPE in RECIPES
