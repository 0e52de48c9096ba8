"""Packaging. Ranges stand here; requirements.txt pins the set that the tests run on."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "llmtune/__init__.py").read_text(encoding="utf-8"), re.M)[1]
README = ROOT / "README.md"

setup(
    name="llmtune",
    version=VERSION,
    description="Fine-tune large language models from three registries: models, datasets and chat templates",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # ds_config stays at the top of the checkout, where scripts name it, and is shipped as llmtune/ds_config.
    packages=[*find_packages(include=["llmtune", "llmtune.*"]), "llmtune.ds_config"],
    package_dir={"llmtune": "llmtune", "llmtune.ds_config": "ds_config"},
    package_data={
        "llmtune": ["py.typed"],
        "llmtune.models": ["tiny_corpus.txt"],
        "llmtune.ds_config": ["*.json"],
    },
    entry_points={"console_scripts": ["llmtune=llmtune.cli.main:main"]},
    install_requires=[
        "torch>=2.6",
        "transformers>=5.10",
        "peft>=0.18",
        "accelerate>=1.10",
        "datasets>=4.0",
        "modelscope>=1.20",
        "safetensors",
        "rouge-score>=0.1.2",
        "pyyaml",
        "tensorboard",
        "matplotlib",
        "tiktoken",
        "tqdm",
        "numpy",
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
        "trackers": ["mlflow", "swanlab", "trackio", "wandb"],
        "serve": ["fastapi>=0.115", "uvicorn>=0.30", "prometheus-client>=0.20"],
        "vision": ["pillow>=10"],
        "web": ["streamlit>=1.67"],
        "docs": ["mkdocs-material>=9.5"],
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
