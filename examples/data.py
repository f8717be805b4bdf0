"""Binary images for the examples: load a dataset, binarise it once, serve it in batches.

Two things here decide whether a result can be compared and repeated.

*The binarisation has a name.* A likelihood of binary images depends on how grey pixels became
bits: thresholding leaves fewer random pixels than Bernoulli sampling, so the same model gains many
nats from it, and redrawing the bits at every step acts as data augmentation. "MNIST, -110 nats"
says nothing until the binarisation is named. Both binarisations here are static: each image has one
binary version, the same in every run, whatever the seed of the training.

*The order of the batches is a pure function of (seed, data epoch).* No shuffle buffer has to be
saved: a run resumed at step k asks for `batches(..., start_step=k)` and sees exactly the batches of
a run that was never interrupted.
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import relax_tf.datasets  # noqa: F401  (registers "digits" with TFDS)

# TFDS expressions for train, validation, test; MNIST's are the paper's 50k / 10k / 10k. Omniglot
# has no third split: its validation images are its test images.
_SPLITS = {
    "digits": ("train", "validation", "test"),
    "mnist": ("train[:50000]", "train[50000:]", "test"),
    "omniglot": ("train", "test"),
}
_BUNDLED = {"digits"}  # made in a second from what is installed, nothing is downloaded
_PREFETCHED_BATCHES = 16


class Images(NamedTuple):
    """Binarised images; every row is one flattened image of `D = height * width` pixels."""

    train: np.ndarray  # float32 [N, D], values 0 and 1
    validation: np.ndarray  # float32 [N, D]
    test: np.ndarray  # float32 [N, D]
    mean: np.ndarray  # float32 [D], mean of the binarised training images
    image_shape: tuple[int, int]  # (height, width)
    name: str  # of the dataset
    binarization: str  # to be reported with every likelihood


def _static_bernoulli(intensities: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Bool: a pixel is on with probability `intensity / 255`, by comparison with 0..254."""
    return random.randint(0, 255, size=intensities.shape, dtype=np.uint8) < intensities


