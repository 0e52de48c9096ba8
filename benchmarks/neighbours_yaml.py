"""How many of the examples of LLaMA-Factory and Axolotl run here as they are, with model and data replaced.

    python benchmarks/neighbours_yaml.py LLaMA-Factory/examples
    python benchmarks/neighbours_yaml.py axolotl/examples --details

Each file that names a stage of training goes through `llmtune train FILE --dry_run true` with the embedded model and
its data. What is refused is listed with its reasons, and counted by reason.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
from pathlib import Path

from llmtune.arguments.elsewhere.files import load_config, stage_in, translation_of
from llmtune.cli.main import main as llmtune
from llmtune.errors import UsageError

DATA = {"sft": "tiny-qa", "pt": "tiny-text", "dpo": "tiny-pairs", "rm": "tiny-pairs", "kto": "tiny-labels"}
TRAINS = ("stage", "base_model")


def dry_run(file: Path, stage: str, options: tuple[str, ...] = ()) -> list[str]:
    """The reasons of a refusal; none if it passes."""
    data = DATA.get(stage, "tiny-sums")
    said = io.StringIO()
    argv = ["train", str(file), "--model_id_or_path", "llmtune-tiny", "--dataset", data, "--val_dataset", data]
    argv += ["--ckpt_dir", ""] if stage == "infer" else []
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        status = llmtune([*argv, *options, "--dry_run", "true"])
    lines = said.getvalue().rpartition("llmtune: ")[2].strip().splitlines()
    if status and not options and all(line.startswith("--lora_target_modules") for line in lines):
        return dry_run(file, stage, ("--lora_target_modules", "ALL"))  # names of layers belong to the model
    return lines if status else []


def count(folder: Path) -> dict[str, dict[Path, list[str]]]:
    """Stage -> file -> reasons."""
    found: dict[str, dict[Path, list[str]]] = collections.defaultdict(dict)
    for file in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        try:
            content = load_config(file)
        except UsageError:
            continue
        translated = translation_of(content, [])
        if translated is None or not any(key in content for key in TRAINS):
            continue
        stage = stage_in(content, []) or "sft"
        found[stage][file] = dry_run(file, stage)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--details", action="store_true", help="print the whole text of each refusal")
    args = parser.parse_args()
    for stage, files in count(args.folder).items():
        passed = [file for file, reasons in files.items() if not reasons]
        print(f"{stage}: {len(passed)} of {len(files)} pass")
        for file, reasons in files.items():
            name = file.relative_to(args.folder)
            if not reasons:
                print(f"  passes   {name}")
                continue
            shown = [reason.removeprefix(f"{file}, ") for reason in reasons]
            print(
                f"  refused  {name}: {' | '.join(shown if args.details else [one.partition(': ')[0] for one in shown])}"
            )


if __name__ == "__main__":
    main()
