"""Every class of the catalogue can be planned, and its parameters are counted as they are."""

from __future__ import annotations

import pytest
import torch

from llmtune import SftArguments
from llmtune.models.info import MODEL_MAPPING
from llmtune.planning.memory import Batch, Estimator

from ..samples.test_packing import TESTED, small


@pytest.mark.medium
@pytest.mark.parametrize("architecture", TESTED)
def test_every_architecture_is_planned(architecture, tmp_path):
    model = small(architecture)
    model.config.architectures = [architecture]
    model.config.save_pretrained(tmp_path)
    args = SftArguments(model_type="llmtune-tiny", model_id_or_path=str(tmp_path), lora_target_modules=["ALL"])
    totals = []
    for mode, dtype, padded in (("none", torch.float32, False), ("full", torch.bfloat16, True)):
        args.gradient_checkpointing = mode
        estimator = Estimator(MODEL_MAPPING["llmtune-tiny"], tmp_path, dtype, on_gpu=True)
        found = estimator.estimate(args, Batch(2, 128, 90, padded=padded))
        assert found.parameters - found.trainable == sum(one.numel() for one in model.parameters())
        assert found.trainable > 0
        assert found.flops.per_token > 4 * found.flops.per_context > 0
        totals.append(found.activations)
    assert totals[0] > totals[1] > 0
