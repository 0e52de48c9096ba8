"""The two hubs, ModelScope and Hugging Face, through the clients of their own packages.

`modelscope_hub` is the part of ModelScope's package without torch. Errors of the clients become one line with the cause
and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from llmtune.errors import HubError, LlmtuneError

TRUE = ("1", "true", "yes", "on")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class HubOptions:
    """Hub and options of downloads. All None: the hub of the environment, its default revision."""

    use_hf: bool | None = None
    revision: str | None = None
    token: str | None = None
    cache_dir: str | None = None


def use_hf(explicit: bool | None = None) -> bool:
    """Return whether to use Hugging Face instead of ModelScope: by the flag, else LLMTUNE_USE_HF or USE_HF."""
    if explicit is not None:
        return explicit
    return _is_true("LLMTUNE_USE_HF") or _is_true("USE_HF")


def offline() -> bool:
    """Return whether downloads are disabled: LLMTUNE_OFFLINE, or Hugging Face's HF_HUB_OFFLINE."""
    return _is_true("LLMTUNE_OFFLINE") or _is_true("HF_HUB_OFFLINE")


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in TRUE


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository on a hub. `revision`: None for the hub's own default. `cache_dir`: None for the client's own."""

    kind: Literal["model", "dataset"]
    repo_id: str
    revision: str | None = None
    token: str | None = None
    cache_dir: str | None = None


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository; `size` in bytes, `digest`: the hub's identifier of a file's version."""

    path: str
    size: int | None
    digest: str | None


class Hub(Protocol):
    """Interface of a hub; each method may raise any error of its client, see `explain`."""

    name: str
    token_variable: str

    def list_files(self, repo: Repo) -> list[RemoteFile]:
        """List the repository's current files, with one request or a few."""
        ...

    def download(self, repo: Repo, ignore: Sequence[str]) -> Path:
        """Download all files but those whose exact path is in `ignore`; a later call resumes an interrupted one."""
        ...

    def cached(self, repo: Repo) -> Path | None:
        """Return the folder of an earlier download, possibly incomplete, without any request."""
        ...

    def user(self, token: str | None) -> str:
        """Return the user of the token, or of the stored login."""
        ...

    def create(self, repo: Repo, *, private: bool) -> None:
        """Create the repository if it does not exist."""
        ...

    def upload(self, repo: Repo, folder: Path, *, message: str, ignore: Sequence[str], path_in_repo: str) -> None:
        """Upload all files of a folder but those whose name matches a glob of `ignore`, as one commit."""
        ...


def chosen_hub(use_hf_hub: bool | None) -> Hub:
    """Return the client of the hub that the flag or the environment chooses."""
    return HuggingFace() if use_hf(use_hf_hub) else ModelScope()


class HuggingFace:
    name = "Hugging Face"
    token_variable = "HF_TOKEN"

    def list_files(self, repo: Repo) -> list[RemoteFile]:
        from huggingface_hub.hf_api import RepoFile

        tree = self._api(repo.token).list_repo_tree(
            repo.repo_id, repo_type=repo.kind, revision=self._options(repo)["revision"], recursive=True
        )
        return [RemoteFile(file.path, file.size, file.blob_id) for file in tree if isinstance(file, RepoFile)]

    def download(self, repo: Repo, ignore: Sequence[str]) -> Path:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(**self._options(repo), ignore_patterns=[glob.escape(path) for path in ignore]))

    def cached(self, repo: Repo) -> Path | None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(snapshot_download(**self._options(repo), local_files_only=True))
        except LocalEntryNotFoundError:
            return None

    def user(self, token: str | None) -> str:
        return str(self._api(token).whoami()["name"])

    def create(self, repo: Repo, *, private: bool) -> None:
        self._api(repo.token).create_repo(repo.repo_id, repo_type=repo.kind, private=private, exist_ok=True)

    def upload(self, repo: Repo, folder: Path, *, message: str, ignore: Sequence[str], path_in_repo: str) -> None:
        self._api(repo.token).upload_folder(
            repo_id=repo.repo_id,
            repo_type=repo.kind,
            folder_path=folder,
            path_in_repo=path_in_repo or None,
            commit_message=message,
            ignore_patterns=list(ignore),
        )

    def _api(self, token: str | None) -> Any:
        from huggingface_hub import HfApi

        return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)

    def _options(self, repo: Repo) -> dict[str, Any]:
        return {
            "repo_id": repo.repo_id,
            "repo_type": repo.kind,
            "revision": None if repo.revision == "master" else repo.revision,  # ModelScope's name of the branch main
            "cache_dir": repo.cache_dir,
            "token": repo.token,
            "endpoint": os.environ.get("HF_ENDPOINT"),  # the package reads it once, at its import
        }


