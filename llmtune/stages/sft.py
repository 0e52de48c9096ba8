"""sft(): supervised fine-tuning, top to bottom."""

from __future__ import annotations

from llmtune.arguments.stage import SftArguments
from llmtune.samples.prepare import prepare
from llmtune.training.build import collator_of
from llmtune.training.cross_entropy import CrossEntropy
from llmtune.training.generation_eval import generation_metrics
from llmtune.training.result import SftResult
from llmtune.training.stage import Stage


def sft(args: SftArguments) -> SftResult:
    """Fine-tune a model on the assistant turns of conversations.

    Raises:
        LlmtuneError: Any foreseen failure: see `llmtune.errors`.
    """
    with Stage.begin(args) as stage:
        samples = stage.prepare(prepare)
        model = stage.build_model()
        objective = CrossEntropy.of(model, samples)
        collator = collator_of(stage.args, samples, model)
        return stage.train(model, objective, collator, generation_metrics(samples, stage.args))
