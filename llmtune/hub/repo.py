"""Types shared by both hubs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


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
