"""One direction of imports (DESIGN.md, section 2): read from the code, nothing is run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "llmtune").rglob("*.py"))

# A package may import those below it, within functions as well; what is for type checkers alone does not count.
LAYERS = [
    {"errors", "types", "moved"},
    {"utils"},
    {"compat"},
    {"registry", "checkpoint"},
    {"hub", "metrics", "losses", "rewards", "tool_functions", "distributed"},
    {"data"},
    {"templates"},
    {"models"},
    {"arguments"},
    {"tuners", "launch"},
    {"samples"},
    {"run"},
    {"planning", "merging"},
    {"inference"},
    {"rollouts"},
    {"training", "evaluation", "serving", "web", "board"},
    {"stages", "exporting"},
    {"cli"},
    {"__main__"},
]
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
HEAVY = {"accelerate", "datasets", "PIL", "modelscope", "peft", "pyarrow", "torch", "transformers"}
DATA_MAY = {"datasets", "pyarrow"}
LIGHT = {*set().union(*LAYERS[:4]), "data", "templates", "models", "arguments", "launch", "board", "cli", "__main__"}
"""Packages that import nothing heavy at module level, apart from the files below."""
WORK_ON_TENSORS = {
    *("distributed.collectives", "distributed.fsdp"),
    *("losses.policy", "losses.preference", "losses.terms", "losses.unpaired"),
    *(
        "models.flops",
        "models.fp8",
        "models.layers",
        "models.packed_attention",
        "models.chunked_loss",
        "models.score",
        "models.sequence_parallel",
        "models.supervised_loss",
    ),
    *("models.ports.modeling_llama_alibi", "models.ports.tensors"),
}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT / "llmtune").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(file) for file in FILES}


def package_of(name: str) -> str:
    return name.partition(".")[0]


def statements(body: list[ast.stmt], *, functions: bool) -> Iterator[ast.stmt]:
    """Statements that run at import, or, with `functions`, ever; not what is for type checkers alone."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and not functions:
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from statements(statement.orelse, functions=functions)
            continue
        yield statement
        for name in ("body", "orelse", "finalbody"):
            yield from statements(getattr(statement, name, []), functions=functions)
        for part in (*getattr(statement, "handlers", []), *getattr(statement, "cases", [])):
            yield from statements(part.body, functions=functions)


def imports(source: str, *, functions: bool = False) -> set[str]:
    """Names of the modules that a source imports; `from llmtune.data import rows` names a module, not a function."""
    modules: set[str] = set()
    for statement in statements(ast.parse(source).body, functions=functions):
        if isinstance(statement, ast.Import):
            modules |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, "imports are absolute"
            base = statement.module or ""
            below = {f"{base}.{alias.name}" for alias in statement.names}
            below &= {f"llmtune.{name}" for name in NAMES}
            modules |= below or {base}
    return modules


def ours(file: Path, *, functions: bool) -> set[str]:
    """The files of llmtune that a file imports; llmtune itself, which holds the version and lazy names, apart."""
    names = imports(file.read_text("utf-8"), functions=functions)
    return {name.removeprefix("llmtune.") for name in names if name.startswith("llmtune.")} - {name_of(file)}


GRAPH = {name_of(file): ours(file, functions=True) for file in FILES if name_of(file)}


def test_reads_what_it_should():
    source = (
        "import a\nfrom llmtune import errors\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
        "try:\n    import d\nexcept ImportError:\n    import e\ndef f():\n    import g\nclass C:\n    import h\n"
    )
    assert imports(source) == {"a", "llmtune.errors", "c", "d", "e", "h"}
    assert imports(source, functions=True) == {"a", "llmtune.errors", "c", "d", "e", "g", "h"}
    assert len(FILES) > 60
    assert GRAPH["stages.sft"] > {"training.stage", "samples.prepare"}


def test_every_package_has_a_layer():
    assert {package_of(name) for name in GRAPH} == set(LAYER_OF)


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_imports_run_down_the_layers(name: str):
    own = LAYER_OF[package_of(name)]
    others = {other for other in GRAPH[name] if package_of(other) != package_of(name)}
    assert {other for other in others if LAYER_OF[package_of(other)] >= own} == set()


def test_no_files_import_each_other_in_a_circle():
    left = {name: set(others) for name, others in GRAPH.items()}
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert set(left) == set()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_light_until_loading(file: Path):
    name = name_of(file)
    if package_of(name) not in LIGHT | {""} or name in WORK_ON_TENSORS:
        return
    heavy = {module.split(".")[0] for module in imports(file.read_text("utf-8"))} & HEAVY
    assert heavy <= (DATA_MAY if name.startswith("data.") else set())


COMMANDS = [
    (["--help"], 0),
    (["sft", "--help"], 0),
    (["infer", "--help"], 0),
    (["plan", "--help"], 0),
    (["serve", "--help"], 0),
    (["merge", "--help"], 0),
    (["eval", "--help"], 0),
    (["export", "--help"], 0),
    (["list", "metrics"], 0),
    (["launch", "--help"], 0),
    (["launch", "--slurm", "--dry-run", "--", "sft", "--model_type", "llmtune-tiny", "--dataset", "tiny-qa"], 0),
    (["list", "models"], 0),
    (["list", "datasets"], 0),
    (["list", "templates"], 0),
    (["show", "model", "llmtune-tiny"], 0),
    (["schema", "sft"], 0),
    (["completion", "bash"], 0),
    (["env", "--torch", "false"], 0),
    (["sft", "--modle_type", "x"], 2),
    (["sft", "--model_type", "x"], 2),
]


def heavy_modules(code: str) -> str:
    code += f"\nimport sys; print('\\n', sorted(set({sorted(HEAVY)!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].strip()


def test_import_costs_nothing():
    assert heavy_modules("import llmtune") == "[]"


@pytest.mark.parametrize(
    ("argv", "status"), COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_starts_at_once(argv, status):
    code = (
        "from llmtune.cli.main import main\n"
        f"try: status = main({argv!r})\nexcept SystemExit as err: status = err.code or 0\nassert status == {status}"
    )
    assert heavy_modules(code) == "[]"


def test_python_m():
    done = subprocess.run([sys.executable, "-m", "llmtune", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "usage: llmtune" in done.stdout
    assert done.stderr == ""
