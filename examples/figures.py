"""Figures of the examples, drawn with matplotlib."""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.animation
import matplotlib.pyplot as plt
import numpy as np


def elbo_curves(path: pathlib.Path, rows: list[dict[str, float]]) -> None:
    """Training and validation ELBO, and the second moments, against the step."""
    moments = [name for name in rows[-1] if name.endswith("second_moment")]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, label in (("train_elbo", "training"), ("validation_elbo", "validation")):
        left.plot([row["step"] for row in rows], [row[name] for row in rows], label=label)
    left.set(xlabel="step", ylabel="ELBO (nats)")
    left.legend()
    for name in moments:
        right.semilogy([row["step"] for row in rows], [row[name] for row in rows], label=name)
    right.set(xlabel="step", ylabel="second moment of the gradient estimate")
    right.legend()
    _save(figure, path)


def comparison(
    path: pathlib.Path,
    runs: list[tuple[str, list[dict[str, float]]]],
    metrics: Sequence[str],
    title: str = "",
) -> None:
    """Metrics of several runs against the step and against the time; runs of one label in a colour.

    Args:
        path: of the figure.
        runs: pairs of a label and the rows of a `metrics.csv`.
        metrics: columns; the first is drawn solid, the second dotted.
        title: of the figure.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    colours = {label: f"C{k}" for k, label in enumerate(dict.fromkeys(label for label, _ in runs))}
    shown = []
    for (label, rows), (metric, style) in itertools.product(runs, zip(metrics, "-:", strict=False)):
        y = [row[metric] for row in rows]
        shown += [value for value in y[len(y) // 20 :] if np.isfinite(value)]
        first = metric == metrics[0] and label not in left.get_legend_handles_labels()[1]
        settings = {"color": colours[label], "ls": style, "label": label if first else None}
        left.plot([row["step"] for row in rows], y, **settings)
        right.plot([row["seconds"] / 3600 for row in rows], y, **settings)
    if shown:  # the first steps would flatten what follows
        margin = 0.05 * (max(shown) - min(shown)) or 1.0
        left.set_ylim(min(shown) - margin, max(shown) + margin)
    names = [metric.replace("_", " ") for metric in metrics]
    left.set(xlabel="step", ylabel=names[0] + "".join(f", dotted: {name}" for name in names[1:]))
    right.set(xlabel="hours")
    left.legend(fontsize=7)
    figure.suptitle(title)
    _save(figure, path)


def image_rows(
    path: pathlib.Path, rows: dict[str, np.ndarray], image_shape: tuple[int, int]
) -> None:
    """Rows of images, `[count, height * width]` in [0, 1] each, with a label at their left."""
    count = len(next(iter(rows.values())))
    figure, axes = plt.subplots(
        len(rows), count, figsize=(count, len(rows) + 0.2), squeeze=False, layout="constrained"
    )
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label, fontsize=8)
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.reshape(image_shape), cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
    _save(figure, path)


def toy(
    path: pathlib.Path,
    rows: list[dict[str, Any]],
    curves: list[dict[str, Any]],
    concrete: dict[str, np.ndarray],
    target: float,
) -> None:
    """Figure 1 of the paper: losses, log-variances, and control variates against the noise u.

    Args:
        path: of the figure.
        rows: `estimator`, `seed`, `step`, `loss`, `log_variance`.
        curves: `estimator`, `seed`, `u`, `c`, learned at theta = 0.
        concrete: `u` and `c` of the Concrete relaxation of the cost.
        target: t.
    """
    figure, (left, centre, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for index, name in enumerate(dict.fromkeys(row["estimator"] for row in rows)):
        mine = [row for row in rows if row["estimator"] == name]
        _band(left, *_by_seed(mine, "step", "loss"), f"C{index}", name)
        _band(centre, *_by_seed(mine, "step", "log_variance"), f"C{index}", name)
        if relaxations := [row for row in curves if row["estimator"] == name]:
            u, c = _by_seed(relaxations, "u", "c")
            _band(right, u, c, f"C{index}", f"{name}, learned")
    left.axhline(min(target, 1 - target) ** 2, color="gray", ls=":", label="optimum")
    left.set(xlabel="step", ylabel="E[(b - t)²]", title=f"Loss, t = {target}")
    centre.set(xlabel="step", ylabel="log Var(g)", title="Variance of the gradient estimate")
    right.plot(concrete["u"], concrete["c"], "k--", lw=1, label="Concrete relaxation of f")
    constant = 0.5 * (1 - target) ** 2 + 0.5 * target**2
    right.axhline(constant, color="gray", ls=":", label="constant with zero variance")
    right.set(xlabel="u", ylabel="c(z(u))", title="Relaxation at theta = 0")
    for axis in (left, centre, right):
        axis.legend(fontsize=8)
    _save(figure, path)


def black_box(
    path: pathlib.Path, runs: dict[str, list[list[dict[str, float]]]], best: float
) -> None:
    """Cost and log-variance against the step: a line for each seed, their mean in bold."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for colour, (name, of_seeds) in enumerate(runs.items()):
        steps = [row["step"] for row in of_seeds[0]]
        for axis, column in zip(axes, ("hours", "log_variance"), strict=True):
            values = np.array([[row[column] for row in rows] for rows in of_seeds])
            axis.plot(steps, values.T, f"C{colour}", alpha=0.25, lw=1)
            axis.plot(steps, values.mean(0), f"C{colour}", lw=2, label=name)
    axes[0].axhline(best, color="gray", ls=":", label="best possible")
    axes[0].set(xlabel="step", ylabel="hours until the last machine stops", title="Cost")
    axes[1].set(xlabel="step", ylabel="log Var(g)", title="Variance of the gradient estimate")
    axes[0].legend(fontsize=8)
    _save(figure, path)


