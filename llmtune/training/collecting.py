"""One round of online training: prompts -> rollouts -> rewards -> advantages.

Random draws depend on seed, round, position and generation, so that nothing has to be kept of a round but its result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llmtune.arguments.online import OnlineStage
from llmtune.distributed.collectives import gather_from_ranks
from llmtune.distributed.ranks import is_first, rank, world_size
from llmtune.losses.advantages import Rewards, tied_groups, whitened
from llmtune.losses.info import ADVANTAGE_MAPPING
from llmtune.registry import resolve_reference
from llmtune.rollouts.experience import Experience, Group
from llmtune.rollouts.measures import measures_of
from llmtune.rollouts.scoring import Judge
from llmtune.rollouts.writing import Writer
from llmtune.samples.prompts import PromptSamples
from llmtune.training.critic import Critic
from llmtune.training.kl_control import KlControl
from llmtune.training.online_reference import ReferenceModel
from llmtune.training.policy import PolicyLoss, token_logps
from llmtune.training.token_passes import TokenPasses, evaluating
from llmtune.utils.logging import get_logger

TIED_ROUNDS = 3
"""Rounds in a row without any spread of rewards after which a warning is due."""


@dataclass
class Collector:
    """Samples, scores, and sets advantages.

    Attributes:
        samples: The prompts.
        writer: Makes responses.
        judge: Gives rewards.
        passes: Compute log-probabilities and values.
        reference: Computes as the reference; None where there is none.
        on_experience: Called with each new experience.
        position: Of the next prompt that nobody has responded to.
    """

    args: OnlineStage
    samples: PromptSamples
    objective: PolicyLoss
    writer: Writer
    judge: Judge
    passes: TokenPasses
    reference: ReferenceModel | None = None
    critic: Critic | None = None
    control: KlControl | None = None
    on_experience: list[Callable[[Experience], None]] = field(default_factory=list)
    position: int = 0
    _num_tied: int = 0  # rounds in a row without a spread of rewards

    def collect(self, number: int) -> Experience:
        """Sample and score new responses. Collective."""
        self.writer.update(number * self.args.updates_per_batch)
        wanted = self.args.prompts_per_batch(world_size())
        groups: list[Group] = []
        num_ties = 0
        seconds = {"rollout_seconds": 0.0, "reward_seconds": 0.0}
        for again in range(self._most_rounds()):
            new = [self._new_group(self.samples, self.samples.prompt_at(at), at) for at in self._next(wanted)]
            seconds["rollout_seconds"] += self._write(new, self.samples, number=number, size=self.args.num_generations)
            seconds["reward_seconds"] += self._score(new, self.samples)
            tied = self._tied(new)
            num_ties += len(tied)
            is_last = again + 1 == self._most_rounds()
            kept = new if is_last else [one for one in new if one.position not in tied]
            groups += kept
            wanted -= len(kept)
            if not wanted:
                break
        experience = Experience(number, groups, num_ties=num_ties)
        started = time.perf_counter()
        self._measure(experience)
        self._set_advantages(experience)
        seconds["logps_seconds"] = time.perf_counter() - started
        experience.metrics |= measures_of(experience, self.judge.names) | seconds | self.judge.take_metrics()
        for tell in self.on_experience:
            tell(experience)
        self._warn_of_ties(experience)
        return experience

    def _warn_of_ties(self, experience: Experience) -> None:
        """Warn once where round after round has no spread of rewards, so that nothing changes."""
        self._num_tied = self._num_tied + 1 if experience.metrics.get("frac_reward_zero_std") == 1 else 0
        if self._num_tied == TIED_ROUNDS and is_first():
            get_logger().warning(
                "In %d rounds in a row all responses to a prompt had the same reward (%.3g on average): there is no "
                "gradient. Start from a model that succeeds sometimes (sft first), or give easier prompts, or a "
                "reward with steps in between.",
                TIED_ROUNDS, experience.metrics["reward"],
            )  # fmt: skip

    def _most_rounds(self) -> int:
        args: Any = self.args
        return 1 + (args.max_resample if args.resample_ties else 0)

    def _next(self, count: int) -> range:
        self.position += count
        return range(self.position - count, self.position)

    def _new_group(self, prompts: PromptSamples, index: int, position: int) -> Group:
        return Group(index, position, np.asarray(prompts.store[index]["input_ids"], np.int32))

    def _write(
        self, groups: Sequence[Group], prompts: PromptSamples, *, number: int, size: int, greedy: bool = False
    ) -> float:
        """Sample the responses of all groups, a share on each rank. Return the seconds it took."""
        started = time.perf_counter()
        args: Any = self.args
        places = [(at, g) for at in range(len(groups)) for g in range(size)]
        alone = self.writer.is_remote and not greedy
        own = _share(len(groups), size) if not alone else list(range(len(places))) if rank() == 0 else []
        keys = [(args.seed, number, groups[places[at][0]].position, places[at][1]) for at in own]
        rows = [groups[places[at][0]] for at in own]
        with evaluating(self.passes.model):
            made = self.writer.write(rows, keys, prompts, greedy=greedy)
        found = [pair for part in gather_from_ranks(list(zip(own, made, strict=True))) for pair in part]
        for at, response in sorted(found, key=lambda pair: pair[0]):
            groups[places[at][0]].responses.append(response)
        return time.perf_counter() - started

    def _score(self, groups: Sequence[Group], prompts: PromptSamples) -> float:
        started = time.perf_counter()
        self.judge.judge(groups, prompts)
        for group in groups:
            for one in group.responses:
                one.reward -= self.args.reward_baseline
                if one.is_cut:
                    one.reward -= getattr(self.args, "missing_eos_penalty", 0.0)
        return time.perf_counter() - started

    def _tied(self, groups: Sequence[Group]) -> set[int]:
        """Return the positions of groups whose responses all have the same reward."""
        return {groups[number].position for number in tied_groups(_rewards_of(groups))}

    # Log-probabilities and advantages

    def _measure(self, experience: Experience) -> None:
        """Compute what later steps compare with: the model's log-probabilities now, and the reference's."""
        model = self.passes.model
        needs_old = self.args.updates_per_batch > 1 or not self.writer.is_exact or self._kl_in_reward()
        if needs_old:
            self.passes.fill(experience.groups, "old", self.logps(model))
        if self.reference is not None:
            with self.reference(model) as other:
                self.passes.fill(experience.groups, "reference", self.logps(other))
        if self.critic is not None:
            self.passes.fill(experience.groups, "values", self.critic.values)

    def logps(self, model: Any) -> Callable[[Any], Any]:
        """Return the function that computes log-probabilities of a batch."""
        return lambda batch: token_logps(model, batch, self.objective.temperature)

    def _kl_in_reward(self) -> bool:
        return self.args.kl_in_reward and self.args.needs_reference

    def _set_advantages(self, experience: Experience) -> None:
        args: Any = self.args
        function = resolve_reference(
            ADVANTAGE_MAPPING[self.args.advantage_key].function, what=f"The advantage {self.args.advantage_key!r}"
        )
        beta = self.objective.options.beta if self.control is None else self.control.beta
        rewards = _rewards_of(experience.groups, beta=beta if self._kl_in_reward() else None)
        rewards = replace(rewards, gamma=getattr(args, "gamma", 1.0), lam=getattr(args, "lam", 1.0))
        found = function(rewards)
        if self.critic is not None:
            for response, values in zip(experience.responses(), found, strict=True):
                response.returns = (values + np.asarray(response.values, np.float64)).astype(np.float32)
            found = whitened(found)
        for response, values in zip(experience.responses(), found, strict=True):
            is_out = args.mask_cut and response.is_cut
            response.advantages = np.zeros_like(values, np.float32) if is_out else values.astype(np.float32)
        if rewards.kl is not None:
            experience.metrics |= {"objective/kl": float(np.mean([one.sum() for one in rewards.kl])), "beta": beta}
            if self.control is not None:
                self.control.follow(experience.metrics["objective/kl"], len(rewards.values))

    def evaluate(self, prompts: PromptSamples, prefix: str) -> dict[str, float]:
        """Respond to each prompt once, and return the mean rewards."""
        groups = [self._new_group(prompts, index, index) for index in range(len(prompts.store))]
        seconds = self._write(groups, prompts, number=0, size=1, greedy=True)
        self._score(groups, prompts)
        found = measures_of(Experience(0, groups), self.judge.names) | {"rollout_seconds": seconds}
        found |= self.judge.take_metrics()
        return {f"{prefix}_{name}": value for name, value in found.items()}


def _share(num_groups: int, size: int) -> list[int]:
    """Places of this rank, group by group, so that a prompt is computed on one rank only."""
    return [at * size + g for at in range(rank(), num_groups, world_size()) for g in range(size)]


def _rewards_of(groups: Sequence[Group], beta: float | None = None) -> Rewards:
    responses = [(number, one) for number, group in enumerate(groups) for one in group.responses]
    kl = None
    if beta is not None:
        kl = [np.asarray(one.old, np.float64) - np.asarray(one.reference, np.float64) for _, one in responses]
    values = [one.values for _, one in responses] if all(one.values is not None for _, one in responses) else None
    return Rewards(
        np.array([one.reward for _, one in responses], np.float64),
        np.array([number for number, _ in responses], np.int64),
        np.array([one.num_sampled for _, one in responses], np.int64),
        kl=kl,
        beta=beta or 0.0,
        critic=None if values is None else [np.asarray(one, np.float64) for one in values],
    )
