"""The loop of online training: prompts -> rollouts -> rewards -> advantages -> micro-batches of each step.

It is asked for the micro-batches of one optimizer step after the other, and samples when a step needs new responses.
Random draws depend on seed, round, position and generation, so nothing else has to be kept but the experience itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmtune.arguments.online import OnlineStage
from llmtune.distributed.collectives import gather_from_ranks, sum_over_ranks
from llmtune.distributed.ranks import is_first, rank, world_size
from llmtune.losses.advantages import Rewards, tied_groups, whitened
from llmtune.losses.info import ADVANTAGE_MAPPING
from llmtune.registry import resolve_reference
from llmtune.rollouts.experience import FACTS_FILE, Experience, Group, Response
from llmtune.rollouts.measures import measures_of
from llmtune.rollouts.scoring import Judge
from llmtune.rollouts.writing import Writer
from llmtune.samples.prompts import PromptSamples
from llmtune.samples.rollouts import RolloutCollator, micro_batches, split_by_response
from llmtune.training.critic import Critic
from llmtune.training.kl_control import KlControl
from llmtune.training.online_reference import ReferenceModel
from llmtune.training.policy import PolicyLoss, token_logps
from llmtune.utils.files import read_json, write_json
from llmtune.utils.logging import get_logger

CURSOR_FILE = "online.json"
"""File of a checkpoint: where the run is in its prompts."""

Parts = list[tuple[Group, Sequence[Response]]]
TIED_ROUNDS = 3
"""Rounds in a row without any spread of rewards after which a warning is due."""
EARLY = 1.5
"""Multiple of --target_kl at which --early_stopping leaves the rest out, as in trl's PPO."""


