"""The command line on systems that lack what POSIX has: Windows, and macOS, whose workers are spawned."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmtune.utils import processes
from llmtune.utils.processes import is_alive, replace_process

ROOT = Path(__file__).parents[2]
LACKING = ROOT / "tests/posix_lacking"
TINY = ["--model_type", "llmtune-tiny", "--dataset", "tiny-qa#20"]
FEW_STEPS = [
    *("--max_steps", "2", "--batch_size", "2", "--gradient_accumulation_steps", "1"),
    *("--logging_steps", "1", "--save_steps", "2"),
]


def llmtune(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": f"{LACKING}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1", "LLMTUNE_CACHE": str(folder / "cache"),
        "PYTHONIOENCODING": "utf-8",
    }  # fmt: skip
    environment.pop("LLMTUNE_SPAWNS", None)
    return subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_blocks_are_there(tmp_path):
    script = "import os, resource, llmtune.utils.files as files\nprint(hasattr(os, 'execv'))\n"
    found = llmtune(tmp_path, script + "exec('import fcntl', vars(files))")
    assert found.stdout == "False\n"
    assert "No module named 'fcntl'" in found.stderr


@pytest.mark.parametrize(
    ("commands", "shows"),
    [
        ([["--help"], ["list", "models"], ["sft", *TINY, "--dry_run", "true"]], "Dry run: all flags are valid."),
        pytest.param([["check", *TINY], ["sft", *TINY, *FEW_STEPS]], "Best checkpoint: ", marks=pytest.mark.slow),
    ],
    ids=["no torch", "training"],
)
def test_commands_run_without_posix(tmp_path, commands, shows):
    script = "import sys\nfrom llmtune.cli.main import main\n"
    script += "".join(f"assert main({words!r}) == 0, {words!r}\n" for words in commands)
    found = llmtune(tmp_path, script)
    assert found.returncode == 0, found.stderr
    assert shows in found.stdout + found.stderr
    if "sft" in commands[-1] and "--dry_run" not in commands[-1]:
        (saved,) = tmp_path.glob("output/llmtune-tiny/*/checkpoint-2/adapter_model.safetensors")
        assert saved.stat().st_size > 0


@pytest.mark.slow
def test_spawned_workers_load_the_data(tmp_path):
    words = ["sft", *TINY, *FEW_STEPS, "--dataloader_num_workers", "2"]
    found = llmtune(
        tmp_path, f"from llmtune.cli.main import main\nif __name__ == '__main__':\n    assert main({words!r}) == 0\n"
    )
    assert found.returncode == 0, found.stderr
    assert "Best checkpoint: " in found.stderr


@pytest.mark.parametrize("status", [0, 7])
def test_a_program_runs_and_its_status_is_ours_where_none_takes_over(monkeypatch, tmp_path, status):
    monkeypatch.setattr(processes, "can_replace", lambda: False)
    file = tmp_path / "seen"
    code = f"import os, sys; open({str(file)!r}, 'w').write(os.environ['OURS'] + sys.argv[1]); sys.exit({status})"
    with pytest.raises(SystemExit) as ended:
        replace_process([sys.executable, "-c", code, "a b"], os.environ | {"OURS": "mine "})
    assert ended.value.code == status
    assert file.read_text() == "mine a b"


def test_a_killed_program_is_a_failure(monkeypatch):
    monkeypatch.setattr(processes, "can_replace", lambda: False)
    with pytest.raises(SystemExit) as ended:
        replace_process([sys.executable, "-c", "import os; os.abort()"])
    assert ended.value.code > 0


def test_a_program_takes_over_where_it_can(tmp_path):
    code = "from llmtune.utils.processes import replace_process\nimport os, sys\nprint(os.getpid())\n"
    code += "replace_process([sys.executable, '-c', 'import os; print(os.getpid())'])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert len(set(found.stdout.split())) == (1 if os.name == "posix" else 2)


@pytest.mark.medium
def test_texts_beyond_the_encoding_of_a_pipe(tmp_path):
    (tmp_path / "zh.jsonl").write_text('{"query": "你好", "response": "您好"}\n', encoding="utf-8")
    words = ["check", "--model_type", "llmtune-tiny", "--dataset", "zh.jsonl", "--dataset_test_ratio", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"}
    found = subprocess.run(
        [sys.executable, "-m", "llmtune", *words], cwd=tmp_path, env=environment, capture_output=True
    )
    assert found.returncode == 0, found.stderr
    assert rb"\u4f60\u597d" in found.stdout


def test_processes_that_live_and_that_do_not():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_alive(child.pid)
    child.communicate(b"\n")
    assert not is_alive(child.pid)
    assert is_alive(os.getpid())


# In the code

POSIX = {
    *("fork", "execv", "execve", "execvp", "execvpe", "execl", "spawnv", "uname", "kill", "killpg", "setsid", "getuid"),
    *("geteuid", "sysconf", "statvfs", "sched_getaffinity", "register_at_fork", "mkfifo", "chown"),
}
MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog"}
MAY = {
    "llmtune/utils/processes.py": {"execve"},
    "llmtune/distributed/ranks.py": {"register_at_fork"},  # asks whether there is one
    "llmtune/templates/vetted.py": {"fork", "kill", "sysconf", "resource"},  # the same, and without one it forks not
}


def posix_names(source: str) -> set[str]:
    """Functions of os, and modules, that only POSIX has, but for modules whose absence is caught."""
    tree = ast.parse(source)
    caught = {
        id(statement)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any("ImportError" in ast.unparse(one.type or node) for one in node.handlers)
        for statement in ast.walk(node)
    }
    found = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os" and node.attr in POSIX
    }
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import) and id(node) not in caught]
    return found | {alias.name for node in imports for alias in node.names} & (MODULES | found)


def test_reads_what_it_should():
    assert posix_names("import os, resource\nos.fork()\n") == {"resource", "fork"}
    assert posix_names("try:\n    import fcntl\nexcept (ImportError, OSError):\n    pass") == set()


@pytest.mark.parametrize("file", sorted((ROOT / "llmtune").rglob("*.py")), ids=lambda file: file.stem)
def test_what_only_posix_has_is_asked_for(file: Path):
    name = file.relative_to(ROOT).as_posix()
    assert posix_names(file.read_text("utf-8")) == MAY.get(name, set())
