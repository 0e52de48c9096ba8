"""Hugging Face, through `huggingface_hub`."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtune.hub.repo import RemoteFile, Repo


class HuggingFace:
    name = "Hugging Face"
    token_variable = "HF_TOKEN"

    def list_files(self, repo: Repo) -> list[RemoteFile]:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        tree = HfApi(endpoint=_endpoint(), token=repo.token).list_repo_tree(
            repo.repo_id, repo_type=repo.kind, revision=_revision(repo), recursive=True
        )
        return [RemoteFile(file.path, file.size, file.blob_id) for file in tree if isinstance(file, RepoFile)]

    def download(self, repo: Repo, ignore: Sequence[str]) -> Path:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(**_options(repo), ignore_patterns=[glob.escape(path) for path in ignore]))

    def cached(self, repo: Repo) -> Path | None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(snapshot_download(**_options(repo), local_files_only=True))
        except LocalEntryNotFoundError:
            return None

    def user(self, token: str | None) -> str:
        from huggingface_hub import HfApi

        return str(HfApi(endpoint=_endpoint(), token=token).whoami()["name"])

    def create(self, repo: Repo, *, private: bool) -> None:
        from huggingface_hub import HfApi

        HfApi(endpoint=_endpoint(), token=repo.token).create_repo(
            repo.repo_id, repo_type=repo.kind, private=private, exist_ok=True
        )

    def upload(self, repo: Repo, folder: Path, *, message: str, ignore: Sequence[str], path_in_repo: str) -> None:
        from huggingface_hub import HfApi

        HfApi(endpoint=_endpoint(), token=repo.token).upload_folder(
            repo_id=repo.repo_id,
            repo_type=repo.kind,
            folder_path=folder,
            path_in_repo=path_in_repo or None,
            commit_message=message,
            ignore_patterns=list(ignore),
        )


def _options(repo: Repo) -> dict[str, Any]:
    return {
        "repo_id": repo.repo_id,
        "repo_type": repo.kind,
        "revision": _revision(repo),
        "cache_dir": repo.cache_dir,
        "token": repo.token,
        "endpoint": _endpoint(),
    }


def _revision(repo: Repo) -> str | None:
    return None if repo.revision == "master" else repo.revision  # ModelScope's name for the branch here called main


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")  # the package reads it once, at its import
