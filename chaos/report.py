"""A page that shows a run: what producers and consumers felt, second by second, with the faults marked, and each fault's figures.

    report.py FIGURES.json [PAGE.html]        run.py writes both, as figures.json and report.html

One page that needs nothing else. Long runs are cut into strips that stand below each other.
"""

import collections
import html
import json
import math
import pathlib
import statistics
import sys

PAGE, FIGURES = "report.html", "figures.json"
COLOURS = {"process": "#c0392b", "network": "#2471a3", "store": "#b9770e", "disk": "#7d3c98"}
ACKS, P50, P99, LONGEST, GAP = "#2e7d32", "#0097a7", "#1a237e", "#9fa8da", "#ad1457"
# Of a strip, in pixels. Each panel: its name, its height.
LEFT, RIGHT, WIDTH, STRIP_S = 64, 16, 1180, 150
PANELS = (("acknowledgements a second", 110), ("latency of acknowledgements", 110), ("longest wait of a partition", 80))
MACHINE = ("machine_s", "starved")
FIGURES_OF_ROUND = ("stall_s", "stall_partition_s", "latency_s", "gap_s", "whole_after_s", "again_after_s")
SPACE, AXIS, LABEL = 18, 34, 14


def write(directory, told):
    """The figures and the page."""
    (directory / FIGURES).write_text(json.dumps(told, sort_keys=True))
    (directory / PAGE).write_text(page(told))


STYLE = f"""
body {{
  font: 14px/1.45 system-ui, "Liberation Sans", sans-serif; color: #222; background: #fff; margin: 24px auto; width: {WIDTH}px
}}
h1 {{ font-size: 22px; margin: 0 }}
h2 {{ font-size: 16px; margin: 28px 0 6px }}
.about {{ color: #666; margin: 2px 0 14px }}
.legend {{ color: #555; margin: 4px 0 10px }}
.result {{ display: inline-block; padding: 1px 10px; border-radius: 10px; color: #fff; background: #c62828 }}
.result.clean {{ background: #2e7d32 }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: right; padding: 3px 10px; border-bottom: 1px solid #e3e3e3 }}
th {{ font-weight: 600; color: #555; vertical-align: bottom }}
td:first-child, th:first-child, .words th:nth-child(3), .words td:nth-child(3) {{ text-align: left }}
.dot {{ display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 7px }}
pre {{ background: #f6f6f6; padding: 10px 12px; white-space: pre-wrap }}
svg text {{ font: 11px system-ui, "Liberation Sans", sans-serif }}
.over {{ stroke: #fff; stroke-width: 3px; paint-order: stroke }}
"""


def page(told):
    strips = max(1, math.ceil(len(told["timeline"]) / STRIP_S))
    # Strips of equal length look better than a short last one.
    seconds = math.ceil(len(told["timeline"]) / strips / 10) * 10 if told["timeline"] else STRIP_S
    top = Scales(told["timeline"])
    pictures = [strip(told, top, n * seconds, seconds) for n in range(strips)]
    about = [f"seed {told['seed']}", told["date"], f"commit {told['commit']}", f"store: {told['store']}",
             "each node in a network of its own" if told["network"] else "nodes on loopback",
             f"{told['acks']:,} acknowledgements", f"{len(told['rounds'])} rounds in {told['seconds']} s"]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Chaos, seed {told['seed']}</title><style>{STYLE}</style></head><body>
