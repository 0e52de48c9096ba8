"""Convert errors of the hubs' clients into one line with the cause and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from llmtune.errors import HubError, LlmtuneError
from llmtune.hub.repo import Hub, Repo

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
