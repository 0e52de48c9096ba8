"""The axes of plots: round ticks with labels that differ, and lines of any length and size."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtune.run.plot import MOST_POINTS, Axis, Sheet, thinned

DRAW = Sheet.draw
"""As it is before tests/conftest.py spares the other tests its time."""

NUMBERS = st.floats(-1e30, 1e30, allow_subnormal=False)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.0, 1.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ((0.0, 1e-4), ["0", "0.2e-4", "0.4e-4", "0.6e-4", "0.8e-4", "1.0e-4"]),
        ((7.697, 7.697), ["7.4", "7.5", "7.6", "7.7", "7.8", "7.9", "8.0"]),
        ((1e9, 4e9), ["1.0e9", "1.5e9", "2.0e9", "2.5e9", "3.0e9", "3.5e9", "4.0e9"]),
    ],
)
def test_ticks_are_round(values: tuple[float, float], expected: list[str]) -> None:
    assert [label for _, label in Axis(values, 400, 0).ticks(most=8)] == expected


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_ticks_lie_on_the_axis_and_their_labels_differ(values: list[float]) -> None:
    axis = Axis(values, 0, 400)
    ticks = axis.ticks(most=8)
    assert 1 <= len(ticks) <= 9
    assert all(-0.01 <= axis.pixel(tick) <= 400.01 for tick, _ in ticks)
    if max(values) - min(values) > 1e-6 * max(map(abs, values)):
        assert len({label for _, label in ticks}) == len(ticks)


@given(st.sets(st.integers(1, 10**6), min_size=1, max_size=5))
def test_ticks_of_steps_are_steps(steps: set[int]) -> None:
    assert all(tick == int(tick) for tick, _ in Axis([*steps], 0, 700).ticks(most=9, whole=True))


def test_a_long_line_keeps_its_extremes() -> None:
    line = [(float(step), math.sin(step)) for step in range(40_000)]
    line[12_345] = (12_345.0, 50.0)
    line[12_346] = (12_346.0, -50.0)
    found = thinned(line)
    assert len(found) <= MOST_POINTS
    assert found == sorted(found)
    assert {(12_345.0, 50.0), (12_346.0, -50.0)} <= set(found)
    assert thinned(line[:MOST_POINTS]) == line[:MOST_POINTS]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "loss.png"
    target.mkdir()
    with pytest.raises(OSError, match=r"loss\.png"):
        DRAW(Sheet(), "loss", [([(1.0, 2.0)], "#FF7043")], target)
    assert list(tmp_path.iterdir()) == [target]
