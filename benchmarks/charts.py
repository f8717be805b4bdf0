"""Charts of the benchmarks' CSV files."""

import itertools
import pathlib

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt


def ratios(path: pathlib.Path, rows: list[dict[str, str]]) -> None:
    """Bars of the ratio to the floor, a panel for each architecture and setting."""

    def panel_of(row):
        return row["architecture"], row["xla"]

    panels = {
        key: list(group) for key, group in itertools.groupby(sorted(rows, key=panel_of), panel_of)
    }
    size = (5 * len(panels), 6)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for axis, ((architecture, xla), panel) in zip(axes[0], panels.items(), strict=True):
        names = list(dict.fromkeys(row["estimator"] for row in panel))
        batch_sizes = sorted({int(row["batch"]) for row in panel})
        for k, batch_size in enumerate(batch_sizes):
            of_size = [row for row in panel if int(row["batch"]) == batch_size]
            at = [
                names.index(row["estimator"]) + 0.8 * (k + 0.5) / len(batch_sizes)
                for row in of_size
            ]
            bars = axis.barh(
                at,
                [float(row["ratio"]) for row in of_size],
                height=0.8 / len(batch_sizes),
                label=f"batch {batch_size}",
            )
            axis.bar_label(bars, [f"{float(row['ms']):.2f} ms" for row in of_size], fontsize=7)
        axis.set_yticks([k + 0.4 for k in range(len(names))], names)
        axis.invert_yaxis()
        axis.margins(x=0.3)
        title = f"{architecture}, {'XLA' if xla == 'True' else 'default settings'}"
        axis.set(xlabel="time of a step / straight-through", title=title)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def growth(path: pathlib.Path, rows: list[dict[str, str]], value: str, label: str) -> None:
    """A line for each estimator in a panel for each sweep; both axes start at zero."""
    sweeps = list(dict.fromkeys(row["sweep"] for row in rows))
    size = (4.5 * len(sweeps), 4)
    figure, axes = plt.subplots(1, len(sweeps), figsize=size, layout="constrained", squeeze=False)
    for axis, sweep in zip(axes[0], sweeps, strict=True):
        panel = [row for row in rows if row["sweep"] == sweep]
        for name in dict.fromkeys(row["estimator"] for row in panel):
            points = sorted(
                (int(r["size"]), float(r[value])) for r in panel if r["estimator"] == name
            )
            axis.plot(*zip(*points, strict=True), "o-", label=name)
        axis.set(xlabel=sweep, ylabel=label)
        axis.set_xticks(ticks := sorted({int(row["size"]) for row in panel}), map(str, ticks))
        axis.set_xlim(0)
        axis.set_ylim(0)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
