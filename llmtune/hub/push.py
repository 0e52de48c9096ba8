"""Checkpoints to a hub: where they go, that one may write there, and one folder at a time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llmtune.errors import CheckpointError, HubError, UsageError
from llmtune.hub.explain import explain, http_status
from llmtune.hub.huggingface import HuggingFace
from llmtune.hub.modelscope import ModelScope
from llmtune.hub.repo import Hub, Repo
from llmtune.hub.settings import offline, use_hf

__all__ = ["Destination", "destination", "push_folder"]

STATE_FILES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "training_args.bin")
"""What resuming needs and serving does not; pickles, all of them."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A repository that exists and may be written to."""

    hub: Hub
    repo: Repo


def destination(
    hub_model_id: str, *, use_hf_hub: bool | None = None, token: str | None = None, private: bool = True
) -> Destination:
    """Find whose the token is, and make the repository.

    Args:
        hub_model_id: `owner/name`, or a name below the token's own user.

    Raises:
        HubError: No token, a refused one, or no network.
    """
    hub: Hub = HuggingFace() if use_hf(use_hf_hub) else ModelScope()
    if offline():
        raise UsageError("LLMTUNE_OFFLINE or HF_HUB_OFFLINE is set, so nothing can be pushed.")
    repo = Repo("model", hub_model_id, token=token)
    try:
        if "/" not in hub_model_id:
            repo = Repo("model", f"{hub.user(token)}/{hub_model_id}", token=token)
        hub.create(repo, private=private)
    except Exception as err:
        if http_status(err) is None and "token" in str(err).lower():
            raise HubError(
                f"{hub.name} needs a token to push. Give yours with --hub_token or in {hub.token_variable}."
            ) from err
        raise explain(err, hub, repo) from err
    return Destination(hub, repo)


def push_folder(
    folder: Path, where: Destination, *, message: str, path_in_repo: str = "", with_state: bool = False
) -> None:
    """Upload a checkpoint as one commit.

    Args:
        with_state: Also what resuming needs.

    Raises:
        CheckpointError: No such folder. HubError: The hub does not take it.
    """
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder} to push.")
    ignore = [*(() if with_state else STATE_FILES), *_cards_of_local_models(folder)]
    try:
        where.hub.upload(where.repo, folder, message=message, ignore=ignore, path_in_repo=path_in_repo)
    except Exception as err:
        raise explain(err, where.hub, where.repo) from err


def _cards_of_local_models(folder: Path) -> list[str]:
    """PEFT's card names the base model by its folder here, which Hugging Face refuses and nobody else should read."""
    card = folder / "README.md"
    if not card.is_file():
        return []
    base = re.search(r"^base_model: *(\S+)", card.read_text(encoding="utf-8"), re.M)
    return ["README.md"] if base is not None and Path(base[1]).is_absolute() else []
