"""What `import relax_tf` needs, and what leaves the checkout: the wheel and the sdist."""

import email
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import keras
import pytest

import relax_tf
from relax_tf import requirements

ROOT = pathlib.Path(__file__).parents[1]


def run_python(code):
    subprocess.run([sys.executable, "-c", code], check=True)


UNUSED = "{'tensorflow_probability', 'tensorflow_datasets'} & {*sys.modules}"


def test_import_loads_only_what_is_used():
    run_python(f"import relax_tf, sys; unused = {UNUSED}; assert not unused, unused")


def test_probability_loads_in_the_middle_of_a_graph():
    """The first KL is often asked for while `fit` is being traced and compiled."""
    run_python(f"""
import sys, keras, numpy as np, tensorflow as tf, relax_tf
x, inputs = np.eye(4), keras.Input([4])
model = relax_tf.RelaxModel(inputs, relax_tf.StochasticBinaryLayer(4, "rebar")(inputs))
model.compile("sgd", loss="mse", jit_compile=True)
model.fit(x, x, verbose=0)
assert not {UNUSED}
inputs = keras.Input([4])
layer = relax_tf.StochasticBinaryLayer(4, "rebar", prior="learned", kl="sampled")
model = relax_tf.RelaxModel(inputs, layer(inputs))
model.compile("sgd", loss="mse", jit_compile=True)
model.certify = False  # or the certificate's own graph is the first
model.fit(x, x, verbose=0)
assert "tensorflow_probability" in {UNUSED}
normal = relax_tf.distributions.Normal(tf.zeros([2, 3]), tf.ones([2, 3]))
assert normal.kl_divergence(normal).numpy().tolist() == [0, 0]
""")


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


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and an sdist, built offline from a copy of the checkout by the tools at hand."""
    folder = tmp_path_factory.mktemp("built")
    copy, skip = folder / "checkout", shutil.ignore_patterns(".*", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, copy, ignore=skip)
    code = "from setuptools import build_meta as b; b.build_sdist('..'); b.build_wheel('..')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    return folder


@pytest.fixture
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    sources = (ROOT / "relax_tf").rglob("*.py")
    assert {str(path.relative_to(ROOT)) for path in sources} <= {*names}
    assert "relax_tf/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert tops == {"relax_tf", f"relax_tf-{relax_tf.__version__}.dist-info"}


def test_the_wheel_says_what_it_is(wheel):
    (name,) = [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("/METADATA")]
    metadata = email.message_from_bytes(zipfile.ZipFile(wheel).read(name))
    assert metadata["Version"] == relax_tf.__version__
    assert (metadata["License-Expression"] or metadata["License"]) == "Apache-2.0"
    assert metadata["Author"] == "relax_tf authors"
    assert metadata["Description-Content-Type"] == "text/markdown"
    page = metadata.get_payload()
    assert page.startswith("# relax_tf")
    assert re.findall(r"\]\((?!https?:)[^)]*\)", page) == []  # the index has no files beside it
    for path in re.findall(r"\(`([^`]*\.md)`\)", page):
        assert (ROOT / path).exists(), path


def test_the_sdist_has_what_a_developer_needs(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        names = {name.split("/", 1)[-1] for name in sdist.getnames()}
    wanted = {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "relax_tf/py.typed",
    }
    for pattern in ("tests/**/*.py", "tests/data/*", "configs/*.py", "examples/*.py", "docs/*"):
        wanted |= {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)}
    assert wanted <= names
    assert not [name for name in names if name.endswith(".pyc")]


TRAIN = """
import keras, numpy as np, relax_tf
inputs = keras.Input([8])
outputs = keras.layers.Dense(8)(relax_tf.StochasticBinaryLayer(4, prior="uniform")(inputs))
vae = relax_tf.RelaxModel(inputs, outputs)
vae.compile("adam", loss=relax_tf.losses.BernoulliNegativeLogLikelihood())
history = vae.fit(np.eye(8), np.eye(8), epochs=2, verbose=0).history
assert np.isfinite(history["loss"]).all()
print(relax_tf.__file__)
"""


def test_the_wheel_trains_in_an_environment_of_its_own(wheel, tmp_path):
    """Its dependencies are this environment's; an editable install here is not visible there."""
    environment = tmp_path / "env"
    venv.create(environment)
    (site,) = environment.glob("lib/python*/site-packages")
    here = pathlib.Path(sysconfig.get_path("purelib"))
    (site / "dependencies.pth").write_text(str(here))
    for path in here.glob("distutils-precedence.pth"):
        shutil.copy(path, site)  # TFP imports distutils, which newer Pythons have of setuptools
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    ran = subprocess.run([python, "-I", "-c", TRAIN], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert pathlib.Path(ran.stdout.strip()).is_relative_to(site)
