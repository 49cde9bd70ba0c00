"""Tensors through `joint`: each operator, what it does to texts, and what runs by the same clock."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmdata.augment import registry
from mmdata.augment.base import Sides, Sound, Tensor, Text, VetoError, View, WordTime
from mmdata.augment.load import load_policy, replay
from mmdata.augment.meaning import rewrite
from mmdata.augment.mirror import mirrored
from mmdata.augment.registry import operator
from mmdata.augment.tensor import TensorOperator
from mmdata.media.tensor import measure_tensor, write_tensor
from mmdata.sample import Member, Sample
from mmdata.steps.augment.joint import Joint
from mmdata.steps.exchange import Veto

RATE_HZ = 50.0


def wave(channels: int = 3, points: int = 200, dtype: str = "float32") -> np.ndarray[Any, Any]:
    at_T = np.arange(points)
    return np.stack([100 * (c + 1) * np.sin(at_T / (3 + c)) for c in range(channels)]).astype(dtype)


def tensor(value: np.ndarray[Any, Any] | None = None, rate_hz: float | None = RATE_HZ, name: str = "imu") -> Member:
    value = wave() if value is None else value
    data = write_tensor(value)
    return Member(name, "tensor", "application/x-npy", "npy", data, None, measure_tensor(value, rate_hz))


def text(content: str, lang: str | None = "en", name: str = "caption") -> Member:
    measures = {"text": content, "chars": len(content), "words": len(content.split())}
    return Member(name, "text", "text/plain", "txt", content.encode(), lang, measures)


def picture() -> Member:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((16, 8)).rotate(90).convert("RGB").save(buffer, "PNG")
    return Member("image", "image", "image/png", "png", buffer.getvalue(), None, {"width": 16, "height": 8})


def speech(seconds: float = 4.0, rate_hz: int = 8000) -> Member:
    noise_T = np.random.default_rng(0).uniform(-0.3, 0.3, int(seconds * rate_hz))
    buffer = io.BytesIO()
    soundfile.write(buffer, noise_T, rate_hz, format="WAV", subtype="PCM_16")
    measures = {"duration_s": seconds, "sample_rate": rate_hz, "channels": 1}
    return Member("speech", "audio", "audio/wav", "wav", buffer.getvalue(), "en", measures)


def times(words: Sequence[tuple[str, float, float]]) -> Member:
    return text(json.dumps([{"word": w, "start_s": a, "end_s": b} for w, a, b in words]), None, "times")


def sample(*members: Member) -> Sample:
    return Sample("0" * 32, "s", "k", {member.name: member for member in members})


def made(parent: Sample, *apply: Any, **params: Any) -> Sample | Veto:
    (child,) = Joint.model_validate({"apply": list(apply), **params}).make(parent, 0, lambda _, __: None)
    return child


def child_of(parent: Sample, *apply: Any, **params: Any) -> Sample:
    child = made(parent, *apply, **params)
    assert isinstance(child, Sample), child
    return child


def reason(parent: Sample, *apply: Any, **params: Any) -> str:
    veto = made(parent, *apply, **params)
    assert isinstance(veto, Veto), veto
    return veto.reason


def value_of(child: Sample, name: str = "imu") -> np.ndarray[Any, Any]:
    value: np.ndarray[Any, Any] = np.load(io.BytesIO(child.members[name].data), allow_pickle=False)
    return value


def view_of(**tensors: Tensor) -> View:
    return View(tensors=tensors, members={"tensor": tuple(tensors)})


def applied(name: str, params: dict[str, Any], view: View, seed: int = 0) -> View:
    found = operator(name, params)
    assert callable(found)
    return found(view, np.random.default_rng(seed)).view


# --- one by one ------------------------------------------------------------------------------------------------------


def test_jitter_is_noise_at_the_ratio_asked_for_in_each_channel() -> None:
    child = child_of(sample(tensor()), {"jitter": {"snr_db": [20, 20]}})
    noise_CT = value_of(child).astype(np.float64) - wave().astype(np.float64)
    ratio_C = 10 * np.log10(wave().astype(np.float64).var(axis=1) / np.square(noise_CT).mean(axis=1))
    assert ratio_C == pytest.approx([20, 20, 20], abs=1e-3)
    assert child.members["imu"].measures == measure_tensor(value_of(child), RATE_HZ)
    assert child.augmentation is not None
    assert child.augmentation["applied"][0]["drawn"] == {"snr_db": 20.0}


def test_a_channel_that_never_changes_gets_no_jitter_and_what_is_not_finite_stays() -> None:
    value = wave()
    value[1], value[0, 3] = 7, np.nan
    found = value_of(child_of(sample(tensor(value)), "jitter"))
    assert (found[1] == 7).all()
    assert np.isnan(found).sum() == 1
    assert np.isnan(found[0, 3])
    assert reason(sample(tensor(np.full((2, 5), 3.0))), "jitter") == "constant"


def test_scale_is_one_factor_for_all() -> None:
    child = child_of(sample(tensor(), tensor(wave(2), name="gyro")), {"scale": {"factor": [1.5, 1.5]}})
    assert value_of(child) == pytest.approx(wave() * 1.5)
    assert value_of(child, "gyro") == pytest.approx(wave(2) * 1.5)
    only = child_of(sample(tensor(), tensor(wave(2), name="gyro")), {"scale": {"members": ["gyro"]}})
    assert only.members["imu"] == tensor()
    assert only.members["gyro"].data != tensor(wave(2)).data


@pytest.mark.parametrize(("dtype", "least", "most"), [("int8", -128, 127), ("uint8", 0, 255), ("int64", None, None)])
def test_whole_numbers_stay_whole_and_within_their_type(dtype: str, least: int | None, most: int | None) -> None:
    value = np.array([[100, -100, 7]]) if dtype != "uint8" else np.array([[100, 200, 7]])
    found = value_of(child_of(sample(tensor(value.astype(dtype))), {"scale": {"factor": [2, 2]}}))
    wanted = np.array(value * 2) if least is None else np.clip(value * 2, least, most)
    assert (found.dtype, found.tolist()) == (np.dtype(dtype), wanted.tolist())
    great = np.array([[np.iinfo(np.int64).max]])
    assert value_of(child_of(sample(tensor(great)), {"scale": {"factor": [2, 2]}}))[0, 0] > 2**62


def test_a_masked_stretch_rests_at_the_mean() -> None:
    child = child_of(sample(tensor()), {"mask_time": {"share": [0.1, 0.1]}})
    changed_T = np.flatnonzero((value_of(child) != wave()).any(axis=0))
    assert len(changed_T) == 20
    assert changed_T[-1] - changed_T[0] == 19
    assert value_of(child)[:, changed_T] == pytest.approx(
        np.repeat(wave().astype(np.float64).mean(axis=1, keepdims=True), 20, axis=1), rel=1e-5
    )
    assert reason(sample(tensor(wave(1, 3))), {"mask_time": {"share": [0.01, 0.01]}}) == "too_short"


def test_dropped_channels_are_silent_and_one_stays() -> None:
    child = child_of(sample(tensor(), text("turn left, then stand still")), {"drop_channels": {"channels": [2, 9]}})
    silent_C = (value_of(child) == 0).all(axis=1)
    assert silent_C.sum() == 2
    assert (value_of(child)[~silent_C] == wave()[~silent_C]).all()
    assert child.members["caption"].text == "turn left, then stand still"
    assert reason(sample(tensor(wave(1))), "drop_channels") == "too_few_channels"


def test_an_operator_without_its_tensor_is_left_out() -> None:
    assert reason(sample(text("a walk")), "jitter") == "nothing_drawn"
    assert reason(sample(tensor()), {"jitter": {"members": ["gyro"]}}) == "no_tensor"


@pytest.mark.parametrize(
    ("op", "params", "message"),
    [
        ("jitter", {"snr": [1, 2]}, "jitter: unknown parameter 'snr'; did you mean 'snr_db'?"),
        ("jitter", {"snr_db": [3, 2]}, "is no range"),
        ("scale", {"factor": [0, 1]}, "is no range above 0"),
        ("mask_time", {"share": [0.5, 1.5]}, "is no range above 0.0 up to 1.0"),
        ("drop_channels", {"channels": [0, 1]}, "is no range above 0"),
    ],
)
def test_parameters_are_checked_when_planning(op: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        operator(op, params)


# --- what texts say --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lang", "gentle", "twice"),
    [
        ("en", "he shakes it gently", "he waves two times, then rests"),
        ("fr", "il le secoue doucement", "il salue deux fois"),
        ("es", "lo agita suavemente", "saluda dos veces"),
        ("de", "er schüttelt es sanft", "er winkt zwei Mal"),
        ("ru", "он слабо трясёт его", "он машет два раза"),  # noqa: RUF001 - Russian
        ("zh", "他轻轻地摇", "他挥手两次"),
    ],
)
def test_how_strong_and_how_often_is_minded_in_six_languages(lang: str, gentle: str, twice: str) -> None:
    for effect, said, wanted in (("strength", gentle, "strength_named"), ("gap", twice, "may_be_cut")):
        with pytest.raises(VetoError) as caught:
            rewrite(said, lang, frozenset({effect}))
        assert caught.value.reason == wanted
    assert reason(sample(tensor(), text(gentle, lang)), "scale") == "strength_named"
    assert reason(sample(tensor(), text(gentle, lang)), "jitter") == "strength_named"
    assert reason(sample(tensor(), text(twice, lang)), "mask_time") == "may_be_cut"


def test_another_language_is_never_guessed_at() -> None:
    assert reason(sample(tensor(), text("cammina piano", "it")), "scale") == "unknown_language"


# --- mirrors ---------------------------------------------------------------------------------------------------------

SIDES = {"imu": {"swap": [[0, 1]], "negate": [2]}}


def mirror_of(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = np.stack([value[1], value[0], -value[2]])
    return found


def test_a_mirrored_picture_mirrors_what_sensors_felt() -> None:
    child = child_of(sample(picture(), tensor(), text("turn left")), "HorizontalFlip", sides=SIDES)
    assert (value_of(child) == mirror_of(wave())).all()
    assert child.members["caption"].text == "turn right"
    assert child.members["image"].data != picture().data


def test_a_tensor_of_unknown_sides_is_no_part_of_a_mirror() -> None:
    parent = sample(picture(), tensor(), text("turn left"))
    assert reason(parent, "HorizontalFlip") == "sides_unknown"
    assert reason(sample(picture(), tensor(), tensor(name="gyro")), "HorizontalFlip", sides=SIDES) == "sides_unknown"
    assert child_of(parent, "HorizontalFlip", sides={"imu": {}}).members["imu"] == tensor()
    wrong = {"imu": {"swap": [[0, 3]]}}
    assert reason(parent, "HorizontalFlip", sides=wrong) == "no_such_channel"
    assert reason(sample(picture(), tensor(wave(dtype="uint8"))), "HorizontalFlip", sides=SIDES) == "no_numbers"


def test_without_a_picture_sensors_are_mirrored_alone() -> None:
    child = child_of(sample(tensor(), text("turn left")), "mirror_channels", sides=SIDES)
    assert (value_of(child) == mirror_of(wave())).all()
    assert child.members["caption"].text == "turn right"
    assert reason(sample(picture(), tensor()), "mirror_channels", sides=SIDES) == "pictures_stay"
    assert reason(sample(tensor(), text("a sign says stop")), "mirror_channels", sides=SIDES) == "mirrored_writing"


def test_twice_is_what_it_was() -> None:
    parent = sample(tensor(), text("turn left"))
    again = child_of(child_of(parent, "mirror_channels", sides=SIDES), "mirror_channels", sides=SIDES)
    assert again.members == parent.members


def test_sides_are_those_of_a_declared_tensor() -> None:
    step = Joint.model_validate({"apply": ["HorizontalFlip"], "sides": SIDES})
    assert step.reads() == {"imu": None}  # or a sound: `check` looks
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Joint.model_validate({"apply": ["HorizontalFlip"], "sides": {"imu": {"negate": [-1]}}})


# --- one clock -------------------------------------------------------------------------------------------------------

WORDS = [("go", 0.2, 0.6), ("to", 0.9, 1.1), ("the", 1.3, 1.5), ("door", 2.0, 2.6), ("now", 3.0, 3.7)]
SAID = "Go to the door, now!"
CLOCK = {"time_crop": {"min_s": 1, "max_s": 2, "clock": ["speech", "imu"]}}


def test_sound_words_and_sensors_of_one_clock_are_cut_together() -> None:
    parent = sample(speech(), tensor(), text(SAID, name="said"), times(WORDS))
    notes = {"times": {"speech": "times"}, "spoken": {"speech": ["said"]}}
    child = child_of(parent, CLOCK, **notes)
    assert child.augmentation is not None
    drawn = child.augmentation["applied"][0]["drawn"]
    assert drawn["speech"] == drawn["imu"]
    start_s, end_s = drawn["imu"]
    first, last = round(start_s * RATE_HZ), round(end_s * RATE_HZ)
    assert (value_of(child) == wave()[:, first:last]).all()
    assert child.members["imu"].measures["duration_s"] == pytest.approx(end_s - start_s, abs=1 / RATE_HZ)
    assert child.members["speech"].measures["duration_s"] == pytest.approx(end_s - start_s, abs=1e-3)
    inside = [(w, a, b) for w, a, b in WORDS if start_s <= a and b <= end_s]
    told = json.loads(child.members["times"].text)
    wanted = [(w, pytest.approx(a - start_s, abs=1e-3)) for w, a, _ in inside]
    assert [(w["word"], w["start_s"]) for w in told] == wanted
    assert len(child.members["said"].text.split()) == len(inside)


def test_what_has_no_clock_or_another_is_not_cut() -> None:
    crop = {"time_crop": {"min_s": 1, "max_s": 2, "clock": ["imu", "gyro"]}}
    assert reason(sample(tensor(rate_hz=None), tensor(name="gyro")), crop) == "no_clock"
    assert reason(sample(tensor(), tensor(wave(1, 100), name="gyro")), crop) == "clocks_differ"
    child = child_of(sample(tensor(), tensor(wave(1, 400), 100.0, "gyro")), crop)
    points = {name: child.members[name].measures["shape"][-1] for name in ("imu", "gyro")}
    assert points["gyro"] == pytest.approx(2 * points["imu"], abs=2)
    assert reason(sample(tensor(name="depth")), crop) == "nothing_to_cut"
    assert reason(sample(tensor(), text("walks, then sits")), {"time_crop": {"clock": ["imu"]}}) == "may_be_cut"


@pytest.mark.parametrize("apply", [{"time_crop": {"max_s": 2, "clock": ["imu"]}}, "mask_time"])
def test_what_a_text_tells_of_sensors_is_not_cut_out(apply: Any) -> None:
    parent = sample(tensor(), text("walks and jumps"))
    assert reason(parent, apply) == "may_be_cut"
    assert reason(parent, apply, heard={"imu": ["caption"]}) == "may_be_cut"
    for free in ({"heard": {"imu": []}}, {"written": ["caption"]}):
        assert child_of(parent, apply, **free).members["imu"] != tensor()
    other = sample(tensor(), tensor(name="gyro"), text("walks and jumps"))
    only = {"mask_time": {"members": ["gyro"]}}
    assert reason(other, only, heard={"imu": []}) == "may_be_cut"
    assert child_of(other, only, heard={"gyro": []}).members["gyro"] != tensor(name="gyro")


def test_times_of_what_a_sound_tells_hold_of_the_sensors_of_its_clock() -> None:
    heard = times([("a step", 0.1, 0.8), ("a jump", 3.0, 3.8)])
    parent = sample(speech(), tensor(), text("a step and a jump"), heard)
    crop = {"time_crop": {"min_s": 1.5, "max_s": 2.5, "clock": ["speech", "imu"]}}
    samples = [replace(parent, sample_id=f"{n:032x}") for n in range(8)]
    children = [child_of(one, crop, times={"speech": "times"}, spoken={}) for one in samples]
    assert {child.members["caption"].text for child in children} == {"a step", "a jump"}


def test_what_runs_along_is_never_left_behind() -> None:
    parent = sample(speech(), tensor())
    for op in ("speed", {"time_crop": {"max_s": 2}}, "TimeStretch", "Reverse"):
        assert reason(parent, op, spoken={}) == "out_of_step", op
    # Neither a feature without time nor an operator that leaves times as they are minds.
    assert child_of(sample(speech(), tensor(rate_hz=None)), "speed", spoken={}).members["imu"] == tensor(rate_hz=None)
    assert child_of(parent, "add_noise", spoken={}).members["imu"] == tensor()


def test_a_child_can_be_replayed_from_its_record() -> None:
    parent = sample(tensor(), picture(), text("turn left"))
    spec = {
        "label": "joint",
        "apply": [{"op": op, "params": {}} for op in ("HorizontalFlip", "drop_channels", "scale")],
        "sides": SIDES,
    }
    child = load_policy(spec).child(parent, 0, 7)
    assert child.augmentation is not None
    record = {"variant": "joint_0", "augmentation": json.loads(json.dumps(child.augmentation))}
    assert len(child.augmentation["applied"]) == 3
    assert replay(parent, spec, record).members == child.members


# --- functions of others ---------------------------------------------------------------------------------------------


def reversed_in_time(**params: Any) -> TensorOperator:
    if params:
        raise ValueError(f"backwards: unknown parameter '{next(iter(params))}'")

    def function(one: Tensor, rng: np.random.Generator) -> Tensor:
        return replace(one, value=one.value[..., ::-1] + np.float32(rng.integers(2, 3)))

    return TensorOperator("backwards", function, frozenset({"gap"}), retimed=True)


def test_a_registered_function_is_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("backwards", "test_tensor:reversed_in_time", "mmdata.operators")
    monkeypatch.setattr(EntryPoint, "load", lambda _: reversed_in_time)
    monkeypatch.setattr(registry, "_offered", lambda: (point,))
    child = child_of(sample(tensor(), text("a walk")), "backwards")
    assert (value_of(child) == wave()[:, ::-1] + 2).all()
    assert reason(sample(tensor(), text("walks, then sits")), "backwards") == "may_be_cut"
    with pytest.raises(ValueError, match="unknown parameter 'speed'"):
        Joint.model_validate({"apply": [{"backwards": {"speed": 2}}]})


def test_a_function_that_gives_no_tensor_is_a_defect() -> None:
    bad = TensorOperator("bad", lambda one, _: one.value)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="bad made no tensor of numbers of 'imu'"):
        bad(view_of(imu=Tensor(wave())), np.random.default_rng(0))


# --- whatever anybody has --------------------------------------------------------------------------------------------

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 40))
DTYPES = st.sampled_from(["float32", "float64", "int16", "uint8", "float16"])


@settings(max_examples=60)
@given(SHAPES, DTYPES, st.sampled_from(["jitter", "scale", "mask_time", "drop_channels"]), st.integers(0, 99))
def test_shape_and_type_stay_and_the_parent_is_never_changed(
    shape: tuple[int, int], dtype: str, op: str, seed: int
) -> None:
    value = np.random.default_rng(seed).uniform(0, 100, shape).astype(dtype)
    before = value.copy()
    try:
        found = applied(op, {}, view_of(imu=Tensor(value, 10.0)), seed).tensors["imu"]
    except VetoError:
        found = Tensor(value, 10.0)
    assert (found.value.shape, found.value.dtype, found.rate_hz) == (shape, np.dtype(dtype), 10.0)
    assert np.isfinite(found.value).all()
    assert (value == before).all()


@settings(max_examples=60)
@given(SHAPES, st.data())
def test_a_mirror_of_a_mirror_is_what_it_was(shape: tuple[int, int], data: st.DataObject) -> None:
    channels = st.integers(0, shape[0] - 1)
    swap = tuple(data.draw(st.lists(st.tuples(channels, channels), max_size=1)))
    negate = tuple(data.draw(st.lists(channels.filter(lambda c: all(c not in pair for pair in swap)), unique=True)))
    value = np.random.default_rng(0).uniform(-9, 9, shape)
    view = replace(view_of(imu=Tensor(value)), sides={"imu": Sides(swap, negate)})
    once = mirrored(view, view)
    assert (mirrored(once, once).tensors["imu"].value == value).all()


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0.05, 0.6), st.floats(0.0, 0.5)), max_size=8),
    st.floats(5, 200),
    st.floats(0.3, 6),
    st.integers(0, 999),
)
def test_a_crop_stays_inside_and_times_are_right(
    parts: list[tuple[float, float]], rate_hz: float, most_s: float, seed: int
) -> None:
    at, words = 0.0, []
    for n, (length, pause) in enumerate(parts):
        words.append(WordTime(f"w{n}", at + pause, at + pause + length))
        at += pause + length
    total_s = at + 1.0
    points = round(total_s * rate_hz)
    assume(abs(points / rate_hz - total_s) < 0.1 * total_s)
    sound = Sound(np.arange(round(total_s * 1000), dtype=np.float32)[None] / 1e5, 1000)
    view = View(
        sounds={"speech": sound},
        tensors={"imu": Tensor(np.arange(points)[None], rate_hz)},
        texts={"said": Text(" ".join(word.word for word in words), "en")},
        words={"speech": tuple(words)} if words else {},
        members={"audio": ("speech",), "tensor": ("imu",)},
    )
    try:
        after = applied("time_crop", {"min_s": 0.25, "max_s": most_s, "clock": ["speech", "imu"]}, view, seed)
    except VetoError as veto:
        assert veto.reason == "too_short"  # noqa: PT017
        return
    heard_T, felt_T = after.sounds["speech"].audio_CT[0], after.tensors["imu"].value[0]
    start_s = float(heard_T[0]) * 1e5 / 1000
    assert (np.diff(felt_T) == 1).all()
    assert len(heard_T) / 1000 <= most_s + 2e-3
    assert abs(felt_T[0] / rate_hz - start_s) <= 0.5 / rate_hz + 2e-3
    for word in after.words.get("speech", ()):
        (old,) = (one for one in words if one.word == word.word)
        assert word.start_s == pytest.approx(old.start_s - start_s, abs=2e-3)
        assert -1e-9 <= word.start_s < word.end_s <= len(heard_T) / 1000 + 2e-3
