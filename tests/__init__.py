"""The suite runs on CPUs, where it repeats bit for bit, unless told otherwise."""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # before anything imports TensorFlow
