"""The data sets that ship with llmtune; importing this package registers them."""

from llmtune.data.families import embedded  # noqa: F401
