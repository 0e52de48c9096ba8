"""User errors: one clear line each, with the cause and the next step.

The command line prints the message alone and exits with `exit_status`; `--debug` adds the traceback.
"""

from __future__ import annotations


def one_line(err: object, limit: int = 300) -> str:
    """The message of an error on one line, cut to `limit` characters; its class where it has none."""
    return " ".join(str(err).split())[:limit] or type(err).__name__


class LlmtuneError(Exception):
    """Base class of user errors. `exit_status`: exit status of the command."""

    exit_status = 1


class UsageError(LlmtuneError):
    """An invalid flag, argument or key."""

    exit_status = 2


class UnknownKeyError(UsageError, LookupError):
    """A key that is not in a registry; names the nearest ones."""


class DuplicateKeyError(UsageError):
    """A key that is registered already; names the place of the first registration."""


class ReadOnlyError(UsageError, TypeError):
    """An assignment to a registry, or an entry read by key as the dicts of 2023 were."""


class DataError(LlmtuneError):
    """A data file or dataset that cannot be used."""


class RowError(DataError):
    """A row without a known format; names the keys found and those expected."""


class TemplateError(LlmtuneError):
    """A conversation that the chosen template cannot express."""


class ModelError(LlmtuneError):
    """A model or tokenizer that cannot be loaded."""


class HubError(LlmtuneError):
    """A repository that is not on the hub, not accessible, or cannot be downloaded completely."""


class CheckpointError(LlmtuneError):
    """A checkpoint folder that is missing, incomplete or of another model."""


class OutputError(LlmtuneError):
    """A file or folder that cannot be written."""


class TrainingError(LlmtuneError):
    """A training run that cannot continue: its loss is NaN or infinite, or has diverged."""


class RewardError(LlmtuneError):
    """A reward function that fails, or returns something else than one number or None per completion."""


class MissingPackageError(LlmtuneError):
    """An optional package that is not installed; names the command that installs it."""


class RolloutError(LlmtuneError):
    """A server of rollouts that cannot be reached, refuses a request, or serves another model."""
