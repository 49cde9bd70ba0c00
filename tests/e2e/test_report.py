"""`mmdata report`: a page that shows what was left out, loads nothing, and takes no markup of strangers."""

from __future__ import annotations

import re

from PIL import Image

CURATE = [{"rules": {"keep": {"wide": "image.width >= 30"}}}]


def test_a_page_of_one_file_with_pictures_reasons_and_nothing_that_runs(cli):
    media = cli.folder / "media"
    for number in range(4):
        Image.new("RGB", (20 + 5 * number, 20), (200, 0, 0)).save(media / f"p{number}.png")
        (media / f"p{number}.txt").write_text(f"<script>alert({number})</script> & a red field")
    (media / "p4.png").write_bytes(b"no picture")
    (media / "p4.txt").write_text("x")
    cli.spec(curate=CURATE)
    cli.build()
    out = cli.run("report", "out").stdout.strip()
    page = (cli.folder / out).read_text(encoding="utf-8")
    assert out == "out/report.html"
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; a red field") == 1
    # The two that are too narrow, the nearest to the threshold first, each with its picture; the broken one has none.
    assert re.findall(r"wide: image.width was (\d+), must be &gt;= 30", page) == ["25", "20"]
    assert page.count("data:image/jpeg;base64,") == 2
    assert "<b>p4</b>" in page
    assert "ingest: bad_image" in page or "ingest: not_an_image" in page
    # Each count is beside its share of all, as a bar and as a number.
    assert re.findall(r"(\w+)</td><td class='n'>(\d+)</td><td class='n'>([\d.]+) %</td>.*?width:([\d.]+)%", page) == [
        ("dropped", "2", "40.0", "40.0"),
        ("kept", "2", "40.0", "40.0"),
        ("failed", "1", "20.0", "20.0"),
        ("train", "2", "100.0", "100.0"),
    ]
    # A phone shows it at its own width, and what is wider scrolls by itself.
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    # Nothing is fetched when it is opened.
    assert not re.search(r"(src|href)=['\"](?!data:)", page)


def test_it_is_written_where_asked_and_a_folder_without_a_build_is_told(cli):
    (cli.folder / "media/p.txt").write_text("x")
    Image.new("RGB", (40, 40)).save(cli.folder / "media/p.png")
    cli.spec()
    cli.build()
    assert cli.run("report", "out", "--out", "page.html").stdout.strip() == "page.html"
    assert (cli.folder / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "build.json is missing" in cli.run("report", "media", code=1).stderr
    assert (
        cli.run("report", "out", "--out", "media", code=1).stderr
        == "mmdata: media: cannot be written: Is a directory\n"
    )
    assert not list(cli.folder.glob("*.partial-*"))


def test_a_file_where_a_folder_should_be_is_told(cli):
    (cli.folder / "media/p.txt").write_text("x")
    Image.new("RGB", (40, 40)).save(cli.folder / "media/p.png")
    cli.spec()
    (cli.folder / "file").write_text("x")
    said = cli.run("build", "pipeline.yaml", "--output", "file", code=2).stderr
    assert said == f"file: no build can be here: {cli.folder}/file is no folder; give another folder with --output\n"
    for command in (["whatif", "file"], ["diff", "file", "file"]):
        assert (
            "file: nothing decided here (build.json is missing); there is no such folder"
            in cli.run(*command, code=1).stderr
        )
