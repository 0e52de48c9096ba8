"""`make mutants`: do the tests fail when the code is wrong? Small faults, drawn by a seed, each against its tests.

Every mutant runs the fast tests of its module in a process that is forked with torch and transformers imported, in a
copy of the project where one place is changed. mutmut and cosmic-ray draw no sample, and start a process, which takes
ten seconds here, or the whole suite for each.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import difflib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .mutations import Mutation, mutations

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_suffix(".csv")
"""Mutants that change nothing that anyone could see, and why: module, the lines before and after."""

COVERED = {
    "models/chunked_loss":
    "models/test_supervised_loss models/test_token_logps training/test_weights",
    "models/supervised_loss":
    "models/test_supervised_loss training/test_equalities training/test_weights models/test_vision",
    "samples/packing samples/collate": "samples/test_packing training/test_equalities training/test_weights",
    "samples/sampler": "samples/test_sampler training/test_packed_runs stages/test_sft",
    "samples/streaming samples/part_exchange": "samples/test_streaming samples/test_part_exchange",
    "training/trainer": "training/test_checkpoint stages/test_sft training/test_resume training/test_weights "
    "training/test_throughput training/test_equalities",
    "checkpoint run/resume": "training/test_checkpoint training/test_resume cli/test_doors",
    "run/folder": "training/test_lock",
    "samples/store samples/token_batches": "samples/test_store",
    "data/formats data/formats_messages data/contents data/contents data/shapes data/values":
    "data/test_formats data/test_messages data/test_turns data/test_canonical",
    "data/canonical data/rows": "data/test_canonical data/test_loading data/test_row_cache data/test_messages",
    "data/mixing": "data/test_mixing",
    "data/snapshot": "data/test_snapshot",
    "templates/matching": "models/test_identify templates/test_own templates/test_vetted",
    "templates/encode templates/template": "templates/test_encode templates/test_tools "
    "templates/test_linear templates/test_golden templates/test_parity_rows templates/test_own",
    "templates/own templates/own_render templates/own_render templates/kept templates/own_render":
    "templates/test_own templates/test_own_answers templates/test_parity templates/test_parity_rows",
    "arguments/inheritance arguments/fields": "training/test_resume",
    "arguments/inheritance": "cli/test_strangers training/test_resume",
    "training/objective training/cross_entropy":
    "training/test_objective training/test_weights training/test_equalities",
    "arguments/fields": "arguments/test_rules cli/test_arguments",
    "arguments/checks": "cli/test_arguments cli/test_bad_input",
    "utils/seal": "utils/test_seal cli/test_strangers",
    "utils/files": "utils/test_atomic samples/test_store",
    "inference/engine inference/batching inference/generation inference/continuous inference/sampling inference/texts":
    "inference/test_batching inference/test_infer inference/test_texts inference/test_constraints serving/test_bounds "
    "serving/test_routing serving/test_images serving/test_thoughts",
    "serving/protocol serving/completions serving/limits":
    "serving/test_refusals serving/test_bounds serving/test_chat "
    "serving/test_openapi serving/test_tool_calls serving/test_thoughts serving/test_images",
    "serving/tool_calls": "serving/test_tool_calls serving/test_chat",
    "tuners/lora tuners/targets tuners/tune tuners/vocabulary": "training/test_tuners "
    "training/test_equalities training/test_experts stages/test_sft merging/test_merge models/test_vision "
    "models/test_whole_weights",
    "models/whole_weights": "models/test_whole_weights merging/test_merge",
    "merging/weights merging/merge merging/files merging/meta_model":
    "merging/test_shards merging/test_merge merging/test_weights exporting/test_export inference/test_infer",
}  # fmt: skip
"""Modules that matter, and the tests that hold them."""

PRELOADED = (
    "pytest hypothesis openai datasets uvicorn torch.utils.tensorboard "
    "llmtune.stages.sft llmtune.inference.infer llmtune.serving.service llmtune.exporting.export llmtune.cli.stages"
)
OPTIONS = ("-q", "-m", "not slow and not gpu", "-p", "no:cacheprovider")
LEFT_OUT = (".git", ".venv", ".*_cache", "__pycache__", "output", "site", "build", "dist", "*.egg-info")


@dataclass(frozen=True)
class Mutant:
    module: str
    mutation: Mutation
    before: str
    after: str

    @property
    def lines(self) -> tuple[str, str]:
        """What was there, and what is: the lines that differ."""
        found = [line for line in difflib.ndiff(self.before.splitlines(), self.after.splitlines()) if line[0] in "+-"]
        return tuple(" ".join(line[2:].strip() for line in found if line[0] == sign) for sign in "-+")  # type: ignore[return-value]

    def __str__(self) -> str:
        row = self.before.count("\n", 0, self.mutation.start) + 1
        return f"{self.module}:{row} ({self.mutation.kind})\n  - {self.lines[0]}\n  + {self.lines[1]}"


def modules() -> dict[str, list[str]]:
    """Module -> its test files, as paths in the project."""
    return {
        f"llmtune/{module}.py": [f"tests/{test}.py" for test in tests.split()]
        for names, tests in COVERED.items()
        for module in names.split()
    }


def sample(seed: int, count: int, among: Sequence[str]) -> list[Mutant]:
    """Mutants of these modules: large ones have more of them, and every kind of mutation has the same chance."""
    drawn = random.Random(seed)
    sources = {module: (ROOT / module).read_text(encoding="utf-8") for module in among}
    left = {module: mutations(source) for module, source in sources.items()}
    found = []
    while len(found) < count and any(left.values()):
        module = drawn.choices(list(left), [len(ones) ** 0.5 for ones in left.values()])[0]
        kind = drawn.choice(sorted({one.kind for one in left[module]}))
        one = drawn.choice([one for one in left[module] if one.kind == kind])
        left[module].remove(one)
        found.append(Mutant(module, one, sources[module], one.applied(sources[module])))
    return found


def equivalents() -> dict[tuple[str, str, str], str]:
    with EQUIVALENT.open(encoding="utf-8", newline="") as file:
        return {(row["module"], row["before"], row["after"]): row["why"] for row in csv.DictReader(file)}


class Durations:
    """A plugin of pytest: seconds of each test file, and the tests that failed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seconds: Counter[str] = Counter()
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid.partition("::")[0]] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.file.write_text(json.dumps({"seconds": self.seconds, "failed": self.failed}))


