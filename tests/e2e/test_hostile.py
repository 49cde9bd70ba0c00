"""Media as strangers leave them: what cannot be used is in the ledger with its reason, all else is kept."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import wave
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

SIDE_PX = 40
SECRET = (1, 254, 3)


def picture(mode: str = "RGB", size: tuple[int, int] = (SIDE_PX, 30)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((4, 4, 20, 20), fill="red")
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png() -> bytes:
    return encoded(picture(), "PNG")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, *more: bytes, lines: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"".join((b"\x89PNG\r\n\x1a\n", header, *more, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")))


def jpeg_that_claims(width: int, height: int) -> bytes:
    data = bytearray(encoded(picture(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_that_claims(width: int, height: int) -> bytes:
    data = bytearray(encoded(picture("P"), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def gif_frame_outside_its_screen() -> bytes:
    data = bytearray(encoded(picture("P"), "GIF"))
    at = data.rindex(b"\x2c\0\0\0\0" + struct.pack("<HH", SIDE_PX, 30))
    data[at + 5 : at + 9] = struct.pack("<HH", 60_000, 60_000)
    return bytes(data)


def wav(seconds: float = 0.2) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\1\2" * int(8000 * seconds))
    return buffer.getvalue()


def svg(body: str, before: str = "", size: str = 'width="40" height="20"') -> bytes:
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<?xml version="1.0"?>{before}<svg {space} {size}>{body}</svg>'.encode()


def laughs(levels: int = 9) -> bytes:
    entities = "<!ENTITY l0 \"<rect width='1' height='1'/>\">"
    for n in range(levels):
        ten = f"&l{n};" * 10
        entities += f'<!ENTITY l{n + 1} "{ten}">'
    return svg(f"&l{levels};", f"<!DOCTYPE svg [{entities}]>")


def uses(levels: int = 12) -> bytes:
    """Ten to the twelfth rectangles, by references instead of entities."""
    groups = "<rect id='g0' width='1' height='1'/>"
    for n in range(levels):
        ten = f"<use xlink:href='#g{n}'/>" * 10
        groups += f"<g id='g{n + 1}'>{ten}</g>"
    return svg(f"<defs>{groups}</defs><use xlink:href='#g{levels}'/>")


# What is wrong with the picture, and how the ledger says it; `...` stands for words of a library.
BAD_IMAGES: dict[str, tuple[str, bytes, str, str]] = {
    "truncated": ("png", png()[:-40], "bad_image", "cannot be decoded: ..."),
    "only_a_signature": ("png", png()[:8], "not_an_image", "not an image: it begins with ..."),
    "empty": ("png", b"", "empty_file", "the file is empty"),
    "text": ("png", b"I am no picture.", "not_an_image", "not an image: it begins with b'I am no picture.'"),
    "bomb": (
        "png",
        raw_png(60_000, 60_000, lines=b"\0" * 1_000_000),
        "too_many_pixels",
        "60000 x 60000 = 3600000000 pixels, more than max_pixels: 50000000",
    ),
    "jpeg_lie": (
        "jpg",
        jpeg_that_claims(65_000, 64_000),
        "too_many_pixels",
        "65000 x 64000 = 4160000000 pixels, more than max_pixels: 50000000",
    ),
    "gif_lie": (
        "gif",
        gif_that_claims(65_000, 64_000),
        "too_many_pixels",
        "65000 x 64000 = 4160000000 pixels, more than max_pixels: 50000000",
    ),
    "gif_frame_lie": (
        "gif",
        gif_frame_outside_its_screen(),
        "too_many_pixels",
        "60000 x 60000 = 3600000000 pixels, more than max_pixels: 50000000",
    ),
    "text_chunk_bomb": (
        "png",
        raw_png(1, 1, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 200_000_000, 9)), lines=b"\0\0"),
        "bad_image",
        "...",
    ),
    "postscript": ("png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image", "..."),
    "billion_laughs": ("svg", laughs(), "bad_image", "SVG that is no XML: ..."),
    "broken_svg": ("svg", svg("<rect"), "bad_image", "SVG that is no XML: ..."),
}
BAD_CAPTIONS: dict[str, tuple[bytes, str, str]] = {
    "latin1": (b"A caf\xe9 at night.", "not_utf8", "not UTF-8 at byte 5 (0xe9)"),
    "utf16": ("A red circle.".encode("utf-16"), "not_utf8", "not UTF-8 at byte 0 (0xff)"),
    "with_nul": (b"A red\0circle.", "control_characters", "NUL at character 5: this is no text"),
    "blank": (b" \n\t\n", "empty_text", "the text is empty"),
    "no_bytes": (b"", "empty_file", "the file is empty"),
    "huge": (b"word " * 2_000_000, "too_large", "more than max_bytes: 1048576"),
}
BAD_SOUNDS: dict[str, tuple[bytes, str, str]] = {
    "header_only": (wav(0), "no_audio", "0.00 s of audio"),
    "empty_wav": (b"", "empty_file", "the file is empty"),
    "playlist": (b"#EXTM3U\n#EXTINF:1,\n{root}/good.wav\n", "not_audio", "not audio that FFmpeg reads: ..."),
    "hls": (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{root}/good.wav\n#EXT-X-ENDLIST\n", "not_audio", "..."),
    "concat": (b"ffconcat version 1.0\nfile '{root}/good.wav'\n", "not_audio", "not audio that FFmpeg reads: ..."),
    "noise": (os.urandom(3000), "not_audio", "..."),
    "picture": (png(), "not_audio", "..."),
    "cut": (wav(1)[:4044], "truncated", "0.25 s of the 1.00 s that its header says"),
}
GOOD_NAMES = [
    "plain",
    "line\nbreak",
    "quo'te\"s",
    "it's; DROP TABLE fates; --",
    "日本語 🦜",
    "e\u0301",
    "{stem}",
    "a b\t<b>",
    "%s%00$HOME",
]
GOOD_NAMES += ["n" * 250, "\\xff", "sub folder/deeper/kept"]


def good_images() -> dict[str, tuple[str, bytes, tuple[int, int]]]:
    sideways = Image.Exif()
    sideways[0x0112] = 6
    frames = [picture("P"), picture("P").rotate(90)]
    size = (SIDE_PX, 30)
    return {
        "one_pixel": ("png", encoded(picture(size=(1, 1)), "PNG"), (1, 1)),
        "cmyk": ("jpg", encoded(picture("CMYK"), "JPEG"), size),
        "sixteen_bit": ("png", encoded(picture("L").convert("I;16"), "PNG"), size),
        "palette": ("png", encoded(picture("P"), "PNG", transparency=0), size),
        "alpha": ("png", encoded(picture("RGBA"), "PNG"), size),
        "grey_alpha": ("png", encoded(picture("LA"), "PNG"), size),
        "bits": ("png", encoded(picture("1"), "PNG"), size),
        "animated": ("gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), size),
        "sideways": ("jpg", encoded(picture(), "JPEG", exif=sideways), size[::-1]),
        "jpeg_called_png": ("png", encoded(picture(), "JPEG"), size),
        "long": ("png", encoded(picture(size=(2000, 1)), "PNG"), (2000, 1)),
    }


def write(root: Path, stem: str, extension: str, data: bytes, caption: bytes = b"A red circle.") -> None:
    path = root / f"{stem}.{extension}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    (root / f"{stem}.txt").write_bytes(caption)


def spec(cli, **blocks: Any) -> None:
    templates = ["{stem}.png", "{stem}.jpg", "{stem}.gif", "{stem}.svg"]
    members = {"image": templates, "caption": {"path": "{stem}.txt", "lang": "en"}}
    source = {"files": {"name": "pictures", "root": "media", "members": members}}
    cli.spec(sources=[source], **blocks)


def ledger(cli) -> dict[str, tuple[str, str | None, str | None, str | None]]:
    """By key: fate, step, rule and detail of every original, which must be as many as the build counted."""
    rows = cli.query("SELECT s.key, f.* FROM fates f JOIN samples s USING (sample_id) WHERE s.parent_id IS NULL")
    (run,) = cli.query("SELECT inputs FROM runs WHERE status = 'done'")
    assert len(rows) == run["inputs"] == len({row["key"] for row in rows})
    return {row["key"]: (row["fate"], row["step"], row["rule"], row["detail"]) for row in rows}


def assert_failed(entry: tuple[Any, ...], reason: str, where: str, detail: str) -> None:
    """Exactly this step, reason and sentence; of a library's own words only that there are some."""
    assert entry[:3] == ("failed", "ingest", reason)
    start, _, open_end = f"{where}: {detail}".partition("...")
    assert entry[3].startswith(start)
    assert len(entry[3]) > len(start) if "..." in detail else entry[3] == start + open_end


