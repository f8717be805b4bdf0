"""A message that says what to install, instead of an ImportError from deep inside."""

import importlib
import importlib.metadata
import os
import re

MINIMUM = {"tensorflow": "2.20", "keras": "3.15", "tensorflow-probability": "0.25"}
_ALIASES = {"tensorflow": ("tensorflow", "tensorflow-cpu", "tf-nightly", "tensorflow-intel")}
_INSTALL = 'pip install -U "tensorflow>=2.20" "keras>=3.15" "tensorflow-probability[tf]>=0.25"'


def check_requirements() -> None:
    """Raises ImportError unless TensorFlow, Keras and TFP are there in versions that work."""
    for package, minimum in MINIMUM.items():
        found = _installed_version(package)
        if found is None or _numbers(found) < _numbers(minimum):
            raise ImportError(
                f"relax_tf needs {package} {minimum} or newer. Found: {found or 'none'}. "
                f"Run: {_INSTALL}"
            )
    # The variable first: Keras fails at its own import if that backend is not installed.
    _check_backend(os.environ.get("KERAS_BACKEND", "tensorflow"))
    _check_backend(importlib.import_module("keras").backend.backend())  # also from keras.json


def _check_backend(backend: str) -> None:
    if backend != "tensorflow":
        raise ImportError(
            "relax_tf runs on Keras's TensorFlow backend only. Set KERAS_BACKEND=tensorflow before "
            f"Keras is imported. Received: KERAS_BACKEND={backend!r}"
        )


def _installed_version(package: str) -> str | None:
    for name in _ALIASES.get(package, (package,)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
