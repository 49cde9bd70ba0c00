from __future__ import annotations

import bz2
import gc
import gzip
import io
import itertools
import json
import lzma
import os
import random
import struct
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import webdataset

from mmdata.engine.ingest import Slice, ingest_part
from mmdata.engine.payloads import Payloads
from mmdata.errors import PlanError, SampleError
from mmdata.listing import input_line
from mmdata.steps.exchange import Input
from mmdata.steps.ingest.image import Image
from mmdata.steps.sources.webdataset import WebDataset

MEMBERS = {"image": ["jpg", "png"], "caption": "txt"}


def write(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def look(path: Path, members: dict[str, Any] = MEMBERS, **more: Any) -> list[Input]:
    source = WebDataset.model_validate({"files": str(path), "members": members, **more})
    (place,) = source.places(Path())
    return list(source.look(place, lambda data: (str(keep(path, data)), (0, len(data)))))


def keep(path: Path, data: bytes) -> Path:
    kept = path.with_name(f"kept-{len(list(path.parent.iterdir()))}")
    kept.write_bytes(data)
    return kept


def payloads(found: Input) -> dict[str, bytes]:
    return {ref.name: Payloads([]).of(ref, 1 << 20) for ref in found.refs if ref.version}


def problems(found: list[Input]) -> list[str]:
    return [one.problem[0] for one in found if one.problem]


def test_samples_as_webdataset_writes_them_are_read_in_their_place(tmp_path: Path):
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for n in range(3):
            about = {"url": f"http://x/{n}", "width": n, "exif": {"a": 1}, "caption": f"in json {n}"}
            writer.write({"__key__": f"00/{n:04d}", "jpg": b"image %d" % n, "txt": f"text {n}", "json": about})
    found = look(path, {**MEMBERS, "other": {"json": "caption"}})
    assert [one.key for one in found] == [f"a.tar/00/{n:04d}" for n in range(3)]
    assert payloads(found[1]) == {"image": b"image 1", "caption": b"text 1", "other": b"in json 1"}
    assert found[1].attributes == {"url": "http://x/1", "width": "1"}
    assert found[1].refs[0].url == str(path)
    assert len({ref.version for one in found for ref in one.refs}) == 9


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_that_is_written_anew_with_the_same_sizes_is_another(tmp_path: Path, mode: Any):
    versions = set()
    for second, text in enumerate((b"cat", b"dog")):
        path = tmp_path / ("a.tar" if mode == "w" else "a.tar.gz")
        with tarfile.open(path, mode) as tar:
            info = tarfile.TarInfo("1.txt")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
        os.utime(path, (second, second))
        (found,) = look(path, {"caption": "txt"})
        versions.add(found.refs[0].version)
    assert len(versions) == 2


def test_a_packed_tar_is_copied(tmp_path: Path):
    plain = write(tmp_path / "a.tar", {"1.jpg": b"one", "1.txt": b"uno"})
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    (found,) = look(packed)
    assert payloads(found) == {"image": b"one", "caption": b"uno"}
    assert found.refs[0].url != str(packed)


def test_extensions_in_order_of_preference_and_names_with_dots(tmp_path: Path):
    files = {"1.png": b"p", "1.JPG": b"j", "1.txt": b"t", "2.image.png": b"x", "2.txt": b"y"}
    first, second = look(write(tmp_path / "a.tar", files), {"image": ["jpg", "png", "image.png"], "caption": "txt"})
    assert payloads(first)["image"] == b"j"
    assert payloads(second)["image"] == b"x"


def test_what_is_missing_is_said(tmp_path: Path):
    (found,) = look(write(tmp_path / "a.tar", {"1.txt": b"t"}), {**MEMBERS, "note": {"json": "a.b", "required": False}})
    image, _, note = found.refs
    assert (image.version, image.url, image.required) == (None, "a.tar: .jpg or .png", True)
    assert (note.version, note.required) == (None, False)


def test_hostile_entries_cost_themselves(tmp_path: Path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind, link in (
            ("link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard.jpg", tarfile.LNKTYPE, "../../etc/passwd"),
            ("device.jpg", tarfile.CHRTYPE, ""),
            ("folder", tarfile.DIRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            tar.addfile(info)
        for name in ("../../out.jpg", "/etc/out.jpg", "ok.jpg", "ok.txt", "ok2.jpg", "x" * 5000 + ".jpg"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    found = look(path)
    assert problems(found) == ["no_file", "no_file", "no_file", "bad_name"]
    # A name is a name: nothing is ever unpacked to where it points.
    good = [one for one in found if not one.problem]
    assert [one.key for one in good] == ["a.tar/../../out", "a.tar//etc/out", "a.tar/ok", "a.tar/ok2"]
    assert {ref.url for one in good for ref in one.refs if ref.version} == {str(path)}


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_tar_that_breaks_off_gives_what_is_whole(tmp_path: Path, share: float):
    path = write(tmp_path / "a.tar", {f"{n}.{ext}": bytes(2000) for n in range(20) for ext in ("jpg", "txt")})
    data = path.read_bytes()
    path.write_bytes(data[: int(40 * 2560 * share)])
    found = look(path)
    assert problems(found) == ["broken_tar"]
    assert 5 <= len(found) <= 21


def test_half_a_caption_is_none(tmp_path: Path):
    path = write(tmp_path / "a.tar", {"1.jpg": b"x", "1.txt": b"whole", "2.jpg": b"x", "2.txt": b"half" * 100})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"halfhalf") + 40])
    one, broken, two = look(path)
    assert payloads(one)["caption"] == b"whole"
    with pytest.raises(SampleError, match="ends after 40 of its 400 bytes"):
        payloads(two)
    assert problems([broken]) == ["broken_tar"]


@pytest.mark.parametrize(("end", "share"), [("tar", 1), ("tar.gz", 0.7), ("tar.xz", 0.7), ("tar.bz2", 0.7)])
def test_a_tar_that_breaks_off_within_a_file_that_is_read_costs_its_sample(tmp_path: Path, end: str, share: float):
    noise = random.Random(0).randbytes
    files = {f"{n:03d}.{ext}": noise(20_000) for n in range(120) for ext in ("jpg", "json")}
    plain = write(tmp_path / "a.tar", files)
    whole = plain.read_bytes()[: -(10240 + 15_000)] if end == "tar" else plain.read_bytes()
    pack: Any = {"tar": bytes, "tar.gz": gzip.compress, "tar.xz": lzma.compress, "tar.bz2": bz2.compress}[end]
    packed = pack(whole)
    path = tmp_path / f"b.{end}"
    path.write_bytes(packed[: int(len(packed) * share)])
    found = look(path, {"image": "jpg"})
    assert set(problems(found)) == {"broken_tar"}
    assert len(found) - len(problems(found)) >= 60


def test_names_and_values_that_are_no_text_cost_nothing_else(tmp_path: Path):
    half = b'{"caption": "half \\ud83d", "note": "x\\ud83d", "k\\ud83d": "v"}'
    path = write(tmp_path / "a.tar", {"caf\udce9.jpg": b"i", "caf\udce9.json": half, "ok.jpg": b"o", "ok.json": b"{}"})
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("l\udce9.jpg")
        info.type = tarfile.SYMTYPE
        tar.addfile(info)
    cafe, link, ok = look(path, {"image": "jpg", "caption": {"json": "caption", "required": False}})
    assert (cafe.key, cafe.attributes) == ("a.tar///caf\\xe9", {"note": "x", "k": "v"})
    assert payloads(cafe) == {"image": b"i", "caption": b"half "}
    assert (ok.key, link.problem) == ("a.tar/ok", ("no_file", f"{path}: '//l\\xe9.jpg' is no plain file"))
    for found in (cafe, ok, link):
        json.dumps([found.key, found.attributes, found.problem], ensure_ascii=False).encode()


def test_a_tar_whose_own_name_is_no_text_is_shown_escaped(tmp_path: Path):
    path = write(tmp_path / "caf\udce9.tar", {"1.jpg": b"x"})
    path.write_bytes(path.read_bytes()[:1024])
    source = WebDataset.model_validate({"files": str(tmp_path / "*.tar"), "members": {"image": "jpg"}})
    (place,) = source.places(Path())
    broken, one = look(path, {"image": "jpg"})
    assert (place.key, one.key, broken.key) == ("//caf\\xe9.tar", "//caf\\xe9.tar/1", "//caf\\xe9.tar/#1")
    assert payloads(one) == {"image": b"x"}
    assert (broken.problem or ("", ""))[1].startswith(f"//{tmp_path}/caf\\xe9.tar: broken off")
    (tmp_path / "listing").write_bytes(input_line(replace(one, refs=(replace(one.refs[0], span=(0, 10_000)),))))
    chunk = Slice("s", tmp_path / "listing", 0, (tmp_path / "listing").stat().st_size)
    done = ingest_part(chunk, {"image": Image()}, tmp_path / "part.parquet", {})
    assert [failure and failure[0] for failure in done.failures] == ["cut_off"]


def header(name: bytes, size: bytes, kind: bytes = b"0", data: bytes = b"") -> bytes:
    """A header as tarfile would never write it."""
    block = bytearray(512)
    block[: len(name)], block[124:136], block[156:157], block[257:263] = name, size, kind, b"ustar\x00"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\x00 " % sum(block)
    return bytes(block) + data.ljust(-(-len(data) // 512) * 512, b"\x00")


NAME, PAX, OCTAL = b"y" * 120, b"99999999999999999999 path=a\n", b"%011o\x00"
BACK_TO_ITSELF = b"\xff" * 4 + struct.pack(">q", -512)


@pytest.mark.parametrize(
    "bad",
    [
        header(b"2.jpg", BACK_TO_ITSELF),
        header(b"././@LongLink", OCTAL % len(NAME), b"L", NAME) * 3000,
        header(b"pax", OCTAL % 13, b"x", b"13 path=abcd\n") * 3000,
        header(b"pax", OCTAL % len(PAX), b"x", PAX),
    ],
    ids=["negative size", "names without end", "pax without end", "pax of a huge length"],
)
def test_headers_that_lie_end_the_tar_in_a_row(tmp_path: Path, bad: bytes):
    path = tmp_path / "a.tar"
    path.write_bytes(header(b"1.jpg", OCTAL % 3, data=b"abc") + bad + header(b"3.jpg", OCTAL % 0) + bytes(1024))
    source = WebDataset.model_validate({"files": str(path), "members": {"image": "jpg"}})
    (place,) = source.places(Path())
    found = list(itertools.islice(source.look(place, lambda data: ("", (0, len(data)))), 10))
    assert problems(found) == ["broken_tar"]
    assert [one.key for one in found if not one.problem] == ["a.tar/1"]


def test_no_tar_at_all(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(b"this is no archive" * 100)
    with pytest.raises(SampleError) as caught:
        look(tmp_path / "a.tar")
    assert caught.value.reason == "broken_tar"


def test_a_key_that_comes_twice_is_an_input_of_its_own(tmp_path: Path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("1.jpg", "1.txt", "2.jpg", "2.txt", "1.jpg", "1.txt"):
            tar.addfile(tarfile.TarInfo(name))
    found = look(path)
    assert problems(found) == ["duplicate_key"]
    assert len({one.key for one in found}) == 3


@pytest.mark.parametrize("text", [b"{", b"[1]", b'"x"', b"[" * 100_000, b"null"])
def test_json_that_is_no_object_is_none(tmp_path: Path, text: bytes):
    path = write(tmp_path / "a.tar", {"1.jpg": b"x", "1.json": text, "1.txt": b"t"})
    (found,) = look(path, {**MEMBERS, "note": {"json": "a"}})
    assert (found.attributes, found.problem) == ({}, None)
    assert [ref.problem for ref in found.refs] == [None, None, ("bad_json", "a.tar: '1.json' is no JSON object")]


def test_json_that_cannot_give_a_text_says_why(tmp_path: Path):
    large = b'{"a": "x"}' + b" " * (1 << 20)
    files = {"1.json": b'{"a": {"b": 7}}', "2.json": large, "3.json": b"{}", "4.json": b'{"a": {"b": "x"}}'}
    found = look(write(tmp_path / "a.tar", files), {"note": {"json": "a.b"}})
    assert [(one.refs[0].version is not None, one.refs[0].problem) for one in found] == [
        (False, ("bad_json", "a value of type 'int', no text")),
        (False, ("bad_json", f"a.tar: '2.json' has {len(large)} bytes, more than 1048576")),
        (False, None),
        (True, None),
    ]


def test_a_sample_that_comes_twice_in_a_row_is_an_input_of_its_own(tmp_path: Path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, text in (("1.jpg", b"a"), ("1.txt", b"b"), ("1.jpg", b"c"), ("1.txt", b"d")):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(text))
    first, again = look(path)
    assert payloads(first) == {"image": b"a", "caption": b"b"}
    assert (again.problem or ("",))[0] == "duplicate_key"


def test_files_that_are_too_large_cost_their_sample_and_say_so(tmp_path: Path):
    path = write(tmp_path / "a.tar", {"1.jpg": bytes(9), "2.jpg": b"x", "2.txt": bytes(9), "3.jpg": b"x"})
    members = {"image": "jpg", "caption": {"ext": ["txt"], "required": False}}
    one, two, three = look(path, members, max_member_bytes=8)
    assert one.problem == ("too_large", "a.tar: '1.jpg' has 9 bytes, more than max_member_bytes: 8")
    # What need not be there is left out.
    assert (two.problem, three.problem) == (None, None)
    assert set(payloads(two)) == {"image"}


def test_ranges_and_patterns_name_files(tmp_path: Path):
    for name in (*(f"{n:03d}" for n in range(12)), "copy[1]", "copy1"):
        write(tmp_path / f"{name}.tar", {})
    for files, names in (
        (["{000..003}.tar"], ["000", "001", "002", "003"]),
        (["{009..011}.tar", "000.tar"], ["000", "009", "010", "011"]),
        (["00[12].tar"], ["001", "002"]),
        (["copy[1].tar"], ["copy[1]"]),
    ):
        source = WebDataset.model_validate({"files": [str(tmp_path / f) for f in files], "members": MEMBERS})
        assert [place.key for place in source.places(Path())] == [f"{name}.tar" for name in names]
    for wrong, message in (("none.tar", "there is no file"), ("{3..1}.tar", "is empty")):
        source = WebDataset.model_validate({"files": str(tmp_path / wrong), "members": MEMBERS})
        with pytest.raises(PlanError, match=message):
            list(source.places(Path()))


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path):
    for name in ("a/x.tar", "b/x.tar", "b/y.tar", "c/a/z.tar", "d/a/z.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, {"1.jpg": b"x"})
    twice = f"{tmp_path}/a/../b/y.tar"
    source = WebDataset.model_validate({"files": [f"{tmp_path}/**/*.tar", twice], "members": MEMBERS})
    places = list(source.places(Path()))
    assert [place.key for place in places] == ["a/x.tar", "b/x.tar", "c/a/z.tar", "d/a/z.tar", "y.tar"]
    assert [os.path.relpath(place.path, tmp_path) for place in places[1:4]] == ["b/x.tar", "c/a/z.tar", "d/a/z.tar"]
    assert [one.key for one in source.look(places[1], lambda data: ("", (0, len(data))))] == ["b/x.tar/1"]


def test_what_is_no_readable_file_costs_itself(tmp_path: Path):
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "nowhere.tar").symlink_to(tmp_path / "gone")
    write(tmp_path / "ok.tar", {"1.jpg": b"x"})
    source = WebDataset.model_validate({"files": str(tmp_path / "*.tar"), "members": MEMBERS})
    nowhere, ok = source.places(Path())
    assert (nowhere.key, ok.key) == ("nowhere.tar", "ok.tar")
    with pytest.raises(SampleError, match="No such file") as caught:
        list(source.look(nowhere, lambda data: ("", (0, len(data)))))
    assert caught.value.reason == "unreadable"


def test_a_packed_tar_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    noise = random.Random(0).randbytes
    plain = write(tmp_path / "a.tar", {f"{n}.jpg": noise(20_000) for n in range(100)})
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    back: list[int] = []
    rewind = gzip._GzipReader._rewind
    monkeypatch.setattr(gzip._GzipReader, "_rewind", lambda reader: (back.append(1), rewind(reader)))
    assert len(look(packed, {"image": "jpg"})) == 100
    # To find out what packs it, and where it ends.
    assert len(back) <= 5


def test_a_tar_of_many_files_is_read_in_linear_time_and_little_memory(tmp_path: Path):
    def seconds(count: int) -> float:
        path = write(tmp_path / f"{count}.tar", {f"{n}.jpg": b"x" for n in range(count)})
        began = time.process_time()
        assert len(look(path, {"image": "jpg"})) == count
        return time.process_time() - began

    # A collection of all that other tests left takes longer than the larger tar, and falls into any of these.
    gc.disable()
    try:
        assert min(seconds(8000) for _ in range(3)) < 6 * min(seconds(2000) for _ in range(3))
    finally:
        gc.enable()
