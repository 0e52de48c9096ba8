"""The reward functions that ship with llmtune."""

from llmtune.rewards.info import register_reward

HERE = "llmtune.rewards."
ANSWERS = ("solution|answer|ground_truth|response",)
COT = "https://arxiv.org/abs/2502.03373"

register_reward(
    "accuracy",
    function=HERE + "accuracy:Accuracy",
    columns=ANSWERS,
    defaults={"column": None},
    description="1 if the final answer equals that of the data, as a number or as text, else 0.",
    source="https://arxiv.org/abs/2501.12948",
)
register_reward(
    "format",
    function=HERE + "format:Format",
    defaults={"answer_tags": False, "pattern": None},
    description="1 for a closed thought followed by an answer, or for a match of pattern, else 0.",
    source="https://arxiv.org/abs/2501.12948",
)
register_reward(
    "cosine",
    function=HERE + "cosine:Cosine",
    columns=ANSWERS,
    defaults={
        "max_length": None,
        "min_len_value_correct": 1.0,
        "max_len_value_correct": 0.5,
        "min_len_value_wrong": -0.5,
        "max_len_value_wrong": 0.0,
        "column": None,
    },
    description="Accuracy scaled by length: short correct answers score highest, short wrong ones lowest.",
    source=COT,
)
register_reward(
    "repetition",
    function=HERE + "repetition:Repetition",
    defaults={"n": 3, "max_penalty": -1.0},
    penalty=True,
    description="Penalty on repeated n-grams of words, or of characters of Chinese and Japanese.",
    source=COT,
)
register_reward(
    "soft_overlong",
    function=HERE + "lengths:SoftOverlong",
    defaults={"max_length": None, "cache": None},
    penalty=True,
    description="0 up to max_length - cache tokens, then linearly down to -1 at max_length.",
    source="https://arxiv.org/abs/2503.14476",
)
register_reward(
    "length",
    function=HERE + "lengths:Length",
    defaults={"target": None, "min": None, "max": None},
    description="1 at target tokens, or from min to max, and linearly down to 0 outside of it.",
    source="https://arxiv.org/abs/2503.04697",
)
