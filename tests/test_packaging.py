"""The package: what is declared is what is imported and pinned, what is shipped, and the types that editors see."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "llmtune").rglob("*.py"))
PINNED = {
    one.name.lower().replace("_", "-"): next(iter(one.specifier)).version
    for name in ("requirements.txt", "requirements-test.txt", "requirements-test-nodeps.txt")
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#") and (one := Requirement(line))
}
OTHER_NAMES = {
    "PIL": "pillow", "yaml": "pyyaml", "liger_kernel": "liger-kernel", "lm_eval": "lm-eval", "mlflow": "mlflow-skinny",
    "prometheus_client": "prometheus-client",
}  # fmt: skip
BROUGHT = {
    "huggingface_hub": "transformers", "tokenizers": "transformers", "pyarrow": "datasets", "pandas": "datasets",
    "pydantic": "fastapi", "pydantic_core": "fastapi", "starlette": "fastapi", "h11": "uvicorn", "logbar": "gptqmodel",
    "jinja2": "torch", "filelock": "torch", "packaging": "transformers", "fsspec": "datasets", "requests": "modelscope",
    "dill": "datasets", "multiprocess": "datasets", "xxhash": "datasets", "regex": "transformers",
}  # fmt: skip
"""Imported, and required by another package that we require."""


@pytest.fixture(scope="module")
def package() -> Mapping[str, Any]:
    """The arguments of setup()."""
    found: dict[str, Any] = {}
    former, setuptools.setup = setuptools.setup, found.update
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        setuptools.setup = former
    return found


def required(package: Mapping[str, Any], *extras: str) -> list[Requirement]:
    lines = [*package["install_requires"], *(line for extra in extras for line in package["extras_require"][extra])]
    return [Requirement(line) for line in lines]


def test_pins_lie_in_the_ranges(package):
    for one in required(package, *package["extras_require"]):
        name = one.name.lower().replace("_", "-")
        if name in PINNED:
            assert one.specifier.contains(PINNED[name]), one
    for one in required(package):
        assert one.name.lower() in PINNED, f"requirements.txt does not pin {one.name}"
        assert str(one.specifier).startswith(">="), f"{one} has no lower bound"


def test_imports_are_declared(package):
    names = {one.name.lower().replace("_", "-") for one in required(package, *package["extras_require"])}
    missing: dict[str, set[str]] = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for top in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"llmtune"}:
                declared = BROUGHT.get(top) or OTHER_NAMES.get(top) or top.replace("_", "-")
                if declared.lower() not in names:
                    missing.setdefault(top, set()).add(file.name)
    assert missing == {}


def test_extras_in_texts_exist(package):
    extras = set(package["extras_require"])
    texts = [*FILES, *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").rglob("*.*")]
    named: set[str] = set()
    for file in texts:
        if file.suffix in (".py", ".md", ".sh"):
            text = file.read_text(encoding="utf-8")
            named |= {name for names in re.findall(r"llmtune\[([\w,]+)\]", text) for name in names.split(",")}
            named |= set(re.findall(r'extra="(\w+)"', text))
    assert named - {"rlhf", "forbid"} <= extras  # of earlier versions, in CHANGELOG.md; pydantic's word
    assert {"wandb", "swanlab", "mlflow", "trackio", "tensorboard"} <= extras


def test_one_python_is_named(package):
    lowest = package["python_requires"].removeprefix(">=")
    versions = [f"3.{minor}" for minor in range(11, 15)]
    assert lowest == versions[0]
    assert [one.rpartition(" ")[2] for one in package["classifiers"] if "Python :: 3." in one] == versions
    assert f'target-version = "py{lowest.replace(".", "")}"' in (ROOT / "pyproject.toml").read_text()
    for name in ("README.md", "docs/quickstart.md", "CONTRIBUTING.md"):
        assert f"Python {lowest} to {versions[-1]}" in (ROOT / name).read_text(encoding="utf-8")
    assert "(3, 11) <= sys.version_info[:2] < (3, 15)" in (ROOT / "Makefile").read_text()
