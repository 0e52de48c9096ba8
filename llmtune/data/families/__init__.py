"""The datasets of the catalogue; importing this package registers them."""

from llmtune.data.families import conversations, embedded, subjects  # noqa: F401
