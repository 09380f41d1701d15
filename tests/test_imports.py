"""Who imports whom, and what a cold start loads."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT

ALLOWED = {
    "kernels": set(),
    "artifact": set(),
    "handler": {"artifact", "kernels"},
    "quantize": {"kernels"},
    "loader": {"artifact"},
    "export": {"artifact", "handler", "kernels", "quantize"},
    "deploy": {"artifact", "export", "handler", "kernels"},
    "local": set(),
    "benchmarks": {"artifact", "deploy", "export", "handler", "kernels", "quantize"},
}
OURS = {*ALLOWED, "tests"}
DEPLOYED = {"numpy", "onnxruntime", "orjson", "tokenizers"}


def imported_packages(folder: str) -> set[str]:
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} has a relative import"
                found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_the_design_allows(package: str) -> None:
    assert (imported_packages(package) & OURS) - {package} <= ALLOWED[package]


def test_handler_imports_only_what_is_deployed() -> None:
    third_party = imported_packages("handler") - set(sys.stdlib_module_names) - OURS
    assert third_party == DEPLOYED


def test_loader_imports_only_what_lambdas_runtime_brings_and_orjson() -> None:
    third_party = imported_packages("loader") - set(sys.stdlib_module_names) - OURS
    assert third_party == {"boto3", "botocore", "orjson"}


def test_a_fresh_process_loads_nothing_else(model_cache: Path) -> None:
    code = (
        "import sys, json; before = set(sys.modules); import handler.app;"
        "handler.app.lambda_handler({'text': 'vitamin d'}, None);"
        "loaded = {name: module for name, module in sys.modules.items() if name not in before};"
        "print(json.dumps({name: getattr(module, '__file__', None) for name, module in loaded.items()}))"
    )
    environment = {**os.environ, "MODEL_CACHE_DIR": str(model_cache)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    modules: dict[str, str | None] = json.loads(ran.stdout.splitlines()[-1])  # after the log line
    installed = {name.split(".")[0] for name, file in modules.items() if file and "site-packages" in file}
    assert installed == DEPLOYED
    assert not {"torch", "transformers", "onnx", "optimum"} & set(modules)


def test_telemetry_is_off_before_onnxruntime_loads() -> None:
    code = "import os, handler.embedder; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "1"
    source = (ROOT / "handler" / "embedder.py").read_text("utf-8")
    assert source.index("ORT_DISABLE_TELEMETRY") < source.index("import onnxruntime")
