"""Models that see: the text's part is planned, and what is not counted is said."""

from __future__ import annotations

import pytest

from llmtune import SftArguments
from llmtune.models.devices import Gpu
from llmtune.planning.plan import make_plan


@pytest.mark.parametrize("kind", ["qwen2-vl", "llava"])
def test_a_vision_model_is_planned_by_its_text_part(vision_folder, kind):
    from transformers import AutoModelForImageTextToText

    folder = vision_folder(kind)
    keys = {"qwen2-vl": "qwen2-vl-7b-instruct", "llava": "llava-1.5-7b-hf"}
    args = SftArguments(model_type=keys[kind], model_id_or_path=str(folder), dataset=["tiny-qa#20"], batch_size=2)
    plan = make_plan(args, Gpu("a GPU", 16))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert plan.estimate.parameters - plan.estimate.trainable == sum(one.numel() for one in model.parameters())
    assert plan.fits
    assert plan.estimate.activations > 0
    assert any("images" in note for note in plan.notes)
