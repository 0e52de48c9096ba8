"""Arguments of the online stages, which train a model on its own responses: grpo and ppo."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from llmtune.arguments.fields import Only, Problems, Rule, above, at_least, between, fixed, free, only, taken
from llmtune.arguments.preference import (
    DpoArguments,
    LossArguments,
    PreferenceArguments,
    PreferenceRateArguments,
    WithLosses,
)
from llmtune.arguments.stage import StageArguments
from llmtune.arguments.training_groups import VisionArguments
from llmtune.distributed.deepspeed import zero_stage
from llmtune.errors import LlmtuneError, UsageError
from llmtune.losses.info import ADVANTAGE_MAPPING, LOSS_MAPPING

NO_REWARDS = "--rewards is missing: what scores the responses? See `llmtune list rewards`."
STARTS_AT_0 = ("grpo", "gspo", "rloo")
"""Losses whose first value on new responses is 0."""


@dataclass(kw_only=True)
class RolloutArguments:
    """Rollouts."""

    num_generations: int = fixed(8, within=at_least(1))
    """Responses sampled for each prompt (G)."""
    max_new_tokens: int = fixed(512, within=at_least(1))
    """Max tokens per response; prompts may have the rest of max_length."""
    temperature: float = fixed(1.0, within=above(0, why="without chance, all responses to a prompt are the same"))
    """Sampling temperature; log-probabilities are those of this distribution, in the loss too."""
    top_k: int = fixed(0, within=at_least(0))
    """Sample from the k most likely tokens; 0: all. The loss does not know of it."""
    top_p: float = fixed(1.0, within=between(0, 1, open_low=True))
    """Nucleus sampling: sample from the most likely tokens that make up this probability. The loss does not know of
    it."""
    eval_temperature: float = taken(0.0, within=at_least(0))
    """Sampling temperature of evaluation, which responds to each validation prompt once; 0: the most likely tokens."""
    rollout_batch_size: int = free(64, within=at_least(1))
    """Responses generated at a time on each device; changes the speed, not the responses."""
    rollout_engine: Literal["llmtune", "transformers", "vllm"] = fixed("llmtune", only=only(rollout_url=None))
    """Engine: llmtune (its own loop), transformers (continuous batching with a paged cache), or vllm in this process,
    where it is installed. A server instead: --rollout_url."""
    rollout_url: str | None = free(None)
    """Address of a server that generates, e.g. http://localhost:8000: `llmtune serve --adapter_root`, or vLLM. It loads
    the adapter before each batch of responses. Its API key: the environment variable LLMTUNE_API_KEY."""
    rollout_model: str | None = free(None)
    """With --rollout_url: name of the model there. Default: the first that it serves."""
    rollout_folder: str | None = free(None)
    """With --rollout_url: folder for the adapter that the server reads. Default: in the run folder."""
    rollout_correction: Literal["truncate", "mask", "none"] = fixed("truncate")
    """Where the engine's probabilities differ from the model's: weigh tokens by their ratio up to rollout_limit, leave
    out those beyond it, or neither."""
    rollout_limit: float = fixed(2.0, within=above(1))
    """Largest such ratio."""


@dataclass(kw_only=True)
class RewardFunctionArguments:
    """Rewards."""

    rewards: list[str] = fixed(factory=list)
    """Rewards, added up with weights: keys (`llmtune list rewards`), functions of a file, or reward models:
    accuracy format*0.2 my_rewards.py:fn rm:output/.../checkpoint-500."""
    reward_baseline: float = fixed(0.0)
    """Subtracted from every reward."""


@dataclass(kw_only=True)
class PolicyArguments(LossArguments):
    """Policy loss."""

    advantage: str | None = fixed(None)
    """How rewards become advantages (`llmtune list advantages`). Default: as the loss was published."""
    beta: float | None = fixed(None, within=at_least(0))
    """Weight of the KL of the reference model: in the loss, or for rloo, reinforce++ and ppo in the reward. Default:
    the loss's own; of grpo and its relatives 0, which needs no reference."""
    epsilon: float | None = fixed(None, within=above(0))
    """Clipping: how far the ratio of probabilities may fall below 1. Default: 0.2, of gspo 3e-4."""
    epsilon_high: float | None = fixed(None, within=above(0))
    """The same above 1; of cispo, the largest weight of a token. Default: epsilon; dapo 0.28, gspo 4e-4, cispo 5."""
    num_iterations: int = fixed(1, within=at_least(1))
    """Passes over each batch of responses, as epochs of PPO."""
    num_mini_batches: int = fixed(1, within=at_least(1))
    """Optimizer steps per pass: so many times more responses are sampled at once."""
    mask_cut: bool = fixed(False)
    """Leave responses out of the loss that max_new_tokens has cut."""
    resample_ties: bool = fixed(False)
    """Replace prompts whose responses all have the same reward by others, as DAPO does."""
    max_resample: int = fixed(3, within=at_least(1), only=only(resample_ties=True))
    """How often at most, per step."""
    reference: str | None = fixed(None)
    """Model that the trained one is held to: a folder, a hub id or an adapter. Default: the model as the run begins."""


