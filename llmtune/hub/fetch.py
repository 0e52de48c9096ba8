"""Download a hub repository, completely and once, into a local folder."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtune.errors import HubError
from llmtune.hub.clients import Hub, RemoteFile, Repo, chosen_hub, explain, is_unreachable, offline
from llmtune.utils.files import cache_root, read_json, write_json
from llmtune.utils.logging import get_logger

WEIGHTS = r".+\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|gguf)$"
ORIGINALS = (r"(.*/)?\.git.*", r"original/.+", r".+\.(h5|msgpack|onnx|gguf|ot)$", r"consolidated.*")


def fetch_model(
    repo_id: str,
    *,
    use_hf: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
    ignore_file_pattern: Sequence[str] = (),
    weights: bool = True,
) -> Path:
    """Return the local folder of a hub model, downloaded if it is not complete yet.

    Args:
        repo_id: `owner/name` on the hub.
        use_hf: Hugging Face instead of ModelScope; None: as the environment says.
        ignore_file_pattern: Regular expressions of paths to skip.
        weights: False skips all weights: configuration and tokenizer only.

    Raises:
        HubError: No such model, no permission, no space, no network.
    """
    ignore = [*ignore_file_pattern, *ORIGINALS, *(() if weights else (WEIGHTS,))]
    return _fetch(Repo("model", repo_id, revision, token, cache_dir), use_hf, ignore)


def local_model(
    repo_id: str, *, use_hf: bool | None = None, revision: str | None = None, cache_dir: str | None = None
) -> Path | None:
    """Return the folder of an earlier download of a hub model, without any request; None if there is none."""
    return chosen_hub(use_hf).cached(Repo("model", repo_id, revision, None, cache_dir))


def fetch_dataset(
    dataset_id: str,
    *,
    use_hf: bool | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
    allow_patterns: Sequence[str] | None = None,
) -> Path:
    """Return the local folder of a hub dataset, like `fetch_model`. `allow_patterns`: regexes of paths to download."""
    repo = Repo("dataset", dataset_id, token=token, cache_dir=cache_dir)
    return _fetch(repo, use_hf, [r"(.*/)?\.git.*"], allow_patterns)


def _fetch(repo: Repo, use_hf: bool | None, ignore: Sequence[str], allow: Sequence[str] | None = None) -> Path:
    from filelock import FileLock

    hub = chosen_hub(use_hf)
    record = cache_root() / "hub" / f"{_key(hub, repo, ignore, allow)}.json"
    if offline():
        return _without_network(hub, repo, record, reason="LLMTUNE_OFFLINE or HF_HUB_OFFLINE is set")
    record.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{record}.lock"):  # one process of a machine downloads, the others then find the files
        try:
            files = hub.list_files(repo)
        except Exception as err:
            if is_unreachable(err) and (found := _recorded(record)) is not None:
                get_logger().warning(f"{hub.name} cannot be reached: using the complete earlier download in {found}.")
                return found
            raise explain(err, hub, repo) from err
        wanted = _without_twins([file for file in files if _is_wanted(file.path, ignore, allow)])
        if (found := _recorded(record, wanted)) is not None:
            return found
        return _download(hub, repo, files, wanted, record)


def _download(hub: Hub, repo: Repo, files: list[RemoteFile], wanted: list[RemoteFile], record: Path) -> Path:
    if not wanted:
        raise HubError(f"The {repo.kind} {repo.repo_id!r} on {hub.name} has no usable file.")
    size = sum(file.size or 0 for file in wanted)
    get_logger().info(f"{repo.kind.capitalize()} {repo.repo_id} on {hub.name}: {len(wanted)} files, {_readable(size)}")
    chosen = {file.path for file in wanted}
    try:
        folder = hub.download(repo, [file.path for file in files if file.path not in chosen])
    except Exception as err:
        free = shutil.disk_usage(Path(repo.cache_dir or Path.home())).free
        error = explain(err, hub, repo)
        if free < size:
            error = HubError(f"{error} ({_readable(size)} in all, {_readable(free)} free.)")
        raise error from err
    write_json(record, {"folder": str(folder), "files": [[f.path, f.size, f.digest] for f in wanted]})
    return folder


def _recorded(record: Path, wanted: list[RemoteFile] | None = None) -> Path | None:
    """Return the folder of an earlier complete download, if all its files are still there and are the wanted ones.

    The clients would read every byte again to verify that.
    """
    said = read_json(record)
    if not isinstance(said.get("folder"), str) or not _are_files(said.get("files")):
        return None
    folder = Path(said["folder"])
    if wanted is not None and said["files"] != [[f.path, f.size, f.digest] for f in wanted]:
        return None
    for path, size, _ in said["files"]:
        file = folder / path
        if not file.is_file() or (size is not None and file.stat().st_size != size):
            return None
    return folder


def _are_files(value: Any) -> bool:
    """Return whether a record's list of [path, size, digest] is valid."""
    return isinstance(value, list) and all(
        isinstance(item, list) and len(item) == 3 and isinstance(item[0], str) for item in value
    )


def _without_network(hub: Hub, repo: Repo, record: Path, reason: str) -> Path:
    folder = _recorded(record) or hub.cached(repo)
    if folder is None:
        raise HubError(
            f"{reason}, and the {repo.kind} {repo.repo_id!r} of {hub.name} is not on this machine. "
            "Run once with network access, or give the path of a local folder."
        )
    return folder


def _is_wanted(path: str, ignore: Sequence[str], allow: Sequence[str] | None) -> bool:
    if allow is not None and not any(re.fullmatch(pattern, path) for pattern in allow):
        return False
    return not any(re.fullmatch(pattern.removesuffix("$"), path) for pattern in ignore)


def _without_twins(files: list[RemoteFile]) -> list[RemoteFile]:
    """Drop the pickled weights of a repository that has the same ones as safetensors."""
    if not any(file.path.endswith(".safetensors") for file in files):
        return files
    return [file for file in files if not re.fullmatch(r"(.*/)?pytorch_model.*\.bin(\.index\.json)?", file.path)]


def _key(hub: Hub, repo: Repo, ignore: Sequence[str], allow: Sequence[str] | None) -> str:
    said = (hub.name, repo.kind, repo.repo_id, repo.revision, repo.cache_dir, sorted(ignore), allow and sorted(allow))
    name = re.sub(r"[^\w.-]+", "--", repo.repo_id)
    return f"{name}-{hashlib.sha256(repr(said).encode()).hexdigest()[:16]}"


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
