import subprocess
import sys

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


def test_other_backends_are_refused(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ImportError, match="TensorFlow backend"):
        requirements.check_requirements()
