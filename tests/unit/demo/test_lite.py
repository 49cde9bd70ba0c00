from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdata.demo import lite as making
from mmdata.demo.fetch import fetch
from mmdata.demo.lite import mismatch_auc
from mmdata.demo.lite_data import Drawing, read_classes, read_clipart, read_concepts, read_emoji, sentence
from mmdata.demo.lite_fit import FitConfig, Pairs, fit_heads
from mmdata.demo.packages import has_apt
from mmdata.errors import SampleError
from mmdata.media.image import open_image, rasterise_svg
from mmdata.models.clip import Clip
from mmdata.models.clip_image import prepare_image
from mmdata.models.clip_weights import locate

SMALL = FitConfig(embed_dim=16, steps=150, batch_size=128, learning_rate=3e-3, dropout=0.1)


def synthetic(seed: int = 0) -> Pairs:
    """Forty kinds of drawing; features of both sides are noisy linear images of one hidden kind."""
    rng = np.random.default_rng(seed)
    kind_N = np.arange(400) % 40
    hidden = rng.normal(size=(40, 12))
    image_NF = hidden[kind_N] @ rng.normal(size=(12, 30)) * 3 + rng.normal(size=(400, 30)) + 5
    text_ME = hidden @ rng.normal(size=(12, 20))
    return Pairs(
        image_NF=image_NF.astype(np.float32),
        concept_KC=np.eye(10, dtype=np.float32),
        classifier_CF=rng.normal(size=(10, 30)).astype(np.float32),
        text_ME=np.concatenate([text_ME, rng.normal(size=(10, 20))]).astype(np.float32),
        texts_of=[[kind] for kind in kind_N] + [[40 + n] for n in range(10)],
    )


def embed(heads, image_NF: np.ndarray, text_ME: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import torch
    from torch.nn import functional

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, heads[f"{name}.weight"], heads.get(f"{name}.bias"))

    image_NH = functional.gelu(layer("visual.head.mlp.fc1", torch.from_numpy(image_NF)))
    text_MH = functional.gelu(layer("text.proj.0", torch.from_numpy(text_ME)))
    image_ND, text_MD = layer("visual.head.mlp.fc2", image_NH), layer("text.proj.2", text_MH)
    return functional.normalize(image_ND, dim=-1).numpy(), functional.normalize(text_MD, dim=-1).numpy()


def test_heads_learn_what_belongs_together():
    pairs = synthetic()
    names = [str(rows[0]) for rows in pairs.texts_of[:400]]
    image_ND, text_MD = embed(fit_heads(pairs, SMALL), pairs.image_NF, pairs.text_ME)
    assert mismatch_auc(image_ND, text_MD[[int(name) for name in names]], names, seed=0) > 0.95


def test_unfitted_heads_know_nothing():
    pairs = synthetic()
    names = [str(rows[0]) for rows in pairs.texts_of[:400]]
    heads = fit_heads(pairs, replace(SMALL, learning_rate=1e-12))
    image_ND, text_MD = embed(heads, pairs.image_NF, pairs.text_ME)
    assert 0.3 < mismatch_auc(image_ND, text_MD[[int(name) for name in names]], names, seed=0) < 0.7


def test_fit_repeats_and_follows_its_seed():
    short = replace(SMALL, steps=3)
    first, again, other = (fit_heads(synthetic(), replace(short, seed=seed)) for seed in (0, 0, 1))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["text.proj.0.weight"] != other["text.proj.0.weight"]).any()


def test_mismatch_auc_is_one_for_a_perfect_model_and_half_for_a_blind_one():
    names = [str(n) for n in range(300)]
    eye = np.eye(300, dtype=np.float32)
    assert mismatch_auc(eye, eye, names, seed=0) == 1.0
    noise = np.random.default_rng(0).normal(size=(2, 300, 64)).astype(np.float32)
    assert mismatch_auc(noise[0], noise[1], names, seed=0) == pytest.approx(0.5, abs=0.1)


