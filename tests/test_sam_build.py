"""`sam build`, without Docker, gives what deploy/package.py gives, for the processor that this one is not.

For this one tests/test_make_deploy.py builds, and runs what it has built.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifact.manifest import open_artifact
from deploy.package import LAMBDA_PYTHON, package
from tests.support.packages import digests, no_python
from tests.support.servers import ROOT

pytestmark = pytest.mark.slow

SAM = ROOT / "build" / "aws" / "bin" / "sam"
ARCHITECTURE = "arm64"


def test_sam_builds_function_loader_and_model(tmp_path: Path, model_folder: Path) -> None:
    if not SAM.exists():
        pytest.skip("AWS's tools are not installed: make aws-tools")
    if reason := no_python():
        pytest.skip(reason)
    variables = {"SAM_CLI_TELEMETRY": "0", "AWS_DEFAULT_REGION": "us-east-1", "ARCHITECTURE": ARCHITECTURE}
    command = [str(SAM), "build", "--build-dir", str(tmp_path / "build")]
    command += ["--parameter-overrides", f"Architecture={ARCHITECTURE}"]
    environment = {**os.environ, **variables, "PYTHON": sys.executable}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    package(tmp_path / "package", LAMBDA_PYTHON, ARCHITECTURE)
    assert digests(tmp_path / "build" / "EmbeddingFunction") == digests(tmp_path / "package")
    assert (tmp_path / "build" / "LoaderFunction" / "loader" / "app.py").is_file()
    model = open_artifact(tmp_path / "build" / "ModelLayer" / "ml-models" / model_folder.name)
    model.check_digests()
    assert list(model.manifest.precisions) == ["int8"]
