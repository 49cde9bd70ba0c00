from __future__ import annotations

import io
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmdata.net.sniff import sniff

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
ENTITIES = b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "x.dtd" [' + b'<!ENTITY n "http://x">\n' * 60 + b"]>"


@pytest.mark.parametrize(
    ("form", "mime"),
    [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("GIF", "image/gif"), ("WEBP", "image/webp"), ("BMP", "image/bmp"),
     ("TIFF", "image/tiff"), ("ICO", "image/x-icon"), ("AVIF", "image/avif")],
)  # fmt: skip
def test_pictures_as_pillow_writes_them(form: str, mime: str):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, form)
    assert sniff(buffer.getvalue(), "text/html") == mime


@pytest.mark.parametrize(
    ("data", "mime"),
    [
        (b"RIFF\x24\0\0\0WAVEfmt ", "audio/wav"),
        (b"RIFF\x24\0\0\0AVI LIST", "video/x-msvideo"),
        (b"fLaC\0\0\0\x22", "audio/flac"),
        (b"OggS\0\x02" + bytes(22) + b"OpusHead", "audio/ogg"),
        (b"OggS\0\x02" + bytes(22) + b"\x80theora", "video/ogg"),
        (b"ID3\x04\0", "audio/mpeg"),
        (b"\xff\xfb\x90\x64", "audio/mpeg"),
        (b"\xff\xf1\x50\x80", "audio/aac"),
        (b"\0\0\0\x20ftypM4A ", "audio/mp4"),
        (b"\0\0\0\x20ftypisom", "video/mp4"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\x82\x84webm", "video/webm"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\x82\x88matroska", "video/x-matroska"),
        (b"%PDF-1.7", "application/pdf"),
        (b"PK\x03\x04", "application/zip"),
        (b"\x1f\x8b\x08\0", "application/gzip"),
        (b"WEBVTT\n\n00:00", "text/vtt"),
        (b"\xef\xbb\xbfWEBVTT", "text/vtt"),
        (b"WEBVTTX", "text/plain"),
        (b"", "application/octet-stream"),
        (b"\0\x01\x02", "application/octet-stream"),
        (b"hello", "text/plain"),
        ("\ufeffhello".encode("utf-16"), "text/plain"),
    ],
)
def test_other_media_and_texts(data: bytes, mime: str):
    assert sniff(data, None) == mime


@pytest.mark.parametrize(
    ("data", "mime"),
    [
        (SVG, "image/svg+xml"),
        (b"\xef\xbb\xbf \n<?xml version='1.0'?>\n<!-- by hand -->" + SVG, "image/svg+xml"),
        (b"<?xml version='1.0'?>" + ENTITIES + b"<!-- x -->" + SVG, "image/svg+xml"),
        (b"<s:svg xmlns:s='x'>", "image/svg+xml"),
        (b"<!-- a page --><!DOCTYPE  html>x", "text/html"),
        (b"<?xml version='1.0'?><!DOCTYPE html PUBLIC 'x'><html>", "text/html"),
        (b"<!doctype html>", "text/html"),
        (b"  <HTML lang=en>", "text/html"),
        (b"<p>an <svg> inside", "text/html"),
        (b"<?xml version='1.0'?><urlset>", "text/xml"),
        (b"<svgx>", "text/plain"),
        (b"a < b", "text/plain"),
    ],
)
def test_documents_are_told_by_their_first_element(data: bytes, mime: str):
    assert sniff(data, None) == mime


def test_a_server_is_believed_of_texts_alone():
    assert sniff(b"a,b\n1,2", "text/csv") == "text/csv"
    assert sniff(b"{}", "application/json") == "application/json"
    assert sniff(b"plain", "image/jpeg") == "text/plain"
    assert sniff(b"<!doctype html><p>", "image/jpeg") == "text/html"


PIECES = [b"<!DOCTYPE svg", b"<!DOCTYPE ", b"<!---->", b"<!--", b"<?x?>", b"<?xml", b" ", b"\n", b"[", b"]", b">", b"<",
          b"a", b"OggS", b"RIFF", struct.pack(">I", 32) + b"ftyp", b"\x1a\x45\xdf\xa3", b"-->"]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4), st.integers(1, 1000))
def test_no_bytes_take_long(pieces: list[bytes], times: int):
    data = b"".join(pieces) * times
    began = time.process_time()
    assert "/" in sniff(data, None)
    assert time.process_time() - began < 0.2
