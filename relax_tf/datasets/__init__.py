"""Local TFDS builders: importing this module makes them known to `tfds.load`.

`import relax_tf` alone does not import TensorFlow Datasets; this module does.

    import tensorflow_datasets as tfds
    import relax_tf.datasets

    train = tfds.load("digits", split="train")
"""

from relax_tf.datasets.digits import Digits

__all__ = ["Digits"]