@pytest.mark.slow
def test_pictures_that_cannot_be_used_fail_with_their_reason_and_the_others_are_kept(cli):
    root = cli.folder / "media"
    for name, (extension, data, _, _) in BAD_IMAGES.items():
        write(root, name, extension, data)
    for name, (extension, data, _) in good_images().items():
        write(root, name, extension, data)
    spec(cli, augment=[{"joint": {"name": "flip", "apply": ["HorizontalFlip"]}}])
    cli.build()

    found = ledger(cli)
    for name, (extension, _, reason, detail) in BAD_IMAGES.items():
        assert_failed(found.pop(name), reason, f"image 'image' (media/{name}.{extension})", detail)
    assert found == dict.fromkeys(good_images(), ("kept", None, None, None))

    sizes = cli.query("SELECT key, width, height FROM samples JOIN members USING (sample_id) WHERE name = 'image'")
    expected = {name: size for name, (_, _, size) in good_images().items()}
    assert {(row["key"], (row["width"], row["height"])) for row in sizes} == set(expected.items())
    children = cli.query("SELECT key, fate FROM samples WHERE parent_id IS NOT NULL ORDER BY key")
    assert {row["key"] for row in children} == set(good_images())


def test_payloads_are_kept_byte_for_byte(cli):
    root = cli.folder / "media"
    for name, (extension, data, _) in good_images().items():
        write(root, name, extension, data)
    spec(cli, curate=[{"splits": {"shares": {"train": 1.0}}}])
    cli.build()
    (shard,) = (cli.folder / "out" / "shards").glob("*.tar")
    keys = {row["sample_id"]: row["key"] for row in cli.query("SELECT sample_id, key FROM samples")}
    with tarfile.open(shard) as tar:
        stored = {
            keys[m.name.split(".")[0]]: tar.extractfile(m).read() for m in tar if m.name[-3:] not in ("son", "txt")
        }
    given = {name: data for name, (_, data, _) in good_images().items()}
    turned, lies = (Image.open(io.BytesIO(one.pop("sideways"))) for one in (stored, given))
    assert stored == given
    assert (turned.size, lies.size) == (lies.size[::-1], lies.size), "stored upright"


