"""CLAP, with small random models: the numbers are those of transformers' own processor and model."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mmdata.errors import MissingExtraError, WeightsError
from mmdata.models.clap import Clap, ClapRecipe, locate, prepare_sound
from mmdata.sample import Member, Sample

RATE_HZ = 48_000
TEXTS = ["a dog barks", "rain", "", "a long caption about birds that sing in the morning " * 20, "rain"]


def save(path: Path, minilm: Path, fused: bool, padding: str = "repeatpad") -> Path:
    """A CLAP folder as `save_pretrained` of transformers makes it."""
    import torch
    from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel

    text = {
        "vocab_size": 30522,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 100,
        "pad_token_id": 0,
    }
    audio = {
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 4],
        "patch_embeds_hidden_size": 16,
        "hidden_size": 128,
        "enable_fusion": fused,
        "fusion_type": "aff_2d" if fused else None,
    }
    torch.manual_seed(0)
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=32))
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(path)
    truncation = "fusion" if fused else "rand_trunc"
    ClapFeatureExtractor(truncation=truncation, padding=padding).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def minilm() -> Path:
    from mmdata.demo.fetch import fetch

    return fetch("minilm")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> dict[bool, Path]:
    home = tmp_path_factory.mktemp("clap")
    return {fused: save(home / f"fused-{fused}", minilm, fused) for fused in (False, True)}


@pytest.fixture(scope="module")
def claps(folders: dict[bool, Path]) -> dict[bool, Clap]:
    import torch

    torch.set_num_threads(1)
    return {fused: Clap.load(str(folder), "cpu") for fused, folder in folders.items()}


def clip_of(duration_s: float, seed: int = 0) -> np.ndarray:
    """A sweep in noise: no two seconds of it sound alike."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(duration_s * RATE_HZ)) / RATE_HZ
    tone = np.sin(2 * np.pi * (200 + 150 * (seed + 1) * t) * t)
    return (0.3 * tone + 0.02 * rng.standard_normal(len(t))).astype(np.float32)


def extractor(folder: Path) -> Any:
    from transformers import ClapFeatureExtractor

    return ClapFeatureExtractor.from_pretrained(folder)


def theirs(folder: Path, audio_T: np.ndarray) -> Any:
    return extractor(folder)(audio_T, sampling_rate=RATE_HZ, return_tensors="pt")


