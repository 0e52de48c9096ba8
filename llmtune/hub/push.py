"""Push checkpoints to a hub: create the repository, check write access, upload one folder at a time."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from llmtune.checkpoint import ADAPTER_CONFIG, SETTINGS_FILE, STATE_FILE, correct_size
from llmtune.errors import CheckpointError, HubError, UsageError
from llmtune.hub.clients import Hub, Repo, chosen_hub, explain, http_status, offline
from llmtune.utils.files import link_or_copy, read_json, write_json

STATE_FILES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "training_args.bin")
"""Files needed to resume but not to serve; all are pickles."""

WITH_PLACES = (ADAPTER_CONFIG, SETTINGS_FILE, STATE_FILE)
"""Files with local paths: data, the run, the base model."""
EMPTY_FORM = "[More Information Needed]"
"""PEFT's placeholder for every fact of its model card."""
TEXTS = ("model_author", "model_name", "new_special_tokens", "system")
"""Settings that are not paths, even if they begin with a slash: /no_think."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A repository that exists and may be written to."""

    hub: Hub
    repo: Repo


def destination(
    hub_model_id: str, *, use_hf_hub: bool | None = None, token: str | None = None, private: bool = True
) -> Destination:
    """Find the owner of the token, and create the repository.

    Args:
        hub_model_id: `owner/name`, or a name under the token's user.

    Raises:
        HubError: No token, a refused one, or no network.
    """
    hub = chosen_hub(use_hf_hub)
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
        raise explain(err, hub, repo, sending=True) from err
    return Destination(hub, repo)


def push_folder(
    folder: Path,
    where: Destination,
    *,
    message: str,
    path_in_repo: str = "",
    with_state: bool = False,
    write_card: Callable[[Path], None] | None = None,
) -> None:
    """Upload a checkpoint as one commit.

    Args:
        with_state: Include the files needed to resume.
        write_card: Writes README.md, the model card, into a folder. Called where the checkpoint has none, or an
            empty form.

    Raises:
        CheckpointError: No such folder. HubError: The hub refuses it.
    """
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder} to push.")
    ignore = [] if with_state else list(STATE_FILES)
    try:
        with _without_places(folder) as shown:
            _set_card(shown, write_card)
            where.hub.upload(where.repo, shown, message=message, ignore=ignore, path_in_repo=path_in_repo)
    except Exception as err:
        raise explain(err, where.hub, where.repo, sending=True) from err


@contextmanager
def _without_places(folder: Path) -> Iterator[Path]:
    """Yield a folder of links to the files, with local paths reduced to their last part."""
    with tempfile.TemporaryDirectory(prefix=f".pushing-{folder.name}-", dir=folder.parent) as place:
        kept = Path(place)
        shutil.copytree(folder, kept, copy_function=link_or_copy, dirs_exist_ok=True)
        for file in (path for name in WITH_PLACES for path in kept.rglob(name)):
            found = read_json(file)
            shown = _named(found)
            if _is_place(found.get("base_model_name_or_path")):
                shown["base_model_name_or_path"] = None  # its last part alone could be somebody's on the hub
            if shown != found:
                write_json(file, shown)
                correct_size(file)
        yield kept


def _named(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: one if key in TEXTS else _named(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_named(one) for one in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if _is_place(value) else value


def _is_place(value: Any) -> bool:
    """Return whether it is an absolute path, a path from the home folder, or outside of the working directory."""
    if not isinstance(value, str) or "\n" in value:
        return False
    return PurePath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith(("~", "../"))


def _set_card(folder: Path, write: Callable[[Path], None] | None) -> None:
    """Write a model card instead of PEFT's empty form, or of one that names the base model by its local folder."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    base = re.search(r"^base_model: *(\S+)", text, re.M)
    is_local = base is not None and Path(base[1]).is_absolute()
    if text and not is_local and EMPTY_FORM not in text:
        return
    if write is not None:
        write(folder)
        correct_size(card)
    elif is_local:  # Hugging Face refuses it, and it is private
        card.unlink()
