"""What holds for any text and any picture: shares are shares, masks hide all that is found and nothing else."""

from __future__ import annotations

import io
from dataclasses import asdict
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmdata.media.personal import KINDS, find_personal, mask_personal
from mmdata.media.picture import measure_picture
from mmdata.media.wording import measure_wording

_PIECES = st.sampled_from(
    ["a cat", "jane@example.org", "+1 650 253 0000", "4111 1111 1111 1111", "8.8.44.17", "2024-01-15", "12", ". ", ", "]
)
_TEXTS = st.one_of(st.text(max_size=80), st.lists(_PIECES, max_size=8).map(" ".join))
_REGIONS = ("US", "FR")


@given(_TEXTS)
def test_what_is_masked_is_what_was_found_and_is_found_no_more(text: str) -> None:
    found = find_personal(text, KINDS, _REGIONS)
    assert all(a.end <= b.start for a, b in pairwise(found))
    masked, count = mask_personal(text, KINDS, _REGIONS)
    assert count == len(found)
    kept, end = "", 0
    for one in found:
        kept, end = kept + text[end : one.start] + f"<{one.kind.upper()}>", one.end
    assert masked == kept + text[end:]
    assert find_personal(masked, KINDS, _REGIONS) == []


@given(_TEXTS, st.integers(1, 5))
def test_shares_of_a_text_are_shares(text: str, size: int) -> None:
    found = asdict(measure_wording(text, size))
    shares = [found[name] for name in ("letters", "digits", "distinct_words", "repetition", "top_bigram")]
    assert all(0 <= share <= 1 for share in shares)
    assert found["upper"] is None or 0 <= found["upper"] <= 1
    twice = measure_wording(f"{text} {text}", size)
    assert twice.repetition >= found["repetition"] - 1e-9


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1), st.sampled_from(["L", "RGB", "RGBA"]))
def test_measures_of_a_picture_have_their_range(width: int, height: int, seed: int, mode: str) -> None:
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, rng.integers(1, 257), (height, width, channels)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if mode == "L" else pixels, mode if mode != "L" else None).save(buffer, "PNG")
    found = measure_picture(buffer.getvalue())
    assert found.sharpness is None or 0 <= found.sharpness <= 1
    assert 0 <= found.entropy <= 8
    assert 0 <= found.brightness <= 1
    assert 0 <= found.contrast <= 0.5
    assert 0 < found.flat <= 1
    assert 0 <= found.transparency <= 1
    assert found.aspect == width / height