<h1>Chaos <span class="result {told['result']}">{told['result']}</span></h1>
<p class="about">{html.escape(' · '.join(about))}</p>
<p class="legend">{legend()}</p>
{''.join(pictures)}
<h2>By fault</h2>
{by_fault(told['rounds'])}
<h2>Anomalies and problems</h2>
{problems(told)}
<h2>Each round</h2>
{each_round(told['rounds'])}
<h2>Settings, by the seed</h2>
<pre>{html.escape(chr(10).join(f'{k}={v}' for k, v in sorted(told['settings'].items())))}</pre>
</body></html>
"""


def legend():
    def dot(colour, words):
        return f'<span class="dot" style="background:{colour}"></span>{words} &nbsp; '

    lines = [dot(ACKS, "acknowledgements; wait for one"), dot(P50, "p50"), dot(P99, "p99"), dot(LONGEST, "longest"),
             dot(GAP, "wait of the reader at the log's end")]
    bands = [dot(colour, f"fault: {'disk, clock' if role == 'disk' else role}") for role, colour in COLOURS.items()]
    return "".join(lines) + "<br>" + "".join(bands) + "pale: healed, not yet whole and serving"


class Scales:
    """What is the top of each panel, the same in all strips."""

    def __init__(self, rows):
        acks = [row[0] for row in rows]
        # What was held up comes at once afterwards: such peaks go out at the top.
        self.acks = nice(min(max(acks, default=1), 3 * statistics.median(acks or [1]) + 1))
        latencies = [value for row in rows for value in row[1:4] if value]
        self.low = 10 ** math.floor(math.log10(max(min(latencies, default=1), 0.1)))
        self.high = 10 ** math.ceil(math.log10(max([*latencies, self.low * 10])))
        self.wait = 10 ** math.ceil(math.log10(max([1, *(max(row[5:7]) for row in rows)])))


def nice(value):
    """The next of 1, 2, 4, 5, 6, 8, 10 times a power of ten."""
    power = 10 ** math.floor(math.log10(max(value, 1)))
    return next(step * power for step in (1, 2, 4, 5, 6, 8, 10) if step * power >= value)


def rect(left, right, y, height, more):
    return f'<rect x="{left:.1f}" y="{y:.1f}" width="{max(right - left, 0):.1f}" height="{height}" {more}/>'


def text(x, y, words, colour="#555", more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" {more}>{html.escape(words)}</text>'


def path(along, colour, more=""):
    return f'<path d="{along}" stroke="{colour}" fill="none" {more}/>'


def strip(told, top, begin, seconds):
    rows = told["timeline"][begin : begin + seconds]
    x = lambda t: LEFT + (t - begin) / seconds * (WIDTH - LEFT - RIGHT)  # noqa: E731
    end = begin + seconds
    shown = [r for r in told["rounds"] if r["began_s"] < end and ended(r) > begin]
    labels, levels = place_labels(shown, x, begin)
    y0 = 8 + levels * LABEL
    y1 = y0 + sum(height for _, height in PANELS) + SPACE * (len(PANELS) - 1)
    out = []
    for r in shown:
        left, healed, right = (x(min(max(t, begin), end)) for t in (r["began_s"], r["healed_s"], ended(r)))
        fill = f'fill="{COLOURS[r["role"]]}"'
        bands = [rect(left, max(healed, left + 1.5), y0, y1 - y0, f'{fill} opacity=".20"'),
                 rect(healed, right, y0, y1 - y0, f'{fill} opacity=".07"')]
        out.append(f'<g><title>{html.escape(sentence(r))}</title>{"".join(bands)}</g>')
    for r, at, level in labels:
        y = 4 + (level + 1) * LABEL
        out.append(path(f"M{x(max(r['began_s'], begin)):.1f} {y + 2} V{y0}", COLOURS[r["role"]], 'stroke-width=".8"'))
        out.append(text(at, y, label(r), COLOURS[r["role"]]))
    y = y0
    places = [(begin + n, row) for n, row in enumerate(rows)]
    for (name, height), draw in zip(PANELS, (acks_panel, latency_panel, wait_panel)):
        out.append(rect(LEFT, WIDTH - RIGHT, y, height, 'fill="none" stroke="#bbb"'))
        out.append(draw(places, top, x, y, height))
        out.append(text(LEFT + 6, y + 14, name, "#333", 'class="over"'))
        y += height + SPACE
    if told.get("load_ended_s") and begin <= told["load_ended_s"] < end:
        at = x(told["load_ended_s"])
        out.append(path(f"M{at:.1f} {y0} V{y1}", "#555", 'stroke-dasharray="4 3"'))
        out.append(text(at + 5, y0 + 14, "end of the load", more='class="over"'))
    for t in range(math.ceil(begin / 10) * 10, end + 1, 10):
        out.append(path(f"M{x(t):.1f} {y1} v4", "#888"))
        out.append(text(x(t), y1 + 16, f"{t // 60}:{t % 60:02}", more='text-anchor="middle"'))
    return f'<svg width="{WIDTH}" height="{y1 + AXIS}" role="img">{"".join(out)}</svg>\n'


def ended(r):
    return r["healed_s"] + r["whole_after_s"] + r["again_after_s"]


def label(r):
    return f"{r['fault']} {r['node']}"


def place_labels(rounds, x, begin):
    """Each label at its fault, in a row where it meets no other and its line none; how many rows there are."""
    placed, right_ends = [], []
    for r in rounds:
        at = x(max(r["began_s"], begin)) + 2
        width = 6.1 * len(label(r)) + 8
        at_most = WIDTH - RIGHT - width
        # Below every label that its line would cross.
        level = 1 + max((n for n, right in enumerate(right_ends) if right > min(at, at_most) - 2), default=-1)
        right_ends[level:level + 1] = [min(at, at_most) + width]
        placed.append((r, min(at, at_most), level))
    return placed, max(len(right_ends), 1)


def frame_lines(ticks, y_of, words_of):
    lines = (path(f"M{LEFT} {y_of(t):.1f} H{WIDTH - RIGHT}", "#e4e4e4") for t in ticks)
    words = (text(LEFT - 6, y_of(t) + 4, words_of(t), more='text-anchor="end"') for t in ticks)
    return "".join([*lines, *words])


def lines_of(columns, colours, places, x, y_of):
    """A line for each column of the rows."""
    points = ([(t, None if row[n] is None else y_of(row[n])) for t, row in places] for n in columns)
    return "".join(path(steps(p, x), colour, 'stroke-width="1.3"') for p, colour in zip(points, colours))


def steps(points, x):
    """A line that stays for each second where the second was; broken where there was nothing."""
    path, open_ = [], False
    for t, y in points:
        if y is None:
            open_ = False
            continue
        path.append(f"{'L' if open_ else 'M'}{x(t):.1f} {y:.1f}H{x(t + 1):.1f}")
        open_ = True
    return "".join(path)


def acks_panel(places, top, x, y, height):
    y_of = lambda v: y + height - min(v / top.acks, 1) * height  # noqa: E731
    if not places:
        return ""
    line = steps([(t, y_of(row[0])) for t, row in places], x)
    area = f"M{x(places[0][0]):.1f} {y + height}L{line[1:]}V{y + height}Z"
    return (frame_lines((0, top.acks / 2, top.acks), y_of, lambda v: f"{v:,.0f}")
            + f'<path d="{area}" fill="{ACKS}" opacity=".16"/>' + lines_of([0], [ACKS], places, x, y_of))


def logarithmic(low, high, y, height):
    """Where a value is in a panel, and the powers of ten in it."""
    span = math.log10(high / low)
    y_of = lambda v: y + height - math.log10(max(v, low) / low) / span * height  # noqa: E731
    return y_of, [low * 10**n for n in range(round(span) + 1)]


def latency_panel(places, top, x, y, height):
    y_of, ticks = logarithmic(top.low, top.high, y, height)
    return (frame_lines(ticks, y_of, lambda v: f"{v:g} ms" if v < 1000 else f"{v / 1000:g} s")
            + lines_of([3, 1, 2], [LONGEST, P50, P99], places, x, y_of))


def wait_panel(places, top, x, y, height):
    y_of, ticks = logarithmic(0.1, top.wait, y, height)
    return frame_lines(ticks, y_of, lambda v: f"{v:g} s") + lines_of([5, 6], [ACKS, GAP], places, x, y_of)


def sentence(r):
    where = f"node {r['node']}{' (leader)' if r['leader'] else ''}"
    return (f"round {r['round']}: {r['fault']}, {where}, {r['detail']}; silence {r['stall_s']:.2f} s, of a partition "
            f"{r['stall_partition_s']:.2f} s; latency {r['latency_s']:.2f} s; gap of the reader {r['gap_s']:.2f} s")


def table(heads, rows, kind=""):
    head = "".join(f"<th>{words}</th>" for words in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table class='{kind}'><tr>{head}</tr>{body}</table>\n"


def name_cell(fault, role):
    return f'<span class="dot" style="background:{COLOURS[role]}"></span>{fault}'


def by_fault(rounds):
    grouped = collections.defaultdict(list)
    for r in rounds:
        grouped[r["role"], r["fault"]].append(r)
    rows = []
    for (role, fault), of in sorted(grouped.items(), key=lambda item: (list(COLOURS).index(item[0][0]), item[0][1])):
        def seconds(name):
            values = [r[name] for r in of]  # noqa: B023
            return f"{max(values):.2f}" if len(values) == 1 else f"{statistics.median(values):.2f} / {max(values):.2f}"

        rows.append([name_cell(fault, role), len(of),
                     *(seconds(name) for name in FIGURES_OF_ROUND)])
    heads = ["fault", "rounds", "longest silence<br>of all producers, s", "of one<br>partition, s",
             "longest wait<br>of a record, s", "longest gap of<br>the reader, s", "whole after<br>it healed, s",
             "all producers<br>served after, s"]
    return table(heads, rows) + '<p class="about">median / longest</p>'


def problems(told):
    listed = "".join(f"<pre>{html.escape(problem)}</pre>" for problem in told["problems"])
    return listed + f"<pre>{html.escape(told['verdict'].strip())}</pre>"


def each_round(rounds):
    rows = [[name_cell(f"{r['round']} {r['fault']}", r["role"]), f"{r['node']}{' (leader)' if r['leader'] else ''}",
             html.escape(r["detail"]),
             *(f"{r[name]:.2f}" for name in (*FIGURES_OF_ROUND, *MACHINE))] for r in rounds]
    heads = ["round", "node", "what", "silence<br>of all, s", "of a<br>partition, s", "wait of a<br>record, s",
             "gap of the<br>reader, s", "whole<br>after, s", "serves<br>after, s", "synced<br>write, s", "threads<br>starved"]
    return table(heads, rows, kind="words")


def main():
    figures = pathlib.Path(sys.argv[1])
    target = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else figures.with_name(PAGE)
    target.write_text(page(json.loads(figures.read_text())))


if __name__ == "__main__":
    main()
