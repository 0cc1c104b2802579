"""Draws the plots of docs/benchmarks.md as SVG, with nothing but the standard library.

A plot is a row of panels with axes of their own. A panel has lines through points; values are
shown on a linear axis from zero (speeds) or a logarithmic one (latencies).
"""
import collections
import html
import math

PANEL_WIDTH, PANEL_HEIGHT = 330, 230
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 34, 44
LEGEND_HEIGHT = 26
COLOURS = {"StrataKV": "#1f6feb", "etcd": "#d1495b", "no-op server": "#8a8f98"}
# Ticks of a linear axis, about.
TICKS = 5
CLIENTS = (1, 64, 256)
PERCENTILES = ("p50", "p90", "p99", "p99.9")

# A panel: what it shows, labels along x, lines by name (a number or None for each label).
Panel = collections.namedtuple("Panel", "title x_title y_title labels lines logarithmic")


def nice_step(most, ticks):
    """A step of 1, 2 or 5 times a power of ten that divides a range into about `ticks`."""
    rough = most / ticks
    power = 10 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def axis(values, logarithmic):
    """Ticks of an axis that holds all values, the first and the last its ends."""
    if logarithmic:
        low = math.floor(math.log10(min(values)))
        high = max(math.ceil(math.log10(max(values))), low + 1)
        return [10.0 ** power for power in range(low, high + 1)]
    step = nice_step(max(values), TICKS)
    return [step * number for number in range(math.ceil(max(values) / step - 1e-9) + 1)]


def label(value):
    """A tick in as few characters as it takes."""
    if value >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def place(value, ticks, logarithmic):
    """Height of a value on an axis, from 0 to 1."""
    if logarithmic:
        low, high = math.log10(ticks[0]), math.log10(ticks[-1])
        return (math.log10(value) - low) / (high - low)
    return value / ticks[-1]


def text(x, y, words, anchor="middle", size=11, more=""):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{more}>'
            f"{html.escape(words)}</text>")


def draw_panel(panel, left, top):
    """The elements of a panel whose upper left corner is given."""
    values = [value for line in panel.lines.values() for value in line if value]
    if not values:
        return [text(left + PANEL_WIDTH / 2, top + PANEL_HEIGHT / 2, "not measured")]
    ticks = axis(values, panel.logarithmic)
    width, height = PANEL_WIDTH - LEFT - RIGHT, PANEL_HEIGHT - TOP - BOTTOM
    x0, y0 = left + LEFT, top + TOP + height
    found = [text(x0 + width / 2, top + 18, panel.title, size=13, more=' font-weight="bold"'),
             text(x0 + width / 2, y0 + 36, panel.x_title)]
    y_middle = y0 - height / 2
    found.append(text(left + 14, y_middle, panel.y_title,
                      more=f' transform="rotate(-90 {left + 14:.1f} {y_middle:.1f})"'))
    for tick in ticks:
        y = y0 - height * place(tick, ticks, panel.logarithmic)
        found.append(f'<line x1="{x0:.1f}" y1="{y:.1f}" x2="{x0 + width:.1f}" y2="{y:.1f}" '
                     'stroke="#d8dbe0" stroke-width="1"/>')
        found.append(text(x0 - 6, y + 4, label(tick), anchor="end"))
    steps = max(len(panel.labels) - 1, 1)
    # Half a step of room on both sides.
    along = [x0 + width * (number + 0.5) / (steps + 1) for number in range(len(panel.labels))]
    for x, words in zip(along, panel.labels):
        found.append(text(x, y0 + 18, words))
    for name, line in panel.lines.items():
        points = [(x, y0 - height * place(value, ticks, panel.logarithmic))
                  for x, value in zip(along, line) if value]
        colour = COLOURS[name]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        found.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        found += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
                  for x, y in points]
    return found


def draw(rows):
    """An SVG of rows of panels, with one legend."""
    width = PANEL_WIDTH * max(len(row) for row in rows)
    height = PANEL_HEIGHT * len(rows) + LEGEND_HEIGHT
    found = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
             f'width="{width}" height="{height}" font-family="sans-serif" fill="#24292f">',
             f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
    for down, row in enumerate(rows):
        for across, panel in enumerate(row):
            found += draw_panel(panel, PANEL_WIDTH * across, PANEL_HEIGHT * down)
    names = dict.fromkeys(name for row in rows for panel in row for name in panel.lines)
    for number, name in enumerate(names):
        x, y = LEFT + 130 * number, height - 9
        found.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{COLOURS[name]}"/>')
        found.append(text(x + 9, y, name, anchor="start", size=12))
    return "\n".join([*found, "</svg>"]) + "\n"


def fastest(part, target, kind, clients):
    """The fastest such row over all regions; none if there is none."""
    rows = [row for row in part["rows"] if not row["single_region"]
            and (row["target"], row["kind"], row["clients"]) == (target, kind, clients)]
    return max(rows, key=lambda row: row["ops_per_second"], default=None)


def speed(row):
    return row and row["ops_per_second"]


def latency_ms(row, percentile):
    """A percentile of a row, in milliseconds; none where the row does not have it."""
    if row is None:
        return None
    known = {f"p{number:g}": value for number, value in row.get("latency_us", [])}
    known |= {"p50": row["p50_us"], "p99": row["p99_us"], "p99.9": row["p999_us"]}
    return known[percentile] / 1000 if percentile in known else None


def plots(part):
    """The plots of the throughput part: file name and text of each."""
    speeds, latencies = [], []
    for kind in ("put", "get"):
        lines = {name: [speed(fastest(part, target, kind, clients)) for clients in CLIENTS]
                 for name, target in (("StrataKV", "strata"), ("etcd", "etcd"))}
        noop = [speed(fastest(part, "noop", f"noop-{kind}", clients)) for clients in CLIENTS]
        speeds.append(Panel(f"{kind}s", "clients", "operations a second",
                            [str(clients) for clients in CLIENTS],
                            lines | {"no-op server": noop}, False))
        latencies.append([
            Panel(f"{kind}s, {clients} client{'s' if clients > 1 else ''}", "percentile",
                  "milliseconds", list(PERCENTILES),
                  {name: [latency_ms(fastest(part, target, kind, clients), percentile)
                          for percentile in PERCENTILES]
                   for name, target in (("StrataKV", "strata"), ("etcd", "etcd"))}, True)
            for clients in CLIENTS])
    return {"throughput.svg": draw([speeds]), "latency.svg": draw(latencies)}