def test_captions_and_sidecars(cli):
    root = cli.folder / "media"
    for name, (caption, _, _) in BAD_CAPTIONS.items():
        write(root, name, "png", png(), caption)
    write(root, "byte_order_mark", "png", png(), b"\xef\xbb\xbfA red circle.")
    write(root, "one_line_of_a_megabyte", "png", png(), b"x" * (1 << 20))
    (root / "no_caption.png").write_bytes(png())
    (root / "no_picture.txt").write_bytes(b"A red circle.")
    os.mkfifo(root / "pipe.png")
    (root / "pipe.txt").write_bytes(b"A pipe.")
    (root / "folder.png").mkdir()
    (root / "folder.txt").write_bytes(b"A folder.")
    spec(cli)
    cli.build()

    found = ledger(cli)
    for name, (_, reason, detail) in BAD_CAPTIONS.items():
        assert_failed(found.pop(name), reason, f"text 'caption' (media/{name}.txt)", detail)
    assert_failed(
        found.pop("no_caption"),
        "missing_member",
        "text 'caption' ({stem}.txt)".replace("{stem}", "no_caption"),
        "not there",
    )
    for name in ("no_picture", "pipe", "folder"):
        places = " or ".join(f"{name}.{extension}" for extension in ("png", "jpg", "gif", "svg"))
        assert_failed(found.pop(name), "missing_member", f"image 'image' ({places})", "not there")
    assert found == dict.fromkeys(("byte_order_mark", "one_line_of_a_megabyte"), ("kept", None, None, None))


