from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mmdata.engine.payloads import Payloads
from mmdata.errors import FatalError, PlanError, SampleError
from mmdata.steps.exchange import Place, Ref
from mmdata.steps.sources.files import Files
from mmdata.steps.sources.places import file_places
from mmdata.steps.sources.table import Table
from mmdata.steps.sources.webdataset import WebDataset
from mmdata.store import remote


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def put(memory: Any, **files: bytes) -> None:
    for name, data in files.items():
        memory.pipe(f"/set/{name.replace('__', '/').replace('_', '.')}", data)


def test_files_of_a_pattern_are_places_by_their_names(memory: Any):
    put(memory, b_tar=b"1", a_tar=b"22", a_txt=b"")
    found = list(file_places("x", ["memory://set/*.tar"]))
    assert [(place.key, place.path) for place in found] == [
        ("a.tar", "memory:///set/a.tar"),
        ("b.tar", "memory:///set/b.tar"),
    ]
    before = found[0].version
    assert next(file_places("x", ["memory://set/a.tar"])).version == before
    put(memory, a_tar=b"23")
    assert next(file_places("x", ["memory://set/a.tar"])).version != before


@pytest.mark.parametrize(
    ("info", "same"),
    [({"size": 2, "ETag": '"a"'}, True), ({"size": 3, "ETag": '"a"'}, False), ({"size": 2, "ETag": '"b"'}, False)],
)
def test_a_version_is_the_size_and_what_the_store_says_of_the_content(info: dict[str, Any], same: bool):
    # A digest goes before a date, which a copy changes.
    one = remote.version_of({"size": 2, "ETag": '"a"', "LastModified": "yesterday"})
    assert (remote.version_of({**info, "LastModified": "today"}) == one) is same


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://h/a.tar", "a web server's files are not read in place"),
        ("s3://key:secret@bucket/a", "credentials come from the environment"),
        ("simplecache::s3://b/a", "several file systems"),
        ("nosuch://b/a", "nosuch"),
        ("memory://set/none.tar", "there is no file memory://set/none.tar"),
    ],
)
def test_what_cannot_be_read_is_a_plan_error(memory: Any, url: str, words: str):
    with pytest.raises(PlanError) as caught:
        list(file_places("x", [url]))
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_payload_is_read_by_its_span_and_within_its_limit(memory: Any):
    put(memory, a_bin=b"0123456789")

    def read(limit: int, span: tuple[int, int] | None = None, url: str = "memory://set/a.bin") -> bytes:
        return Payloads([]).of(Ref("x", "text", url, version="1", span=span), limit)

    assert read(10) == b"0123456789"
    assert read(4, (3, 4)) == b"3456"
    for reason, arguments in {
        "too_large": (9,),
        "cut_off": (9, (10, 3)),
        "empty_file": (9, (10, 0)),
        "unreadable": (9, None, "memory://no"),
    }.items():
        with pytest.raises(SampleError) as caught:
            read(*arguments)  # type: ignore[arg-type]
        assert caught.value.reason == reason


def test_what_may_pass_is_tried_again_and_then_stops_the_build(memory: Any, monkeypatch: pytest.MonkeyPatch):
    put(memory, a_bin=b"data")
    waits: list[float] = []
    left = [2]
    plain = type(memory).cat_file

    def flaky(self: Any, *arguments: Any, **more: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError("the network is down")
        return plain(self, *arguments, **more)

    monkeypatch.setattr(remote.time, "sleep", waits.append)
    monkeypatch.setattr(type(memory), "cat_file", flaky)
    assert remote.read_range("memory://set/a.bin", 0, 9) == b"data"
    assert waits == [1.0, 2.0]
    left[0] = 3
    with pytest.raises(FatalError, match=r"memory://set/a\.bin cannot be read now: the network is down"):
        remote.read_range("memory://set/a.bin", 0, 9)


def test_files_below_a_url_are_inputs(memory: Any):
    put(memory, a_png=b"x", a_txt=b"one", sub__b_png=b"y", sub__b_txt=b"two", _hidden_png=b"", c_png=b"")
    members = {"image": "{stem}.png", "caption": "{stem}.txt"}
    found = {one.key: one for one in Files.model_validate({"root": "memory://set/", "members": members}).inputs()}
    assert set(found) == {"a", "sub/b", "c"}
    assert [ref.url for ref in found["sub/b"].refs] == ["memory://set/sub/b.png", "memory://set/sub/b.txt"]
    assert [ref.version is None for ref in found["c"].refs] == [False, True]
    assert Payloads([]).of(found["sub/b"].refs[1], 9) == b"two"


def test_a_table_and_what_it_names_may_lie_elsewhere(memory: Any):
    put(
        memory,
        t_csv=b"file,said\na.png,one\nsub/b.png,two\nnone.png,three\n../x.png,four\n",
        a_png=b"x",
        sub__b_png=b"y",
    )
    members = {"image": {"path": "file"}, "caption": {"text": "said"}}
    found = {one.key: one for one in Table.model_validate({"file": "memory://set/t.csv", "members": members}).inputs()}
    assert Payloads([]).of(found["sub/b.png"].refs[0], 9) == b"y"
    assert found["a.png"].refs[0].url == "memory://set/a.png"
    assert found["none.png"].refs[0].version is None
    assert found["../x.png"].problem == ("path_outside_root", "../x.png leads out of root: memory://set")


def test_what_a_tar_elsewhere_holds_is_kept(memory: Any):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in (("1.jpg", b"picture"), ("1.txt", b"words")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    put(memory, s_tar=buffer.getvalue())
    source = WebDataset.model_validate({"files": "memory://set/s.tar", "members": {"image": "jpg", "caption": "txt"}})
    (place,) = source.places(Path())
    kept: list[bytes] = []

    def keep(data: bytes) -> tuple[str, tuple[int, int]]:
        kept.append(data)
        return "kept:", (0, len(data))

    (found,) = source.look(place, keep)
    assert (found.key, kept) == ("s.tar/1", [b"picture", b"words"])
    with pytest.raises(SampleError, match="cannot be read"):
        list(source.look(Place("x.tar", "memory://set/gone.tar", "1"), keep))
