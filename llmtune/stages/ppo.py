"""ppo(): learning from rewards of single responses with a critic, top to bottom."""

from __future__ import annotations

from llmtune.arguments.online import PpoArguments
from llmtune.samples.prepare import prepare
from llmtune.training.critic_setup import build_critic, kl_control
from llmtune.training.online_setup import make_judge, online_loop, place_collator
from llmtune.training.policy import PolicyLoss
from llmtune.training.result import SftResult
from llmtune.training.stage import Stage


def ppo(args: PpoArguments) -> SftResult:
    """Train a model by rewards of its responses, with a critic that knows what to expect of each token: PPO.

    Raises:
        LlmtuneError: Any foreseen failure: see `llmtune.errors`.
    """
    with Stage.begin(args) as stage:
        samples = stage.prepare(prepare)
        judge = make_judge(stage.args, samples)
        model = stage.build_model()
        objective = PolicyLoss.of(stage.args)
        critic = build_critic(stage, model)
        loop = online_loop(stage, model, objective, judge, critic, kl_control(stage.args))
        return stage.train(model, objective, place_collator, loop=loop)