def _by_seed(rows: list[dict[str, Any]], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of `x`, `[points]`, and of `y`, `[seeds, points]`."""
    seeds = sorted({row["seed"] for row in rows})
    points = np.array([row[x] for row in rows if row["seed"] == seeds[0]])
    return points, np.array([[row[y] for row in rows if row["seed"] == seed] for seed in seeds])


def _band(axis: plt.Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str) -> None:
    """The median over the seeds (the first axis of `y`), and a band around the middle half."""
    lower, median, upper = np.quantile(y, [0.25, 0.5, 0.75], axis=0)
    axis.plot(x, median, colour, label=label)
    axis.fill_between(x, lower, upper, color=colour, alpha=0.2, lw=0)


def rewards(
    path: pathlib.Path, runs: dict[str, list[list[dict[str, float]]]], thresholds: tuple[float, ...]
) -> None:
    """Reward and log-variance of the policy gradient against the episode, of each method's runs.

    Rewards are running means of 50 episodes. Lines are medians over the runs, bands quartiles; a
    run that has ended goes on at its last value.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, lines in sorted(runs.items()):
        smooth = [_running_mean([row["reward"] for row in rows], 50) for rows in lines]
        _median_and_quartiles(left, range(1, 1 + max(map(len, smooth))), smooth, name)
        column = f"log_variance_{name}"
        measured = [[row for row in rows if np.isfinite(row[column])] for rows in lines]
        measured = [rows for rows in measured if rows]
        if not measured:
            continue
        steps = [row["step"] for row in max(measured, key=len)]
        values = [_running_mean([row[column] for row in rows], 5) for rows in measured]
        _median_and_quartiles(right, steps, values, name)
    for threshold in thresholds:
        left.axhline(threshold, color="gray", ls=":")
    left.set(xlabel="episode", ylabel="reward (mean of 50 episodes)")
    right.set(xlabel="episode", ylabel="log-variance of the policy gradient")
    for axis in (left, right):
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    _save(figure, path)


def _running_mean(values: list[float], window: int) -> np.ndarray:
    sums = np.cumsum([0.0, *values])
    first = np.maximum(np.arange(1, len(sums)) - window, 0)
    return (sums[1:] - sums[first]) / (np.arange(1, len(sums)) - first)


def _median_and_quartiles(axis: plt.Axes, x, lines: list[np.ndarray], label: str) -> None:
    longest = max(map(len, lines))
    table = np.array([np.pad(line, (0, longest - len(line)), mode="edge") for line in lines])
    low, middle, high = np.quantile(table, [0.25, 0.5, 0.75], axis=0)
    axis.plot(x, middle, label=label)
    axis.fill_between(x, low, high, alpha=0.3)


def animation(path: pathlib.Path, frames: list[np.ndarray], per_second: int = 12) -> None:
    """A small GIF of frames `[height, width, 3]`."""
    figure = plt.figure(figsize=(3, 3 * frames[0].shape[0] / frames[0].shape[1]))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    image = axis.imshow(frames[0])
    movie = matplotlib.animation.FuncAnimation(
        figure, lambda frame: [image.set_data(frame)], frames=frames, cache_frame_data=False
    )
    movie.save(path, writer=matplotlib.animation.PillowWriter(fps=per_second))
    plt.close(figure)


def _save(figure: plt.Figure, path: pathlib.Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)


def race(
    path: pathlib.Path,
    lines: dict[tuple[str, str], list[tuple[float, float]]],
    floors: dict[str, float],
    dashed: Sequence[str] = (),
) -> None:
    """ELBO by seconds, a panel for each architecture; an estimator has one colour in all of them.

    Args:
        path: of the figure.
        lines: by architecture and estimator, pairs of seconds and ELBO.
        floors: of each architecture, the ELBO below which nothing is shown.
        dashed: estimators whose lines are.
    """
    estimators = list(dict.fromkeys(estimator for _, estimator in lines))
    colours = plt.get_cmap("tab20").colors
    figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    for axis, (architecture, floor) in zip(axes.flat, floors.items(), strict=True):
        top = floor
        of_architecture = {name: points for (a, name), points in lines.items() if a == architecture}
        for estimator, points in of_architecture.items():
            seconds, elbo = zip(*points, strict=True)
            k = estimators.index(estimator)
            strong = estimator in ("flip", "midpoint", "midpoint+flip")
            style = {"color": colours[k % 20], "lw": 2.4 if strong else 1.2}
            style["ls"] = "--" if estimator in dashed else "-"
            axis.semilogx(seconds, elbo, label=estimator, **style)
            top = max(top, *(value for value in elbo if np.isfinite(value)))
        axis.set_ylim(floor, top + 0.04 * (top - floor))
        axis.set(title=architecture, xlabel="seconds of one core", ylabel="validation ELBO (nats)")
        shown = [t for t, e in itertools.chain(*of_architecture.values()) if e >= floor]
        if shown:
            axis.set_xlim(0.9 * min(shown), 1.1 * max(shown))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
        axis.legend(fontsize=7, ncols=2, loc="lower right")
    _save(figure, path)
