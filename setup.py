"""Package metadata of bigvlm.

The folders configs/, trainers/, data/ and evaluators/ lie beside bigvlm/ in the
repository and are installed as bigvlm.configs, bigvlm.trainers and so on.
"""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).resolve().parent
BESIDE = ("configs", "trainers", "data", "evaluators")

VERSION = re.search(
  r'^__version__ = "([^"]+)"', (ROOT / "bigvlm" / "__init__.py").read_text("utf-8"), re.M
).group(1)

packages = find_packages(include=["bigvlm", "bigvlm.*"])
for folder in BESIDE:
  packages.append(f"bigvlm.{folder}")
  packages.extend(f"bigvlm.{folder}.{name}" for name in find_packages(folder))

# The floors are what the tests run with; requirements/lock.txt pins everything.
CORE = [
  "absl-py>=2.1",
  "array_record>=0.8.1",
  "clu>=0.0.12",
  "einops>=0.8",
  "flax>=0.12",
  "grain>=0.2.16",
  "huggingface_hub>=1.0",
  "importlib_resources>=6.0",  # tensorflow-datasets needs it and does not say so.
  "jax>=0.10.2",
  "jinja2>=3.1.6",  # Older sandboxes let templates out.
  "matplotlib>=3.9",
  "ml_collections>=1.0",
  "numpy>=2.1",
  "optax>=0.2.5",
  "orbax-checkpoint>=0.12",
  "pillow>=11.0",
  "safetensors>=0.5",
  "scikit-learn>=1.6",
  "scipy>=1.14",
  "sentencepiece>=0.2.1",
  "tensorboardX>=2.6.2",
  "tensorflow-datasets>=4.9.8",
  "tokenizers>=0.20",
  "tqdm>=4.66",
  "xxhash>=3.5",
]

EXTRAS = {
  "gpu": ["jax[cuda13]>=0.10.2"],
  "tpu": ["jax[tpu]>=0.10.2"],
  "opencv": ["opencv-python-headless>=4.10"],
  "video": ["av>=14.0"],
  "test": [
    "av>=14.0",
    "hypothesis>=6.100",
    "opencv-python-headless>=4.10",  # Its backend is tested and measured; the core does without.
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "ruff==0.17.6",  # Exact: another version may format differently.
    "setuptools>=77",  # tests/test_packaging.py builds the wheel without build isolation.
    "wheel>=0.45",
  ],
  # The reference that `make parity` compares with, at the versions it is compared with.
  "parity": [
    "num2words>=0.5.14",  # Of SmolVLM's processor.
    "peft==0.21.2",
    "torch==2.13.0",
    "torchvision==0.28.0",  # Resizes the frames of videos.
    "transformers==5.23.0",
  ],
  # What `make bench` measures bigvlm against. Never needed to use bigvlm.
  "bench": [
    "open_clip_torch>=2.30",
    "opencv-python-headless>=4.10",
    "timm>=1.0",
    "torch>=2.6",
    "transformers>=5.0",
  ],
}

setup(
  name="bigvlm",
  version=VERSION,
  description="Vision-language models in JAX: pre-training, multimodal training and transfer.",
  long_description=(ROOT / "README.md").read_text("utf-8") if (ROOT / "README.md").exists() else "",
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",
  packages=packages,
  package_data={"bigvlm": ["systems.json", "hub/toys.json"]},
  package_dir={f"bigvlm.{folder}": folder for folder in BESIDE},
  install_requires=CORE,
  extras_require=EXTRAS,
  entry_points={"console_scripts": ["bigvlm = bigvlm.cli:main"]},
  classifiers=[
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
)
