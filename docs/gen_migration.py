"""Pages on migrating from other tools: the translation of each flag, by aliases.py itself."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator

from gen_commands import cell, class_of, table
from migration_flags import AXOLOTL, AXOLOTL_EXAMPLES, TOOLS, Tool

from llmtune.arguments.aliases import ALIASES, translate
from llmtune.arguments.aliases_online import JOINED
from llmtune.arguments.elsewhere import axolotl
from llmtune.arguments.elsewhere.translation import shown_key
from llmtune.cli.neighbours import NEIGHBOURS
from llmtune.errors import UsageError

TAKEN_TOGETHER = {*JOINED, "loss_weights", "dataset_name"}
"""Flags that are taken together with others."""
COMMANDS = ("sft", "pt", "rm", "dpo", "kto", "grpo", "ppo", "infer", "serve", "web", "eval", "export", "merge")


def pages() -> Iterator[tuple[str, str]]:
    for name, tool in TOOLS.items():
        yield f"migration/{name}.md", _page(tool)
    yield "migration/axolotl.md", _axolotl_page()
    rows = [(f"[{tool.title}]({name}.md)", cell(tool.about)) for name, tool in TOOLS.items()]
    rows.append(("[Axolotl](axolotl.md)", cell(f"{AXOLOTL_ABOUT} {AXOLOTL_EXAMPLES}, pass `--dry_run true`.")))
    names = ((f"`{name}`", cell(_command_text(name))) for name in NEIGHBOURS)
    yield (
        "migration/index.md",
        "# Coming from other tools\n\nUse the flags that you know. Flags of other tools are translated, and the run "
        "logs the translation once. A flag without a counterpart is refused, with the nearest one of llmtune; none is "
        "ignored silently.\n\n"
        f"{table(('From', ''), iter(rows))}\n\n```bash\nllmtune sft --model_name_or_path llmtune-tiny "
        "--dataset tiny-qa --lora_r 8 --per_device_train_batch_size 2 --max_steps 2\n```\n\n```text\n"
        "Translated flags: --model_name_or_path -> --model_id_or_path, --lora_r -> --lora_rank, "
        "--per_device_train_batch_size -> --batch_size.\n```\n\n"
        "## Files\n\nA YAML file before the first flag is a file of flags: `llmtune sft run.yaml`. `llmtune train "
        "run.yaml` takes the stage from the file too (`stage:` of LLaMA-Factory and of ours, `rl:` of Axolotl), as do "
        "`check` and `plan`. A run folder or checkpoint in its place repeats that run. A file is recognised by its "
        "keys. What cannot be said here is refused, all of it at once; flags on the command line replace it:\n\n"
        "```bash\nllmtune train lf_run.yaml --dry_run true\nllmtune train ax_run.yaml --template_type chatml --dataset "
        "my.jsonl\nllmtune convert ax_run.yaml > run.yaml\n```\n\n"
        "## Commands\n\nCommands of other tools answer, and say which of ours they are.\n\n"
        f"{table(('Theirs', 'Ours'), names)}\n",
    )


AXOLOTL_ABOUT = "Its YAML files run as they are: `llmtune train run.yml`."


def _command_text(name: str) -> str:
    found = NEIGHBOURS[name]
    text = f"`llmtune {' '.join((found.command, *found.words))}`"
    return f"{text}: {found.remark}" if found.remark else text


def _axolotl_page() -> str:
    rows = (
        (f"`{shown_key(key, value)}`".replace("|", "\\|"), _of_axolotl(key, value), cell(remark))
        for key, value, remark in AXOLOTL
    )
    parts = [
        "# From Axolotl",
        f"{AXOLOTL_ABOUT} {AXOLOTL_EXAMPLES}, pass `--dry_run true` with model and data replaced. The others are "
        "refused, with all the keys that llmtune cannot say: what would change the result is no warning. A key that is "
        "off (false, null) is none.",
        "```bash\nllmtune train ax_run.yaml\nllmtune convert ax_run.yaml > run.yaml    # ours, with comments of what "
        "differs\n```",
        "What a file leaves out has Axolotl's default, not ours; the first line of the log lists them. Models and data "
        "come from Hugging Face, as there: `--use_hf false` asks ModelScope.",
        "## Key by key",
        "†: refused, and why. Not all keys are listed: the others are refused, or translated, in the same way.",
        table(("Theirs", "Ours", "Remark"), rows),
    ]
    return "\n\n".join(parts) + "\n"


def _of_axolotl(key: str, value: object) -> str:
    """What a key becomes, by the translation itself."""
    context = {"base_model": "org/model", "micro_batch_size": "1", "liger_rope": "true"}
    found = axolotl.read({**context, key: value}, our_flags())
    lines = [line for line in found.lines if line.theirs and (line.theirs == key or key not in context)]
    own = [line for line in lines if line.theirs in (key, "chat_template")]
    text = " ".join(f"`{line.flag}: {' '.join(line.values)}`" for line in own)
    reasons = [reason for name, reason in found.harmless if name == key]
    refused = [f"{one.reason} †" for one in found.refusals]
    stage = f"stage {found.stage}" if found.stage != "sft" else ""
    return cell("; ".join(filter(None, (stage, text, *(f"nothing: {one}" for one in reasons), *refused))))


def our_flags() -> set[str]:
    return {field.name for name in COMMANDS for field in dataclasses.fields(class_of(name)) if field.init}


def ours(line: tuple[str, ...]) -> str:
    """What to type for a line of migration_flags.py, as the table has it."""
    if len(line) == 3:
        _check_refused(line)
        text = {"the same": "the same", "nothing": "remove it"}.get(line[2], f"`{line[2]}`")
        is_taken = line[0].split()[0] in our_flags() | TAKEN_TOGETHER
        is_refused = not line[0][0].isupper() and "--" not in line[0] and not is_taken
        return f"{text} †" if is_refused else text
    flag, *values = shlex.split(line[0])
    alias = ALIASES.get(flag)
    if alias is None:
        assert flag in our_flags(), f"--{flag} is neither ours nor an alias: say what to type instead"
        return "the same"
    tokens, _ = translate(flag, values)
    if alias.ignored:
        return f"nothing: {alias.ignored}"
    if tokens == [(flag, values)]:
        return "the same"
    return " ".join(f"`--{name} {' '.join(given)}`" for name, given in tokens) or "nothing: it is the default"


def _check_refused(line: tuple[str, ...]) -> None:
    """A hand-written answer must not contradict aliases.py."""
    flag = line[0].split()[0]
    alias = ALIASES.get(flag)
    if alias is None or "--" in line[0]:
        return
    try:
        translate(flag, line[0].split()[1:])
    except UsageError:
        return
    raise AssertionError(f"--{flag} is translated already: remove the third text of its line")


def _page(tool: Tool) -> str:
    rows = ((_theirs(line[0]), ours(line), cell(line[1])) for line in tool.flags)
    language = "yaml" if ":" in tool.before.split()[1] or tool.before.startswith("#") else "text"
    parts = [
        f"# From {tool.title}",
        tool.about,
        f"Before:\n\n```{language}\n{tool.before}\n```",
        f"After:\n\n```bash\n{tool.after}\n```",
        "## Flag by flag",
        "†: theirs is refused here; type ours. The others are taken as they are; where the table has another "
        "value, with that one.",
        table(("Theirs", "Ours", "Remark"), rows),
        "## What differs",
        "\n".join(f"- {text}" for text in tool.differs),
    ]
    return "\n\n".join(parts) + "\n"


def _theirs(text: str) -> str:
    return f"`{text}`" if text[0].isupper() else f"`--{text}`"
