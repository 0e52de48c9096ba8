"""Data sets on a hub."""

from llmtune.hub.fetch import fetch_dataset

__all__ = ["fetch_dataset"]