def _threshold(intensities: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Bool: a pixel is on where its intensity is above 127."""
    del random
    return intensities > 127


_BINARIZATIONS = {"static_bernoulli": _static_bernoulli, "threshold": _threshold}


def load(
    dataset: str,
    data_dir: str | os.PathLike | None = None,
    binarization: str = "static_bernoulli",
    seed: int = 0,
    splits: tuple[str, ...] | None = None,
) -> Images:
    """Loads a dataset through TFDS, preparing or downloading it first if need be, and binarises it.

    Args:
        dataset: `"digits"` (8x8, ships inside scikit-learn, no download), `"mnist"` (28x28) or
            `"omniglot"` (28x28: TFDS's 105x105 drawings averaged over areas, strokes bright).
        data_dir: TFDS data directory. None: the environment variable `TFDS_DATA_DIR` if set, else
            `~/tensorflow_datasets`. Digits missing from a read-only directory are prepared in a
            temporary one.
        binarization: `"static_bernoulli"`: each pixel is drawn once, on with probability
            `intensity / 255`. `"threshold"`: on where the intensity is above 127. Likelihoods
            under different binarisations cannot be compared, so name it with every result.
        seed: of the `"static_bernoulli"` draw and of nothing else. Leave it alone unless the
            binarisation itself is studied: another seed is another data set. The stream is that
            of `numpy.random.RandomState([seed, split])`, which NumPy keeps fixed for good.
        splits: TFDS expressions for training, validation and test images; of two the second
            serves for both. None: MNIST's 50 000 / 10 000 / 10 000, the digits' own three,
            Omniglot's `("train", "test")`.

    Returns:
        `Images`.

    Raises:
        ValueError: if `dataset` or `binarization` is unknown, or `splits` are not two or three.
    """
    _check_known("dataset", dataset, _SPLITS)
    _check_known("binarization", binarization, _BINARIZATIONS)
    splits = _SPLITS[dataset] if splits is None else tuple(splits)
    if len(splits) not in (2, 3):
        raise ValueError(
            "`splits` must name two or three splits: training, validation, test. "
            f"Received: {splits}"
        )
    intensities, image_shape = _load_intensities(dataset, data_dir, splits)
    binarized = [
        _BINARIZATIONS[binarization](split, np.random.RandomState([seed, index])).astype(np.float32)
        for index, split in enumerate(intensities)
    ]
    train, validation, test = [*binarized, binarized[-1]][:3]
    mean = train.mean(axis=0, dtype=np.float64).astype(np.float32)
    return Images(train, validation, test, mean, image_shape, dataset, binarization)


def batches(images: np.ndarray, batch_size: int, seed: int, start_step: int = 0) -> tf.data.Dataset:
    """Serves shuffled batches without end, as `(x, x)` pairs for an autoencoder.

    Each data epoch visits `N // batch_size * batch_size` different images in an order that depends
    on `(seed, epoch)` alone; the ragged rest is left out, another one each epoch.

    Args:
        images: `[N, ...]`, any real dtype.
        batch_size: images per batch, at most N.
        seed: of the order.
        start_step: number of batches to leave out, at no more cost than part of one epoch's
            indices: `batches(..., start_step=k)` equals `batches(...).skip(k)`.

    Returns:
        An infinite `tf.data.Dataset` of pairs of the same float32 tensor `[batch_size, ...]`.

    Raises:
        ValueError: if `batch_size` is not in 1..N or `start_step` is negative.
    """
    if not 1 <= batch_size <= len(images):
        raise ValueError(f"`batch_size` must be in 1..{len(images)}. Received: {batch_size}")
    if start_step < 0:
        raise ValueError(f"`start_step` must not be negative. Received: {start_step}")
    source = tf.convert_to_tensor(images)

    def gather(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x = tf.cast(tf.gather(source, rows), tf.float32)
        return x, x

    rows = _batch_rows(len(images), batch_size, seed, start_step)
    return rows.map(gather).prefetch(_PREFETCHED_BATCHES).with_options(_options())


def _batch_rows(num_images: int, batch_size: int, seed: int, start_step: int) -> tf.data.Dataset:
    """The rows of every batch: an infinite dataset of int32 `[batch_size]`."""
    steps = num_images // batch_size
    first_epoch, first_step = divmod(start_step, steps)

    def epoch_rows(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(
            tf.range(num_images), seed=tf.stack([tf.constant(seed, tf.int64), epoch]), alg="philox"
        )
        rows = tf.reshape(order[: steps * batch_size], [steps, batch_size])
        return tf.data.Dataset.from_tensor_slices(rows)

    rows = tf.data.Dataset.counter(first_epoch).flat_map(epoch_rows).skip(first_step)
    return rows.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def _options() -> tf.data.Options:
    """Autotune off: with it TF 2.21 may block for seconds when an iterator is destroyed."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def _load_intensities(
    dataset: str, data_dir: str | os.PathLike | None, splits: tuple[str, ...]
) -> tuple[list[np.ndarray], tuple[int, int]]:
    """Returns uint8 `[N, D]` in 0..255 for each split, and (height, width)."""
    with tempfile.TemporaryDirectory() as scratch:
        builder = tfds.builder(dataset, data_dir=data_dir)
        missing = not builder.data_path.exists()
        if dataset in _BUNDLED and missing and _read_only(builder.data_dir_root):
            builder = tfds.builder(dataset, data_dir=scratch)
        _prepare(builder)
        images = [_read(builder, split) for split in splits]
    height, width = images[0].shape[1:]
    return [split.reshape(-1, height * width) for split in images], (height, width)


def _read(builder: tfds.core.DatasetBuilder, split: str) -> np.ndarray:
    """The images of one split, uint8 `[N, height, width]`, bright strokes on black."""
    to_intensities = _drawing_to_28x28 if builder.name == "omniglot" else _single_channel
    dataset = builder.as_dataset(split=split).map(lambda example: to_intensities(example["image"]))
    return np.concatenate(list(dataset.batch(1000).with_options(_options()).as_numpy_iterator()))


def _single_channel(image: tf.Tensor) -> tf.Tensor:
    return tf.squeeze(image, -1)


def _drawing_to_28x28(image: tf.Tensor) -> tf.Tensor:
    """A drawing of black strokes on white, `[105, 105, 3]`: averaged over areas and inverted."""
    grey = tf.image.resize(image[..., :1], [28, 28], method="area")
    return tf.cast(tf.round(255 - tf.squeeze(grey, -1)), tf.uint8)


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Writes the dataset unless it is there; tells where downloads go, draws no progress bars."""
    tfds.disable_progress_bar()
    quiet = builder.name in _BUNDLED
    with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
        builder.download_and_prepare()


def _read_only(folder: os.PathLike) -> bool:
    """Whether `folder`, or where it would be made, is closed to writing.

    The mode bits count besides the permission: they mark a shared folder for the superuser too.
    """
    path = Path(folder).expanduser().absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    return not (os.access(existing, os.W_OK) and existing.stat().st_mode & 0o222)


def _check_known(argument: str, name: str, known: dict) -> None:
    """Raises ValueError listing the known names."""
    if name not in known:
        raise ValueError(f"`{argument}` must be one of {sorted(known)}. Received: {name!r}")
