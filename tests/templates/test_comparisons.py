"""Comparisons are encoded as serving would feed the prompt and sample each response."""

from __future__ import annotations

import pytest

from llmtune.data.comparisons import to_comparison
from llmtune.templates.comparisons import encode_comparisons, without_oldest_turns
from llmtune.templates.lookup import get_template
from llmtune.types import IGNORE_INDEX, Comparison

TEMPLATES = {
    "baichuan2": "baichuan", "chatglm3": "chatglm3", "internlm2": "internlm2", "internlm_v1": "internlm",
    "llama2": "llama", "llama3_1": "llama3", "qwen1_5": "chatml", "qwen2_5": "qwen2.5", "qwen3": "qwen3",
    "qwen_v1": "chatml",
}  # fmt: skip
WITH_OWN_TEMPLATE = ("chatglm3", "internlm2", "llama3_1", "qwen1_5", "qwen2_5", "qwen3")
ANSWERS = ["4", "\n\n4", " four", "\n", "好的 😀", "It is\n\n4.\n"]


def comparison(*answers: str, turns: int = 1, system: str | None = None) -> Comparison:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for number in range(turns):
        messages += [{"role": "user", "content": f"{number} plus 2?"}, {"role": "assistant", "content": f"{number}!"}]
    return to_comparison(
        {
            "context": messages[:-1],
            "completions": [
                {"rank": rank, "completion": [{"role": "assistant", "content": answer}]}
                for rank, answer in enumerate(answers)
            ],
        }
    )


@pytest.mark.parametrize(
    ("name", "auto"), [*((name, False) for name in TEMPLATES), *((name, True) for name in WITH_OWN_TEMPLATE)]
)
def test_each_response_follows_the_ids_that_serving_feeds(name, auto, real_tokenizer):
    tokenizer = real_tokenizer(name)
    template = get_template("auto" if auto else TEMPLATES[name], tokenizer)
    system = None if name in ("baichuan2", "internlm_v1") or auto else "Count."
    answers = [answer for answer in ANSWERS if answer.strip()]
    rows = [comparison(*answers, turns=turns, system=system) for turns in (1, 3)]
    stops = set(template.stop_token_ids)
    for row, made in zip(rows, encode_comparisons(rows, template), strict=True):
        assert made.problem is None
        assert made.prompt == template.encode_prompts([row.prompt])[0]
        assert [one.rank for one in made.responses] == list(range(len(answers)))
        for at, response in enumerate(made.responses):
            assert response.labels == response.input_ids, "every token of a response is trainable"
            assert response.input_ids[-1] in stops or template.stop_strings
            alone = template.encode(row.conversation(at))
            assert made.prompt + response.input_ids == alone["input_ids"]


def test_a_chosen_and_a_rejected_response_have_one_prompt_whatever_they_begin_with(real_tokenizer):
    """Of Qwen2.5, a newline at the start of a response merges with that of the header, where all is encoded at once."""
    template = get_template("qwen2.5", real_tokenizer("qwen2_5"))
    (made,) = encode_comparisons([comparison("\n\n4", "4")], template)
    assert made.prompt == template.encode_prompts([comparison("4", "5").prompt])[0]
    assert template.tokenizer.decode(made.responses[0].input_ids) == "\n\n4<|im_end|>"


def test_the_oldest_turns_go_first_and_the_same_for_all_responses(tiny_tokenizer):
    template = get_template("chatml", tiny_tokenizer)
    row = comparison("4", "a long response " * 5, turns=4, system="Count.")
    (whole,) = encode_comparisons([row], template)
    longest = len(whole.prompt) + max(len(one.input_ids) for one in whole.responses)
    (fits,) = encode_comparisons([row], template, longest)
    assert (fits.num_turns_cut, fits.prompt) == (0, whole.prompt)
    (cut,) = encode_comparisons([row], template, longest - 1)
    assert cut.num_turns_cut == 2
    shorter = without_oldest_turns(row.prompt)
    assert shorter.system == "Count."
    assert cut.prompt == template.encode_prompts([shorter])[0]
    assert [one.input_ids for one in cut.responses] == [one.input_ids for one in whole.responses], "none is cut"
    (out,) = encode_comparisons([row], template, 30)
    assert out.is_too_long
    assert out.responses == ()


def test_tool_results_within_a_response_are_not_trainable(tiny_tokenizer):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
    done = [call, {"role": "tool", "content": "2"}, {"role": "assistant", "content": "It is 2."}]
    row = to_comparison(
        {"prompt": [{"role": "user", "content": "1 plus 1?"}], "chosen": done, "rejected": "3", "tools": TOOLS}
    )
    (made,) = encode_comparisons([row], get_template("qwen2.5", tiny_tokenizer))
    assert made.problem is None
    chosen = made.responses[0]
    masked = [token for token, label in zip(chosen.input_ids, chosen.labels, strict=True) if label == IGNORE_INDEX]
    assert "tool_response" in tiny_tokenizer.decode(masked)
    assert "It is 2." in tiny_tokenizer.decode([label for label in chosen.labels if label != IGNORE_INDEX])


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
