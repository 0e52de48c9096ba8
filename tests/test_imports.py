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

# A module may import those of its own floor and of the floors below. The longest name that fits decides.
PORTS = {
    f"models.ports.{name}"
    for name in ("port", "find", "qwen_v1", "baichuan", "chatglm", "internlm", "internlm2", "xverse")
}
FLOORS = [
    {"errors", "types"},
    {"utils", "hub.settings"},
    {"registry"},
    {"models", *PORTS, "data", "templates", "evaluating.info", "evaluating.builtin"},
    {"arguments"},
    {"launching"},
    {
        "data.canonical",
        "data.identity",
        "data.loading",
        "data.mixing",
        "data.row_cache",
        "data.rows",
        "data.store",
        "data.streaming",
        "distributed",
        "hub",
        "inspect",
        "models.loading",
        "models.ports",
        "models.shifted",
        "models.tiny",
        "models.varlen",
        "models.vision",
        "tuners",
    },
    {"training", "inference", "planning", "evaluating", "exporting"},
    {"serving", "web"},
    {"cli", "web.page"},  # the page is a program: it reads the flags of its command line
    {"", "__main__"},
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
LOADING = FLOOR_OF["models.loading"]
HEAVY = {"accelerate", "datasets", "matplotlib", "modelscope", "peft", "pyarrow", "torch", "transformers"}
DATA_MAY = {"datasets", "pyarrow"}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT / "llmtune").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(name: str) -> int:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in FLOOR_OF:
            return FLOOR_OF[".".join(parts[:end])]
    raise AssertionError(f"llmtune.{name} has no floor: say in this test where it belongs")


def module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import; not those of functions, nor what is for type checkers alone."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from module_level(statement.orelse)
            continue
        yield statement
        for name in ("body", "orelse", "finalbody"):
            yield from module_level(getattr(statement, name, []))
        for handler in getattr(statement, "handlers", []):
            yield from module_level(handler.body)


def imports(source: str, package: str = "") -> set[str]:
    found: set[str] = set()
    for statement in module_level(ast.parse(source).body):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, "imports are absolute"
            found.add(statement.module or "")
            # `from llmtune.data import rows` names a module, not a function.
            found |= {
                f"{statement.module}.{alias.name}"
                for alias in statement.names
                if (ROOT / f"{statement.module}.{alias.name}".replace(".", "/")).with_suffix(".py").is_file()
            }
    return found


def test_reads_what_it_should():
    source = (
        "import a\nfrom llmtune import errors\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
        "try:\n    import d\nexcept ImportError:\n    import e\ndef f():\n    import g\nclass C:\n    import h\n"
    )
    assert imports(source) == {"a", "llmtune", "llmtune.errors", "c", "d", "e", "h"}
    assert floor("data.formats") < floor("data.store") < floor("training.sft") < floor("cli.main")
    assert len(FILES) > 60


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_one_direction(file: Path):
    name = name_of(file)
    ours = {
        found.removeprefix("llmtune").removeprefix(".") for found in imports(file.read_text("utf-8")) if is_ours(found)
    }
    ours -= {""}  # llmtune itself holds the version and lazy names
    assert {other for other in ours if floor(other) > floor(name)} == set()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_light_until_loading(file: Path):
    name = name_of(file)
    heavy = {found.split(".")[0] for found in imports(file.read_text("utf-8"))} & HEAVY
    if floor(name) < LOADING or name.startswith("cli") or name in ("", "__main__", "inspect.mask_view"):
        assert heavy == set()
    elif name.startswith("data."):
        assert heavy <= DATA_MAY


def is_ours(module: str) -> bool:
    return module == "llmtune" or module.startswith("llmtune.")


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