class Copy:
    """The project once more, for one mutant at a time."""

    def __init__(self, place: Path) -> None:
        self.root = place / "project"
        self.log = place / "log"
        self.temporary = place / "tmp"
        shutil.copytree(ROOT, self.root, ignore=shutil.ignore_patterns(*LEFT_OUT))
        os.environ.setdefault("LLMTUNE_TEST_ASSETS", str(ROOT.parent / "shared"))

    @contextlib.contextmanager
    def holding(self, mutant: Mutant) -> Iterator[None]:
        self._write(mutant.module, mutant.after)
        try:
            yield
        finally:
            self._write(mutant.module, mutant.before)

    def _write(self, module: str, source: str) -> None:
        file = self.root / module
        file.write_text(source, encoding="utf-8")
        for cached in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            cached.unlink()  # of the same second and size, it would be taken for that of the new source

    def run(self, arguments: Sequence[str], timeout_s: float, plugins: Sequence[Any] = ()) -> int | None:
        """pytest's exit status in a fork of this process. None: it took longer than that."""
        pid = os.fork()
        if pid == 0:
            self._become_pytest(arguments, plugins)
        deadline = time.monotonic() + timeout_s
        found = None
        while found is None and time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            found = os.waitstatus_to_exitcode(status) if done else None
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what the tests have started ends with them
        if found is None:
            os.waitpid(pid, 0)
        shutil.rmtree(self.temporary, ignore_errors=True)
        return found

    def _become_pytest(self, arguments: Sequence[str], plugins: Sequence[Any]) -> None:
        code = 70
        try:
            os.setsid()
            with self.log.open("wb") as out, open(os.devnull, "rb") as nothing:
                for number, file in ((0, nothing), (1, out), (2, out)):
                    os.dup2(file.fileno(), number)
            os.chdir(self.root)
            # What a fault removes or writes is not the developer's; CI: hypothesis draws the same examples each time.
            os.environ |= {"PYTHONPATH": str(self.root), "HOME": str(self.log.parent), "CI": "1"}
            sys.path[:] = [str(self.root), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
            for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "llmtune")]:
                del sys.modules[name]
            import pytest

            code = int(pytest.main([*OPTIONS, f"--basetemp={self.temporary}", *arguments], plugins=list(plugins)))
        finally:
            os._exit(code)


def preload() -> None:
    """Import what the tests import, but not the project itself, of which each mutant has its own."""
    code = f"import {', '.join(PRELOADED.split())}\nimport sys\nprint(*sys.modules, file=sys.stderr)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    for name in done.stderr.splitlines()[-1].split():
        if name.partition(".")[0] not in ("llmtune", "__main__"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=48, help="mutants that are tried")
    parser.add_argument("--minutes", type=float, default=55, help="no further one is begun after these")
    parser.add_argument("--least", type=float, default=0.9, help="share that has to be killed")
    parser.add_argument("--modules", nargs="+", default=list(modules()), metavar="llmtune/X.py")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    end = time.monotonic() + 60 * options.minutes
    chosen = sample(options.seed, options.count, options.modules)
    preload()
    with tempfile.TemporaryDirectory(prefix="llmtune-mutants-") as place:
        return _try_all(chosen, Copy(Path(place)), end, options.least)


def _try_all(chosen: list[Mutant], copy: Copy, end: float, least: float) -> int:
    tests = sorted({test for mutant in chosen for test in modules()[mutant.module]})
    file = copy.log.with_name("durations.json")
    copy.run(tests, max(60, end - time.monotonic()), [Durations(file)])
    if not file.is_file():
        say(f"The tests end before they have begun:\n{copy.log.read_text(errors='replace')[-3000:]}")
        return 2
    usual = json.loads(file.read_text())
    for test in usual["failed"]:
        say(f"left out, for it fails without a mutant: {test}")
    known, killed, survived, untried = equivalents(), Counter[str](), Counter[str](), 0
    for mutant in chosen:
        if (mutant.module, *mutant.lines) in known:
            continue
        if time.monotonic() > end:
            untried += 1
            continue
        files = sorted(modules()[mutant.module], key=lambda test: usual["seconds"].get(test, 0))
        timeout = 30 + 4 * sum(usual["seconds"].get(test, 0) for test in files)
        start = time.monotonic()
        with copy.holding(mutant):
            code = copy.run(["-x", *files, *(f"--deselect={test}" for test in usual["failed"])], timeout)
        (survived if code == 0 else killed)[mutant.module] += 1
        word = "SURVIVED" if code == 0 else "timed out" if code is None else "killed"
        say(f"{word} after {time.monotonic() - start:.0f} s: {mutant}")
    for module in sorted({*killed, *survived}):
        say(f"{killed[module]:3} of {killed[module] + survived[module]:3} killed  {module}")
    tried = killed.total() + survived.total()
    equivalent = len(chosen) - tried - untried
    say(f"{killed.total()} of {tried} killed; {equivalent} equivalent, {untried} not tried for want of time.")
    return int(killed.total() < least * tried)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
