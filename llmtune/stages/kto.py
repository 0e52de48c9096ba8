"""kto(): learning from single responses that are labelled good or bad, top to bottom."""

from __future__ import annotations

from llmtune.arguments.preference import KtoArguments
from llmtune.samples.labelled import LabelledCollator
from llmtune.samples.prepare import prepare
from llmtune.training.build import comparison_collator
from llmtune.training.generation_eval import generation_metrics
from llmtune.training.labelled import LabelledLoss
from llmtune.training.reference import Reference
from llmtune.training.result import SftResult
from llmtune.training.stage import Stage


def kto(args: KtoArguments) -> SftResult:
    """Train a model on responses that are labelled true or false; pairs count as one of each.

    Raises:
        LlmtuneError: Any foreseen failure: see `llmtune.errors`.
    """
    with Stage.begin(args) as stage:
        samples = stage.prepare(prepare)
        objective = LabelledLoss.of(stage.args)
        reference = Reference(stage, objective)
        reference.by_named_model()
        model = stage.build_model()
        responses = comparison_collator(stage.args, samples, model, stage.decisions)
        reference.by_model(model, responses)
        collator = LabelledCollator(responses)
        return stage.train(model, objective, collator, generation_metrics(samples, stage.args))