@dataclass(kw_only=True)
class TurnArguments:
    """Tools."""

    tool_functions: list[str] = fixed(factory=list)
    """Python functions that the model may call: keys (`llmtune list tools`) or files, my_tools.py or my_tools.py:fn. A
    row's `tools` say which of them it offers; rows without offer all. The tokens of results have no loss."""
    max_turns: int = fixed(8, within=at_least(1))
    """Most turns of the model in a response, where it calls tools; max_new_tokens counts results too."""
    tool_timeout: float = free(30.0, within=above(0))
    """Seconds after which a call of a tool has failed, which the model reads as its result."""
    max_result_chars: int = fixed(2000, within=at_least(1))
    """Most characters of a tool's result; longer ones are cut, and counted in tools/cut_frequency."""


def _is_sharded(args: Any) -> bool:
    with contextlib.suppress(UsageError):  # of the file: said elsewhere
        return bool(args.fsdp or zero_stage(args.deepspeed_config_path) == 3)
    return False


ONLINE_RULES: tuple[Rule, ...] = (
    Rule(lambda args: not args.streaming, "--streaming true: prompts are read once. Remove it."),
    Rule(
        lambda args: not args.predict_with_generate,
        "--predict_with_generate: evaluation responds to the validation prompts anyway, and gives rewards. Remove it.",
    ),
    Rule(
        lambda args: args.max_length == -1 or args.max_length > args.max_new_tokens,
        "--max_length {max_length} holds a prompt and its response: it must be above --max_new_tokens "
        "{max_new_tokens}.",
    ),
    Rule(
        lambda args: not _is_sharded(args),
        "Online stages need whole weights on each GPU: remove --fsdp and ZeRO-3; ZeRO-2 shards the rest.",
    ),
    Rule(
        lambda args: not args.rollout_url or args.sft_type == "lora",
        "--rollout_url hands an adapter over after each step: it needs --sft_type lora.",
    ),
    Rule(
        lambda args: args.rollout_engine != "vllm" or args.rollout_url or (args.sft_type == "lora" and args.nproc == 1),
        "--rollout_engine vllm takes LoRA in one process: for more of them, start vLLM as a server, and give "
        "--rollout_url.",
    ),
    Rule(
        lambda args: not args.packing and not args.group_by_length and not args.test_oom_error,
        "--packing, --group_by_length and --test_oom_error are for rows that are known before: remove them.",
    ),
)


@dataclass(kw_only=True)
class OnlineBatchArguments:
    """Batches."""

    batch_size: int = taken(8, within=at_least(1))
    """Responses per device per forward pass (micro-batch size)."""
    gradient_accumulation_steps: int = taken(4, within=at_least(1))
    """Micro-batches accumulated per optimizer step. A step holds batch_size x gradient_accumulation_steps x processes
    responses, whole groups of num_generations."""


