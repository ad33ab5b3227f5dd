"""Charts as SVG, written by hand: bars and lines, readable on light and dark pages."""

from html import escape

STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 14px }
.faint { fill: #59636e }
.peer { fill: #9aa4af }
.ours { fill: #0969da }
.limit { fill: none; stroke: #9aa4af; stroke-dasharray: 3 2 }
.line { fill: none; stroke: #0969da; stroke-width: 2 }
.axis { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .faint { fill: #9198a1 } .peer { fill: #656c76 } .ours { fill: #4493f8 }
.limit { stroke: #656c76 } .line { stroke: #4493f8 } .axis { stroke: #3d444d }
}
</style>"""

LABEL_WIDTH = 190
BAR_WIDTH = 330
ROW_HEIGHT = 20
PANEL_WIDTH = 250
PANEL_HEIGHT = 150


def bars(title, panels, show):
    """Horizontal bars. A panel is a heading and contenders with their values; `show` writes a value. Bars of limits are
    cut off where they would make the others small."""
    lines = []
    y = 24
    for heading, bars_of_panel in panels:
        if heading:
            y += 20
            lines.append(_text(0, y, heading, "faint"))
        y += 8
        scale = max((value for contender, value in bars_of_panel if not contender.aside), default=1) * 1.05
        for contender, value in bars_of_panel:
            kind = "ours" if contender.ours else "limit" if contender.aside else "peer"
            width = min(value / scale, 1) * BAR_WIDTH
            lines.append(_text(LABEL_WIDTH - 8, y + 14, contender.name, anchor="end"))
            lines.append(
                f'<rect class="{kind}" x="{LABEL_WIDTH}" y="{y + 3.5}" width="{width:.1f}" height="{ROW_HEIGHT - 7}"/>')
            lines.append(_text(LABEL_WIDTH + width + 6, y + 14, show(value), "faint"))
            y += ROW_HEIGHT
    return _document(title, LABEL_WIDTH + BAR_WIDTH + 100, y + 8, lines)


def curves(title, steps, panels):
    """One curve a panel, side by side, over the same steps. A panel is a heading, values and how to write one."""
    lines = []
    for number, (heading, values, show) in enumerate(panels):
        left = 12 + number * (PANEL_WIDTH + 40)
        top, bottom = 62, 62 + PANEL_HEIGHT
        lines.append(_text(left, 48, heading, "faint"))
        lines.append(f'<path class="axis" d="M{left} {bottom}H{left + PANEL_WIDTH}"/>')
        highest = max(values) * 1.15
        points = []
        for step, value in enumerate(values):
            x = left + 14 + step * (PANEL_WIDTH - 28) / max(len(values) - 1, 1)
            y = bottom - value / highest * (bottom - top)
            points.append((x, y))
            lines.append(f'<circle class="ours" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
            # Every second one, so that they do not run into each other.
            if step % 2 == 0:
                lines.append(_text(x, bottom + 16, steps[step], "faint", "middle"))
                lines.append(_text(x, y - 7, show(value), "", "middle"))
        lines.append('<path class="line" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + '"/>')
    return _document(title, len(panels) * (PANEL_WIDTH + 40), 62 + PANEL_HEIGHT + 28, lines)


def _text(x, y, text, kind="", anchor="start"):
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _document(title, width, height, lines):
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        STYLE,
        _text(0, 16, title, "title"),
        *lines,
        "</svg>",
        "",
    ])
