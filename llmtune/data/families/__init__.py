"""The datasets of the catalogue, one file per kind; importing this package registers them."""

from llmtune.data.families import alpaca, chat, code, domains, embedded, tasks  # noqa: F401
