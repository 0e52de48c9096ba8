"""dpo(): learning from pairs of responses, top to bottom."""

from __future__ import annotations

from llmtune.arguments.preference import DpoArguments
from llmtune.samples.prepare import prepare
from llmtune.training.build import comparison_collator
from llmtune.training.generation_eval import generation_metrics
from llmtune.training.preference import PreferenceLoss
from llmtune.training.reference import Reference
from llmtune.training.result import SftResult
from llmtune.training.stage import Stage


def dpo(args: DpoArguments) -> SftResult:
    """Train a model to prefer the better one of two responses: DPO, and all losses over pairs.

    Raises:
        LlmtuneError: Any foreseen failure: see `llmtune.errors`.
    """
    with Stage.begin(args) as stage:
        samples = stage.prepare(prepare)
        objective = PreferenceLoss.of(stage.args)
        reference = Reference(stage, objective)
        reference.by_named_model()
        model = stage.build_model()
        collator = comparison_collator(stage.args, samples, model, stage.decisions)
        reference.by_model(model, collator)
        return stage.train(model, objective, collator, generation_metrics(samples, stage.args))
