"""Plots as SVG files that stand alone, on a light page and on a dark one."""

from collections.abc import Sequence

from ultramem.plots import Series, line_plot

_COLOURS = {
    "light": ("#1f66c1", "#c2541b", "#6b7280", "#0f7f6b", "#8b46c1", "#a8780a", "#b92f6d", "#3f7d20"),
    "dark": ("#6aa9f4", "#f08b52", "#a5adb8", "#3fc2a8", "#bd8bec", "#dfb040", "#f07fae", "#8bc766"),
}
_INK = {"light": "--quiet:#5c6570;--grid:#e4e7eb", "dark": "--quiet:#9aa3ad;--grid:#2c3238"}


def _variables(theme: str) -> str:
    colours = ";".join(f"--series-{number}:{colour}" for number, colour in enumerate(_COLOURS[theme], start=1))
    return f"svg{{{_INK[theme]};{colours}}}"


_STYLE = (
    f"<style>{_variables('light')}@media (prefers-color-scheme:dark){{{_variables('dark')}}}"
    "text{font:12px system-ui,sans-serif}.grid,.leader{stroke:var(--grid)}.line{fill:none;stroke-width:2}"
    ".tick,.label{fill:var(--quiet)}.name{font-weight:600}</style>"
)


def picture(series: Sequence[Series], *, x_label: str, y_label: str, leave_out: float = 0.0) -> str:
    """Draw lines as a whole SVG file; `leave_out` is the share of the x axis that the y axis need not cover."""
    svg = line_plot(series, x_label=x_label, y_label=y_label, leave_out=leave_out)
    start, rest = svg.split(">", 1)
    return f'{start} xmlns="http://www.w3.org/2000/svg">{_STYLE}{rest}\n'
