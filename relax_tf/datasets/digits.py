"""Handwritten digits that need no download: scikit-learn's bundled `load_digits` as a TFDS dataset.

A TFDS builder registers itself under its class name when it is defined, so `tfds.load("digits")`
works once this module is imported. Everything TFDS wants to know about the dataset stands in this
file (no README.md or CITATIONS.bib beside it), so an installed package needs no package data.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

_DESCRIPTION = """
1797 handwritten digits of 8x8 pixels, the test set of UCI's *Optical Recognition of Handwritten
Digits* as it ships inside scikit-learn (`sklearn.datasets.load_digits`). A pixel counts the inked
cells of a 4x4 block of the original 32x32 bitmap, 0 to 16; here the counts are scaled to
0 to 255 and rounded, which `round(image * 16 / 255)` undoes exactly.

UCI's split by writer is not available (these are the 13 test writers), so the splits are drawn at
random: with `order = numpy.random.RandomState(0).permutation(1797)`, `train` is `order[:1297]`,
`validation` is `order[1297:1547]` and `test` is `order[1547:]`. Each split is stored in that order.
"""

_CITATION = """
@misc{alpaydin1998optdigits,
  author       = {Alpaydin, E. and Kaynak, C.},
  title        = {Optical Recognition of Handwritten Digits},
  year         = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi          = {10.24432/C50P49},
}
"""

_HOMEPAGE = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"

_LICENSE = """
Creative Commons Attribution 4.0 International (CC BY 4.0),
https://creativecommons.org/licenses/by/4.0/.
Optical Recognition of Handwritten Digits by E. Alpaydin and C. Kaynak (1998), UCI Machine Learning
Repository, https://doi.org/10.24432/C50P49. Changes: test set only (as copied by scikit-learn),
intensities scaled from 0..16 to 0..255, new random splits.
"""

_SPLIT_SIZES = {"train": 1297, "validation": 250, "test": 250}
_SPLIT_SEED = 0
_MAX_COUNT = 16


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns scikit-learn's images, uint8 [1797, 8, 8, 1] in 0..255, and labels, int [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The digits dataset is read from scikit-learn, which is not installed. "
            "Install it with `pip install relax_tf[examples]`."
        ) from error
    digits = load_digits()
    images = np.rint(digits.images * (255 / _MAX_COUNT)).astype(np.uint8)
    return images[..., np.newaxis], digits.target


def _split_indices() -> dict[str, np.ndarray]:
    """Maps each split to the int [split size] positions of its examples in `load_digits`.

    `RandomState` because NumPy promises its stream never changes; that of `Generator` may.
    """
    sizes = list(_SPLIT_SIZES.values())
    order = np.random.RandomState(_SPLIT_SEED).permutation(sum(sizes))
    return dict(zip(_SPLIT_SIZES, np.split(order, np.cumsum(sizes)[:-1]), strict=True))


class Digits(tfds.core.GeneratorBasedBuilder):
    """The TFDS dataset `digits`: `image` uint8 [8, 8, 1] and `label` in 0..9."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Initial release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
            homepage=_HOMEPAGE,
            citation=_CITATION,
            license=_LICENSE,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download.
        images, labels = _load_digits()
        return {
            split: self._generate_examples(images, labels, indices)
            for split, indices in _split_indices().items()
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        # TFDS stores by ascending key: the position keeps the order of `indices`.
        for position, index in enumerate(indices):
            yield position, {"image": images[index], "label": int(labels[index])}
