"""Installation of relax_tf."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "relax_tf" / "__init__.py").read_text())[1]

TENSORBOARD = ["tensorboard>=2.18"]
EXAMPLES = ["ml_collections>=1.0", "scikit-learn>=1.4", "matplotlib>=3.8", *TENSORBOARD]
RL = ["gymnasium[box2d,mujoco]>=1.0"]
ONNX = ["onnx>=1.19", "tf2onnx>=1.17", "onnxruntime>=1.23"]  # TFLite's converter is TensorFlow's


def for_a_package_index(readme: str) -> str:
    """The README without relative images, its relative links as the paths that an sdist has.

    An index shows the page far from the files that lie beside it.
    """
    readme = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)", "", readme)
    readme = re.sub(r"\[([^\]]*)\]\(#[^)]*\)", r"\1", readme)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)([^)#]*)[^)]*\)", r"\1 (`\2`)", readme)


setup(
    name="relax_tf",
    version=VERSION,
    description="Train through discrete and black-box random choices: RELAX for Keras 3",
    long_description=for_a_package_index((ROOT / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    author="relax_tf authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="tensorflow keras gradient-estimation discrete-latent-variables relax rebar reinforce",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["relax_tf", "relax_tf.*"]),
    package_data={"relax_tf": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "tensorflow>=2.20",
        "keras>=3.15",
        "tensorflow-probability[tf]>=0.25",
        "tensorflow-datasets>=4.9.7",
        "importlib_resources>=6.0",
        "absl-py>=2.0",
        "setuptools>=65",  # TFP 0.25 imports distutils, which Python has no more from 3.12 on
    ],
    extras_require={
        "examples": EXAMPLES,
        "rl": EXAMPLES + RL,
        "tensorboard": TENSORBOARD,
        "onnx": ONNX,
        "test": [
            *EXAMPLES,
            *ONNX,
            "gymnasium>=1.0",
            "pytest>=8.0",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ruff>=0.8",
            "wheel>=0.40",
        ],
    },
)
