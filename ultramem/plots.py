"""Line plots as inline SVG text.

Enough for the comparison report, which must open from a disk without a network. Colours come from the page's CSS
variables (`--series-1`, `--ink`, `--grid`), so one plot serves a light and a dark page.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 600, 360
LEFT, RIGHT, TOP, BOTTOM = 50, 170, 32, 48
LABEL_GAP = 17
NUM_COLOURS = 8
WARM_UP_SHARE = 0.2


@dataclass(frozen=True)
class Series:
    """One line of a plot: a mean, and the runs that it is the mean of (drawn faintly; may be empty)."""

    name: str
    points: Sequence[Point]
    runs: Sequence[Sequence[Point]] = ()


def line_plot(series: Sequence[Series], *, x_label: str, y_label: str, leave_out: float = WARM_UP_SHARE) -> str:
    """Draw `series` as one `<svg>` element, each line labelled at its end.

    The x axis begins at 0. The y axis leaves out what only the first fifth of it reaches, or whatever share `leave_out`
    is: a loss falls from log(vocabulary) in a few steps, and that fall would flatten the differences that the plot is
    for.

    Example:
        >>> svg = line_plot([Series("dense", [(0, 3.0), (10, 2.0)])], x_label="tokens", y_label="loss")
        >>> svg.startswith("<svg") and "dense" in svg
        True
    """
    series = [line for line in series if line.points]
    if not series:
        return '<p class="empty">Nothing was measured yet.</p>'
    x_end, y_ticks = _axes(series, leave_out)
    x_ticks = [tick for tick in nice_ticks(0, x_end) if tick <= x_end]
    x_scale = _scale(0, x_end, LEFT, WIDTH - RIGHT)
    y_scale = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)

    clip = "clip-" + "-".join(f"{y_label} {x_label}".split())
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{y_label} against {x_label}")}">',
        f'<clipPath id="{escape(clip)}">'
        f'<rect x="{LEFT}" y="{TOP - 4}" width="{WIDTH - LEFT - RIGHT + 6}" height="{HEIGHT - TOP - BOTTOM + 8}"/>'
        "</clipPath>",
    ]
    for tick in y_ticks:
        y = y_scale(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in x_ticks:
        x, y = x_scale(tick), HEIGHT - BOTTOM + 18
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{short_number(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text class="label" x="4" y="14">{escape(y_label)}</text>')

    def path(points: Sequence[Point], style: str) -> str:
        corners = " ".join(f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in points)
        return f'<polyline class="line" clip-path="url(#{escape(clip)})" points="{corners}" style="{style}"/>'

    label_heights = spread_apart([y_scale(line.points[-1][1]) for line in series], LABEL_GAP)
    for number, (line, label_y) in enumerate(zip(series, label_heights, strict=True)):
        colour = f"var(--series-{number % NUM_COLOURS + 1})"
        dashes = ";stroke-dasharray:6 3" if number >= NUM_COLOURS else ""
        parts.extend(path(run, f"stroke:{colour};opacity:.3;stroke-width:1") for run in line.runs)
        parts.append(path(line.points, f"stroke:{colour}{dashes}"))
        last_x, last_y = line.points[-1]
        parts.append(
            f'<circle cx="{x_scale(last_x):.1f}" cy="{y_scale(last_y):.1f}" r="3" style="fill:{colour}">'
            f"<title>{escape(line.name)}: {last_y:.4g}</title></circle>"
            f'<line class="leader" x1="{x_scale(last_x) + 4:.1f}" y1="{y_scale(last_y):.1f}"'
            f' x2="{WIDTH - RIGHT + 12}" y2="{label_y:.1f}"/>'
            f'<text class="name" x="{WIDTH - RIGHT + 16}" y="{label_y + 4:.1f}" style="fill:{colour}">'
            f"{escape(line.name)} {last_y:.3f}</text>"
        )
    return "".join([*parts, "</svg>"])


def spread_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move labels that sit at `heights` up or down until neighbours are `gap` apart; their order stays.

    Example:
        >>> spread_apart([10.0, 12.0], gap=4.0)
        [9.0, 13.0]
    """
    # Labels that touch become one block, centred on the mean of its members' wishes, until no two blocks touch.
    blocks: list[list[int]] = []

    def top(block: list[int]) -> float:
        return sum(heights[i] for i in block) / len(block) - gap * (len(block) - 1) / 2

    for index in sorted(range(len(heights)), key=lambda i: heights[i]):
        blocks.append([index])
        while len(blocks) > 1 and top(blocks[-2]) + gap * len(blocks[-2]) > top(blocks[-1]):
            last = blocks.pop()
            blocks[-1].extend(last)
    placed = {index: top(block) + gap * place for block in blocks for place, index in enumerate(block)}
    return [placed[index] for index in range(len(heights))]


def short_number(value: float, figures: int = 3) -> str:
    """Write a number in a few figures and a suffix: 1_234_567 as `1.23M`."""
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if float(f"{abs(value) / size:.{figures}g}") >= 1:
            return f"{value / size:.{figures}g}{suffix}"
    return f"{value:.{figures}g}"


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round ticks (steps of 1, 2 or 5 times a power of ten) that cover [low, high]."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [tick * step for tick in range(first, max(last, first + 1) + 1)]


def _axes(series: Sequence[Series], leave_out: float) -> tuple[float, list[float]]:
    """Where the x axis ends and what the y axis shows."""
    points = [point for line in series for drawn in (line.points, *line.runs) for point in drawn]
    x_end = max(x for x, _ in points)
    y_values = [y for x, y in points if x >= leave_out * x_end]
    return x_end, nice_ticks(min(y_values), max(y_values))


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)
