"""Tests of the examples' data: binarisation, and batches that can be resumed."""

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from examples import data

BATCH = 10


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def digits(data_dir):
    return data.load("digits", data_dir)


@pytest.fixture(scope="module")
def intensities(digits, data_dir):
    """float64 [1297, 64] in 0..1: the grey training digits."""
    train = tfds.as_numpy(tfds.load("digits", split="train", data_dir=data_dir, batch_size=-1))
    return train["image"].reshape(-1, 64) / 255


@pytest.fixture(scope="module")
def mnist():
    folder = os.environ.get("TFDS_DATA_DIR")
    if folder is None or not (Path(folder) / "mnist").is_dir():
        pytest.skip("MNIST needs TFDS_DATA_DIR to name a folder with a prepared mnist")
    return data.load("mnist", folder)


def numbered(num_images):
    """`[num_images, 1]`: each image is its own index."""
    return np.arange(num_images)[:, np.newaxis]


def take(dataset, num_batches):
    """The first inputs of an infinite dataset, `[num_batches, batch, ...]`."""
    return np.stack([x for x, _ in dataset.take(num_batches).as_numpy_iterator()])


def assert_binary_images(images, sizes, num_pixels):
    for split, size in zip((images.train, images.validation, images.test), sizes, strict=True):
        assert split.shape == (size, num_pixels)
        assert split.dtype == np.float32
        assert set(np.unique(split)) == {0.0, 1.0}
    assert images.mean.dtype == np.float32
    np.testing.assert_allclose(images.mean, images.train.mean(0, dtype=np.float64), rtol=1e-6)


def test_digits_are_binary_and_complete(digits):
    assert_binary_images(digits, (1297, 250, 250), 64)
    assert digits.image_shape == (8, 8)
    assert (digits.name, digits.binarization) == ("digits", "static_bernoulli")


def test_mnist_has_the_split_of_the_paper(mnist):
    assert_binary_images(mnist, (50_000, 10_000, 10_000), 784)
    assert mnist.image_shape == (28, 28)
    assert mnist.name == "mnist"


def test_mnist_bits_are_the_published_ones(mnist):
    """Pixels that are on, per split: no release may change them."""
    splits = (mnist.train, mnist.validation, mnist.test)
    assert [np.count_nonzero(split) for split in splits] == [5_122_003, 1_023_159, 1_038_952]


def test_bernoulli_mean_matches_the_intensities(digits, intensities):
    """Per pixel, within five standard errors of a mean of independent Bernoulli draws."""
    variance = intensities * (1 - intensities)
    standard_error = np.sqrt(variance.sum(0)) / len(intensities)
    error = np.abs(digits.mean - intensities.mean(0))
    assert np.all(error <= 5 * standard_error + 1e-6)


def test_bernoulli_keeps_black_and_white(digits, intensities):
    np.testing.assert_array_equal(digits.train[intensities == 0], 0)
    np.testing.assert_array_equal(digits.train[intensities == 1], 1)


def test_bernoulli_is_static(digits, data_dir):
    """The same bits in every call, and in every release: the counts are part of the contract."""
    again = data.load("digits", data_dir)
    np.testing.assert_array_equal(again.train, digits.train)
    np.testing.assert_array_equal(again.test, digits.test)
    splits = (digits.train, digits.validation, digits.test)
    assert [np.count_nonzero(split) for split in splits] == [25324, 4884, 4909]


def test_binarization_seed_redraws(digits, data_dir):
    other = data.load("digits", data_dir, seed=1)
    assert 0.05 < np.mean(other.train != digits.train) < 0.5


def test_threshold(data_dir, intensities):
    images = data.load("digits", data_dir, binarization="threshold")
    np.testing.assert_array_equal(images.train, intensities > 0.5)
    assert images.binarization == "threshold"


