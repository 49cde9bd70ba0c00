"""A hostile SVG shows nothing of this machine and costs little: what decision 0002 rests on, tried on the library.

Each attack would paint red, which nothing else in its drawing does. The controls show that red would be seen.
"""

from __future__ import annotations

import base64
import io
import resource
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image

from mmdata.errors import SampleError
from mmdata.media.image import is_svg, rasterise_svg

NAMESPACES = (
    'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'xmlns:xi="http://www.w3.org/2001/XInclude"'
)
RED_RECT = '<rect width="50" height="50" fill="#ff0000"/>'
MAX_PIXELS = 50_000_000
SIDE_PX = 100
FAST_S = 5.0  # seconds of CPU; what is measured takes hundredths, a billion of anything takes hours


def svg(body: str, prolog: str = "", size: str = 'width="100" height="100"') -> bytes:
    return f"{prolog}<svg {NAMESPACES} {size}>{body}</svg>".encode()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(rasterise_svg(data, SIDE_PX, MAX_PIXELS))).convert("RGBA"), int)


def red_pixels(data: bytes) -> int:
    rgba_HWC = pixels(data)
    red, green, blue, alpha = np.moveaxis(rgba_HWC, -1, 0)
    return int(((alpha > 0) & (red > 150) & (green < 80) & (blue < 80)).sum())


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, also the working directory, of things that no drawing may show."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 50), (255, 0, 0)).save(tmp_path / "secret.png")
    (tmp_path / "secret.svg").write_bytes(svg(RED_RECT.replace("<rect", '<rect id="part"')))
    (tmp_path / "secret.css").write_text("rect { fill: #ff0000 }")
    (tmp_path / "secret.xml").write_text(RED_RECT)
    return tmp_path


@pytest.fixture
def requests(secret: Path) -> Iterator[tuple[str, list[str]]]:
    """Address of a server that would send the red picture, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write((secret / "secret.png").read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_control_red_is_seen_where_the_drawing_itself_paints_it():
    assert red_pixels(svg(RED_RECT)) == 2500


def test_control_an_image_inside_the_drawing_is_shown(secret: Path):
    inside = base64.b64encode((secret / "secret.png").read_bytes()).decode()
    assert red_pixels(svg(f'<image width="50" height="50" xlink:href="data:image/png;base64,{inside}"/>')) == 2500


def test_control_a_drawing_loaded_by_its_name_shows_its_neighbours(secret: Path):
    """Why `rasterise_svg` takes bytes: librsvg loads what lies beside a file whose place it knows."""
    (secret / "drawing.svg").write_bytes(svg('<image width="50" height="50" href="secret.png"/>'))
    assert pyvips.Image.svgload("drawing.svg").numpy()[..., 0].max() == 255


@pytest.mark.parametrize("place", ["secret.png", "./secret.png", "{folder}/secret.png", "file://{folder}/secret.png"])
@pytest.mark.parametrize("attribute", ["href", "xlink:href"])
def test_no_image_from_a_file(secret: Path, place: str, attribute: str):
    url = place.format(folder=secret)
    body = f'<image width="50" height="50" {attribute}="{url}"/>'
    effect = f'<filter id="f"><feImage {attribute}="{url}"/></filter><rect width="50" height="50" filter="url(#f)"/>'
    assert red_pixels(svg(body)) == 0
    assert red_pixels(svg(effect)) == 0
    assert red_pixels(svg(body, size=f'width="100" height="100" xml:base="file://{secret}/"')) == 0


def test_no_drawing_from_a_file(secret: Path):
    for url in ("secret.svg", f"file://{secret}/secret.svg"):
        assert red_pixels(svg(f'<use href="{url}#part"/>')) == 0
        assert red_pixels(svg(f'<image width="50" height="50" href="{url}"/>')) == 0
        assert red_pixels(svg(f'<g><xi:include href="{url}" parse="xml"/></g>')) == 0


def test_no_style_sheet_from_a_file(secret: Path):
    black = '<rect width="50" height="50"/>'
    link = f'<?xml-stylesheet href="file://{secret}/secret.css" type="text/css"?>'
    assert red_pixels(svg(black, prolog=link)) == 0
    assert red_pixels(svg(f'<style>@import url("file://{secret}/secret.css");</style>{black}')) == 0


def test_control_an_entity_of_the_drawing_itself_is_shown():
    own = "<!DOCTYPE svg [<!ENTITY shape \"<rect width='50' height='50' fill='#ff0000'/>\">]>"
    assert red_pixels(svg("&shape;", prolog=own)) == 2500


def shown_or_refused(data: bytes) -> int:
    """Ink that is there, 0 where librsvg refuses the document, which is as good."""
    try:
        return int((pixels(data)[..., 3] > 0).sum())
    except SampleError:
        return 0


def test_no_entity_from_a_file(secret: Path):
    """The control above shows that such a rectangle is drawn where it is the drawing's own."""
    for url in (f"file://{secret}/secret.xml", "secret.xml"):
        general = f'<!DOCTYPE svg [<!ENTITY x SYSTEM "{url}">]>'
        parameter = f'<!DOCTYPE svg [<!ENTITY % p SYSTEM "{url}"> %p;]>'
        assert shown_or_refused(svg("&x;", prolog=general)) == 0
        assert shown_or_refused(svg("&p;", prolog=parameter)) == 0
        assert shown_or_refused(svg(f'<g><xi:include href="{url}"/></g>')) == 0


