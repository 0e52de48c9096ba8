"""Read a YAML or JSON file of flags: ours, LLaMA-Factory's or Axolotl's, recognised by its keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llmtune.arguments.elsewhere import axolotl, llama_factory
from llmtune.arguments.elsewhere.translation import Translation
from llmtune.checkpoint import SETTINGS_FILE
from llmtune.errors import UsageError, one_line

MAX_CONFIG_BYTES = 1_000_000
SUFFIXES = (".yaml", ".yml", ".json")
OURS = ("model_id_or_path", "sft_type", "template_type")
"""Keys that only our files have; a file that mixes them with another tool's is read as flags."""
TOOLS = (llama_factory, axolotl)


def is_config_word(word: str) -> bool:
    """Whether a word of the command line, before the first flag, names a file of flags or a run."""
    return not word.startswith("-") and (word.lower().endswith(SUFFIXES) or is_run(Path(word)))


def is_run(path: Path) -> bool:
    """Whether a path is a run folder or a checkpoint."""
    try:
        return (path / SETTINGS_FILE).is_file()
    except OSError:  # too long for a path
        return False


def load_config(path: Path) -> dict[str, Any]:
    """Read a file of flags, or that of a run folder or checkpoint. Plain words stay text, but for null.

    Raises:
        UsageError: There is no such file, or it does not hold one flag per line.
    """
    import yaml

    file = path / SETTINGS_FILE if is_run(path) else path
    try:
        if file.exists() and not file.is_file():
            raise UsageError(f"--config {path} is not a file.")
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise UsageError(
                f"--config {path} is too large: {file.stat().st_size:,} bytes, at most {MAX_CONFIG_BYTES:,}."
            )
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_plain_loader())
    except OSError as err:
        raise UsageError(f"--config {path}: {err.strerror}.") from err
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as err:
        raise UsageError(f"--config {path} is not YAML: {one_line(err)}") from err
    if not isinstance(content, dict):
        raise UsageError(f"--config {path} must hold one flag per line, as `name: value`.")
    return {str(key): value for key, value in content.items()}


def translation_of(content: Mapping[str, Any], known: Collection[str]) -> Translation | None:
    """Return a foreign file in our flags; None for a file of ours.

    Args:
        known: Our flags.
    """
    if any(key in content for key in OURS):
        return None
    tool = next((one for one in TOOLS if one.is_its_file(content)), None)
    return None if tool is None else tool.read(content, known)


def stage_in(content: Mapping[str, Any], known: Collection[str]) -> str | None:
    """Return the stage that a file names; None for a file of ours without one."""
    found = translation_of(content, known)
    if found is not None:
        return found.stage
    named = content.get("stage", content.get("_stage"))
    return None if named is None else str(named)


def _plain_loader() -> Any:
    """YAML whose plain words stay text but for null: `no` may be a choice, and 1e-5 is a number to us, not to YAML."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag.endswith((":null", ":merge"))]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader
