"""What a pipeline says of `crossfit` without running it."""

from __future__ import annotations

from pathlib import Path

from mmdata.steps.align.crossfit import Crossfit


def encoder(folder: Path, weights: bytes) -> dict[str, str]:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return {"kind": "sentence", "model": str(folder)}


def test_vectors_are_of_the_tower_that_wrote_them_wherever_it_lies(tmp_path: Path):
    one, two = encoder(tmp_path / "one", b"a"), encoder(tmp_path / "two", b"b")
    same = encoder(tmp_path / "same", b"a")
    spaces = []
    for left, right in ((one, two), (two, one), (one, same)):
        step = Crossfit(pair=("title", "caption"), left=left, right=right)
        spaces.append((step.vector_space("title"), step.vector_space("caption")))
    assert spaces[0][0] != spaces[0][1]
    assert spaces[1] == spaces[0][::-1]
    assert spaces[2] == (spaces[0][0], spaces[0][0])
