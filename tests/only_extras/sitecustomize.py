"""Run a Python as if `pip install 'mmdata[EXTRAS]'` had been all: the rest cannot be imported. First in PYTHONPATH.

EXTRAS: the variable MMDATA_ONLY_EXTRAS, by commas; empty is mmdata alone.
"""

from __future__ import annotations

import os
import re
import sys
from importlib import metadata
from typing import Any


class Without:
    """A finder that does not find some."""

    def __init__(self, finder: Any, hidden: frozenset[str]) -> None:
        self._finder = finder
        self._hidden = hidden

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in self._hidden else self._finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_with(extras: frozenset[str]) -> set[str]:
    """Names of the distributions that come with mmdata and these extras."""
    from packaging.requirements import Requirement

    found: set[tuple[str, frozenset[str]]] = set()
    queue = [("mmdata", extras)]
    while queue:
        name, wanted = one = queue.pop()
        if one in found:
            continue
        found.add(one)
        try:
            required = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:  # on another platform or Python
            continue
        queue += [
            (normal(each.name), frozenset(each.extras))
            for each in required
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *wanted))
        ]
    return {name for name, _ in found}


def hide() -> None:
    allowed = installed_with(frozenset(filter(None, os.environ["MMDATA_ONLY_EXTRAS"].split(","))))
    modules = metadata.packages_distributions()
    hidden = frozenset(name for name, owners in modules.items() if not any(normal(one) in allowed for one in owners))
    for name in list(sys.modules):
        if name.partition(".")[0] in hidden:
            del sys.modules[name]
    sys.meta_path[:] = [Without(finder, hidden) for finder in sys.meta_path]


if "MMDATA_ONLY_EXTRAS" in os.environ:
    hide()