def test_unknown_names_list_the_known(data_dir):
    with pytest.raises(ValueError, match=r"'digits', 'mnist', 'omniglot'.*Received: 'svhn'"):
        data.load("svhn", data_dir)
    with pytest.raises(ValueError, match=r"'static_bernoulli', 'threshold'.*Received: 'dynamic'"):
        data.load("digits", data_dir, binarization="dynamic")


def test_read_only_data_dir_stays_untouched(digits, tmp_path):
    tmp_path.chmod(0o555)
    images = data.load("digits", tmp_path)
    tmp_path.chmod(0o755)
    np.testing.assert_array_equal(images.train, digits.train)
    assert not list(tmp_path.iterdir())


def test_preparing_digits_is_quiet(tmp_path, capfd):
    data.load("digits", tmp_path)
    output = capfd.readouterr()
    assert output.out == ""
    assert "Generating" not in output.err


def test_batches_are_float32_pairs_without_end(digits):
    dataset = data.batches(digits.train, 24, seed=0)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    assert dataset.element_spec == (tf.TensorSpec([24, 64], tf.float32),) * 2
    x, y = next(iter(dataset))
    np.testing.assert_array_equal(x, y)


def test_batches_hold_images_of_the_source(digits):
    x = take(data.batches(digits.train.astype(np.uint8), 24, seed=0), 3).reshape(-1, 64)
    known = {image.tobytes() for image in digits.train}
    assert all(image.tobytes() in known for image in x)


def test_each_epoch_visits_an_image_at_most_once_in_a_new_order():
    """103 images make 10 batches of 10 per epoch; the 3 left out change with the epoch."""
    epochs = take(data.batches(numbered(103), BATCH, seed=0), 30).reshape(3, 100)
    assert [len(set(epoch)) for epoch in epochs] == [100, 100, 100]
    left_out = [frozenset(range(103)) - set(epoch.astype(int)) for epoch in epochs]
    assert len(set(left_out)) > 1
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_order_is_uniform():
    """Over 2000 epochs the mean image at each place of the first batch is that of a fair draw."""
    num_images, epochs = 20, 2000
    order = take(data.batches(numbered(num_images), BATCH, seed=3), 2 * epochs)
    means = order.reshape(epochs, num_images).mean(0)
    standard_error = np.sqrt((num_images**2 - 1) / 12 / epochs)
    np.testing.assert_allclose(means, (num_images - 1) / 2, atol=5 * standard_error)


def test_same_seed_same_batches_other_seed_others():
    first, again, other = (take(data.batches(numbered(103), BATCH, seed), 12) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("start_step", [0, 1, 9, 10, 11, 25])
def test_resume_gives_the_batches_of_an_uninterrupted_run(start_step):
    resumed = data.batches(numbered(103), BATCH, seed=0, start_step=start_step)
    whole = data.batches(numbered(103), BATCH, seed=0)
    np.testing.assert_array_equal(take(resumed, 15), take(whole.skip(start_step), 15))


def test_resume_far_away_skips_no_epochs():
    """Step 10**12 would take years to reach batch by batch; neighbours still agree."""
    start = 10**12
    far = take(data.batches(numbered(103), BATCH, seed=0, start_step=start), 12)
    next_ = take(data.batches(numbered(103), BATCH, seed=0, start_step=start + 1), 11)
    np.testing.assert_array_equal(far[1:], next_)


def test_a_batch_may_hold_all_images():
    x = take(data.batches(numbered(7), 7, seed=0), 2)
    np.testing.assert_array_equal(np.sort(x[..., 0]), [np.arange(7)] * 2)


@pytest.mark.parametrize("batch_size", [0, 104])
def test_impossible_batch_size(batch_size):
    with pytest.raises(ValueError, match=rf"1\.\.103. Received: {batch_size}"):
        data.batches(numbered(103), batch_size, seed=0)


def test_negative_start_step():
    with pytest.raises(ValueError, match="Received: -1"):
        data.batches(numbered(103), BATCH, seed=0, start_step=-1)


def test_autotune_is_off():
    assert data.batches(numbered(103), BATCH, seed=0).options().autotune.enabled is False
