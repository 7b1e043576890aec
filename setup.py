# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "hf_frozen_llm" / "version.py").read_text(encoding="utf-8"))[1]
README = ROOT / "README.md"

# Folders beside hf_frozen_llm/ that are installed inside it.
MAPPED = {
    "hf_frozen_llm.modeling": "modeling",
    "hf_frozen_llm.recipes": "recipes",
    "hf_frozen_llm.hub_cards": "hub_cards",
}

EXTRAS = {
    "gguf": ["gguf>=0.10"],
    "onnx": ["onnx>=1.21", "onnxruntime>=1.24", "onnxscript>=0.7"],
    "video": ["av>=14"],
    "points": ["h5py>=3.10", "trimesh>=4.6"],
    "motion": ["h5py>=3.10"],
    "metrics": ["scikit-learn>=1.4"],
    "plot": ["matplotlib>=3.8"],
    "ablate": ["matplotlib>=3.8", "scipy>=1.11"],
    "cards": ["markdown-it-py>=3", "matplotlib>=3.8"],
    "robust": ["captum>=0.8", "matplotlib>=3.8", "scipy>=1.11"],
    "retrieval": ["faiss-cpu>=1.8"],
    "demo": ["gradio>=5"],
    "docs": ["griffelib>=2", "mkdocs-material>=9.6", "mkdocstrings[python]>=1"],
    "tracking": ["tensorboard>=2.20", "trackio>=0.22"],
}
EXTRAS["dev"] = [
    *EXTRAS["cards"],
    *EXTRAS["docs"],
    *EXTRAS["gguf"],
    *EXTRAS["metrics"],
    *EXTRAS["onnx"],
    *EXTRAS["ablate"],
    *EXTRAS["points"],
    *EXTRAS["retrieval"],
    *EXTRAS["robust"],
    *EXTRAS["video"],
    "build",
    "filelock",
    "mypy>=1.18",
    "packaging",
    "parameterized",
    "psutil",
    "pytest>=8.4",
    "pytest-xdist>=3.6",
    "ruff>=0.14",
    "setuptools>=77",
    "tensorboard>=2.20",
    "transformers-mlinter==0.1.5",
    "types-PyYAML",
    "wheel",
]

setup(
    name="hf_frozen_llm",
    version=VERSION,
    description="Frozen layers of language models as visual encoders, native to transformers",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The hf_frozen_llm authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="transformers vision language-model frozen deep-learning",
    package_dir={"hf_frozen_llm": "hf_frozen_llm", **MAPPED},
    packages=[*find_packages(include=["hf_frozen_llm", "hf_frozen_llm.*"]), *MAPPED],
    package_data={
        "hf_frozen_llm": ["py.typed"],
        "hf_frozen_llm.recipes": ["**/*.yaml"],
        "hf_frozen_llm.hub_cards": ["model_card_template.md", "zoo.yaml"],
    },
    python_requires=">=3.10",
    install_requires=[
        "accelerate>=1.1",
        "datasets>=4",
        "evaluate>=0.4.3",
        "huggingface_hub>=1.5",
        "Jinja2>=3.1",
        "numpy>=1.24",
        "pandas>=2",
        "peft>=0.18",
        "Pillow>=10",
        "pyarrow>=15",
        "PyYAML>=6",
        "safetensors>=0.5",
        "tokenizers>=0.22",
        "torch>=2.5",
        "transformers>=5.17,<6",
        "typer>=0.12",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["hf-frozen-llm = hf_frozen_llm.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
