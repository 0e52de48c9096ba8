"""Engine, rewards, reference and loop of an online stage."""

from __future__ import annotations

from typing import Any

from llmtune.arguments.online import NO_REWARDS, OnlineStage, check_groups
from llmtune.distributed.ranks import is_first, world_size
from llmtune.errors import UsageError
from llmtune.rewards.specs import parse_rewards
from llmtune.rollouts.answers import AnswerLog
from llmtune.rollouts.scoring import Judge
from llmtune.rollouts.turns import ToolTurns
from llmtune.rollouts.writing import Writer
from llmtune.samples.prompts import PromptSamples
from llmtune.samples.rollouts import RolloutCollator
from llmtune.tool_functions.call import ToolBox
from llmtune.tool_functions.functions import load_tools
from llmtune.training.answer_trackers import TrackAnswers
from llmtune.training.build import comparison_collator
from llmtune.training.collecting import Collector
from llmtune.training.critic import Critic
from llmtune.training.engines import evaluation_engine, training_engine
from llmtune.training.kl_control import KlControl
from llmtune.training.online import OnlineLoop
from llmtune.training.online_reference import reference_model
from llmtune.training.policy import PolicyLoss
from llmtune.training.shared_reward import check_reward_model, shared_scorer
from llmtune.training.stage import Stage
from llmtune.training.token_passes import TokenPasses
from llmtune.utils.logging import get_logger


def place_collator(items: Any) -> dict[str, Any]:
    """The trainer counts batches of places; what is trained in them, the loop says."""
    return {"places": len(items)}


def make_judge(args: OnlineStage, samples: Any) -> Judge:
    """Load the rewards, and check that the data has the columns which they need.

    Raises:
        UsageError: A step has no whole groups, or a column is missing. LlmtuneError: A reward cannot be loaded.
    """
    if problem := (NO_REWARDS if not args.rewards else check_groups(args, world_size())):
        raise UsageError(problem)
    if samples.train_tokens.report.num_with_images and samples.template.media is not None:
        raise UsageError("Online stages respond to text: these rows show images. Leave them out.")
    judge = Judge.of(parse_rewards(args.rewards), max_tokens=args.max_new_tokens)
    judge.check(samples.train_set)
    for spec in judge.specs:
        if spec.kind == "model":
            check_reward_model(spec)
    return judge


def online_loop(
    stage: Stage,
    model: Any,
    objective: PolicyLoss,
    judge: Judge,
    critic: Critic | None = None,
    control: KlControl | None = None,
) -> OnlineLoop:
    """Return the loop of a stage, as it was at the checkpoint that is resumed."""
    args: Any = stage.args
    samples = stage.samples
    assert isinstance(samples.train_set, PromptSamples)
    responses = comparison_collator(args, samples, model, stage.decisions)
    reference = reference_model(
        args, model, stage.folder, resumed=stage.run.resume is not None, decisions=stage.decisions
    )
    writer = Writer(
        training_engine(args, model, samples.template, stage.folder),
        evaluation_engine(args, model, samples.template),
        samples.template,
        args.max_new_tokens,
        _tool_turns(args, samples.template),
        is_remote=args.rollout_url is not None,
    )
    collator = RolloutCollator(responses, samples.tokenizer.pad_token_id)
    passes = TokenPasses(model, collator, args.batch_size)
    collector = Collector(
        args, samples.train_set, objective, writer, judge, passes, reference, critic=critic, control=control
    )
    loop = OnlineLoop(args, collector, collator)
    if is_first():
        answers = AnswerLog(stage.folder, samples.train_set, judge.names)
        collector.on_experience.append(answers.add)
        stage.at_start.append(lambda trainer: _track(trainer, answers, judge))
    for name, text in judge.load_models(lambda folder: shared_scorer(args, model, folder)).items():
        stage.decisions.fact(f"Reward model {name}", text)
    if stage.run.resume is not None:
        loop.load(stage.run.resume)
    note_online(stage, judge)
    return loop


def _tool_turns(args: OnlineStage, template: Any) -> ToolTurns | None:
    if not args.tool_functions:
        return None
    box = ToolBox(load_tools(args.tool_functions), args.tool_timeout, args.max_result_chars)
    return ToolTurns.of(template, box, max_turns=args.max_turns, max_tokens=args.max_new_tokens)


def _track(trainer: Any, answers: AnswerLog, judge: Judge) -> None:
    judge.trainer_state = lambda: trainer.state
    trainer.add_callback(TrackAnswers(lambda: answers.newest, lambda: trainer.callback_handler.callbacks))


def note_online(stage: Stage, judge: Judge) -> None:
    """Note what is sampled and what rewards it."""
    args: Any = stage.args
    prompts = args.prompts_per_batch(world_size())
    passes = f", {args.updates_per_batch} optimizer steps on each batch" if args.updates_per_batch > 1 else ""
    if args.top_k or args.top_p < 1:
        get_logger().warning(
            "--top_k and --top_p sample from another distribution than the loss knows: the ratios of rare tokens are "
            "wrong. Remove them, or lower --temperature, which the loss follows."
        )
    stage.decisions.fact(
        "Rollouts",
        f"{prompts:,} prompts x {args.num_generations} responses of up to {args.max_new_tokens:,} tokens, temperature "
        f"{args.temperature:g}{passes}",
    )
    if args.tool_functions:
        names = ", ".join(load_tools(args.tool_functions))
        stage.decisions.fact("Tools", f"{names}; up to {args.max_turns} turns")
    stage.decisions.fact(
        "Rewards",
        " + ".join(spec.name if spec.weight == 1 else f"{spec.weight:g} * {spec.name}" for spec in judge.specs),
    )
