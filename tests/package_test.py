import os
import subprocess
import sys

import keras
import pytest

from relax_tf import requirements


def test_import_leaves_datasets_alone():
    code = "import relax_tf, sys; assert 'tensorflow_datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", requirements.MINIMUM)
@pytest.mark.parametrize("found", [None, "0.1"])
def test_unsupported_versions_say_what_to_install(package, found, monkeypatch):
    real = requirements._installed_version
    monkeypatch.setattr(
        requirements, "_installed_version", lambda name: found if name == package else real(name)
    )
    with pytest.raises(ImportError, match=f"needs {package}.*pip install -U"):
        requirements.check_requirements()


@pytest.mark.parametrize("backend", ["jax", "torch", "numpy"])
def test_other_backends_are_refused_at_import(backend):
    result = subprocess.run(
        [sys.executable, "-c", "import relax_tf"],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "relax_tf runs on Keras's TensorFlow backend only" in result.stderr
    assert f"Received: KERAS_BACKEND={backend!r}" in result.stderr


def test_a_backend_of_keras_s_own_configuration_is_refused_too(monkeypatch):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ImportError, match="Received: KERAS_BACKEND='torch'"):
        requirements.check_requirements()