def test_links_and_names(cli):
    root = cli.folder / "media"
    for name in GOOD_NAMES:
        write(root, name, "png", png())
    # Beside the folder, in a folder whose name begins like it, and inside.
    for place in (cli.folder, cli.folder / "media_of_others"):
        place.mkdir(exist_ok=True)
        (place / "secret.png").write_bytes(png())
    for name, target in {
        "out": cli.folder / "secret.png",
        "near": cli.folder / "media_of_others" / "secret.png",
        "relative": Path("../secret.png"),
    }.items():
        (root / f"{name}.png").symlink_to(target)
        (root / f"{name}.txt").write_bytes(b"A red circle.")
    (root / "inside.png").symlink_to("plain.png")
    (root / "inside.txt").write_bytes(b"A red circle.")
    (root / "broken.png").symlink_to("nowhere.png")
    (root / "broken.txt").write_bytes(b"A red circle.")
    (root / "folder_link").symlink_to(cli.folder / "media_of_others")
    (root / "loop").symlink_to(root)
    for extension, data in (("png", png()), ("txt", b"A red circle.")):
        Path(os.fsdecode(os.fsencode(root) + b"/latin-\xe9." + extension.encode())).write_bytes(data)
    spec(cli)
    cli.build()

    found = ledger(cli)
    for name in ("out", "near", "relative"):
        link = f"media/{name}.png is a link that leads out of root"
        assert found.pop(name) == ("failed", "ingest", "link_outside_root", link)
    assert found.pop("broken")[:3] == ("failed", "ingest", "missing_member")
    assert found.pop("//latin-\\xe9")[:3] == ("failed", "ingest", "bad_name")
    assert found == dict.fromkeys([*GOOD_NAMES, "inside"], ("kept", None, None, None))


