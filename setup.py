"""Packaging. Ranges begin with requirements-oldest.txt; requirements.txt pins the set of the tests."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "llmtune/__init__.py").read_text(encoding="utf-8"), re.M)[1]
README = ROOT / "README.md"

# What sends losses to each tracker; each is an extra of its own.
TRACKERS = {
    "mlflow": ["mlflow-skinny>=3"],
    "swanlab": ["swanlab>=0.6.4"],
    "trackio": ["trackio"],
    "wandb": ["wandb>=0.20"],
}


class BuildWithDeepSpeedFiles(build_py):
    """Ships ds_config, which stays at the top of the checkout, where scripts name it, as llmtune/ds_config.

    A package_dir that maps it would make editable installs import hooks, through which editors and mypy see no types.
    """

    files = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "ds_config").glob("*.json"))

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for file, target in zip(self.files, self._targets(), strict=True):
                self.mkpath(str(Path(target).parent))
                self.copy_file(file, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *([] if self.editable_mode else self._targets())]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *self.files]

    def _targets(self) -> list[str]:
        return [f"{self.build_lib}/llmtune/{file}" for file in self.files]


setup(
    name="llmtune",
    version=VERSION,
    description="Fine-tune large language models from three registries: models, datasets and chat templates",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["llmtune", "llmtune.*"]),
    package_dir={"": "."},  # said explicitly, an editable install is a path, not an import hook
    package_data={"llmtune": ["py.typed"], "llmtune.models": ["tiny_corpus.txt"]},
    cmdclass={"build_py": BuildWithDeepSpeedFiles},
    entry_points={"console_scripts": ["llmtune=llmtune.cli.main:main"]},
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17",
        "peft>=0.20",
        "accelerate>=1.12",
        "datasets>=4.4",
        # The first release whose downloads go through modelscope-hub, which is what llmtune imports.
        "modelscope>=1.38",
        "modelscope-hub>=0.5",
        "safetensors>=0.8",
        "pyyaml>=6.0.1",
        "tensorboardX>=2.6.2.2",
        "pillow>=10.1",
        "tiktoken>=0.9",
        "tqdm>=4.66.3",
        "numpy>=2",
        "psutil>=6",
    ],
    extras_require={
        "eval": ["lm-eval>=0.4.9"],
        "gguf": ["gguf>=0.17"],
        "quant": ["bitsandbytes>=0.46"],
        # gptqmodel 7.7 asks for torch 2.14 and works with 2.13: see requirements-test-nodeps.txt where pip refuses it.
        "gptq": ["gptqmodel>=7", "optimum>=1.24"],
        "torchao": ["torchao>=0.14"],
        "liger": ["liger-kernel>=0.6"],
        "kernels": ["kernels>=0.11"],
        "deepspeed": ["deepspeed>=0.17"],
        "ray": ["ray[train]"],
        # Rewards of mathematics compare expressions by it.
        "math": ["math-verify"],
        "serve": ["fastapi>=0.115", "uvicorn>=0.30", "prometheus-client>=0.20"],
        # The image processors of some families, Qwen's for instance, are torchvision's.
        "vision": ["torchvision"],
        "board": ["nicegui>=3.4", "httpx>=0.27"],
        "web": ["streamlit>=1.67"],
        "tensorboard": ["tensorboard>=2.16"],
        **TRACKERS,
        "trackers": sorted(package for packages in TRACKERS.values() for package in packages),
        "docs": ["zensical>=0.0.73"],
        "test": [
            "bitsandbytes",
            "codespell",
            "hypothesis",
            "mypy",
            "pre-commit",
            "pytest",
            "pytest-cov",
            "pytest-xdist",
            "ruff",
            "sentencepiece",
            "types-PyYAML",
        ],
    },
)
