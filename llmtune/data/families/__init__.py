"""The datasets of the catalogue, one file per kind; importing this package registers them."""

from llmtune.data.families import (  # noqa: F401
    agent,
    alpaca,
    chat,
    classification,
    code,
    embedded,
    generation,
    law,
    math,
    medical,
    vision,
)
