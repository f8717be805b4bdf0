"""Tests of the TFDS builder `digits`."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

import relax_tf.datasets
from relax_tf.datasets import digits

SPLITS = ["train", "validation", "test"]
SIZES = {"train": 1297, "validation": 250, "test": 250}


def load_all(data_dir):
    """`{split: {"image": uint8 [n, 8, 8, 1], "label": int64 [n]}}`."""
    return tfds.as_numpy(tfds.load("digits", data_dir=data_dir, batch_size=-1))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds.load("digits", data_dir=folder)
    return folder


@pytest.fixture(scope="module")
def splits(data_dir):
    return load_all(data_dir)


def test_split_sizes_and_features(splits, data_dir):
    info = tfds.builder("digits", data_dir=data_dir).info
    assert {name: split.num_examples for name, split in info.splits.items()} == SIZES
    for name, size in SIZES.items():
        assert splits[name]["image"].shape == (size, 8, 8, 1)
        assert splits[name]["image"].dtype == np.uint8
        assert splits[name]["label"].shape == (size,)
    assert info.features["label"].num_classes == 10


def test_info_states_source_licence_and_version(data_dir):
    info = tfds.builder("digits", data_dir=data_dir).info
    assert "scikit-learn" in info.description
    assert "10.24432/C50P49" in info.citation
    assert "CC BY 4.0" in info.redistribution_info.license
    assert str(info.version) in relax_tf.datasets.Digits.RELEASE_NOTES


def test_content_is_that_of_sklearn_in_the_documented_order(splits):
    source = load_digits()
    order = np.random.RandomState(0).permutation(1797)
    images = np.concatenate([splits[name]["image"] for name in SPLITS])
    labels = np.concatenate([splits[name]["label"] for name in SPLITS])
    np.testing.assert_array_equal(np.rint(images[..., 0] * (16 / 255)), source.images[order])
    np.testing.assert_array_equal(labels, source.target[order])
    assert images.min() == 0 and images.max() == 255


def test_split_order_is_the_published_one():
    """The first positions of each split in sklearn's order: no release may change them."""
    indices = digits._split_indices()
    assert {name: index[:4].tolist() for name, index in indices.items()} == {
        "train": [1081, 1707, 927, 713],
        "validation": [1768, 1452, 1623, 1356],
        "test": [623, 1445, 1162, 212],
    }


def test_every_split_holds_every_class(splits):
    for split in splits.values():
        assert np.bincount(split["label"], minlength=10).min() >= 10


def test_preparing_twice_gives_the_same_records(splits, tmp_path):
    again = load_all(tmp_path)
    for name in SPLITS:
        np.testing.assert_array_equal(again[name]["image"], splits[name]["image"])
        np.testing.assert_array_equal(again[name]["label"], splits[name]["label"])


def test_second_load_reads_what_the_first_wrote(data_dir, splits, monkeypatch):
    def fail():
        raise AssertionError("prepared again")

    monkeypatch.setattr(digits, "_load_digits", fail)
    np.testing.assert_array_equal(load_all(data_dir)["test"]["image"], splits["test"]["image"])


def test_slicing_and_supervised_pairs_work(data_dir, splits):
    pairs = tfds.load("digits:1.0.0", split="train[:10]", as_supervised=True, data_dir=data_dir)
    images, labels = zip(*tfds.as_numpy(pairs), strict=True)
    np.testing.assert_array_equal(images, splits["train"]["image"][:10])
    np.testing.assert_array_equal(labels, splits["train"]["label"][:10])


def test_missing_sklearn_names_the_extra_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install relax_tf\[examples\]"):
        tfds.load("digits", data_dir=tmp_path)
    assert not tfds.builder("digits", data_dir=tmp_path).is_prepared()
    monkeypatch.undo()
    assert load_all(tmp_path)["test"]["label"].shape == (250,)
