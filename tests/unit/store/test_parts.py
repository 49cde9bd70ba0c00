"""Parts: what goes in comes out, and a part is there whole or not at all."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from mmdata.errors import FatalError
from mmdata.sample import Failure, Member, Sample
from mmdata.store.parts import BadMember, BasePartWriter, iter_samples, read_base_rows

TEXT = Member(
    "caption", "text", "text/plain", "txt", "größer".encode(), "de", {"text": "größer", "chars": 6, "words": 1}
)
IMAGE = Member("image", "image", "image/png", "png", bytes(range(256)), None, {"width": 3, "height": 2})
SOUND = Member(
    "speech", "audio", "audio/wav", "wav", b"RIFF", "en", {"duration_s": 0.5, "sample_rate": 8000, "channels": 1}
)
FULL = Sample("1" * 32, "s", "x/ü", {"image": IMAGE, "caption": TEXT, "speech": SOUND}, attributes={"b": "2", "a": "ä"})
CHILD = Sample("2" * 32, "s", "x/ü", {"image": IMAGE}, "1" * 32, "flip")
FAILED = Sample("3" * 32, "s", "bad", {})
ALL = frozenset({"image", "caption", "speech"})


@pytest.fixture
def part(tmp_path: Path) -> Path:
    path = tmp_path / "ingest" / "f.parquet"
    with BasePartWriter(path) as writer:
        writer.add(FULL)
        writer.add_failure(FAILED, Failure("3" * 32, "ingest", "bad_image", "cannot be decoded"))
        writer.add(CHILD, [BadMember("speech", "audio", "not_audio: nothing")])
    return path


def test_samples_come_out_as_they_went_in(part: Path) -> None:
    assert list(iter_samples(part, read_base_rows(part), ALL)) == [FULL, CHILD]
    assert sorted(p.name for p in part.parent.iterdir()) == ["f.parquet", "f.tar"]


def test_only_the_payloads_named_are_read(part: Path) -> None:
    full, _ = iter_samples(part, read_base_rows(part), frozenset({"caption"}))
    assert {name: member.data for name, member in full.members.items()} == {
        "image": b"",
        "caption": TEXT.data,
        "speech": b"",
    }
    assert full.members["image"].measures == IMAGE.measures


def test_rows_say_what_failed_and_where_payloads_are(part: Path) -> None:
    full, failed, child = read_base_rows(part)
    assert (failed["failed_step"], failed["reason"], failed["detail"], failed["members"]) == (
        "ingest",
        "bad_image",
        "cannot be decoded",
        [],
    )
    assert (child["parent_id"], child["variant"]) == ("1" * 32, "flip")
    assert child["members"][1]["error"] == "not_audio: nothing"
    assert full["attributes"] == '{"a": "ä", "b": "2"}'
    with tarfile.open(part.with_suffix(".tar")) as tar:
        offsets = {entry.name: entry.offset_data for entry in tar.getmembers()}
    assert {f"{'1' * 32}.{m['name']}.{m['extension']}": m["offset"] for m in full["members"]}.items() <= offsets.items()
    assert [m["sha256"] for m in full["members"]] == [IMAGE.sha256, TEXT.sha256, SOUND.sha256]


def test_a_range_of_rows(part: Path) -> None:
    assert [row["key"] for row in read_base_rows(part, 1, 3)] == ["bad", "x/ü"]
    assert [row["key"] for row in read_base_rows(part, 2, 99)] == ["x/ü"]
    assert read_base_rows(part, 0, 0) == []


def test_an_error_leaves_no_part(tmp_path: Path) -> None:
    def write() -> None:
        with BasePartWriter(tmp_path / "f.parquet") as writer:
            writer.add(FULL)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_part_is_a_part(tmp_path: Path) -> None:
    with BasePartWriter(tmp_path / "f.parquet"):
        pass
    assert read_base_rows(tmp_path / "f.parquet") == []
    assert list(iter_samples(tmp_path / "f.parquet", [], ALL)) == []


def test_equal_samples_make_equal_files(tmp_path: Path) -> None:
    for name in "ab":
        with BasePartWriter(tmp_path / f"{name}.parquet") as writer:
            writer.add(FULL)
            writer.add(CHILD)
    for suffix in ("parquet", "tar"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_tar_that_was_cut_is_said_not_read_as_less(part: Path) -> None:
    tar = part.with_suffix(".tar")
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(FatalError, match=r"f\.tar was changed on disk: 256 bytes wanted at 512, 188 there"):
        list(iter_samples(part, read_base_rows(part), ALL))
