"""Sources in an object store: a build over s3:// is the build over the same files here, without a password in it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest
from s3 import S3
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter
from website import jpeg

KINDS = ["files", "table", "webdataset", "warc"]
FILES = 12


def warc() -> bytes:
    """Pages and their pictures, each record a gzip member of its own, as Common Crawl has them."""
    buffer = io.BytesIO()
    writer = WARCWriter(buffer, gzip=True)
    for n in range(FILES):
        html = f'<html><body><img src="/{n}.jpg" alt="picture {n}"></body></html>'.encode()
        for path, data, kind in ((f"/{n}", html, "text/html"), (f"/{n}.jpg", jpeg(f"w{n}"), "image/jpeg")):
            headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
            url = f"http://example.org{path}"
            one = writer.create_warc_record(url, "response", io.BytesIO(data), http_headers=headers)
            writer.write_record(one)
            one.raw_stream.close()
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for n in range(FILES):
            for name, data in ((f"{n:03d}.jpg", jpeg(f"t{n}")), (f"{n:03d}.txt", f"picture {n}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def objects() -> dict[str, bytes]:
    found = {f"media/in/{n}.jpg": jpeg(f"f{n}") for n in range(FILES)}
    found |= {f"media/in/{n}.txt": f"picture {n}".encode() for n in range(FILES)}
    table = "file,caption\n" + "".join(f"in/{n}.jpg,picture {n}\n" for n in range(FILES))
    return found | {"media/table.csv": table.encode(), "media/set-000.tar": tar(), "media/crawl.warc.gz": warc()}


@pytest.fixture
def store(cli, objects: dict[str, bytes]) -> Iterator[S3]:
    for name, data in objects.items():
        path = cli.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with S3(objects) as found:
        cli.env.update(found.environment)
        yield found


def source(kind: str, root: str) -> dict[str, Any]:
    columns = {"image": {"path": "file"}, "caption": {"text": "caption"}}
    return {
        "files": {"files": {"root": f"{root}/in", "members": {"image": "{stem}.jpg", "caption": "{stem}.txt"}}},
        "table": {"table": {"file": f"{root}/table.csv", "members": columns}},
        "webdataset": {"webdataset": {"files": f"{root}/set-*.tar", "members": {"image": "jpg", "caption": "txt"}}},
        "warc": {"warc": {"files": f"{root}/crawl.warc.gz"}},
    }[kind]


def tars(digests: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in digests.items() if name.endswith(".tar")}


@pytest.mark.slow
def test_a_build_over_a_store_is_the_build_over_the_files(cli, store: S3, shard_digests):
    cli.spec(sources=[source(kind, "media") for kind in KINDS])
    cli.build(output="here")
    cli.spec(sources=[source(kind, "s3://media") for kind in KINDS])
    total = len(KINDS) * FILES
    assert f"{total} inputs = {total} kept" in cli.build().stdout
    found = tars(shard_digests(cli.folder / "out"))
    assert found
    assert found == tars(shard_digests(cli.folder / "here"))
    for archive in ("media/set-000.tar", "media/crawl.warc.gz"):
        assert store.sent[archive] == len(store.objects[archive]), "each byte is asked for once"
    told = [p for p in (cli.folder / "out").rglob("*") if p.is_file() and b"not to be found" in p.read_bytes()]
    assert told == []
    before = store.sent.copy()
    assert "nothing to do" in cli.build().stdout
    # A plan reads the table again; nothing else is.
    assert store.sent - before == {"media/table.csv": len(store.objects["media/table.csv"])}
    # What changed in the store is read again, and what is gone is missed.
    store.objects["media/in/7.jpg"] = jpeg("another")
    del store.objects["media/in/3.txt"]
    said = cli.build().stdout
    assert f"{total} inputs = {total - 1} kept + 1 failed" in said
    assert store.sent["media/in/7.jpg"] > before["media/in/7.jpg"]
    assert store.sent[archive] == len(store.objects[archive])


@pytest.mark.slow
def test_a_store_that_fails_stops_the_build_and_costs_no_sample(cli, store: S3):
    cli.spec(sources=[source("files", "s3://media")])
    store.fail = 10**6
    said = cli.build(code=1).stderr
    assert "cannot be read now" in said
    assert "Traceback" not in said
    store.fail = 0
    assert f"{FILES} inputs = {FILES} kept" in cli.build().stdout


def test_what_cannot_be_read_is_told_by_the_plan(cli, store: S3):
    for url, words in {
        "s3://media/none.tar": "there is no file s3://media/none.tar",
        "https://example.org/a.tar": "a web server's files are not read in place",
        "s3://key:secret@media/a.tar": "credentials come from the environment",
        "nosuch://media/a.tar": "nosuch",
    }.items():
        cli.spec(sources=[{"webdataset": {"files": url, "members": {"image": "jpg"}}}])
        said = cli.run("plan", "pipeline.yaml", code=2).stderr
        assert words in said, said
        assert "secret" not in said
