"""Every error that a user can meet: one clear line, what is wrong and what to type next.

The command line prints the message alone and exits with `exit_status`; `--debug` adds the traceback.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "DataError",
    "DuplicateKeyError",
    "HubError",
    "LlmtuneError",
    "MissingPackageError",
    "ModelError",
    "OutputError",
    "ReadOnlyError",
    "RowError",
    "TemplateError",
    "TrainingError",
    "UnknownKeyError",
    "UsageError",
]


class LlmtuneError(Exception):
    """Anything that llmtune can explain. `exit_status`: what the command exits with."""

    exit_status = 1


class UsageError(LlmtuneError):
    """A flag, an argument or a key that makes no sense as it was given."""

    exit_status = 2


class UnknownKeyError(UsageError, LookupError):
    """A key that is not in a registry; names the nearest ones."""


class DuplicateKeyError(UsageError):
    """A key that is registered already; names who registered it first."""


class ReadOnlyError(UsageError, TypeError):
    """An assignment to a registry, or an entry read by key as the dicts of 2023 were."""


class DataError(LlmtuneError):
    """A data file or data set that cannot be used."""


class RowError(DataError):
    """One row that fits no known shape; names the keys found and those expected."""


class TemplateError(LlmtuneError):
    """A conversation that the chosen template cannot express."""


class ModelError(LlmtuneError):
    """A model or tokenizer that cannot be loaded."""


class HubError(LlmtuneError):
    """A repository that is not on the hub, may not be read, or cannot be fetched whole."""


class CheckpointError(LlmtuneError):
    """A checkpoint folder that is missing, incomplete or of another model."""


class OutputError(LlmtuneError):
    """A file or folder that cannot be written."""


class TrainingError(LlmtuneError):
    """A training that cannot go on: its loss is no number, or has run away."""


class MissingPackageError(LlmtuneError):
    """An optional package that is not installed; names the command that installs it."""
