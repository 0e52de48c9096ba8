"""pt(): continued pre-training, top to bottom."""

from __future__ import annotations

from llmtune.arguments.pretraining import PtArguments
from llmtune.samples.prepare import prepare
from llmtune.training.build import collator_of
from llmtune.training.generation_eval import generation_metrics
from llmtune.training.language_model import LanguageModelLoss
from llmtune.training.result import SftResult
from llmtune.training.stage import Stage


def pt(args: PtArguments) -> SftResult:
    """Continue pre-training a model on texts, all of whose tokens it learns to predict.

    Raises:
        LlmtuneError: Any foreseen failure: see `llmtune.errors`.
    """
    with Stage.begin(args) as stage:
        samples = stage.prepare(prepare)
        model = stage.build_model()
        objective = LanguageModelLoss.of(model, samples)
        collator = collator_of(stage.args, samples, model)
        return stage.train(model, objective, collator, generation_metrics(samples, stage.args))
