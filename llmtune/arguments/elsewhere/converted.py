"""A file of any tool as our flags, with what cannot be said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from llmtune.arguments.elsewhere.files import load_config, stage_in, translation_of
from llmtune.arguments.elsewhere.llama_factory import INFER
from llmtune.arguments.elsewhere.translation import Translation
from llmtune.arguments.infer import InferArguments
from llmtune.arguments.stages import stage_arguments


def converted(path: Path) -> Translation:
    """Read a file and translate it.

    Raises:
        UsageError: It is no file of flags, or of no stage of ours.
    """
    content = load_config(path)
    stage = stage_in(content, []) or "sft"
    cls: type[Any] = InferArguments if stage == INFER else stage_arguments(stage)
    known = {field.name for field in dataclasses.fields(cls) if field.init}
    found = translation_of(content, known)
    if found is None:
        found = Translation("llmtune", content, stage)
        found.apply({}, known, skip=[key for key in content if key == "stage" or key.startswith("_")])
    return found
