"""Plots month.csv: is everything that could grow bounded?"""

import csv
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = pathlib.Path(__file__).parent
GIB = 2**30


def main():
    with open(HERE / "month.csv", newline="") as file:
        rows = [{name: int(value) for name, value in row.items()} for row in csv.DictReader(file)]
    days = [row["hour"] / 24 for row in rows]
    figure, axes = plt.subplots(2, 3, figsize=(15, 8))

    def draw(axis, title, unit, *lines):
        for label, values in lines:
            axis.plot(days, values, label=label)
        axis.set_title(title)
        axis.set_xlabel("days")
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend()

    retained = [max(row["retained"], 1) / GIB for row in rows]
    produced = [max(row["produced"], 1) / GIB for row in rows]
    draw(axes[0][0], "Objects in the bucket", "objects", ("objects", [row["objects"] for row in rows]))
    draw(
        axes[0][1], "Bucket against live data", "GiB",
        ("bucket", [row["bucket"] / GIB for row in rows]), ("live", retained),
    )
    draw(
        axes[0][2], "Metadata (snapshot) for each retained GiB", "bytes",
        ("", [row["metadata"] / gib for row, gib in zip(rows, retained)]),
    )
    draw(
        axes[1][0], "Bytes written for each byte produced", "times",
        ("uploads and compaction", [(row["uploaded"] + row["compacted"]) / row["produced"] for row in rows]),
    )
    draw(
        axes[1][1], "Requests for each GiB produced", "requests",
        ("PUT", [row["puts"] / gib for row, gib in zip(rows, produced)]),
        ("GET of compaction and retention", [row["gets"] / gib for row, gib in zip(rows, produced)]),
        ("DELETE", [row["deletes"] / gib for row, gib in zip(rows, produced)]),
    )
    draw(
        axes[1][2], "Extents in metadata's memory", "extents",
        ("listed", [row["extents"] for row in rows]), ("index pointers", [row["pointers"] for row in rows]),
    )
    figure.tight_layout()
    figure.savefig(HERE / "month.svg")
    figure.savefig(HERE / "month.png", dpi=80)


if __name__ == "__main__":
    main()
