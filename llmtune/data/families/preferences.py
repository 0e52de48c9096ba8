"""Preference data: pairs of responses, and single responses that are labelled; two small sets ship as code."""

from __future__ import annotations

from itertools import cycle
from typing import Any

from llmtune.data.families.embedded import facts
from llmtune.data.info import register_dataset

Row = dict[str, Any]
REFUSALS = (
    ("No.", "I do not feel like it.", "Find somebody else who has time for such questions, I am busy.", "Who cares?"),
    ("不。", "我不想回答。", "这种问题你去问别人吧,我现在很忙,没有时间理你。", "谁在乎呢?"),
)
"""Rejected responses, English and Chinese; some are longer than the answers, so that length alone does not decide."""
SOURCE = "llmtune/data/families/preferences.py"


def tiny_pairs() -> tuple[list[Row], list[Row]]:
    """Return (train, validation): for questions of tiny-qa, its answer is chosen and a rude refusal rejected."""
    train, validation = facts()
    return _paired(train[::3]), _paired(validation)


def _paired(rows: list[dict[str, str]]) -> list[Row]:
    refusals = [cycle(texts) for texts in REFUSALS]
    return [
        {
            "prompt": row["query"],
            "chosen": row["response"],
            "rejected": next(refusals[not row["query"].isascii()]),
        }
        for row in rows
    ]


def tiny_labels() -> tuple[list[Row], list[Row]]:
    """Return (train, validation): responses of tiny-pairs, the chosen ones labelled true.

    Answers and refusals take turns, and no prompt has both.
    """
    return tuple(_labelled(rows) for rows in tiny_pairs())  # type: ignore[return-value]


def _labelled(pairs: list[Row]) -> list[Row]:
    return [
        {
            "prompt": pair["prompt"],
            "completion": pair["chosen" if number % 2 == 0 else "rejected"],
            "label": number % 2 == 0,
        }
        for number, pair in enumerate(pairs)
    ]


register_dataset(
    "tiny-pairs",
    get_function=tiny_pairs,
    languages=("en", "zh"),
    tags=("preference", "pairs"),
    rows=339,
    source=SOURCE,
)
register_dataset(
    "tiny-labels",
    get_function=tiny_labels,
    languages=("en", "zh"),
    tags=("preference", "labels"),
    rows=339,
    source=SOURCE,
)

# From the hubs; those without a public page that states their rows are not verified

register_dataset(
    "hh-rlhf",
    dataset_id="AI-ModelScope/hh-rlhf",
    hf_dataset_id="Anthropic/hh-rlhf",
    val_splits=("test",),
    languages=("en",),
    tags=("preference", "pairs"),
    rows=169_352,
    verified=False,
)
register_dataset(
    "ultrafeedback-binarized",
    dataset_id="AI-ModelScope/ultrafeedback_binarized",
    hf_dataset_id="HuggingFaceH4/ultrafeedback_binarized",
    train_splits=("train_prefs",),
    val_splits=("test_prefs",),
    languages=("en",),
    tags=("preference", "pairs"),
    rows=63_135,
    verified=False,
)
register_dataset(
    "helpsteer3",
    hf_dataset_id="nvidia/HelpSteer3",
    subsets=("preference",),
    val_splits=("validation",),
    preprocess="llmtune.data.preprocess.preferences:helpsteer3",
    languages=("en", "zh"),
    tags=("preference", "pairs"),
    rows=40_476,
    verified=False,
)
register_dataset(
    "zhihu-rlhf-3k",
    dataset_id="AI-ModelScope/zhihu_rlhf_3k",
    hf_dataset_id="liyucheng/zhihu_rlhf_3k",
    languages=("zh",),
    tags=("preference", "pairs"),
    rows=3_460,
    aliases=("zhihu_rlhf_3k",),
    verified=False,
)
register_dataset(
    "medical-reward",
    hf_dataset_id="shibing624/medical",
    subsets=("reward",),
    val_splits=("validation",),
    languages=("zh",),
    tags=("preference", "pairs", "medical"),
    rows=3_900,
    verified=False,
)
register_dataset(
    "kto-mix-14k",
    dataset_id="AI-ModelScope/kto-mix-14k",
    hf_dataset_id="trl-lib/kto-mix-14k",
    val_splits=("test",),
    languages=("en",),
    tags=("preference", "labels"),
    rows=15_000,
    verified=False,
)
register_dataset(
    "orpo-dpo-mix-40k",
    dataset_id="AI-ModelScope/orpo-dpo-mix-40k",
    hf_dataset_id="mlabonne/orpo-dpo-mix-40k",
    languages=("en",),
    tags=("preference", "pairs"),
    rows=44_245,
    verified=False,
)
