"""Figures of the examples, drawn with matplotlib."""

import pathlib

import matplotlib

matplotlib.use("Agg")

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


def _save(figure: plt.Figure, path: pathlib.Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
