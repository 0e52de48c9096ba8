"""rm(): a reward model, from pairs of responses, top to bottom."""

from __future__ import annotations

from llmtune.arguments.preference import RmArguments
from llmtune.models.score import choose_padding
from llmtune.samples.prepare import prepare
from llmtune.training.build import comparison_collator
from llmtune.training.result import SftResult
from llmtune.training.reward import RewardLoss
from llmtune.training.reward_check import check_saved_scores
from llmtune.training.stage import Stage


def rm(args: RmArguments) -> SftResult:
    """Train a reward model: it scores a response with one number, higher for the better one of a pair.

    Raises:
        LlmtuneError: Any foreseen failure: see `llmtune.errors`.
    """
    with Stage.begin(args) as stage:
        samples = stage.prepare(prepare)
        padding = choose_padding(samples.tokenizer, set(samples.template.stop_token_ids))
        model = stage.build_model()
        model.config.pad_token_id = padding
        collator = comparison_collator(stage.args, samples, model, stage.decisions)
        stage.at_start.append(lambda trainer: check_saved_scores(trainer, samples))
        return stage.train(model, RewardLoss.of(stage.args), collator)
