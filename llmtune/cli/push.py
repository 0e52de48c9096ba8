"""`llmtune push`: a checkpoint, or any folder of a model, to a hub."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtune.arguments.parser import parse
from llmtune.checkpoint import checkpoint_of
from llmtune.errors import UsageError

SUMMARY = """
Push a checkpoint with a model card to ModelScope, or to Hugging Face with --use_hf true, as one commit.
  llmtune push --ckpt_dir output/qwen2.5-7b-instruct/v0-XXX/checkpoint-100 --hub_model_id my-model
"""


@dataclass(kw_only=True)
class PushArguments:
    """Push."""

    ckpt_dir: str | None = None
    """Folder to push."""
    hub_model_id: str | None = None
    """Repository: owner/name, or a name under your own account."""
    use_hf: bool | None = None
    """Push to Hugging Face instead of ModelScope. Default: environment variable USE_HF."""
    hub_token: str | None = None
    """Hub token. Default: MODELSCOPE_API_TOKEN or HF_TOKEN from the environment, or the stored login."""
    hub_private_repo: bool = True
    """Create the repository as private."""
    with_state: bool = False
    """Push optimizer and RNG state too, which resuming needs."""
    ignore_args_error: bool = False
    """Warn about unknown flags instead of stopping."""

    def __post_init__(self) -> None:
        if not self.ckpt_dir or not self.hub_model_id:
            raise UsageError("llmtune push needs --ckpt_dir FOLDER and --hub_model_id NAME.")
        if not Path(self.ckpt_dir).is_dir():
            raise UsageError(f"--ckpt_dir {self.ckpt_dir}: there is no such folder. Look below output/.")


ARGUMENTS = PushArguments


def run(argv: Sequence[str]) -> int:
    args = parse(PushArguments, argv, command="push", summary=SUMMARY)
    from llmtune.hub.push import destination, push_folder
    from llmtune.run.model_card import card_of

    assert args.ckpt_dir is not None
    assert args.hub_model_id is not None
    where = destination(args.hub_model_id, use_hf_hub=args.use_hf, token=args.hub_token, private=args.hub_private_repo)
    folder = checkpoint_of(Path(args.ckpt_dir))
    message = f"{folder.name}, by llmtune push"
    push_folder(folder, where, message=message, with_state=args.with_state, write_card=card_of(folder))
    sys.stdout.write(f"Pushed {folder} to {where.repo.repo_id} on {where.hub.name}\n")
    return 0
