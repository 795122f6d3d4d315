"""A chart of ratios as an SVG that reads in light and in dark."""

from html import escape

ROW, LABELS, WIDTH, TOP, BOTTOM = 26, 250, 780, 44, 48
STYLE = """text { font: 13px system-ui, sans-serif; fill: #1f2328 } .small { font-size: 11px; fill: #59636e }
.bar { fill: #2f81b7 } .slower { fill: #b35900 } .spread { stroke: #1f2328; stroke-width: 1.5 } .one { stroke: #59636e; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .small { fill: #9198a1 } .spread { stroke: #e6edf3 } .one { stroke: #9198a1 } }"""


def ratios(title, bars, note):
    """`bars` are `(label, median, smallest, largest)`; a line marks 1."""
    most = max(largest for *_, largest in bars) * 1.08
    height = TOP + ROW * len(bars) + BOTTOM
    end = TOP + ROW * len(bars)

    def x(value):
        return LABELS + value / most * (WIDTH - LABELS - 60)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">']
    parts.append(f"<style>{STYLE}</style>")
    parts.append(f'<text x="0" y="20" font-weight="600">{escape(title)}</text>')
    for i, (label, median, smallest, largest) in enumerate(bars):
        y = TOP + ROW * i
        kind = "bar" if median >= 1 else "bar slower"
        parts.append(f'<text x="{LABELS - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect class="{kind}" x="{x(0):.1f}" y="{y + 2}" width="{x(median) - x(0):.1f}" height="{ROW - 10}"/>')
        parts.append(f'<line class="spread" x1="{x(smallest):.1f}" x2="{x(largest):.1f}" y1="{y + 10}" y2="{y + 10}"/>')
        parts.append(f'<text x="{x(largest) + 6:.1f}" y="{y + 14}">{median:.2f}</text>')
    parts.append(f'<line class="one" x1="{x(1):.1f}" x2="{x(1):.1f}" y1="{TOP - 6}" y2="{end}"/>')
    parts.append(f'<text class="small" x="{x(1):.1f}" y="{end + 14}" text-anchor="middle">as fast</text>')
    parts.append(f'<text class="small" x="0" y="{height - 8}">{escape(note)}; bars are medians, lines the smallest and the largest</text>')
    return "\n".join([*parts, "</svg>\n"])
