"""The loop of online training, as the trainer sees it: the micro-batches of one optimizer step after the other.

New responses are collected when a step needs them (`training.collecting`), and dealt out to micro-batches and ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmtune.arguments.online import OnlineStage
from llmtune.distributed.collectives import sum_over_ranks
from llmtune.distributed.ranks import rank, world_size
from llmtune.rollouts.experience import FACTS_FILE, Experience, Group, Response
from llmtune.samples.prompts import PromptSamples
from llmtune.samples.rollouts import Parts, RolloutCollator, micro_batches
from llmtune.training.collecting import Collector
from llmtune.training.critic import Critic
from llmtune.training.token_passes import on_device
from llmtune.utils.files import read_json, write_json

CURSOR_FILE = "online.json"
"""File of a checkpoint: where the run is in its prompts."""
EARLY = 1.5
"""Multiple of --target_kl at which --early_stopping leaves the rest out, as in trl's PPO."""


@dataclass
class OnlineLoop:
    """Gives the trainer its micro-batches.

    Attributes:
        collector: Collects an experience for one or several steps.
        collator: Makes micro-batches.
    """

    args: OnlineStage
    collector: Collector
    collator: RolloutCollator
    experience: Experience | None = None
    _logged: list[dict[str, float]] = field(default_factory=list)

    @property
    def critic(self) -> Critic | None:
        return self.collector.critic

    # What the trainer asks for

    def batches(self, step: int, count: int) -> list[dict[str, Any]]:
        """Return the micro-batches of this rank for an optimizer step, as many as asked for."""
        number, update = divmod(step, self.args.updates_per_batch)
        if self.experience is None or self.experience.number != number:
            self.experience = self.collector.collect(number)
            self._logged.append(self.experience.metrics)
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
        device = self.collector.passes.model.device
        batches = [on_device(device, self.collator(own, (0.0, 0.0))) for own in dealt if own]
        self._logged.append(critic.learn(batches, num_tokens))

    def _has_moved(self, groups: Sequence[Group], update: int) -> bool:
        """Whether early stopping leaves the policy as it is for the rest of the passes."""
        if not self._stops_early or update == 0:
            return False
        own = groups[rank() :: world_size()]
        sums = np.zeros(2)
        now = self.collector.logps(self.collector.passes.model)
        for group, arrays in zip(own, self.collector.passes.over(own, now), strict=True):
            for response, values in zip(group.responses, arrays, strict=True):
                sums += ((np.asarray(response.old) - values).sum(), len(values))
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
        state: dict[str, Any] = {"position": self.collector.position}
        if self.collector.control is not None:
            state["beta"] = self.collector.control.beta
        write_json(folder / CURSOR_FILE, state)
        if self.experience is not None and step % self.args.updates_per_batch:
            self.experience.save(folder)
        if self.critic is not None:
            self.critic.save(folder, with_optimizer=not self.args.only_save_model)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        state = read_json(folder / CURSOR_FILE)
        self.collector.position = int(state["position"])
        if self.collector.control is not None:
            self.collector.control.beta = float(state["beta"])
        if self.critic is not None:
            self.critic.load(folder)
        if (folder / FACTS_FILE).is_file():
            self.experience = Experience.load(folder)

    def evaluate(self, prompts: PromptSamples, prefix: str) -> dict[str, float]:
        """Return the mean rewards of a response to each prompt."""
        return self.collector.evaluate(prompts, prefix)

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
        in_loss = self.collector.objective.options.beta > 0 and not self.args.kl_in_reward
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
