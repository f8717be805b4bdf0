"""Figures of the examples, drawn with matplotlib."""

import pathlib

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
    rows: dict[str, list[dict[str, float]]],
    u: np.ndarray,
    curves: dict[str, np.ndarray],
    target: float,
) -> None:
    """Figure 1 of the paper: losses, log-variances, and control variates against the noise u."""
    figure, (left, centre, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    colours = {name: f"C{index}" for index, name in enumerate(rows)}
    for name, lines in rows.items():
        steps = [line["step"] for line in lines]
        left.plot(steps, [line["loss"] for line in lines], colours[name], label=name)
        centre.plot(steps, [line["log_variance"] for line in lines], colours[name], label=name)
    left.axhline(min(target, 1 - target) ** 2, color="gray", ls=":", label="optimum")
    left.set(xlabel="step", ylabel="E[(b - t)²]", title=f"Loss, t = {target}")
    centre.set(xlabel="step", ylabel="log Var(g)", title="Variance of the gradient estimate")
    for name, curve in curves.items():
        right.plot(u, curve - curve.mean(), colours[name], label=name)
    right.set(xlabel="u", ylabel="c(z(u)), centred", title="Learned relaxation")
    for axis in (left, centre, right):
        axis.legend(fontsize=8)
    _save(figure, path)


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
