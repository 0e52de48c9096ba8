"""Line plots as PNG files, drawn by Pillow: importing matplotlib alone takes longer than all plots of a short run."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 800, 500
LEFT, TOP, RIGHT, BOTTOM = 100, 50, 20, 60
"""Margins around the axes, in pixels."""
FINE = 3
"""Lines are drawn this much larger and reduced, which smooths their edges."""
LINE = 2
DOT = 5
TICK = 5
MOST_POINTS = 1_500
NICE = (1, 2, 2.5, 5, 10)
BLACK = "#000000"

Point = tuple[float, float]
Line = tuple[Sequence[Point], str]
"""Points (step, value), and a colour."""


class Sheet:
    """The paper and font of several plots."""

    def __init__(self) -> None:
        from PIL import ImageFont

        self.font = ImageFont.load_default(size=14)
        self.title_font = ImageFont.load_default(size=17)

    def draw(self, title: str, lines: Sequence[Line], path: Path) -> Path:
        """Draw lines over steps into one pair of axes; a line of one point is a dot.

        Returns:
            `path`, which is written whole or not at all.
        """
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (WIDTH, HEIGHT), "#FFFFFF")
        points = [point for line, _ in lines for point in line]
        xs, ys = Axis([x for x, _ in points], LEFT, WIDTH - RIGHT), Axis([y for _, y in points], HEIGHT - BOTTOM, TOP)
        for line, colour in lines:
            pixels = [(xs.pixel(x), ys.pixel(y)) for x, y in thinned(line)]
            image.paste(colour, (0, 0), _mask(pixels))
        pen = ImageDraw.Draw(image)
        pen.rectangle((LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM), outline=BLACK)
        for value, label in xs.ticks(most=9, whole=True):
            at = xs.pixel(value)
            pen.line((at, HEIGHT - BOTTOM, at, HEIGHT - BOTTOM + TICK), fill=BLACK)
            pen.text((at, HEIGHT - BOTTOM + TICK + 4), label, fill=BLACK, font=self.font, anchor="ma")
        for value, label in ys.ticks(most=8):
            at = ys.pixel(value)
            pen.line((LEFT - TICK, at, LEFT, at), fill=BLACK)
            pen.text((LEFT - TICK - 4, at), label, fill=BLACK, font=self.font, anchor="rm")
        middle = (LEFT + WIDTH - RIGHT) / 2
        pen.text((middle, TOP - 12), title, fill=BLACK, font=self.title_font, anchor="ms")
        pen.text((middle, HEIGHT - 10), "step", fill=BLACK, font=self.font, anchor="ms")
        self._write(image, path)
        return path

    def _write(self, image: Any, path: Path) -> None:
        temporary = path.with_name(f".{path.name}.part")
        try:
            image.save(temporary, format="PNG", compress_level=1)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


class Axis:
    """Values along one side of a plot, from the pixel `start` to the pixel `end`, with a margin of 5 %."""

    def __init__(self, values: Sequence[float], start: int, end: int) -> None:
        low, high = min(values), max(values)
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        self.low, self.high = low - margin, high + margin
        self.start, self.end = start, end

    def pixel(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, *, most: int, whole: bool = False) -> list[tuple[float, str]]:
        """Return round values that divide the axis into up to `most` parts, with their labels.

        Args:
            whole: Integers only.
        """
        least = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(least))
        step = next(nice * power for nice in NICE if nice * power >= least * (1 - 1e-9))
        step = max(math.ceil(step), 1) if whole else step
        found = [count * step for count in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return list(zip(found, _labels(found, step), strict=True))


def thinned(line: Sequence[Point]) -> Sequence[Point]:
    """Return the lowest and the highest point of each interval of a line that has more points than can be seen."""
    stretch = math.ceil(2 * len(line) / MOST_POINTS)
    if stretch <= 2:
        return line
    parts = [line[start : start + stretch] for start in range(0, len(line), stretch)]
    return [point for part in parts for point in sorted({min(part, key=_value), max(part, key=_value)})]


def _value(point: Point) -> float:
    return point[1]


def _mask(pixels: Sequence[Point]) -> Any:
    """Return how much of each pixel a line covers, 0 to 255."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (WIDTH * FINE, HEIGHT * FINE))
    pen = ImageDraw.Draw(mask)
    fine = [(x * FINE, y * FINE) for x, y in pixels]
    if len(fine) == 1:
        pen.ellipse([part + sign * DOT * FINE for sign in (-1, 1) for part in fine[0]], fill=255)
    else:
        pen.line(fine, fill=255, width=LINE * FINE, joint="curve")
    return mask.reduce(FINE)


def _labels(values: Sequence[float], step: float) -> list[str]:
    """Return the values with as many digits as tell them apart."""
    largest = max(map(abs, values), default=0.0)
    if largest == 0 or 1e-3 <= largest < 1e7:
        decimals = next(count for count in range(10) if _is_whole(step * 10**count) or count == 9)
        return [f"{value:,.{decimals}f}" for value in values]
    exponent = math.floor(math.log10(largest))
    scaled = step / 10.0**exponent
    decimals = next(count for count in range(10) if _is_whole(scaled * 10**count) or count == 9)
    return [f"{value / 10.0**exponent:.{decimals}f}e{exponent}" if value else "0" for value in values]


def _is_whole(value: float) -> bool:
    return abs(value - round(value)) < 1e-6
