"""What these tests are about is not how files are confined, nor how narrow intervals are: both are done quickly."""

import contextlib
import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from evaluation import statistics
from pipeline.io import read


def _call_here(function: str, arguments: Mapping[str, Any], folder: Path, _limits: object) -> Any:
    """As `call_confined` does, without its child."""
    module, _, name = function.partition(":")
    with contextlib.chdir(folder):
        return json.loads(json.dumps(getattr(importlib.import_module(module), name)(**arguments)))


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "call_confined", _call_here)
        patch.setattr(statistics, "RESAMPLES", 200)
        yield
