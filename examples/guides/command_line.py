"""The command line that all guides share, and their figures."""

import argparse
import inspect
import pathlib
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")

import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np


def run(main: Callable[..., object]) -> None:
    """Calls `main`, with a flag for each of its arguments."""
    parser = argparse.ArgumentParser(description=inspect.getmodule(main).__doc__.splitlines()[0])
    for name, argument in inspect.signature(main).parameters.items():
        kind = str if argument.default is None else type(argument.default)
        parser.add_argument(f"--{name}", type=kind, default=argument.default)
    main(**vars(parser.parse_args()))


def save(figure: matplotlib.figure.Figure, path: str | None) -> None:
    """Writes a small PNG, if there is a path to write it to."""
    if path is not None:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=70)
    plt.close(figure)


def show_images(axes: np.ndarray, images: np.ndarray) -> None:
    """Grey images in a grid of axes, row by row."""
    for axis, image in zip(np.ravel(axes), images, strict=True):
        axis.imshow(np.squeeze(image), cmap="gray_r", vmin=0, vmax=1)
    for axis in np.ravel(axes):
        axis.set(xticks=[], yticks=[])
