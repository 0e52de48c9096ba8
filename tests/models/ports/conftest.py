"""The oracles: tiny random checkpoints in the original layout, with what the original code made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmtune.models.loading import load_causal_lm

FAMILIES = ("qwen_v1", "baichuan_7b_v1", "baichuan2_7b", "baichuan_13b_v1", "chatglm2_6b", "internlm_v1_7b")


@dataclass(frozen=True)
class Oracle:
    family: str
    folder: Path
    model: Any
    meta: dict[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.load(self.folder / f"{name}.npy"))

    def fresh(self, **options: Any) -> Any:
        """A model of one's own, to change."""
        return load(self.folder, **options)


def load(folder: Path, **options: Any) -> Any:
    return load_causal_lm(str(folder), torch_dtype=torch.float32, model_kwargs=options, load_tokenizer=False)[0]


@pytest.fixture(scope="session", name="load")
def _load():
    return load


@pytest.fixture(scope="session", params=FAMILIES)
def oracle(request: pytest.FixtureRequest, assets: Path) -> Oracle:
    folder = assets / "oracles" / request.param
    return Oracle(request.param, folder, load(folder), json.loads((folder / "meta.json").read_text()))
