"""ModelScope, through the client of its own package; `modelscope_hub` is its part without torch."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtune.hub.repo import RemoteFile, Repo

DEFAULT_REVISION = "master"


class ModelScope:
    name = "ModelScope"
    token_variable = "MODELSCOPE_API_TOKEN"

    def list_files(self, repo: Repo) -> list[RemoteFile]:
        from modelscope_hub import HubApi

        # upstream: modelscope-hub 0.5.1 modelscope_hub/_legacy_api.py: logs each page of a listing
        logging.getLogger("modelscope_hub").setLevel(logging.WARNING)
        client = HubApi(token=repo.token, endpoint=_endpoint()).legacy
        revision = repo.revision or DEFAULT_REVISION
        if repo.kind == "dataset":
            entries = client.list_dataset_files_paginated(repo_id=repo.repo_id, revision=revision)
        else:
            entries = client.list_repo_files(repo.repo_id, repo.kind, revision=revision, recursive=True)
        return [
            RemoteFile(entry["Path"], entry.get("Size"), entry.get("Sha256"))
            for entry in entries
            if entry.get("Type") != "tree"
        ]

    def download(self, repo: Repo, ignore: Sequence[str]) -> Path:
        return Path(_snapshot(repo)(**_options(repo), ignore_patterns=[glob.escape(path) for path in ignore]))

    def cached(self, repo: Repo) -> Path | None:
        from modelscope_hub.errors import CacheNotFound

        try:
            return Path(_snapshot(repo)(**_options(repo), local_files_only=True))
        except CacheNotFound:
            return None

    def user(self, token: str | None) -> str:
        from modelscope_hub import HubApi

        return str(HubApi(token=token, endpoint=_endpoint()).whoami().username)

    def create(self, repo: Repo, *, private: bool) -> None:
        from modelscope_hub import HubApi
        from modelscope_hub.errors import AlreadyExistsError

        api = HubApi(token=repo.token, endpoint=_endpoint())
        with contextlib.suppress(AlreadyExistsError):
            api.create_repo(repo.repo_id, repo.kind, visibility="private" if private else "public")

    def upload(self, repo: Repo, folder: Path, *, message: str, ignore: Sequence[str], path_in_repo: str) -> None:
        from modelscope_hub import HubApi

        # upstream: modelscope-hub 0.5.1 modelscope_hub/_upload.py: logs each step of an upload
        logging.getLogger("modelscope_hub").setLevel(logging.WARNING)
        HubApi(token=repo.token, endpoint=_endpoint()).upload_folder(
            repo.repo_id,
            repo.kind,
            folder,
            path_in_repo=path_in_repo,
            commit_message=message,
            ignore_patterns=list(ignore),
            disable_tqdm=True,
        )


def _snapshot(repo: Repo) -> Any:
    from modelscope_hub.compat import dataset_snapshot_download, snapshot_download

    return dataset_snapshot_download if repo.kind == "dataset" else snapshot_download


def _options(repo: Repo) -> dict[str, Any]:
    name = "dataset_id" if repo.kind == "dataset" else "model_id"
    return {
        name: repo.repo_id,
        "revision": repo.revision or DEFAULT_REVISION,
        "cache_dir": repo.cache_dir or os.environ.get("MODELSCOPE_CACHE"),
        "token": repo.token,
        "endpoint": _endpoint(),
    }


def _endpoint() -> str | None:
    return os.environ.get("MODELSCOPE_ENDPOINT")  # the package keeps the one that it saw first, and so with the cache