def test_no_text_from_a_file(secret: Path):
    for url in (f"file://{secret}/secret.css", "secret.css", "file:///etc/hostname"):
        entity = f'<!DOCTYPE svg [<!ENTITY x SYSTEM "{url}">]>'
        include = f'<text x="5" y="50"><xi:include href="{url}" parse="text"/></text>'
        assert shown_or_refused(svg('<text x="5" y="50">&x;</text>', prolog=entity)) == 0
        assert shown_or_refused(svg(include)) == 0


def test_nothing_is_asked_of_the_network(requests: tuple[str, list[str]]):
    address, asked = requests
    attacks = [
        svg(f'<image width="50" height="50" href="{address}/image.png"/>'),
        svg(f'<use href="{address}/use.svg#part"/>'),
        svg(f'<style>@import url("{address}/style.css");</style><rect width="50" height="50"/>'),
        svg('<text y="50">&x;</text>', prolog=f'<!DOCTYPE svg [<!ENTITY x SYSTEM "{address}/entity">]>'),
        svg(RED_RECT.replace("ff0000", "0000ff"), prolog=f'<!DOCTYPE svg SYSTEM "{address}/document.dtd">'),
        svg(f'<g><xi:include href="{address}/include.svg"/></g>'),
    ]
    for data in attacks:
        shown_or_refused(data)
    assert asked == []


def cpu_seconds_and_growth(data: bytes) -> tuple[float, float]:
    """CPU seconds that one drawing costs, and by how many MiB it lifts the peak memory."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    shown_or_refused(data)
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return time.process_time() - start, kib / 1024


def test_a_billion_laughs_fail_fast():
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
    bomb = svg('<text y="50">&a9;</text>', prolog=f'<!DOCTYPE svg [<!ENTITY a0 "lol">{entities}]>')
    with pytest.raises(SampleError) as refused:
        rasterise_svg(bomb, SIDE_PX, MAX_PIXELS)
    assert refused.value.reason == "bad_image"
    seconds, mib = cpu_seconds_and_growth(bomb)
    assert seconds < FAST_S
    assert mib < 100


def test_a_million_nested_elements_fail_fast():
    with pytest.raises(SampleError):
        rasterise_svg(svg("<g>" * 1_000_000 + "</g>" * 1_000_000), SIDE_PX, MAX_PIXELS)


@pytest.mark.slow
def test_uses_that_multiply_are_stopped():
    """Ten groups of ten uses, nine deep: librsvg stops at half a million elements, seconds and not hours."""
    uses = [f'<use href="#u{i}"/>' * 10 for i in range(9)]
    nested = "".join(f'<g id="u{i + 1}">{ten}</g>' for i, ten in enumerate(uses))
    bomb = svg(f'<defs><rect id="u0" width="1" height="1"/>{nested}</defs><use href="#u9"/>')
    with pytest.raises(SampleError):
        rasterise_svg(bomb, SIDE_PX, MAX_PIXELS)


@pytest.mark.parametrize("side", ["1e5", "30000", "10in"])
def test_a_huge_drawing_costs_what_its_raster_costs(side: str):
    """The size is read from the header and the scale applied before a pixel is drawn."""
    data = svg(RED_RECT, size=f'width="{side}" height="{side}" viewBox="0 0 100 100"')
    seconds, mib = cpu_seconds_and_growth(data)
    assert red_pixels(data) == 2500
    assert seconds < FAST_S
    assert mib < 100


@pytest.mark.parametrize("size", ['width="1e30" height="1e30"', 'width="0" height="0"', 'viewBox="0 0 1e8 1"'])
def test_an_impossible_size_is_a_sample_error(size: str):
    with pytest.raises(SampleError) as refused:
        rasterise_svg(svg(RED_RECT, size=size), SIDE_PX, MAX_PIXELS)
    assert refused.value.reason == "bad_image"


@pytest.mark.parametrize("encoding", ["shift_jis", "gb2312", "no-such-encoding"])
def test_an_encoding_that_cannot_be_read_is_a_sample_error(encoding: str):
    with pytest.raises(SampleError, match="SVG that is no XML"):
        rasterise_svg(svg("", f'<?xml version="1.0" encoding="{encoding}"?>'), SIDE_PX, MAX_PIXELS)


def test_compressed_svg_is_not_taken_for_svg():
    """librsvg unpacks gzip without a limit: a gigabyte of blanks, packed to a megabyte, took 2.9 GB of memory."""
    import gzip

    assert is_svg(svg(RED_RECT))
    assert not is_svg(gzip.compress(svg(RED_RECT)))


def test_a_picture_inside_a_drawing_is_held_to_the_pixel_limit() -> None:
    def embedding(side_px: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("1", (side_px, side_px)).save(buffer, format="PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        return svg(f'<image width="10" height="10" href="{url}"/>')

    rasterise_svg(embedding(100), SIDE_PX, 10_000)
    with pytest.raises(SampleError) as caught:
        rasterise_svg(embedding(101), SIDE_PX, 10_000)
    assert caught.value.reason == "too_many_pixels"


def test_embedded_data_that_is_no_picture_is_refused() -> None:
    url = "data:image/svg+xml;base64," + base64.b64encode(svg(RED_RECT)).decode()
    with pytest.raises(SampleError, match="embedded data that is no picture"):
        rasterise_svg(svg(f'<image width="10" height="10" href="{url}"/>'), SIDE_PX, 10_000)
