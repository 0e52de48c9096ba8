"""`llmtune plan rm`: the model has a score, and neither an LM head nor logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from llmtune import RmArguments, SftArguments
from llmtune.cli.main import main
from llmtune.errors import ModelError
from llmtune.models.info import MODEL_MAPPING
from llmtune.planning.memory import Estimate, Estimator
from llmtune.planning.workload import Batch

INFO = MODEL_MAPPING["llmtune-tiny"]
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 20000,
    "tie_word_embeddings": False, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def estimate(made: type[SftArguments] | type[RmArguments], folder: Path, **options: Any) -> Estimate:
    args = made(model_type="llmtune-tiny", model_id_or_path=str(folder), dataset=["tiny-pairs"], **options)
    args.gradient_checkpointing = "none"
    return Estimator(INFO, folder, torch.float32, on_gpu=False).estimate(args, Batch(2, 64, 100))


def test_parameters_are_those_of_the_class_with_a_score(folder):
    config = AutoConfig.from_pretrained(folder)
    lm = AutoModelForCausalLM.from_config(config)
    real = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder, num_labels=1))
    found = estimate(RmArguments, folder, sft_type="full")
    assert found.parameters == found.trainable == real.num_parameters()
    assert found.parameters == lm.num_parameters() - CONFIG["vocab_size"] * 64 + 64
    assert found.weights >= 4 * real.num_parameters()


def test_there_are_no_logits(folder):
    scores, text = (estimate(made, folder, sft_type="full") for made in (RmArguments, SftArguments))
    logits = 4 * 100 * CONFIG["vocab_size"]
    assert text.logits > logits
    assert scores.logits < logits / 100
    assert scores.total < text.total - logits


def test_adapters_train_the_score(folder):
    found = estimate(RmArguments, folder, lora_target_modules=["ALL"])
    text = estimate(SftArguments, folder, lora_target_modules=["ALL"])
    assert found.trainable == text.trainable + 64


def test_the_command_counts_what_training_counts(capsys):
    assert main(["plan", "rm", "--model_type", "llmtune-tiny", "--dataset", "tiny-pairs", "--gpu", "T4"]) == 0
    out = capsys.readouterr().out
    assert "28,864 of 1,998,144 (1.44%)" in out  # as the report of such a run says
    assert "scores and loss" in out
    assert "logits" not in out


def test_a_family_without_scores_is_refused(folder):
    (folder / "config.json").write_text(json.dumps({**CONFIG, "model_type": "cohere2"}))
    with pytest.raises(ModelError, match="no class with a score for cohere2"):
        estimate(RmArguments, folder)
