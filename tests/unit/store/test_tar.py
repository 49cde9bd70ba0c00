"""Deterministic tar: its bytes never change, and any reader reads them."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from mmdata.errors import FatalError
from mmdata.store.tar import TarWriter, read_range

MEMBERS = {"a.json": b'{"a":1}', "a.png": bytes(range(256)) * 4, "a.txt": b"", "b" * 96 + ".txt": b"x" * 512}
# Whoever changes this changes every shard that anybody ever made: raise the format's version with it.
GOLDEN = "cf5b39263476b9817c5ecd84f9771efb8bea7c19ef7db48da1c229b63eb6206a"


def written(members: dict[str, bytes]) -> tuple[bytes, dict[str, int], int]:
    file = io.BytesIO()
    tar = TarWriter(file)
    offsets = {name: tar.add(name, data) for name, data in members.items()}
    tar.finish()
    return file.getvalue(), offsets, tar.offset


def test_the_bytes_are_those_of_every_earlier_version() -> None:
    content, _, size = written(MEMBERS)
    assert hashlib.sha256(content).hexdigest() == GOLDEN
    assert size == len(content)


def test_tarfile_reads_it_and_says_nothing_of_who_made_it() -> None:
    content, offsets, _ = written(MEMBERS)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        entries = tar.getmembers()
        assert {e.name: tar.extractfile(e).read() for e in entries} == MEMBERS  # type: ignore[union-attr]
    assert {e.name: e.offset_data for e in entries} == offsets
    assert {(e.mtime, e.uid, e.gid, e.uname, e.gname, e.mode, e.type) for e in entries} == {
        (0, 0, 0, "", "", 0o644, tarfile.REGTYPE)
    }
    assert len(content) % 512 == 0
    assert content.endswith(bytes(1024))


def test_it_is_what_the_standard_library_writes() -> None:
    file = io.BytesIO()
    for name, data in MEMBERS.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        file.write(info.tobuf(format=tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))
    assert written(MEMBERS)[0] == file.getvalue() + bytes(1024)


def test_offsets_are_where_the_payloads_are(tmp_path: Path) -> None:
    content, offsets, _ = written(MEMBERS)
    path = tmp_path / "t.tar"
    path.write_bytes(content)
    with path.open("rb") as file:
        for name in reversed(MEMBERS):
            assert read_range(file, offsets[name], len(MEMBERS[name])) == MEMBERS[name]
        with pytest.raises(
            FatalError, match=rf"t\.tar was changed on disk: 10 bytes wanted at {len(content) - 4}, 4 there"
        ):
            read_range(file, len(content) - 4, 10)


@pytest.mark.parametrize("name", ["x" * 101, "é.txt"])
def test_what_a_header_cannot_say_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"does not fit a ustar header|ascii"):
        written({name: b""})