class ModelScope:
    name = "ModelScope"
    token_variable = "MODELSCOPE_API_TOKEN"

    def list_files(self, repo: Repo) -> list[RemoteFile]:
        # upstream: modelscope-hub 0.5.1 modelscope_hub/_legacy_api.py: logs each page of a listing
        logging.getLogger("modelscope_hub").setLevel(logging.WARNING)
        client, options = self._api(repo.token).legacy, self._options(repo)
        if repo.kind == "dataset":
            entries = client.list_dataset_files_paginated(repo_id=repo.repo_id, revision=options["revision"])
        else:
            entries = client.list_repo_files(repo.repo_id, repo.kind, revision=options["revision"], recursive=True)
        return [
            RemoteFile(entry["Path"], entry.get("Size"), entry.get("Sha256"))
            for entry in entries
            if entry.get("Type") != "tree"
        ]

    def download(self, repo: Repo, ignore: Sequence[str]) -> Path:
        return self._snapshot(repo, ignore_patterns=[glob.escape(path) for path in ignore])

    def cached(self, repo: Repo) -> Path | None:
        from modelscope_hub.errors import CacheNotFound

        try:
            return self._snapshot(repo, local_files_only=True)
        except CacheNotFound:
            return None

    def user(self, token: str | None) -> str:
        return str(self._api(token).whoami().username)

    def create(self, repo: Repo, *, private: bool) -> None:
        from modelscope_hub.errors import AlreadyExistsError

        with contextlib.suppress(AlreadyExistsError):
            visibility = "private" if private else "public"
            self._api(repo.token).create_repo(repo.repo_id, repo.kind, visibility=visibility)

    def upload(self, repo: Repo, folder: Path, *, message: str, ignore: Sequence[str], path_in_repo: str) -> None:
        # upstream: modelscope-hub 0.5.1 modelscope_hub/_upload.py: logs each step of an upload
        logging.getLogger("modelscope_hub").setLevel(logging.WARNING)
        self._api(repo.token).upload_folder(
            repo.repo_id,
            repo.kind,
            folder,
            path_in_repo=path_in_repo,
            commit_message=message,
            ignore_patterns=list(ignore),
            disable_tqdm=True,
        )

    def _api(self, token: str | None) -> Any:
        from modelscope_hub import HubApi

        return HubApi(token=token, endpoint=os.environ.get("MODELSCOPE_ENDPOINT"))

    def _snapshot(self, repo: Repo, **options: Any) -> Path:
        from modelscope_hub.compat import dataset_snapshot_download, snapshot_download

        download = dataset_snapshot_download if repo.kind == "dataset" else snapshot_download
        return Path(download(**self._options(repo), **options))

    def _options(self, repo: Repo) -> dict[str, Any]:
        # The package keeps the endpoint and the cache folder that it saw first.
        return {
            "dataset_id" if repo.kind == "dataset" else "model_id": repo.repo_id,
            "revision": repo.revision or "master",
            "cache_dir": repo.cache_dir or os.environ.get("MODELSCOPE_CACHE"),
            "token": repo.token,
            "endpoint": os.environ.get("MODELSCOPE_ENDPOINT"),
        }


# Errors of the clients


def explain(err: BaseException, hub: Hub, repo: Repo, *, sending: bool = False) -> LlmtuneError:
    """Return the error to raise instead of a client's. `sending`: in a push, not a download."""
    what = f"{repo.kind} {repo.repo_id!r}" + (
        f" at revision {repo.revision!r}" if repo.revision not in (None, "master") else ""
    )
    text = (_not_sent if sending else _not_fetched)(err, hub, what)
    return HubError(text or f"{hub.name}, {what}: {type(err).__name__}, {_last_words(err)}")


def _not_sent(err: BaseException, hub: Hub, what: str) -> str | None:
    status = http_status(err)
    if status in (401, 403, 404):
        return (
            f"You have no write access to the {what} on {hub.name} (HTTP {status}). Check the spelling, and give its "
            f"owner's token with write access by --hub_token or {hub.token_variable}."
        )
    if status is not None:
        return f"{hub.name} returned an error (HTTP {status}) for the {what}. Try again later."
    if is_unreachable(err):
        return f"{hub.name} cannot be reached to push the {what}: {_last_words(err)}. Check the network."
    return None


def _not_fetched(err: BaseException, hub: Hub, what: str) -> str | None:
    if any(isinstance(e, OSError) and e.errno in NO_SPACE for e in _chain(err)):
        return (
            f"The disk is full: {what} cannot be stored. The download so far is kept; free some space, or give "
            "another folder with --cache_dir."
        )
    status = http_status(err)
    if status in (401, 403):
        return (
            f"You have no access to the {what} on {hub.name} (HTTP {status}). Accept its terms on its page, if it has "
            f"any, and give your token with --hub_token or in {hub.token_variable}."
        )
    if status == 404:
        other = "--use_hf true asks Hugging Face" if hub.name == "ModelScope" else "--use_hf false asks ModelScope"
        return (
            f"{hub.name} has no {what} (HTTP 404), or it is private. Check the spelling; give a local folder by its "
            f"path; {other}."
        )
    if status is not None:
        return (
            f"{hub.name} returned an error (HTTP {status}) for the {what}. Try again later: "
            "the download so far is kept."
        )
    if is_unreachable(err):
        return (
            f"{hub.name} cannot be reached for the {what}: {_last_words(err)}. Check the network, or give the path of "
            "a local folder. The download so far is kept."
        )
    return None


def is_unreachable(err: BaseException) -> bool:
    """Return whether the hub could not be reached, or the connection broke."""
    names = {kind.__name__ for e in _chain(err) for kind in type(e).__mro__}
    return http_status(err) is None and bool(
        names & {"ConnectionError", "TimeoutError", "Timeout", "TransportError", "NetworkError", "ChunkedEncodingError"}
    )


def _chain(err: BaseException) -> Iterator[BaseException]:
    """Yield the error, its causes, and the errors of single files."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [err]
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [*getattr(one, "failed_files", {}).values(), one.__cause__, one.__context__]


def http_status(err: BaseException) -> int | None:
    for one in _chain(err):
        status = getattr(one, "status_code", None) or getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(status, int) and status >= 400:
            return status
    return None


def _last_words(err: BaseException) -> str:
    *_, root = _chain(err)
    text = " ".join(str(root).split()) or type(root).__name__
    return text[:200]
