"""Files that tables name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def media(tmp_path: Path) -> Path:
    (tmp_path / "x").mkdir()
    for name in ("a.wav", "b.wav", "x/c.wav"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, ns=(1, 10**18))
    return tmp_path