def middle_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers draws at random it takes the middle, as we do."""
    monkeypatch.setattr(np.random, "choice", lambda values: values[len(values) // 2])
    monkeypatch.setattr(np.random, "randint", lambda low, high: (low + high - 1) // 2)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("duration_s", [0.01, 0.7, 3.0, 4.999, 5.0, 10.0, 10.005, 10.3, 14.2, 31.0])
def test_mels_are_those_of_transformers(
    folders: dict[bool, Path],
    claps: dict[bool, Clap],
    fused: bool,
    duration_s: float,
    monkeypatch: pytest.MonkeyPatch,
):
    middle_choices(monkeypatch)
    audio_T = clip_of(duration_s)
    sound, expected = prepare_sound(claps[fused].recipe, audio_T), theirs(folders[fused], audio_T)
    assert sound.mel_CFM.dtype == np.float32
    # Versions of torch differ by some tenths of a thousandth of a decibel in how they shrink what is longer.
    longer = duration_s > 10.005
    np.testing.assert_allclose(sound.mel_CFM, expected["input_features"][0], atol=1e-3 if fused and longer else 1e-4)
    # A fused model takes what is less than a hop longer as it is.
    assert sound.longer == (duration_s > (10.005 if fused else 10.0))


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
def test_short_clips_are_filled_as_the_model_says(tmp_path: Path, minilm: Path, padding: str):
    folder = save(tmp_path, minilm, False, padding)
    audio_T = clip_of(3.3)
    sound = prepare_sound(Clap.load(str(folder), "cpu").recipe, audio_T)
    np.testing.assert_allclose(sound.mel_CFM, theirs(folder, audio_T)["input_features"][0], atol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_embeddings_are_those_of_transformers(
    folders: dict[bool, Path], claps: dict[bool, Clap], fused: bool, monkeypatch: pytest.MonkeyPatch
):
    """One clip at a time, because transformers' extractor calls one of a batch longer that is not."""
    import torch
    from transformers import AutoTokenizer, ClapModel

    middle_choices(monkeypatch)
    model = ClapModel.from_pretrained(folders[fused]).eval()
    clips = [clip_of(2.0, 1), clip_of(10.0, 2), clip_of(17.0, 3)]
    got_ND = claps[fused].embed_sounds([prepare_sound(claps[fused].recipe, clip) for clip in clips])
    tokens = AutoTokenizer.from_pretrained(folders[fused])(
        TEXTS, padding=True, truncation=True, max_length=99, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = []
        for clip in clips:
            inputs = theirs(folders[fused], clip)
            inputs["is_longer"] = torch.tensor([[len(clip) > 480_000]])
            expected.append(model.get_audio_features(**inputs).pooler_output[0].numpy())
        text_ND = model.get_text_features(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output.numpy()
    assert got_ND.dtype == np.float32
    assert np.ptp(np.stack(expected), axis=0).max() > 1e-3
    np.testing.assert_allclose(got_ND, np.stack(expected), atol=1e-4)
    np.testing.assert_allclose(claps[fused].embed_texts(TEXTS), text_ND, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(got_ND, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_a_clip_embeds_the_same_in_any_company(claps: dict[bool, Clap], fused: bool):
    clap = claps[fused]
    sounds = [prepare_sound(clap.recipe, clip_of(duration_s, seed)) for seed, duration_s in enumerate([1, 12, 3])]
    all_ND = clap.embed_sounds(sounds)
    for row, sound in enumerate(sounds):
        np.testing.assert_allclose(clap.embed_sounds([sound])[0], all_ND[row], atol=1e-5)
    np.testing.assert_array_equal(clap.embed_sounds(sounds), all_ND)
    np.testing.assert_allclose(clap.embed_texts(TEXTS[:1]), clap.embed_texts(TEXTS)[:1], atol=1e-5)


def test_nothing_embeds_to_no_rows(claps: dict[bool, Clap]):
    assert claps[False].embed_sounds([]).shape == claps[False].embed_texts([]).shape == (0, 32)


def test_an_hour_of_sound_is_prepared_in_blocks(claps: dict[bool, Clap], monkeypatch: pytest.MonkeyPatch):
    audio_T = clip_of(25.0)
    whole = prepare_sound(claps[True].recipe, audio_T)
    monkeypatch.setattr("mmdata.models.clap._FRAMES_AT_ONCE", 100)
    np.testing.assert_array_equal(prepare_sound(claps[True].recipe, audio_T).mel_CFM, whole.mel_CFM)


def test_a_worker_needs_no_torch(claps: dict[bool, Clap], folders: dict[bool, Path]):
    code = (
        "import pickle, sys, numpy as np; from mmdata.models.clap import locate, prepare_sound;"
        f"locate({str(folders[True])!r}); assert 'numpy' in sys.modules;"
        "recipe = pickle.load(sys.stdin.buffer); prepare_sound(recipe, np.ones(48000, np.float32));"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    recipe = pickle.dumps(claps[True].recipe)
    subprocess.run([sys.executable, "-c", code], input=recipe, check=True)
    light = (
        "import sys; import mmdata.models.clap, mmdata.steps.align.clap;"
        "assert not {'numpy', 'torch', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", light], check=True)


def test_folder_identity_is_its_content(folders: dict[bool, Path], tmp_path: Path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folders[False].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert locate(str(copy)).identity == locate(str(folders[False])).identity != locate(str(folders[True])).identity
    (copy / "preprocessor_config.json").write_text("{}")
    assert locate(str(copy)).identity != locate(str(folders[False])).identity
    (copy / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has no model.safetensors or pytorch_model.bin"):
        locate(str(copy))


def test_names_and_missing_folders(tmp_path: Path):
    assert locate("laion/clap-htsat-unfused").identity == "laion/clap-htsat-unfused"
    with pytest.raises(WeightsError, match="is not there"):
        locate(str(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match=r"has no config.json, preprocessor_config.json"):
        locate(str(tmp_path))


def test_weights_that_are_not_there_are_not_made_up(folders: dict[bool, Path], tmp_path: Path):
    from safetensors.torch import load_file, save_file

    for path in folders[False].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["text_projection.linear1.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"no weights for text_projection.linear1.weight"):
        Clap.load(str(tmp_path), "cpu")


def test_another_model_is_refused(minilm: Path, tmp_path: Path, folders: dict[bool, Path]):
    for path in minilm.iterdir():
        if path.is_file():
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "preprocessor_config.json").write_bytes((folders[False] / "preprocessor_config.json").read_bytes())
    with pytest.raises(WeightsError, match="is a bert model, not CLAP"):
        Clap.load(str(tmp_path), "cpu")


def test_fusion_must_be_that_of_the_model(folders: dict[bool, Path], tmp_path: Path):
    for path in folders[False].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "preprocessor_config.json").write_bytes((folders[True] / "preprocessor_config.json").read_bytes())
    with pytest.raises(WeightsError, match="does not go with enable_fusion"):
        Clap.load(str(tmp_path), "cpu")


def test_without_transformers_the_extra_is_named(folders: dict[bool, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"needs transformers: pip install 'mmdata\[clap\]'"):
        Clap.load(str(folders[False]), "cpu")


def wav(audio_T: np.ndarray, rate_hz: int = RATE_HZ) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, audio_T, rate_hz, "PCM_16", format="WAV")
    return buffer.getvalue()


def test_decoding_at_48_khz_keeps_what_is_there():
    from mmdata.media.audio import decode_mono

    audio_T = clip_of(1.5)
    got_T = decode_mono(wav(audio_T), 60, RATE_HZ)
    assert len(got_T) == len(audio_T)
    np.testing.assert_allclose(got_T, audio_T, atol=1e-4)
    assert len(decode_mono(wav(audio_T), 0.5, RATE_HZ)) == RATE_HZ // 2
    assert abs(len(decode_mono(wav(audio_T), 60)) - 24_000) < 100
    tone_T = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    up_T = decode_mono(wav(tone_T, 16_000), 60, RATE_HZ)
    assert abs(np.argmax(np.abs(np.fft.rfft(up_T))) * RATE_HZ / len(up_T) - 440) < 2


def test_the_step_scores_each_sound_with_each_text(folders: dict[bool, Path], claps: dict[bool, Clap]):
    from mmdata.steps.align.clap import Clap as Step

    step = Step(model=str(folders[False]), sound=["sound"], text=["caption", "title"])
    assert step.reads() == {"sound": "audio", "caption": "text", "title": "text"}
    audio_T = clip_of(1.2)

    def sample(**members: bytes) -> Sample:
        kinds = {"sound": ("audio", "wav")}
        made = {n: Member(n, *_kind(kinds.get(n)), data) for n, data in members.items()}
        return Sample(sample_id="x", source="s", key="k", members=made)

    def _kind(kind: Any) -> tuple[Any, str, str]:
        return (kind[0], "audio/wav", kind[1]) if kind else ("text", "text/plain", "txt")

    recipe = pickle.loads(pickle.dumps(step.load("cpu").recipe))
    assert isinstance(recipe, ClapRecipe)
    both = sample(sound=wav(audio_T), caption=b"a dog barks", title=b"rain")
    items = [step.prepare(recipe, both, step.edges()), step.prepare(recipe, both, step.edges()[:1])]
    assert step.prepare(recipe, sample(caption=b"rain"), step.edges()) is None
    first, second = step.load("cpu").score(items)
    assert [score.edge for score in first.scores] == ["sound_caption", "sound_title"]
    assert list(first.vectors) == ["sound", "caption", "title"]
    assert list(second.vectors) == ["sound", "caption"]
    text_ND = claps[False].embed_texts(["a dog barks", "rain"])
    np.testing.assert_allclose(first.vectors["caption"], text_ND[0], atol=1e-5)
    for score, vector in zip(first.scores, text_ND, strict=True):
        assert score.score == pytest.approx(float(first.vectors["sound"] @ vector), abs=1e-5)
    assert first.scores[0].score != pytest.approx(first.scores[1].score, abs=1e-4)
