"""Whatever a hub's client raises -> one line that says what is wrong and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from llmtune.errors import HubError, LlmtuneError
from llmtune.hub.repo import Hub, Repo

__all__ = ["explain", "http_status", "is_unreachable"]

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explain(err: BaseException, hub: Hub, repo: Repo, *, sending: bool = False) -> LlmtuneError:
    """The error to raise in the place of a client's. `sending`: something was to be pushed, not fetched."""
    what = f"{repo.kind} {repo.repo_id!r}" + (
        f" at revision {repo.revision!r}" if repo.revision not in (None, "master") else ""
    )
    told = (_not_sent if sending else _not_fetched)(err, hub, what)
    return HubError(told or f"{hub.name}, {what}: {type(err).__name__}, {_last_words(err)}")


def _not_sent(err: BaseException, hub: Hub, what: str) -> str | None:
    status = http_status(err)
    if status in (401, 403, 404):
        return (
            f"{hub.name} does not let you write the {what} (HTTP {status}). Check the spelling, and give a token of "
            f"its owner that may write with --hub_token or in {hub.token_variable}."
        )
    if status is not None:
        return f"{hub.name} answers with an error (HTTP {status}) for the {what}. Try again later."
    if is_unreachable(err):
        return f"{hub.name} cannot be reached to push the {what}: {_last_words(err)}. Check the network."
    return None


def _not_fetched(err: BaseException, hub: Hub, what: str) -> str | None:
    if any(isinstance(e, OSError) and e.errno in NO_SPACE for e in _chain(err)):
        return (
            f"The disk is full: {what} cannot be stored whole. What has come so far is kept; free some space, or give "
            "another folder with --cache_dir."
        )
    status = http_status(err)
    if status in (401, 403):
        return (
            f"{hub.name} does not let you use the {what} (HTTP {status}). Look at its page whether its terms have to "
            f"be accepted, and give your token with --hub_token or in {hub.token_variable}."
        )
    if status == 404:
        other = "--use_hf true asks Hugging Face" if hub.name == "ModelScope" else "--use_hf false asks ModelScope"
        return (
            f"{hub.name} has no {what} (HTTP 404), or hides it from you. Check the spelling; a folder on this "
            f"machine needs its path; {other}."
        )
    if status is not None:
        return (
            f"{hub.name} answers with an error (HTTP {status}) for the {what}. Try again later: "
            "what has come so far is kept."
        )
    if is_unreachable(err):
        return (
            f"{hub.name} cannot be reached for the {what}: {_last_words(err)}. Check the network, or give the path of "
            "a folder on this machine. What has come so far is kept."
        )
    return None


def is_unreachable(err: BaseException) -> bool:
    """Whether the hub was not heard at all, or stopped in the middle of an answer."""
    names = {kind.__name__ for e in _chain(err) for kind in type(e).__mro__}
    return http_status(err) is None and bool(
        names & {"ConnectionError", "TimeoutError", "Timeout", "TransportError", "NetworkError", "ChunkedEncodingError"}
    )


def _chain(err: BaseException) -> Iterator[BaseException]:
    """The error, those that it came from, and those of single files."""
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
