"""Import the libraries of operators without what they import and we do not need, and seed them for one call."""

from __future__ import annotations

import importlib
import importlib.abc
import inspect
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mmdata.document import nearest
from mmdata.errors import MissingExtraError


def table(name: str) -> dict[str, Any]:
    """A table of what a library's operators do, beside this module."""
    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    return found


def without_torch(name: str) -> Any:
    """Import a module; neither torch nor transformers is imported for it. Raises MissingExtraError.

    Albumentations and nlpaug import them for operators that are not used here, and do without: 1.4 s and 200 MB in
    every worker, and a plan loads no torch.
    """
    # Albumentations asks a server for its newest release otherwise.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    blocked = _Blocked()
    sys.meta_path.insert(0, blocked)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ModuleNotFoundError:
        raise MissingExtraError("an operator of `augment:`", name.partition(".")[0], "augment") from None
    finally:
        sys.meta_path.remove(blocked)


class _Blocked(importlib.abc.MetaPathFinder):
    """Keeps what is not needed from being imported for the first time."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:  # noqa: ARG002 - the interface
        """Raises ModuleNotFoundError."""
        if fullname in {"torch", "transformers"}:
            raise ModuleNotFoundError(fullname)


def checked(name: str, function: Callable[..., Any], params: Mapping[str, Any], without: frozenset[str]) -> None:
    """Raises ValueError where a parameter is unknown, with the nearest right name."""
    known = [key for key in inspect.signature(function).parameters if key not in {"self", "kwargs", *without}]
    for key in params:
        if key not in known:
            raise ValueError(f"{name}: unknown parameter '{key}'{nearest(key, known)}")


def tuples(value: Any) -> Any:
    """YAML has lists where libraries want ranges."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def first_line(error: Exception) -> str:
    """What it says, on one line."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """The generators that libraries share, seeded for the block, and as they were after it."""
    states = random.getstate(), np.random.get_state()
    random.seed(int(rng.integers(2**63)))
    np.random.seed(int(rng.integers(2**32)))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
