"""The datasets of the catalogue; importing this package registers them."""

from llmtune.data.families import conversations, embedded, embedded_turns, preferences, subjects, sums  # noqa: F401
