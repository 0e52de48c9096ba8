"""The tool of `make mutants`: what it makes of a module, draws by a seed, and says of tests that fail or do not."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from .mutants import ROOT, equivalents, modules, sample
from .mutations import mutations

SOURCE = '''
SIZE = 3
ranged(ge=2)


@dataclass(slots=True)
class Shape:
    size: int = 1


def function(a, b, *rest):
    """Is 1."""
    for item in rest:
        if not a and item < 4:
            continue
        b.total += 1
        get_logger().info("b is %s", len(rest) + 1)
    if b:
        raise ValueError(f"{a + 1}")
    return check(b, cast("Any", a))
'''
CHANGED = {
    ("constant", "ranged(ge=3)"),
    ("condition", "if (not (not a and item < 4)):"),
    ("and, or", "if (not a or item < 4):"),
    ("not", "if (a) and item < 4:"),
    ("compare", "if not a and item <= 4:"),
    ("constant", "if not a and item < 5:"),
    ("jump", "break"),
    ("constant", "b.total += 2"),
    ("deleted", "pass"),
    ("condition", "if (not (b)):"),
    ("return", "return None"),
    ("arguments", "return check(cast('Any', a), b)"),
}


def test_one_place_each():
    found = set()
    for one in mutations(SOURCE):
        after = one.applied(SOURCE)
        ast.parse(after)
        (line,) = [line.strip() for line in after.splitlines() if line not in SOURCE.splitlines()]
        found.add((one.kind, line))
    assert found == CHANGED


@pytest.mark.parametrize("module", modules())
def test_every_place_of_a_module_can_be_changed(module):
    source = (ROOT / module).read_text(encoding="utf-8")
    ones = mutations(source)
    assert len(ones) > 5
    for one in ones[:: max(1, len(ones) // 4)]:
        assert ast.dump(ast.parse(one.applied(source))) != ast.dump(ast.parse(source)), one
    assert [test for test in modules()[module] if not (ROOT / test).is_file()] == []


def test_a_seed_draws_the_same_mutants():
    drawn = sample(1, 40, list(modules()))
    assert drawn == sample(1, 40, list(modules())) != sample(2, 40, list(modules()))
    assert len(set(drawn)) == 40
    assert len({mutant.module for mutant in drawn}) > 20
    assert len({mutant.mutation.kind for mutant in drawn}) > 7


def test_what_is_known_to_be_equivalent_is_still_there():
    """An entry whose line has changed says nothing of the new one."""
    for module, before, _ in equivalents():
        lines = (ROOT / module).read_text(encoding="utf-8").splitlines()
        assert before in " ".join(line.strip() for line in lines), before


@pytest.mark.slow
def test_a_wrong_rule_is_killed_and_the_exit_status_says_whether_enough_were():
    command = [
        sys.executable,
        "-m",
        "tests.mutants",
        "--seed",
        "5",
        "--count",
        "2",
        "--modules",
        "llmtune/utils/seal.py",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 killed; 0 equivalent, 0 not tried" in done.stdout
