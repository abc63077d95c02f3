"""Plots month.csv and prints the figures of results.md: is everything that could grow bounded?

    plot.py [month.csv [month.svg [month.png]]]
"""

import csv
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Text as text: a tenth of the size.
plt.rcParams["svg.fonttype"] = "none"
# The same picture gives the same bytes.
plt.rcParams["svg.hashsalt"] = "month"

HERE = pathlib.Path(__file__).parent
GIB = 2**30
# Rates are over a day: over all time they would hide what grows late.
WINDOW = 24


def read(path):
    with open(path, newline="") as file:
        return [{name: int(value) for name, value in row.items()} for row in csv.DictReader(file)]


def rate(rows, value, n):
    """What was added for each GiB produced in the day up to row n."""
    before = rows[n - WINDOW] if n >= WINDOW else dict.fromkeys(rows[n], 0)
    produced = (rows[n]["produced"] - before["produced"]) / GIB
    return sum(rows[n][name] - before[name] for name in value) / max(produced, 1e-9)


def gib(row, name):
    return max(row[name], 1) / GIB


def series(rows):
    every = range(len(rows))
    return {
        "objects": [row["objects"] for row in rows],
        "bucket GiB": [gib(row, "bucket") for row in rows],
        "live GiB": [gib(row, "retained") for row in rows],
        "objects / GiB": [row["objects"] / gib(row, "retained") for row in rows],
        "bucket / live": [row["bucket"] / max(row["retained"], 1) for row in rows],
        "metadata MiB": [row["metadata"] / 2**20 for row in rows],
        "metadata B / GiB": [row["metadata"] / gib(row, "retained") for row in rows],
        "PUT / GiB": [rate(rows, ["puts"], n) for n in every],
        "GET / GiB": [rate(rows, ["gets"], n) for n in every],
        "DELETE / GiB": [rate(rows, ["deletes"], n) for n in every],
        "written / produced": [rate(rows, ["uploaded", "compacted"], n) / GIB for n in every],
        "extents": [row["extents"] for row in rows],
        "pointers": [row["pointers"] for row in rows],
    }


def table(seen, days):
    """Of each day that is shown the highest of its hours."""
    shown = [day for day in (1, 2, 4, 8, 10, 15, 20, 25, 30) if day <= days]
    print("| highest on day | " + " | ".join(map(str, shown)) + " |")
    print("|---|" + "---|" * len(shown))
    for name, values in seen.items():
        cells = [max(values[(day - 1) * 24 : day * 24]) for day in shown]
        digits = 0 if max(cells) >= 100 else 2
        print(f"| {name} | " + " | ".join(f"{cell:,.{digits}f}" for cell in cells) + " |")


def plot(seen, days, files):
    figure, axes = plt.subplots(2, 3, figsize=(15, 8))
    figure.suptitle("A simulated month of mixed load: a week's, a day's and an hour's retention, and topics kept for ever")

    def frame(axis, title, unit, highest):
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("simulated days")
        axis.set_ylabel(unit)
        axis.set_xlim(0, days[-1])
        axis.set_ylim(0, 1.15 * highest)
        axis.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.grid(alpha=0.3)

    def draw(axis, title, unit, *names, settled=0):
        for number, name in enumerate(names):
            # One that lies on another shows it through.
            axis.plot(days[::4], seen[name][::4], label=name, linewidth=3 if number == 0 and len(names) == 2 else 1.3)
        frame(axis, title, unit, max(max(seen[name][settled:]) for name in names))
        if len(names) > 1:
            axis.legend(loc="best")

    # In the first hours there is next to nothing retained to divide by.
    settled = WINDOW if len(days) > WINDOW else 0
    draw(axes[0][0], "Objects for each retained GiB", "objects", "objects / GiB", settled=settled)
    draw(axes[0][1], "Bucket against live data (the part kept for ever grows)", "GiB", "bucket GiB", "live GiB")
    draw(axes[0][2], "Metadata (snapshot) for each retained GiB", "bytes", "metadata B / GiB", settled=settled)
    draw(axes[1][0], "Bytes written for each byte produced, by day", "times", "written / produced")
    draw(axes[1][1], "Requests for each GiB produced, by day", "requests", "PUT / GiB", "GET / GiB", "DELETE / GiB")
    # Lists fill and are shortened every few hours: a line would be a smear.
    axis, name = axes[1][2], "extents"
    half = WINDOW // 2
    around = [seen[name][max(0, n - half) : n + half] for n in range(len(days))]
    low, high = [min(values) for values in around], [max(values) for values in around]
    axis.fill_between(days[::4], low[::4], high[::4], alpha=0.4, label="extents listed, least and most of a day")
    axis.plot(days[::4], seen["pointers"][::4], label="index pointers", linewidth=1.3, color="tab:orange")
    frame(axis, "Extents in metadata's memory", "", 1.15 * max(high))
    axis.legend(loc="upper right")
    figure.tight_layout()
    for file in files:
        figure.savefig(file, dpi=80, metadata={"Date": None} if file.suffix == ".svg" else None)


def main():
    given = [pathlib.Path(argument) for argument in sys.argv[1:]]
    rows = read(given[0] if given else HERE / "month.csv")
    seen = series(rows)
    table(seen, rows[-1]["hour"] // 24)
    plot(seen, [row["hour"] / 24 for row in rows], given[1:] or [HERE / "month.svg"])


if __name__ == "__main__":
    main()
