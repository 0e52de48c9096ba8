"""The package: what is declared is what is imported and pinned, what is shipped, and the types that editors see."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.version import Version

from .waiting import SECONDS

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


ON_A_GPU_MACHINE = {
    "aiohttp", "annotated-doc", "anyio", "attrs", "click", "filelock", "fsspec", "h11", "httpx", "huggingface-hub",
    "numpy", "packaging", "pandas", "protobuf", "pyarrow", "pyyaml", "requests", "setuptools", "torch", "tqdm",
    "typing-extensions", "urllib3", "xxhash",
}  # fmt: skip
"""What benchmarks/gpu/wheels.txt may leave out: other packages bring it, or it comes with torch and transformers."""


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


def test_lower_bounds_are_those_that_were_tested(package):
    lines = (ROOT / "requirements-oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = {one.name: one for line in lines if line and line[0] != "#" and (one := Requirement(line))}
    bounds = {one.name: Version(next(iter(one.specifier)).version) for one in required(package) if one.name != "torch"}
    assert bounds == {name: Version(next(iter(one.specifier)).version) for name, one in oldest.items()}


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


# Built


def source(folder: Path) -> Path:
    """The checkout's files, without what was built in it."""
    copy = folder / "source"
    copy.mkdir()
    for name in ("llmtune", "ds_config"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def built(folder: Path, hook: str, *, at: Path) -> Path:
    """What a hook of the build backend makes: build_wheel, build_sdist, build_editable."""
    folder.mkdir(exist_ok=True)
    script = f"from setuptools.build_meta import {hook}\nprint({hook}({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=at, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.mark.medium
def test_the_wheel_has_all_files_and_so_has_one_from_the_sdist(tmp_path):
    copy = source(tmp_path)
    names = {file.relative_to(ROOT).as_posix() for file in FILES}
    names |= {f"llmtune/ds_config/{file.name}" for file in (ROOT / "ds_config").glob("*.json")}
    names |= {"llmtune/py.typed", "llmtune/models/tiny_corpus.txt"}
    assert len([name for name in names if "ds_config" in name]) == 4
    first = zipfile.ZipFile(built(tmp_path / "one", "build_wheel", at=copy)).namelist()
    assert {name for name in first if ".dist-info/" not in name} == names
    shutil.unpack_archive(built(tmp_path / "two", "build_sdist", at=copy), tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert sorted(zipfile.ZipFile(built(tmp_path / "three", "build_wheel", at=unpacked)).namelist()) == sorted(first)


USER = """
from llmtune import SftArguments, sft

sft(SftArguments(model_type="llmtune-tiny", dataset=["tiny-qa"], lora_rang=8))
found: int = sft(SftArguments(model_type="llmtune-tiny", dataset=["tiny-qa"], lora_rank=8)).output_dir
"""
DEEPSPEED = """
import json
from llmtune.distributed.deepspeed import deepspeed_file, packaged_configs
print(json.dumps([packaged_configs(), str(deepspeed_file("zero3"))]))
"""


@pytest.mark.medium
@pytest.mark.parametrize("hook", ["build_editable", "build_wheel"])
def test_an_installed_llmtune_shows_types_and_finds_its_files(tmp_path, hook):
    copy = source(tmp_path)
    venv.create(tmp_path / "venv", with_pip=False)
    python = next(file for file in (tmp_path / "venv").glob("*/python*") if file.is_file())
    (site,) = (tmp_path / "venv").rglob("site-packages")
    zipfile.ZipFile(built(tmp_path / "made", hook, at=copy)).extractall(site)
    user = tmp_path / "user"
    user.mkdir()
    (user / "mine.py").write_text(USER, encoding="utf-8")
    words = [sys.executable, "-m", "mypy", "--python-executable", str(python), "--cache-dir", "cache", "mine.py"]
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    shown = subprocess.run(words, cwd=user, env=clean, capture_output=True, text=True, timeout=SECONDS)
    assert 'Unexpected keyword argument "lora_rang"' in shown.stdout, shown.stdout + shown.stderr
    assert 'has type "Path", variable has type "int"' in shown.stdout
    assert "Found 2 errors" in shown.stdout
    words = [str(python), "-c", DEEPSPEED]
    found = subprocess.run(words, cwd=user, env=clean, capture_output=True, text=True, timeout=SECONDS)
    names, file = json.loads(found.stdout)
    assert names == ["zero2", "zero2_offload", "zero3", "zero3_offload"]
    assert file == str((copy if hook == "build_editable" else site / "llmtune") / "ds_config" / "zero3.json")


def test_wheels_for_a_gpu_machine_bring_what_they_need():
    text = (ROOT / "benchmarks" / "gpu" / "wheels.txt").read_text(encoding="utf-8")
    brought = {line.split("==")[0] for line in text.splitlines() if line and not line.startswith("#")}
    names = {name.lower().replace("_", "-") for name in brought}
    missing = {}
    for name in brought - {"liger-kernel"}:  # asks for torch and triton
        for one in map(Requirement, metadata.requires(name) or []):
            needed = not one.marker or one.marker.evaluate({"extra": "", "python_version": "3.12"})
            if needed and one.name.lower().replace("_", "-") not in names | ON_A_GPU_MACHINE:
                missing[one.name] = name
    assert missing == {"cryptography": "modelscope-hub"}  # for keys of a login, which no benchmark makes
