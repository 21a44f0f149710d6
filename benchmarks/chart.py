"""The figures of benchmarks/peers.py as bars, in SVG: shorter is faster."""

from collections.abc import Sequence
from html import escape

from benchmarks.measure import Figure

_ROW, _LEFT, _WIDTH, _RIGHT = 20, 270, 420, 150
_OURS, _THEIRS = "#2f6f4f", "#9aa5b1"


def svg(figures: Sequence[Figure]) -> str:
    """One bar for each figure that has a value, of equal scale; a name for each that has none."""
    longest = max((figure.value for figure in figures if figure.value is not None), default=1.0)
    rows = [_row(index, figure, longest) for index, figure in enumerate(figures)]
    width, height = _LEFT + _WIDTH + _RIGHT, _ROW * len(figures) + 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    style = 'font-family="sans-serif" font-size="12" fill="#333"'
    return f'{head} {style}>\n<rect width="100%" height="100%" fill="white"/>\n{"".join(rows)}</svg>\n'


def _row(index: int, figure: Figure, longest: float) -> str:
    top = _ROW * index + 5
    name = f'<text x="{_LEFT - 8}" y="{top + 13}" text-anchor="end">{escape(figure.what)}</text>'
    if figure.value is None:
        return f'{name}<text x="{_LEFT}" y="{top + 13}" fill="#888">not here</text>\n'
    length = max(figure.value / longest * _WIDTH, 1)
    color = _OURS if "sandbox" in figure.what else _THEIRS
    bar = f'<rect x="{_LEFT}" y="{top}" width="{length:.1f}" height="{_ROW - 4}" fill="{color}"/>'
    value = f'<text x="{_LEFT + length + 6:.1f}" y="{top + 13}">{figure.value * 1000:.2f} ms</text>'
    return f"{name}{bar}{value}\n"
