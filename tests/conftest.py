"""What all tests share: the environment, real media and weights out of the cache, the command line.

Real data is fetched once into the user's cache folder (`MMDATA_CACHE`). That it cannot be fetched is an error, never a
skip, with one exception that shows in the summary: Debian packages on a machine without apt.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before anything that reads them is imported. A hub that cannot be reached must fail at once, not after retries.
os.environ.update(
    NO_ALBUMENTATIONS_UPDATE="1", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests that run beside each other share the cores: a thread for each core in each of them is too many.
    os.environ.update(OMP_NUM_THREADS="1")
# A test of its own file alone runs as it does among all: no deadline, the number of examples bounds the time. Examples
# are the same in each run, so that what fails fails for whoever made it; `MMDATA_EXPLORE=1` draws others.
settings.register_profile(
    "shared machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="MMDATA_EXPLORE" not in os.environ,
)
settings.load_profile("shared machine")
_FROM_DEBIAN = {"stamps", "prompts", "clipart"}
# Two processes of tests share the cores, and a build of all stamps takes minutes on them alone.
_CLI_TIMEOUT_S = 1200

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


def fetched(name: str) -> Path:
    """The folder of something real, fetched where it is not there yet."""
    from mmdata.demo.fetch import fetch
    from mmdata.demo.packages import has_apt
    from mmdata.models.weights import cache_dir

    # What another machine's cache brought along needs no apt.
    if name in _FROM_DEBIAN and not has_apt() and not (cache_dir() / "media" / name).is_dir():
        pytest.skip(f"{name} come as Debian packages, and apt-get is not on this machine")
    return fetch(name)


@pytest.fixture(scope="session")
def stamps_dir() -> Path:
    return fetched("stamps")


@pytest.fixture(scope="session")
def prompts_dir() -> Path:
    return fetched("prompts")


@pytest.fixture(scope="session")
def clipart_dir() -> Path:
    return fetched("clipart")


@pytest.fixture(scope="session")
def lite_dir() -> Path:
    return fetched("lite")


@pytest.fixture(scope="session")
def whisper_tiny_dir() -> Path:
    return fetched("whisper-tiny.en")


@pytest.fixture(scope="session")
def whisper_base_dir() -> Path:
    return fetched("whisper-base")


@pytest.fixture
def run_cli(tmp_path: Path) -> RunCli:
    """`run_cli(*arguments, code=0)`: `python -m mmdata` in `tmp_path`, held to its exit code."""

    def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mmdata", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=_CLI_TIMEOUT_S
        )
        assert done.returncode == code, f"exit code {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
        return done

    return run