def test_an_svg_draws_nothing_that_lies_outside_of_it(cli):
    root = cli.folder / "media"
    secret = cli.folder / "secret.png"
    Image.new("RGB", (40, 20), SECRET).save(secret)
    (cli.folder / "secret.txt").write_text("<rect width='40' height='20' fill='#01fe03'/>")
    Image.new("RGB", (40, 20), SECRET).save(root / "beside.png")
    (root / "beside.txt").write_bytes(b"A green field.")
    entity = f'<!DOCTYPE svg [<!ENTITY e SYSTEM "file://{cli.folder}/secret.txt">]>'
    blue = "<rect width='40' height='20' fill='blue'/>"
    drawings = {
        "entity": svg(f"{blue}&e;", entity),
        "absolute": svg(f"{blue}<image xlink:href='file://{secret}' width='40' height='20'/>"),
        "plain_path": svg(f"{blue}<image xlink:href='{secret}' width='40' height='20'/>"),
        "relative": svg(f"{blue}<image xlink:href='beside.png' width='40' height='20'/>"),
        "style": svg(f"<style>@import url('file://{cli.folder}/secret.txt');</style>{blue}"),
        "include": svg(
            f"{blue}<xi:include xmlns:xi='http://www.w3.org/2001/XInclude' href='file://{cli.folder}/secret.txt'/>"
        ),
    }
    for name, data in drawings.items():
        write(root, name, "svg", data, b"A blue field.")
    spec(cli, curate=[{"splits": {"shares": {"train": 1.0}}}])
    cli.build()
    found = ledger(cli)
    refused = {name for name in drawings if found[name][0] == "failed"}
    assert {found[name][2] for name in refused} <= {"bad_image"}
    assert refused <= {"entity"}, "librsvg leaves out what it does not load; only an undefined entity is an error"

    (shard,) = (cli.folder / "out" / "shards").glob("*.tar")
    keys = {row["sample_id"]: row["key"] for row in cli.query("SELECT sample_id, key FROM samples")}
    drawn = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            if member.name.endswith(".png"):
                image = Image.open(tar.extractfile(member)).convert("RGB")
                drawn[keys[member.name.split(".")[0]]] = {
                    colour for _, colour in image.getcolors(image.width * image.height)
                }
    assert drawn.pop("beside") == {SECRET}
    assert drawn == {name: {(0, 0, 255)} for name in drawings if name not in refused}


@pytest.mark.slow
def test_an_svg_cannot_take_for_ever(cli):
    root = cli.folder / "media"
    drawings = {
        "uses": uses(),
        "wide": svg("<rect width='9' height='9'/>", size='width="1000000000" height="1"'),
        "vast": svg("<rect width='9' height='9'/>", size='width="1e9" height="1e9"'),
        "no_size": svg("<rect width='9' height='9'/>", size=""),
        "nothing": svg("", size='width="0" height="0"'),
        "deep": svg("<g>" * 20_000 + "</g>" * 20_000),
    }
    for name, data in drawings.items():
        write(root, name, "svg", data)
    write(root, "good", "png", png())
    spec(cli)
    cli.build()
    found = ledger(cli)
    assert found.pop("good")[0] == "kept"
    assert set(found) == set(drawings)
    assert {entry[2] for entry in found.values() if entry[0] == "failed"} <= {"bad_image", "too_many_pixels"}


@pytest.mark.parametrize("required", [True, False])
def test_sounds(cli, required):
    root = cli.folder / "media"
    (root / "good.wav").write_bytes(wav())
    for name, (data, _, _) in BAD_SOUNDS.items():
        (root / f"{name}.wav").write_bytes(data.replace(b"{root}", bytes(root)))
    for path in list(root.iterdir()):
        path.with_suffix(".txt").write_bytes(b"A tone.")
    members = {
        "speech": {"path": "{stem}.wav", "lang": "en", "required": required},
        "transcript": {"path": "{stem}.txt", "lang": "en"},
    }
    cli.spec(sources=[{"files": {"name": "sounds", "root": "media", "members": members}}])
    cli.build()

    found = ledger(cli)
    if required:
        for name, (_, reason, detail) in BAD_SOUNDS.items():
            assert_failed(found.pop(name), reason, f"audio 'speech' (media/{name}.wav)", detail)
    else:
        rows = cli.query("SELECT key, error FROM samples JOIN members USING (sample_id) WHERE name = 'speech'")
        errors = {row["key"]: row["error"] for row in rows if row["error"]}
        assert {name: error.split(":")[0] for name, error in errors.items()} == {
            name: reason for name, (_, reason, _) in BAD_SOUNDS.items()
        }
    assert set(found) == {"good", *(() if required else BAD_SOUNDS)}
    assert {entry[0] for entry in found.values()} == {"kept"}
    durations = cli.query("SELECT key, duration_s FROM samples JOIN members USING (sample_id) WHERE name = 'speech'")
    measured = {row["key"]: row["duration_s"] for row in durations if row["duration_s"] is not None}
    assert measured == {"good": 0.2}
