"""`--push_to_hub`: checkpoints are pushed in the background; a failed upload does not stop training."""

from __future__ import annotations

import shlex
import shutil
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from llmtune.checkpoint import checkpoint_folder
from llmtune.errors import LlmtuneError
from llmtune.run.model_card import card_of
from llmtune.utils.files import link_or_copy
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from llmtune.arguments.stage import StageArguments
    from llmtune.hub.push import Destination


ATTEMPTS = 3
WAIT = 5.0
"""Seconds before the second attempt; twice that before the third."""


def hub_push(args: StageArguments) -> HubPush | None:
    """Return the callback of `--push_to_hub`, if set; the token is checked now, before training."""
    if not args.push_to_hub:
        return None
    from llmtune.hub.push import destination

    name = args.hub_model_id or f"{args.display_name()}-{args.sft_type}"
    where = destination(name, use_hf_hub=args.use_hf, token=args.hub_token, private=args.hub_private_repo)
    get_logger().info(f"Pushing checkpoints to {where.repo.repo_id} on {where.hub.name} ({args.push_hub_strategy}).")
    return HubPush(where, args.push_hub_strategy)


class HubPush(TrainerCallback):
    """Pushes saved checkpoints, one upload at a time, by strategy.

    `end`: the last one, after training. `push_best`, `push_last`: each new best or last one, replacing the one before.
    `checkpoint`: the last one with optimizer and RNG state, in `last-checkpoint`. `all_checkpoints`: each, in a folder
    of its name.
    """

    def __init__(self, where: Destination, strategy: str) -> None:
        self.where = where
        self.strategy = strategy
        self.failed: list[Path] = []
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hub-push")
        self._waiting: list[Future[None]] = []

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        checkpoint = checkpoint_folder(Path(args.output_dir), state.global_step)
        if not state.is_world_process_zero or not checkpoint.is_dir():
            return
        is_best = state.best_global_step == state.global_step
        if self.strategy == "end" or (self.strategy == "push_best" and not is_best):
            return
        self._start(checkpoint)

    def finish(self, last: Path | None) -> None:
        """Push what the strategy pushes at the end, and wait for all uploads."""
        if self.strategy == "push_best" and not self._waiting and last is not None:
            get_logger().info("--push_hub_strategy push_best: nothing was evaluated, pushing the last checkpoint.")
            self._start(last)
        if self.strategy == "end" and last is not None:
            self._start(last)
        waiting = [future for future in self._waiting if not future.done()]
        if waiting:
            get_logger().info(f"Waiting for {len(waiting)} upload(s) to {self.where.repo.repo_id}.")
        self._worker.shutdown(wait=True)
        if not self.failed and self._waiting:
            get_logger().info(f"Pushed to {self.where.repo.repo_id} on {self.where.hub.name}.")

    def _start(self, checkpoint: Path) -> None:
        # Links to its files: rotation may delete the checkpoint during the upload.
        kept = Path(tempfile.mkdtemp(prefix=f".pushing-{checkpoint.name}-", dir=checkpoint.parent))
        shutil.copytree(checkpoint, kept, copy_function=link_or_copy, dirs_exist_ok=True)
        self._waiting.append(self._worker.submit(self._push, checkpoint, kept))

    def _push(self, checkpoint: Path, kept: Path) -> None:
        from llmtune.hub.push import push_folder

        places = {"checkpoint": "last-checkpoint", "all_checkpoints": checkpoint.name}
        try:
            for attempt in range(ATTEMPTS):
                try:
                    push_folder(
                        kept,
                        self.where,
                        message=f"{checkpoint.name}",
                        path_in_repo=places.get(self.strategy, ""),
                        with_state=self.strategy == "checkpoint",
                        write_card=card_of(kept, name=checkpoint.name),
                    )
                    return
                except LlmtuneError as err:
                    if attempt == ATTEMPTS - 1:
                        self._give_up(checkpoint, err)
                    else:
                        time.sleep(WAIT * 2**attempt)
        finally:
            shutil.rmtree(kept, ignore_errors=True)

    def _give_up(self, checkpoint: Path, err: LlmtuneError) -> None:
        self.failed.append(checkpoint)
        hub = "true" if self.where.hub.name == "Hugging Face" else "false"
        words = ["llmtune", "push", "--ckpt_dir", str(checkpoint), "--hub_model_id", self.where.repo.repo_id]
        command = shlex.join([*words, "--use_hf", hub])
        get_logger().warning(
            f"{checkpoint.name} could not be pushed: {err} Training continues. To push it later: {command}"
        )