@dataclass(kw_only=True)
class OnlineStage(
    PreferenceRateArguments,
    OnlineBatchArguments,
    TurnArguments,
    PolicyArguments,
    RewardFunctionArguments,
    RolloutArguments,
    PreferenceArguments,
    WithLosses,
    StageArguments,
):
    """Arguments that all online stages share."""

    KIND = "prompts"
    OVER = "tokens"
    OPTIONS = ("beta", "epsilon", "epsilon_high")
    LEARNING_RATES: ClassVar[dict[str, float]] = DpoArguments.LEARNING_RATES
    ONLY: ClassVar[dict[Any, Only]] = {VisionArguments: only(may_have_vision=True)}
    RULES: ClassVar[tuple[Rule, ...]] = ONLINE_RULES

    @property
    def prompt_limit(self) -> int:
        """Most tokens of a prompt; -1: no limit."""
        return -1 if self.max_length == -1 else self.max_length - self.max_new_tokens

    @property
    def loss_key(self) -> str:
        return self.losses()[0][0]

    @property
    def advantage_key(self) -> str:
        return self.advantage or LOSS_MAPPING[self.loss_key].advantage

    @property
    def kl_in_reward(self) -> bool:
        return LOSS_MAPPING[self.loss_key].kl_in_reward

    @property
    def needs_reference(self) -> bool:
        return self.options_of(self.loss_key)["beta"] > 0

    @property
    def updates_per_batch(self) -> int:
        """Optimizer steps on the same responses."""
        return self.num_iterations * self.num_mini_batches

    def prompts_per_batch(self, processes: int) -> int:
        """Prompts whose responses are sampled at once, over all processes."""
        return self.step_size(processes) * self.num_mini_batches // self.num_generations

    def num_places(self, num_prompts: int, processes: int) -> int:
        """Responses of an epoch over all passes, filled up to whole batches of them."""
        batches = -(-num_prompts // self.prompts_per_batch(processes))
        return batches * self.updates_per_batch * self.step_size(processes)

    def loss_text(self) -> str:
        info = LOSS_MAPPING[self.loss_key]
        kl = f", KL in the {'reward' if info.kl_in_reward else 'loss'}" if self.needs_reference else ""
        text = f"{super().loss_text()}{kl}, advantage {self.advantage_key}"
        if self.loss_key in STARTS_AT_0 and self.updates_per_batch == 1:
            text += "; its value stays near 0, since the advantages of a group add up to 0: follow the reward"
        return text

    def _check(self, problems: Problems) -> None:
        _check_policy(self, problems)
        _check_rewards(self, problems)
        _check_tools(self, problems)


def _check_policy(args: Any, problems: Problems) -> None:
    """Check the loss and its advantage, and that steps hold whole groups."""
    try:
        losses = args.losses()
        info = LOSS_MAPPING[losses[0][0]]
        advantage = ADVANTAGE_MAPPING[args.advantage or info.advantage or "group"]
    except LlmtuneError as err:
        problems.need(False, str(err))
        return
    of_kind = ", ".join(key for key, one in LOSS_MAPPING.items() if one.over == args.OVER)
    problems.need(info.over == args.OVER, f"--loss {losses[0][0]} is over {info.over}: choose from {of_kind}.")
    problems.need(len(losses) == 1, "--loss: an online stage has one loss. Give one key.")
    if info.over != args.OVER:
        return
    stage = "ppo" if advantage.needs_values else "grpo"
    problems.need(stage == args.STAGE, f"The advantage {args.advantage_key} is that of llmtune {stage}.")
    problems.need(
        args.num_generations > 1 or not advantage.relative,
        f"--num_generations {args.num_generations}: the advantage {args.advantage_key} compares the responses to a "
        "prompt. Give 2 or more.",
    )
    problems.need(
        not args.resample_ties or advantage.relative,
        f"--resample_ties replaces groups without a spread, which the advantage {args.advantage_key} does not compare.",
    )
    problems.need(
        args.needs_reference or args.reference is None,
        "--reference has no effect with --beta 0. Remove it, or raise --beta.",
    )


def check_groups(args: Any, processes: int) -> str:
    """Say why the responses of a step are no whole groups; "" if they are."""
    if args.step_size(processes) % args.num_generations == 0:
        return ""
    many = f" x {processes} processes" if processes > 1 else ""
    return (
        f"A step has {args.batch_size} x {args.gradient_accumulation_steps}{many} = {args.step_size(processes)} "
        f"responses, which are no whole groups of --num_generations {args.num_generations}: change --batch_size or "
        "--gradient_accumulation_steps."
    )


def _check_rewards(args: Any, problems: Problems) -> None:
    from llmtune.rewards.specs import parse_rewards

    is_saved = args.resume_from_checkpoint is not None  # the checkpoint's, unless it is a new run after all
    problems.need(bool(args.rewards) or is_saved, NO_REWARDS)
    try:
        parse_rewards(args.rewards)
    except LlmtuneError as err:
        problems.need(False, str(err))


def _check_tools(args: Any, problems: Problems) -> None:
    from llmtune.tool_functions.functions import load_tools

    try:
        load_tools(args.tool_functions)
    except LlmtuneError as err:
        problems.need(False, str(err))


@dataclass(kw_only=True)
class GrpoArguments(OnlineStage):
    """Arguments of `grpo()`.

    Raises:
        UsageError: All invalid or contradictory values at once. UnknownKeyError: No such model, template or loss.
    """

    STAGE = "grpo"
    LOSS = "grpo"


@dataclass(kw_only=True)
class CriticArguments:
    """Critic."""

    num_generations: int = fixed(1, within=at_least(1))
    """Responses sampled for each prompt."""
    num_iterations: int = fixed(4, within=at_least(1))
    """Passes over each batch of responses: epochs of PPO."""
    gamma: float = fixed(1.0, within=between(0, 1))
    """Discount of later rewards."""
    lam: float = fixed(0.95, within=between(0, 1))
    """Lambda of generalised advantage estimation: 1 trusts the rewards alone, 0 the critic."""
    critic_learning_rate: float | None = taken(None, within=above(0))
    """Learning rate of the critic, constant. Default: 1e-4 for adapters, 1e-5 for full."""
    value_clip: float = fixed(0.2, within=above(0))
    """How far a value may move from that of the experience before its gradient ends."""
    critic_warmup: int = fixed(0, within=at_least(0))
    """Optimizer steps at first in which the critic alone learns."""
    critic_path: str | None = fixed(None)
    """Reward model or critic that the critic begins as. Default: the first reward model of --rewards, else the model
    itself, with values of 0."""


@dataclass(kw_only=True)
class KlControlArguments:
    """KL control."""

    adaptive_kl: bool = fixed(True)
    """Raise beta while the KL of a response is above kl_target, and lower it below."""
    kl_target: float = fixed(6.0, within=above(0), only=only(adaptive_kl=True))
    """KL of a response to hold, in nats."""
    kl_horizon: int = fixed(10000, within=at_least(1), only=only(adaptive_kl=True))
    """Responses in which beta can change by a factor of about 1.2."""
    early_stopping: bool = fixed(False)
    """Leave out the rest of the passes over a batch once the policy has moved by more than 1.5 times target_kl."""
    target_kl: float = fixed(0.1, within=above(0), only=only(early_stopping=True))
    """KL of a token between the policy and itself when the batch was sampled, in nats."""
    missing_eos_penalty: float = fixed(0.0, within=at_least(0))
    """Subtracted from the reward of a response that max_new_tokens has cut."""


@dataclass(kw_only=True)
class PpoArguments(CriticArguments, KlControlArguments, OnlineStage):
    """Arguments of `ppo()`.

    Raises:
        UsageError: All invalid or contradictory values at once. UnknownKeyError: No such model, template or loss.
    """

    STAGE = "ppo"
    LOSS = "ppo"
    OTHERS = ("gamma",)

    def _fill(self) -> None:
        super()._fill()
        if self.critic_learning_rate is None:
            self.critic_learning_rate = 1e-5 if self.sft_type == "full" else 1e-4
