"""The types that both hubs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

__all__ = ["Hub", "RemoteFile", "Repo"]


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
    """A file of a repository; `size` in bytes, `digest` whatever the hub tells versions of a file apart by."""

    path: str
    size: int | None
    digest: str | None


class Hub(Protocol):
    """What llmtune asks of a hub; each method may raise whatever its client raises, see `explain`."""

    name: str
    token_variable: str

    def list_files(self, repo: Repo) -> list[RemoteFile]:
        """The repository's files now, one request or a few."""
        ...

    def download(self, repo: Repo, ignore: Sequence[str]) -> Path:
        """Fetch all files but those whose exact path is in `ignore`; a later call goes on after a cut."""
        ...

    def cached(self, repo: Repo) -> Path | None:
        """The folder of an earlier download, without any request; whether it is whole is not known."""
        ...

    def user(self, token: str | None) -> str:
        """Whose the token, or the stored login, is."""
        ...

    def create(self, repo: Repo, *, private: bool) -> None:
        """Make the repository where there is none."""
        ...

    def upload(self, repo: Repo, folder: Path, *, message: str, ignore: Sequence[str], path_in_repo: str) -> None:
        """One commit of all the files of a folder but those whose name fits a glob of `ignore`."""
        ...
