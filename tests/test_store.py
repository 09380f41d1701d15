"""Versions appear whole or not at all."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from artifact import store
from artifact.manifest import MANIFEST, ArtifactError, open_artifact
from artifact.store import BusyError, StorageError
from tests.support.servers import ROOT

CopyModel = Callable[[str], Path]


@pytest.fixture
def model(copy_model: CopyModel) -> Path:
    """A model folder with v1 in use."""
    return copy_model("v1")


@pytest.fixture
def built(model: Path, tmp_path: Path) -> Path:
    """The files of v2, outside of the model folder."""
    folder = tmp_path / "built"
    folder.mkdir()
    for path in (model / "v1").iterdir():
        (folder / path.name).hardlink_to(path)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_bytes(open_artifact(model).manifest._replace(version="v2").to_json())
    return folder


def stage(built: Path, workdir: Path) -> Path:
    staged = workdir / "version"
    staged.mkdir()
    for path in built.iterdir():
        (staged / path.name).hardlink_to(path)
    return staged


def test_install_puts_a_version_into_use(model: Path, built: Path) -> None:
    with store.staging(model) as workdir:
        assert store.install(stage(built, workdir), model, "v2") is True
    assert open_artifact(model).manifest.version == "v2"
    open_artifact(model).check_digests()
    assert open_artifact(model / "v1").manifest.version == "v1"
    assert sorted(path.name for path in model.iterdir()) == [".lock", "current", "v1", "v2"]


def test_an_intact_version_is_kept(model: Path, built: Path) -> None:
    with store.staging(model) as workdir:
        store.install(stage(built, workdir), model, "v2")
    before = (model / "v2").stat().st_ino
    store.switch_current(model, "v1")
    with store.staging(model) as workdir:
        assert store.install(stage(built, workdir), model, "v2") is False
    assert (model / "v2").stat().st_ino == before
    assert open_artifact(model).manifest.version == "v2"


def test_a_damaged_version_is_replaced(model: Path, built: Path) -> None:
    with store.staging(model) as workdir:
        store.install(stage(built, workdir), model, "v2")
    (model / "v2" / "model.onnx").unlink()
    (model / "v2" / "model.onnx").write_bytes(b"damaged")
    with store.staging(model) as workdir:
        assert store.install(stage(built, workdir), model, "v2") is True
    open_artifact(model).check_digests()


def test_only_the_damaged_files_of_a_version_are_replaced(model: Path, built: Path) -> None:
    """Running environments may have mapped any of them: NFS keeps no file that has lost its last name."""
    with store.staging(model) as workdir:
        store.install(stage(built, workdir), model, "v2")
    for path in built.iterdir():  # the installed files are links to these
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    damaged = model / "v2" / "model.onnx"
    damaged.write_bytes(b"damaged")
    with ExitStack() as stack:
        served = {path.name: stack.enter_context(path.open("rb")) for path in (model / "v2").iterdir()}
        with store.staging(model) as workdir:
            assert store.install(stage(built, workdir), model, "v2") is True
        store.open_version(model, "v2")
        for name, file in served.items():
            assert os.fstat(file.fileno()).st_nlink > 0, name
            assert os.path.samestat(os.fstat(file.fileno()), (model / "v2" / name).stat()) is (name != "model.onnx")
        assert served["model.onnx"].read() == b"damaged"
    store.switch_current(model, "v1")
    assert store.prune(model, 0) == (["v2"], [])


@pytest.mark.parametrize("name", ["model.onnx", MANIFEST])
@pytest.mark.parametrize("damage", ["missing", "a folder", "a link to nowhere", "a pipe"])
def test_whatever_is_in_the_place_of_a_file_is_replaced(model: Path, built: Path, name: str, damage: str) -> None:
    with store.staging(model) as workdir:
        store.install(stage(built, workdir), model, "v2")
    path = model / "v2" / name
    path.unlink()
    if damage == "a folder":
        path.mkdir()
        (path / "note").touch()
    elif damage == "a link to nowhere":
        path.symlink_to(model / "nowhere")
    elif damage == "a pipe":
        os.mkfifo(path)
    with store.staging(model) as workdir:
        assert store.install(stage(built, workdir), model, "v2") is True
    store.open_version(model, "v2")
    assert not (model / "nowhere").exists()


@pytest.mark.parametrize("damage", ["a file is cut", "a file is missing", "of another version", "no manifest"])
def test_what_cannot_be_opened_is_never_switched_to(model: Path, built: Path, damage: str) -> None:
    with store.staging(model) as workdir:
        staged = stage(built, workdir)
        if damage == "a file is cut":
            (staged / "model.onnx").unlink()
            (staged / "model.onnx").write_bytes(b"cut")
        elif damage != "of another version":
            (staged / ("model.onnx" if damage == "a file is missing" else MANIFEST)).unlink()
        with pytest.raises(ArtifactError):
            store.install(staged, model, "v3" if damage == "of another version" else "v2")
    assert open_artifact(model).manifest.version == "v1"
    assert sorted(path.name for path in model.iterdir()) == [".lock", "current", "v1"]


def test_a_model_folder_in_the_place_of_a_version_is_not_intact(model: Path) -> None:
    model.rename(model.with_name("v1"))
    model.mkdir()
    model.with_name("v1").rename(model / "v1")
    assert not store.is_intact(model / "v1")
    assert open_artifact(model / "v1" / "v1").manifest.version == "v1"


def test_a_twin_of_a_version_is_refused(model: Path, built: Path) -> None:
    (model / "v1").rename(model / "V2")
    with store.staging(model) as workdir:
        staged = stage(built, workdir)
        with pytest.raises(StorageError, match="/V2 is in the way: its name differs from v2 in case alone"):
            store.install(staged, model, "v2")
    assert sorted(path.name for path in model.iterdir()) == [".lock", "V2", "current"]


def test_killed_at_any_step_a_reader_finds_a_whole_version(model: Path, built: Path) -> None:
    """kill -9 before the first, second, ... operation on the file system, until one run gets through."""
    seen = []
    for step in range(1, 100):
        command = [sys.executable, "-m", "tests.programs.kill_install", str(built), str(model), str(step)]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        artifact = open_artifact(model)
        artifact.check_digests()
        seen.append(artifact.manifest.version)
        assert_only_whole_versions(model)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if seen[-1] == "v2":
            store.switch_current(model, "v1")
    assert status == 0
    assert len(seen) > 5
    assert {"v1", "v2"} == set(seen)


def assert_only_whole_versions(model: Path) -> None:
    for folder in model.iterdir():
        if folder.is_dir() and not folder.name.startswith("."):
            open_artifact(folder).check_digests()


def test_leftovers_of_a_killed_export_are_removed(model: Path) -> None:
    leftover = model / ".staging-1"
    leftover.mkdir()
    (leftover / "model.onnx").write_bytes(b"half")
    with store.staging(model) as workdir:
        assert not leftover.exists()
        assert workdir.is_dir()
    assert not workdir.exists()


def test_two_exports_at_once_are_refused(model: Path) -> None:
    with (
        store.staging(model),
        pytest.raises(BusyError, match=f"another process is writing to {model}"),
        store.staging(model),
    ):
        pass
    with store.staging(model):
        pass


def test_a_failing_export_leaves_no_staging_folder(model: Path) -> None:
    with pytest.raises(ArtifactError), store.staging(model):
        raise ArtifactError("anything")
    assert not list(model.glob(".staging-*"))
