"""Preference losses on a model: one division per step, and the values of the formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from llmtune.data.comparisons import to_comparison
from llmtune.losses.info import LOSS_MAPPING
from llmtune.losses.terms import Options, Responses
from llmtune.models.packed_attention import register_varlen
from llmtune.models.supervised_loss import install_supervised_loss
from llmtune.models.tiny import tiny_folder
from llmtune.registry import resolve_reference
from llmtune.samples.collate import PackingCollator, PaddingCollator
from llmtune.samples.comparisons import COMPARISONS, PAIRS, REFERENCE, ComparisonCollator, stored_comparison
from llmtune.templates.comparisons import EncodedComparison, encode_comparisons
from llmtune.templates.lookup import get_template
from llmtune.training.objective import Metrics, Totals
from llmtune.training.preference import PreferenceLoss, WeightedLoss, num_tokens, response_logps

KEYS = [key for key, info in LOSS_MAPPING.items() if info.over == "pairs"]
OPTIONS = Options(beta=0.2, label_smoothing=0.1, gamma=0.3, alpha=0.5)
ROWS = [
    {"prompt": "What is 1 plus 1?", "chosen": "1 plus 1 is 2.", "rejected": "It is 3, I think."},
    {"prompt": "Who?", "chosen": "Me.", "rejected": "A man whom nobody knows, and who comes from a far country."},
    {"prompt": "你好", "chosen": "你好！有什么可以帮你的吗？", "rejected": "走开"},
    {"prompt": "Count to three, please.", "chosen": "1, 2, 3", "rejected": "3, 2, 1"},
]


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any, list[dict[str, Any]]]:
    from transformers import AutoTokenizer

    folder = str(tiny_folder())
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = encode_comparisons([to_comparison(row) for row in ROWS], get_template("chatml", tokenizer))
    generator = torch.Generator().manual_seed(1)
    references = [-20 - 20 * torch.rand(2, generator=generator) for _ in made]
    items = [item_of(one) for one in made]
    for item, reference in zip(items, references, strict=True):
        item[COMPARISONS][0][REFERENCE] = reference.numpy()
    install_supervised_loss(model)
    register_varlen()
    model.set_attn_implementation("varlen")
    return model, tokenizer, items


def item_of(encoded: EncodedComparison) -> dict[str, Any]:
    """As the store gives it."""
    return {COMPARISONS: [stored_comparison(encoded)]}


def collators(tokenizer: Any) -> dict[str, ComparisonCollator]:
    padding = tokenizer.pad_token_id
    flat = PackingCollator(padding, flat=True, with_segments=True)
    return {
        "padded": ComparisonCollator(PaddingCollator(padding)),
        "flat": ComparisonCollator(flat),
        "shared": ComparisonCollator(PackingCollator(padding, flat=True), shares_prompt=True),
    }


def step(objective: PreferenceLoss, model: Any, batches: list[dict[str, Any]]) -> tuple[float, list[torch.Tensor]]:
    """The loss of an optimizer step of these micro-batches, and the gradients."""
    counts = [objective.count(batch) for batch in batches]
    totals = Totals(sum(count.sequences for count in counts), sum(count.tokens for count in counts))
    model.zero_grad()
    loss = 0.0
    for batch in batches:
        share = objective.share(model, batch, totals)
        share.loss.backward()
        loss += share.loss.item()
    return loss, [value.grad.clone() for value in model.parameters()]


@pytest.mark.parametrize("key", KEYS)
def test_a_step_is_the_same_however_it_is_cut(key, tiny):
    """8 x 1 = 1 x 8 = packed = shared prompt, for a loss by being registered."""
    model, tokenizer, items = tiny
    objective = PreferenceLoss([WeightedLoss(key, OPTIONS)])
    made = collators(tokenizer)
    whole, gradients = step(objective, model, [made["padded"](items)])
    largest = max(value.abs().max() for value in gradients)
    cuts = [
        [made["padded"]([item]) for item in items],
        [made["flat"](items)],
        [made["shared"](items)],
        [made["shared"](items[:1]), made["shared"](items[1:])],
        [made["flat"](items[:3]), made["padded"](items[3:])],
    ]
    for batches in cuts:
        loss, others = step(objective, model, batches)
        assert loss == pytest.approx(whole, rel=2e-6)
        for ours, theirs in zip(others, gradients, strict=True):
            assert (ours - theirs).abs().max() < 2e-6 * largest


@pytest.mark.parametrize("key", KEYS)
def test_the_loss_of_a_step_is_its_formula_on_plain_log_probabilities(key, tiny):
    model, tokenizer, items = tiny
    logps, tokens, reference = [], [], []
    for item in items:
        one = item[COMPARISONS][0]
        prompt, *responses = np.split(one["input_ids"], np.cumsum(one["parts"])[:-1])
        for response, known in zip(responses, one[REFERENCE], strict=True):
            ids = torch.tensor(np.concatenate([prompt, response])[None]).long()
            with torch.no_grad():
                scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            places = range(len(prompt) - 1, ids.shape[1] - 1)
            logps.append(sum(float(scores[place, ids[0, place + 1]]) for place in places))
            tokens.append(len(response))
            reference.append(float(known))
    sides = [
        Responses(torch.tensor(logps[side::2]), torch.tensor(tokens[side::2]), torch.tensor(reference[side::2]))
        for side in (0, 1)
    ]
    terms = resolve_reference(LOSS_MAPPING[key].function, what=key)(*sides, OPTIONS)
    expected = terms.sequences.mean().item()
    expected += 0 if terms.tokens is None else (terms.tokens.sum() / sum(tokens[::2])).item()
    loss, _ = step(PreferenceLoss([WeightedLoss(key, OPTIONS)]), model, [collators(tokenizer)["flat"](items)])
    assert loss == pytest.approx(expected, rel=1e-5)


def test_dpo_begins_at_log_2_with_no_margin(tiny):
    model, tokenizer, items = tiny
    collate = collators(tokenizer)["flat"]
    with torch.no_grad():
        batch = collate(items)
        known = response_logps(model, batch).numpy()
    own = [
        {COMPARISONS: [item[COMPARISONS][0] | {REFERENCE: known[2 * at : 2 * at + 2]}]} for at, item in enumerate(items)
    ]
    objective = PreferenceLoss([WeightedLoss("sigmoid", Options())])
    share = objective.share(model, collate(own), None)
    assert share.loss.item() == pytest.approx(math.log(2), abs=1e-6)
    ((total, count),) = share.metrics["rewards/margins"]
    assert total.item() == pytest.approx(0.0, abs=1e-5)
    assert count.item() == 4


def test_losses_add_up_by_their_weights(tiny):
    model, tokenizer, items = tiny
    batch = collators(tokenizer)["padded"](items)
    parts = [step(PreferenceLoss([WeightedLoss(key, OPTIONS)]), model, [batch])[0] for key in ("sigmoid", "sft")]
    both = PreferenceLoss([WeightedLoss("sigmoid", OPTIONS), WeightedLoss("sft", OPTIONS, 0.25)])
    assert both.needs_reference
    assert not PreferenceLoss([WeightedLoss("orpo", OPTIONS)]).needs_reference
    assert step(both, model, [batch])[0] == pytest.approx(parts[0] + 0.25 * parts[1], rel=1e-6)


def test_a_ranked_list_gives_a_pair_for_each_difference_in_rank(tiny):
    _, tokenizer, _ = tiny
    answers = [{"rank": rank, "completion": text} for text, rank in (("a", 0), ("b", 1), ("c", 1), ("d", 2))]
    row = to_comparison({"context": [{"role": "user", "content": "q"}], "completions": answers})
    (made,) = encode_comparisons([row], get_template("chatml", tokenizer))
    batch = collators(tokenizer)["padded"]([item_of(made), item_of(made)])
    expected = [[0, 1], [0, 2], [0, 3], [1, 3], [2, 3]]
    assert batch[PAIRS].tolist() == expected + [[better + 4, worse + 4] for better, worse in expected]
    assert len(batch["input_ids"]) == 8


def test_an_evaluation_is_the_same_however_it_is_cut(tiny):
    """Parts per token are a quotient of their own: the mean over batches would weigh short batches more."""
    model, tokenizer, items = tiny
    made = collators(tokenizer)["flat"]
    objective = PreferenceLoss([WeightedLoss("sigmoid", OPTIONS), WeightedLoss("sft", OPTIONS, 0.5)])
    found = []
    for batches in ([made(items)], [made([item]) for item in items]):
        metrics = Metrics(objective.eval_metrics)
        for batch in batches:
            with torch.no_grad():
                metrics.add(objective.share(model, batch, None).metrics)
        found.append(metrics.take())
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0]["loss"] == pytest.approx(step(objective, model, [made(items)])[0], rel=1e-6)


def test_tokens_beyond_the_shorter_response_weigh_less(tiny):
    """LD-DPO: with weight 0, the longer response counts as if it had ended with the shorter one."""
    model, tokenizer, items = tiny
    batch = collators(tokenizer)["shared"](items)
    whole, none, half = (response_logps(model, batch, weight).detach() for weight in (1.0, 0.0, 0.5))
    torch.testing.assert_close(half, (whole + none) / 2)
    sizes = num_tokens(batch).tolist()
    for at in range(0, len(sizes), 2):
        shorter = at if sizes[at] <= sizes[at + 1] else at + 1
        assert whole[shorter] == none[shorter]
        assert (none > whole)[2 * at + 1 - shorter] or sizes[at] == sizes[at + 1]
