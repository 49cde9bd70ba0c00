from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from film import write_film
from pydantic import ValidationError
from small_clip import write_small_clip

from mmdata.media.video import spread_stills
from mmdata.models.clip_image import prepare_image
from mmdata.sample import Member, Sample
from mmdata.steps.align.clip import Clip


def test_a_film_is_the_mean_of_its_frames_and_an_image_itself(tmp_path: Path):
    film = write_film(tmp_path / "a.mp4", [2.0, 2.0]).read_bytes()
    frames = spread_stills(film, 2)
    picture = io.BytesIO()
    frames[1].save(picture, "PNG")
    members = {
        "film": Member("film", "video", "video/mp4", "mp4", film),
        "image": Member("image", "image", "image/png", "png", picture.getvalue()),
        "caption": Member("caption", "text", "text/plain", "txt", b"red, then green", "en"),
    }
    step = Clip(
        model=str(write_small_clip(tmp_path / "clip")),
        image=["image"],
        video=["film"],
        frames=2,
        precision="float32",
    )
    assert step.reads() == {"image": "image", "film": "video", "caption": "text"}
    scorer = step.load("cpu")
    item = step.prepare(scorer.recipe, Sample("0" * 32, "s", "k", members), step.edges())
    (found,) = scorer.score([item])
    one_ND = scorer.model.embed_images(np.stack([prepare_image(scorer.recipe, frame) for frame in frames]))
    assert one_ND[0] @ one_ND[1] < 0.999
    mean_D = one_ND.sum(axis=0) / np.linalg.norm(one_ND.sum(axis=0))
    np.testing.assert_allclose(found.vectors["film"], mean_D, atol=1e-6)
    np.testing.assert_allclose(found.vectors["image"], one_ND[1], atol=1e-6)
    (caption_D,) = scorer.model.embed_texts(["red, then green"])
    assert [(score.edge, score.score) for score in found.scores] == [
        ("image_caption", pytest.approx(one_ND[1] @ caption_D, abs=1e-6)),
        ("film_caption", pytest.approx(mean_D @ caption_D, abs=1e-6)),
    ]


def test_films_alone_need_no_image_and_something_must_be_named():
    assert Clip(model="ViT-B-32", video=["film"]).image == []
    assert Clip(model="ViT-B-32").image == ["image"]
    with pytest.raises(ValidationError, match="name a member, or one in 'video'"):
        Clip(model="ViT-B-32", image=[])
