"""Each extra by itself: what it promises runs, though nothing else is installed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from small_clip import write_small_clip

SOURCE = {
    "files": {
        "root": "media",
        "members": {
            "image": "{stem}.png",
            "caption": {"path": "{stem}.txt", "lang": "en"},
            "speech": {"path": "{stem}.wav", "lang": "en"},
            "sensor": "{stem}.npy",
        },
    }
}
OPERATORS = ["HorizontalFlip", "speed", "synonyms", "KeyboardAug", "jitter", "PitchShift", "mixgen"]
RUNS = {
    "": {
        "measure": ["picture", "wording", {"acoustics": {"of": "speech"}}, {"content": {"of": "image"}},
                    {"minhash": {"of": "caption"}}],
        "curate": [{"rules": {"keep": {"words": "caption.words > 1"}}}, {"duplicates": {"of": ["image"]}}, "splits"],
    },
    "near": {"measure": [{"pdq": {"of": "image"}}, {"soundprint": {"of": "speech"}}]},
    "personal": {"ingest": [{"text": {"mask": ["phone"]}}], "measure": ["personal"]},
    "safety": {"ingest": [{"image": {"blur_faces": True}}], "measure": ["nsfw"]},
    "ocr": {"align": ["ocr"], "measure": ["writing"]},
    "augment": {"augment": [{"joint": {"apply": OPERATORS}}]},
    "clip": {"align": [{"clip": {"model": "model"}}]},
    "clip,near": {
        "align": [{"clip": {"model": "model"}}],
        "measure": [{"neighbours": {"aligner": "clip", "of": "image"}}],
        "curate": [{"clusters": {"of": "clip.image", "count": 2}}],
    },
    "whisper": {"measure": ["voice"], "align": [{"reconcile": {"texts": ["caption"], "into": "mended", "words": "w"}}]},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("extras", RUNS, ids=lambda extras: extras or "none")
def test_an_extra_is_all_that_its_steps_need(cli, extras):
    chance = np.random.default_rng(0)
    for number in range(4):
        path = cli.folder / "media" / str(number)
        Image.fromarray(chance.integers(0, 255, (96, 96, 3), dtype=np.uint8)).save(path.with_suffix(".png"))
        soundfile.write(path.with_suffix(".wav"), 0.1 * chance.standard_normal(16_000), 16_000)
        path.with_suffix(".txt").write_text(f"A big house, number {number}; call me at +44 20 7946 0{number:03d}.")
        np.save(path.with_suffix(".npy"), chance.standard_normal((3, 50)).astype(np.float32))
    (cli.folder / "w").write_text("house\n")
    if "clip" in extras:
        write_small_clip(cli.folder / "model")
    cli.env["MMDATA_ONLY_EXTRAS"] = extras
    path = [str(Path(__file__).parents[1] / "only_extras"), os.environ.get("PYTHONPATH", "")]
    cli.env["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    cli.spec(sources=[SOURCE], **RUNS[extras])
    said = cli.build().stdout
    assert "4 inputs = 4 kept" in said
    assert cli.query("SELECT name, error FROM members WHERE error IS NOT NULL") == []
