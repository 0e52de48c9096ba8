"""grpo(): learning from rewards of the model's own responses, top to bottom."""

from __future__ import annotations

from llmtune.arguments.online import GrpoArguments
from llmtune.samples.prepare import prepare
from llmtune.training.online_setup import make_judge, online_loop, place_collator
from llmtune.training.policy import PolicyLoss
from llmtune.training.result import SftResult
from llmtune.training.stage import Stage


def grpo(args: GrpoArguments) -> SftResult:
    """Train a model by rewards of groups of its responses: GRPO, and its relatives by `--loss`.

    Raises:
        LlmtuneError: Any foreseen failure: see `llmtune.errors`.
    """
    with Stage.begin(args) as stage:
        samples = stage.prepare(prepare)
        judge = make_judge(stage.args, samples)
        model = stage.build_model()
        objective = PolicyLoss.of(stage.args)
        loop = online_loop(stage, model, objective, judge)
        return stage.train(model, objective, place_collator, loop=loop)