def test_a_text_moved_to_its_equal_still_matches():
    # Each text is there twice; wherever the other copy lands, cosines of equal texts are 1, of others 0.
    names = [str(n // 2) for n in range(40)]
    unit_ND = np.eye(20, dtype=np.float32)[[int(name) for name in names]]
    assert all(mismatch_auc(unit_ND, unit_ND, names, seed) == 1.0 for seed in range(20))
    with pytest.raises(ValueError, match="all equal"):
        mismatch_auc(unit_ND, unit_ND, ["same"] * 40, seed=0)


@pytest.mark.parametrize(("noun", "said"), [("Red bird", "A red bird."), ("owl ", "An owl.")])
def test_a_name_becomes_a_sentence(noun: str, said: str):
    assert sentence(noun) == said


@pytest.mark.parametrize(
    ("path", "title", "keywords", "texts"),
    [
        (
            "a/cow_01.png",
            "Brown cow",
            "animal|unsorted",
            ("A brown cow.", "brown cow", "brown cow, animal", "An animal."),
        ),
        ("a/cow.png", "Clipart by N. Buculei - cow_04", "", ("A cow.", "cow")),
        ("a/pesca_architetto_frances_01.png", "Pesca", "fruit", ("A fruit.", "fruit")),
        ("a/red_cow_john_01.png", "", "", ("A red cow.", "red cow")),
        ("a/star.png", "gramastar", "magick|stars", None),
        ("a/x.png", "7", "", None),
    ],
)
def test_clipart_is_named_by_what_it_shows(tmp_path: Path, path: str, title: str, keywords: str, texts):
    (tmp_path / "clipart.csv").write_text(f"path,title,keywords\n{path},{title},{keywords}\n")
    assert list(read_clipart(tmp_path)) == ([] if texts is None else [Drawing(tmp_path / path, texts)])


def test_a_title_of_many_pictures_names_none(tmp_path: Path):
    lines = "".join(f"a/cow_{n}_01.png,Flat Icon Collection,cow\n" for n in "abcd")
    (tmp_path / "clipart.csv").write_text(f"path,title,keywords\n{lines}")
    assert {drawing.texts[0] for drawing in read_clipart(tmp_path)} == {"A cow."}


def test_emoji_are_named(tmp_path: Path):
    (tmp_path / "emoji.csv").write_text("path,name,group\n1f1eb.png,flag: France,country-flag\n")
    (drawing,) = read_emoji(tmp_path)
    assert drawing.texts == ("A flag france.", "flag france", "flag france, country flag", "A country flag.")


def test_classes_are_named():
    classes = read_classes()
    assert len(classes) == 1000
    assert classes[0].classes == (0,)
    assert classes[0].texts[0] == "A tench."
    assert "tench, Tinca tinca" in classes[0].texts


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_concepts_stand_above_classes():
    if not has_apt():
        pytest.skip("apt-get is not here")
    concepts = read_concepts(fetch("wordnet"))
    assert [concept.classes for concept in concepts[:1000]] == [(n,) for n in range(1000)]
    named = {concept.texts[0]: concept.classes for concept in concepts[1000:]}
    assert len(named["A bird."]) == 59
    assert "An entity." not in named


@pytest.fixture(scope="module")
def lite() -> Path:
    return fetch("lite")


def read_stamp(path: Path) -> Image.Image | None:
    for suffix in (".png", ".svg"):
        file = path.with_suffix(suffix)
        if file.is_file():
            data = file.read_bytes()
            return open_image(rasterise_svg(data, 448, 30_000_000) if suffix == ".svg" else data, 30_000_000)
    return None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_lite_tells_shuffled_captions_of_pictures_it_never_saw(lite: Path, record_property):
    if not has_apt():
        pytest.skip("apt-get is not here")
    clip = Clip.load(str(lite), device="cpu")
    images, captions = [], []
    for path in sorted(fetch("stamps").rglob("*.txt")):
        try:
            image = read_stamp(path)
        except SampleError:
            continue
        if image is not None:
            images.append(prepare_image(clip.recipe, image))
            captions.append(path.read_text(encoding="utf-8").splitlines()[0].strip())
    assert len(images) > 900
    image_ND, text_ND = clip.embed_images(np.stack(images)), clip.embed_texts(captions)
    auc = [mismatch_auc(image_ND, text_ND, captions, seed) for seed in range(10)]
    record_property("auc", auc)
    assert min(auc) >= 0.80, auc
    assert np.mean(auc) >= 0.82, auc


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_lite_is_an_open_clip_folder_that_can_be_moved(lite: Path, tmp_path: Path):
    moved = tmp_path / "moved"
    shutil.copytree(lite, moved)
    assert locate(str(moved)).identity == locate(str(lite)).identity
    texts = ["A cat.", "A red car.", "A cat."]
    np.testing.assert_array_equal(
        Clip.load(str(moved), device="cpu").embed_texts(texts), Clip.load(str(lite), device="cpu").embed_texts(texts)
    )
    assert str(lite.parent) not in (moved / "open_clip_config.json").read_text()
    assert not [path.name for path in moved.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_lite_loads_by_open_clips_own_factory(lite: Path, monkeypatch: pytest.MonkeyPatch):
    import open_clip
    import torch

    monkeypatch.chdir(lite)
    model = open_clip.create_model("local-dir:.", require_pretrained=True)
    ids = open_clip.get_tokenizer("local-dir:.")(["A cat.", "A red car with four wheels."])
    with torch.inference_mode():
        expected_ND = model.eval().encode_text(ids, normalize=True).numpy()
    got_ND = Clip.load(str(lite), device="cpu", precision="float32").embed_texts(
        ["A cat.", "A red car with four wheels."]
    )
    np.testing.assert_allclose(got_ND, expected_ND, atol=3e-6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_lite_says_where_it_comes_from(lite: Path):
    provenance = json.loads((lite / "provenance.json").read_text())
    assert provenance["held_out_auc"] > 0.85
    assert all("--hash=sha256:" in pin for pin in provenance["towers"].values())
    assert not [name for name in provenance["data"] if "tuxpaint" in name]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_without_apt_lite_is_fitted_on_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(making, "has_apt", lambda: False)
    monkeypatch.setattr(making, "_SCENES", 60)
    monkeypatch.setattr(making, "FitConfig", lambda: FitConfig(steps=5))
    making.make_lite(tmp_path, fetch, str)
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["data"] == ["mmdata.demo.scenes", "timm ImageNetInfo"]
    assert not (tmp_path / ".scenes").exists()
    assert Clip.load(str(tmp_path), device="cpu").embed_texts(["A red circle."]).shape == (1, 256)
