"""Shared fixtures. `from tiny import tiny_policy` works in every test file too."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that is on no disk is refused at once, without asking the network

import tiny


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., Any]:
    return tiny.tiny_tokenizer


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    return tiny.tiny_model


@pytest.fixture(scope="session")
def tiny_policy() -> Callable[..., Any]:
    return tiny.tiny_policy


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny tensors are slower on several threads, and sums in a fixed order are the same everywhere. A run before may have set more."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The index of runs, and bases made on demand, stay out of the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHET_HOME", str(tmp_path_factory.mktemp("home")))
        yield