@dataclass
class OnlineLoop:
    """Samples, scores and deals out.

    Attributes:
        samples: The prompts.
        writer: Makes responses.
        judge: Gives rewards.
        collator: Makes micro-batches.
        reference: Computes as the reference; None where there is none.
        model: The trained model, without its wrapper.
        on_experience: Called with each new experience.
    """

    args: OnlineStage
    samples: PromptSamples
    objective: PolicyLoss
    writer: Writer
    judge: Judge
    collator: RolloutCollator
    reference: ReferenceModel | None
    model: Any
    on_experience: list[Callable[[Experience], None]] = field(default_factory=list)
    critic: Critic | None = None
    control: KlControl | None = None
    experience: Experience | None = None
    _position: int = 0  # of the next prompt that nobody has responded to
    _logged: list[dict[str, float]] = field(default_factory=list)
    _num_tied: int = 0  # rounds in a row without a spread of rewards

    # What the trainer asks for

    def batches(self, step: int, count: int) -> list[dict[str, Any]]:
        """Return the micro-batches of this rank for an optimizer step, as many as asked for."""
        number, update = divmod(step, self.args.updates_per_batch)
        if self.experience is None or self.experience.number != number:
            self.experience = self._collect(number)
        groups = self._groups_of(self.experience, update)
        totals = self._totals(groups)
        if self.critic is not None:
            self._teach(self.critic, groups, count, totals[1])
            if step < self._warmup or self._has_moved(groups, update):
                return self._dealt([], count, totals)
        return self._dealt(groups, count, totals)

    def _dealt(self, groups: Sequence[Group], count: int, totals: tuple[float, float]) -> list[dict[str, Any]]:
        """The micro-batches of this rank, of the responses that have a part in the gradient."""
        learned: Parts = [(group, [one for one in group.responses if self._counts(one)]) for group in groups]
        dealt = micro_batches(
            [part for part in learned if part[1]],
            size=self._most_responses(count),
            count=count,
            ranks=world_size(),
        )[rank()]
        return [
            self.collator(parts, totals if number == 0 and rank() == 0 else (0.0, 0.0))
            for number, parts in enumerate(dealt)
        ]

    def _teach(self, critic: Critic, groups: Sequence[Group], count: int, num_tokens: float) -> None:
        """One step of the critic, on all responses of a step of the policy."""
        parts: Parts = [(group, group.responses) for group in groups]
        dealt = micro_batches(parts, size=self._most_responses(count), count=count, ranks=world_size())[rank()]
        batches = [_on(self.model.device, self.collator(own, (0.0, 0.0))) for own in dealt if own]
        self._logged.append(critic.learn(batches, num_tokens))

    def _has_moved(self, groups: Sequence[Group], update: int) -> bool:
        """Whether early stopping leaves the policy as it is for the rest of the passes."""
        if not self._stops_early or update == 0:
            return False
        own = range(rank(), len(groups), world_size())
        sums = np.zeros(2)
        with self._evaluating():
            for at in own:
                for response, now in zip(groups[at].responses, self._logps_of(groups[at], self.model), strict=True):
                    sums += ((np.asarray(response.old) - now).sum(), len(now))
        moved, count = sum_over_ranks(sums.tolist())
        self._logged.append({"policy_kl": moved / count})
        return bool(moved / count > EARLY * self._ppo.target_kl)

    def take_metrics(self) -> dict[str, float]:
        """Return the means of what was measured since the last call."""
        names = {name: None for one in self._logged for name in one}
        found = {name: float(np.mean([one[name] for one in self._logged if name in one])) for name in names}
        self._logged.clear()
        return found

    def save(self, folder: Path, step: int) -> None:
        """Write into a checkpoint what the steps after it need."""
        state: dict[str, Any] = {"position": self._position}
        if self.control is not None:
            state["beta"] = self.control.beta
        write_json(folder / CURSOR_FILE, state)
        if self.experience is not None and step % self.args.updates_per_batch:
            self.experience.save(folder)
        if self.critic is not None:
            self.critic.save(folder, with_optimizer=not self.args.only_save_model)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        state = read_json(folder / CURSOR_FILE)
        self._position = int(state["position"])
        if self.control is not None:
            self.control.beta = float(state["beta"])
        if self.critic is not None:
            self.critic.load(folder)
        if (folder / FACTS_FILE).is_file():
            self.experience = Experience.load(folder)

    def evaluate(self, prompts: PromptSamples, prefix: str) -> dict[str, float]:
        """Respond to each prompt once, greedily, and return the mean rewards."""
        groups = [self._new_group(prompts, index, index) for index in range(len(prompts.store))]
        seconds = self._write(groups, prompts, number=0, size=1, greedy=True)
        self._score(groups, prompts)
        found = measures_of(Experience(0, groups), self.judge.names) | {"rollout_seconds": seconds}
        return {f"{prefix}_{name}": value for name, value in found.items()}

    @property
    def _ppo(self) -> Any:
        """The arguments, with those of PPO."""
        return self.args

    @property
    def _warmup(self) -> int:
        return int(self._ppo.critic_warmup)

    @property
    def _stops_early(self) -> bool:
        return bool(self._ppo.early_stopping)

    # One round

    def _collect(self, number: int) -> Experience:
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
        self._logged.append(experience.metrics)
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
        self._position += count
        return range(self._position - count, self._position)

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
        with self._evaluating():
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
        needs_old = self.args.updates_per_batch > 1 or not self.writer.is_exact or self._kl_in_reward()
        if needs_old:
            self._fill(experience, "old", contextlib.nullcontext(self.model))
        if self.reference is not None:
            self._fill(experience, "reference", self.reference(self.model))
        if self.critic is not None:
            self._fill(experience, "values", contextlib.nullcontext(self.critic))

    def _kl_in_reward(self) -> bool:
        return self.args.kl_in_reward and self.args.needs_reference

    def _fill(self, experience: Experience, name: str, by: contextlib.AbstractContextManager[Any]) -> None:
        """Set an array of each response, computed on the ranks in shares."""
        groups = experience.groups
        own = range(rank(), len(groups), world_size())
        found: list[tuple[int, list[Any]]] = []
        with self._evaluating(), by as model:
            for at in own:
                found.append((at, self._logps_of(groups[at], model)))
        for at, arrays in (pair for part in gather_from_ranks(found) for pair in part):
            for response, values in zip(groups[at].responses, arrays, strict=True):
                setattr(response, name, values)

    def _logps_of(self, group: Group, model: Any) -> list[Any]:
        """Log-probabilities of the tokens of each response; of the critic, their values."""
        size = self._most_responses(self.args.gradient_accumulation_steps)
        arrays = []
        for start in range(0, len(group.responses), size):
            parts: Parts = [(group, group.responses[start : start + size])]
            batch = _on(self.model.device, self.collator(parts, (0.0, 0.0)))
            is_critic = model is self.critic
            found = model.values(batch) if is_critic else token_logps(model, batch, self.objective.temperature)
            arrays += split_by_response(found, parts)
        return arrays

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

    # Dealing out

    def _groups_of(self, experience: Experience, update: int) -> list[Group]:
        """The groups of one of the steps on an experience: a part of them, in a new order in each pass."""
        parts: int = self.args.num_mini_batches
        if parts == 1:
            return experience.groups
        turn, part = divmod(update, parts)
        order = np.random.default_rng([self.args.seed, experience.number, turn]).permutation(len(experience.groups))
        size = len(order) // parts
        return [experience.groups[at] for at in sorted(order[part * size : (part + 1) * size])]

    def _counts(self, response: Response) -> bool:
        """Whether a response has any part in the gradient."""
        if self.args.mask_cut and response.is_cut:
            return False
        in_loss = self.objective.options.beta > 0 and not self.args.kl_in_reward
        return in_loss or bool(np.any(response.advantages))

    def _totals(self, groups: Sequence[Group]) -> tuple[float, float]:
        """Responses and sampled tokens that the step's loss is a mean over."""
        masks: bool = self.args.mask_cut
        responses = [one for group in groups for one in group.responses]
        tokens = sum(one.num_sampled for one in responses if not (masks and one.is_cut))
        return float(len(responses)), float(tokens)

    def _most_responses(self, count: int) -> int:
        """Most responses of a micro-batch."""
        return -(-self.args.batch_size * self.args.gradient_accumulation_steps // count)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)


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


def _on(device: torch.device, batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
