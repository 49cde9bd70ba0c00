"""What a model learns from by distillation: vectors beside the shards, or a model that embeds each batch."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmdata.errors import SampleError, SpecError, TrainError
from mmdata.train.batch import Collate, Lesson, Space
from mmdata.train.config import load_config
from mmdata.train.dataset import MixedDataset, SampleDataset, iter_texts, open_split
from mmdata.train.export import load_model
from mmdata.train.manifest import open_folder
from mmdata.train.run import train
from mmdata.train.shards import ShardReader
from mmdata.train.teacher import RunTeacher, load_teacher
from mmdata.train.tokens import fit_tokenizer

NAME, DIM = "clip.image", 6


def quiet(_: str) -> None:
    pass


@pytest.fixture
def taught_shards(shape_shards: Path) -> Path:
    """With a vector for each sample but the fourth of each shard."""
    manifest = json.loads((shape_shards / "manifest.json").read_text())
    manifest["embeddings"] = {NAME: {"dim": DIM, "suffix": f".{NAME}.npy"}}
    (shape_shards / "manifest.json").write_text(json.dumps(manifest))
    for number, shard in enumerate(sorted(shape_shards.glob("*.tar"))):
        vector_ND = np.random.default_rng(number).normal(size=(12, DIM)).astype(np.float16)
        vector_ND[3] = 0
        np.save(shard.with_suffix(f".{NAME}.npy"), vector_ND)
    return shape_shards


def dataset_of(write_config: Callable[..., Path], shards: Path) -> SampleDataset:
    config = load_config(write_config(shards), [f"data.teachers={{image: {NAME}}}"])
    split = open_split(open_folder(shards), "train", config.data)
    return SampleDataset(split, config.data, 0, fit_tokenizer(iter_texts(split, config.data), 400), 0)


@pytest.fixture
def run(write_config: Callable[..., Path], taught_shards: Path, tmp_path: Path) -> Path:
    train(write_config(taught_shards), ["steps=2", "optim.warmup=1"], tmp_path / "teacher", quiet)
    return tmp_path / "teacher"


def test_stored_vectors_come_with_their_samples(write_config, taught_shards: Path):
    dataset = dataset_of(write_config, taught_shards)
    (lesson,) = dataset.lessons.values()
    assert lesson == Lesson("image", Space(NAME, DIM))
    batch = Collate(("text", "image", "audio"), (lesson,))([dataset[0, row] for row in (3, 0, 13)])
    stored = [np.load(taught_shards / f"train-00000{shard}.{NAME}.npy") for shard in (0, 1)]
    expected = np.stack([np.zeros(DIM), stored[0][0], stored[1][1]]).astype(np.float32)
    assert np.array_equal(batch.taught[lesson].numpy(), expected)
    assert batch.rows(range(1, 3)).taught[lesson].tolist() == batch.taught[lesson][1:].tolist()


@pytest.mark.parametrize(
    "content",
    [b"no numpy", np.zeros((12, DIM + 1), np.float16), np.zeros((12, DIM)), np.zeros((2, DIM), np.float16),
     np.full((12, DIM), np.nan, np.float16)],
)  # fmt: skip
def test_vectors_that_are_not_what_the_manifest_says_fail_their_sample(write_config, taught_shards: Path, content):
    file = taught_shards / f"train-000000.{NAME}.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content)
    dataset = dataset_of(write_config, taught_shards)
    failure = dataset[0, 7]
    assert (failure.reason, failure.shard) == ("bad_vector", "train-000000.tar")


def shards_of_two_towers(shards: Path, *spaces: str | None) -> None:
    """Pictures and captions have vectors of the same length; the manifest says which spaces they are of."""
    names = ["both.image", "both.caption"]
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["embeddings"] = {
        name: {"dim": DIM, "suffix": f".{name}.npy", **({"space": space} if space else {})}
        for name, space in zip(names, spaces, strict=True)
    }
    (shards / "manifest.json").write_text(json.dumps(manifest))
    for number, shard in enumerate(sorted(shards.glob("*.tar"))):
        for name in names:
            np.save(
                shard.with_suffix(f".{name}.npy"), np.random.default_rng(number).normal(size=(12, DIM)).astype("f2")
            )


@pytest.mark.parametrize(
    ("spaces", "share"), [(("a", "b"), False), (("a", "a"), True), ((None, None), False)], ids=str
)  # fmt: skip
def test_vectors_of_equal_length_are_compared_only_where_one_model_wrote_them(
    write_config, shape_shards: Path, tmp_path: Path, spaces: tuple[str | None, str | None], share: bool
):
    shards_of_two_towers(shape_shards, *spaces)
    taught = ["data.teachers={image: both.image, text: both.caption}", "loss.distill=1", "steps=1", "optim.warmup=0"]
    train(write_config(shape_shards), taught, tmp_path / "run", quiet)
    terms = set(json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])["losses"])
    assert {"distill.text~text", "distill.image~image"} <= terms
    assert ("distill.text~image" in terms) is share


def test_sets_of_two_teachers_are_refused(write_config, shape_shards: Path, tmp_path: Path):
    shards_of_two_towers(shape_shards, "a", "b")
    other = shutil.copytree(shape_shards, tmp_path / "other")
    manifest = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(manifest.replace('"space": "a"', '"space": "c"'))
    sets = f"data.sets={{one: {{shards: {shape_shards}}}, two: {{shards: {other}}}}}"
    wrong = r"data\.teachers\.image: both\.image is 6 numbers by a in one set, 6 numbers by c in another; build both"
    with pytest.raises(TrainError, match=wrong):
        train(
            write_config(shape_shards),
            ["data.shards=null", sets, "data.teachers={image: both.image}", "loss.distill=1"],
            tmp_path / "run",
            quiet,
        )


def test_of_several_teachers_each_space_has_the_first_that_a_sample_has(write_config, shape_shards: Path):
    shards_of_two_towers(shape_shards, "a", "a")
    vector_ND = np.random.default_rng(9).normal(size=(12, DIM)).astype("f2")
    vector_ND[1] = 0  # the second sample has none
    np.save(shape_shards / "train-000000.both.caption.npy", vector_ND)
    teachers = "data.teachers={image: [both.caption, both.image], text: both.image}"
    config = load_config(write_config(shape_shards), [teachers])
    split = open_split(open_folder(shape_shards), "train", config.data)
    dataset = SampleDataset(split, config.data, 0, fit_tokenizer(iter_texts(split, config.data), 400), 0)
    image, text = MixedDataset([dataset]).lessons
    assert (image, text) == (Lesson("image", Space("a", DIM)), Lesson("text", Space("a", DIM)))
    other_ND = np.load(shape_shards / "train-000000.both.image.npy")
    taught = [dataset[0, row].taught for row in (0, 1)]
    assert np.array_equal([one[image] for one in taught], [vector_ND[0], other_ND[1]])
    assert np.array_equal([one[text] for one in taught], other_ND[:2])


def test_vectors_that_are_missing_are_named(write_config, taught_shards: Path):
    (taught_shards / f"train-000000.{NAME}.npy").unlink()
    dataset = dataset_of(write_config, taught_shards)
    with pytest.raises(SampleError, match=r"train-000000\.clip\.image\.npy: no vectors of 6 numbers"):
        ShardReader(dataset._split.index, 1 << 20).vector(0, open_folder(taught_shards).manifest.embeddings[NAME])


def test_a_teacher_that_no_shards_hold_is_told_with_its_place(write_config, taught_shards: Path, tmp_path: Path):
    with pytest.raises(SpecError, match=r"image: clip\.imge}: no vectors 'clip\.imge'; did you mean 'clip\.image'"):
        train(write_config(taught_shards), ["data.teachers={image: clip.imge}"], tmp_path / "run", quiet)


def test_a_run_teaches_what_it_embeds(write_config, taught_shards: Path, run: Path):
    config = load_config(write_config(taught_shards), [f"teacher.run={run}"])
    teacher = load_teacher(config, torch.device("cpu"))
    assert isinstance(teacher, RunTeacher)
    dataset = dataset_of(write_config, taught_shards)
    batch = Collate(("text", "image", "audio"))([dataset[0, row] for row in (0, 1, 2)])
    taught = teacher.teach(batch).taught
    with torch.no_grad():
        expected = teacher._model.encode(batch).embeddings
    assert [lesson.modality for lesson in taught] == ["text", "image", "audio"]
    assert len({lesson.space for lesson in taught}) == 1
    assert all(torch.equal(*both) for both in zip(taught.values(), expected, strict=True))
    *_, audio_BE = taught.values()
    assert [bool(row.any()) for row in audio_BE[:2]] == [False, True]
    assert not any(parameter.requires_grad for parameter in teacher._model.parameters())


def test_a_teacher_of_other_inputs_is_refused(write_config, taught_shards: Path, run: Path):
    path = write_config(taught_shards)
    with pytest.raises(TrainError, match=r"teacher\.run: data\.image_side_px is 16, that of .* is 32; use the same"):
        load_teacher(load_config(path, [f"teacher.run={run}", "data.image_side_px=16"]), torch.device("cpu"))
    fewer = "data.modalities={text: [caption], image: [image]}"
    with pytest.raises(TrainError, match="the teacher has modalities that the student lacks: audio"):
        load_teacher(load_config(path, [f"teacher.run={run}", fewer]), torch.device("cpu"))


class StubClip:
    """Embeds an image as its mean colours, a text as its length."""

    recipe = SimpleNamespace(side_px=8)
    width = 3

    def embed_images(self, images_NCHW: np.ndarray) -> np.ndarray:
        assert images_NCHW.shape[1:] == (3, 8, 8)
        return images_NCHW.mean(axis=(2, 3)).astype(np.float32)

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return np.array([[len(text), 0, 0] for text in texts], dtype=np.float32)


def test_an_open_clip_model_sees_images_in_its_size_and_the_texts_as_they_are(
    write_config, taught_shards: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mmdata.train.teacher.Clip.load", lambda *_: StubClip())
    teacher = load_teacher(load_config(write_config(taught_shards), ["teacher.open_clip=x"]), torch.device("cpu"))
    assert teacher is not None
    dataset = dataset_of(write_config, taught_shards)
    batch = Collate(("text", "image", "audio"))([dataset[0, row] for row in (0, 1)])
    taught = teacher.teach(batch).taught
    image, text = (Lesson(name, Space("", 3)) for name in ("image", "text"))
    assert set(taught) == {text, image}
    assert taught[text][:, 0].tolist() == [len(one or "") for one in batch.texts]
    expected = batch.inputs["image"].values.float().mean(dim=(2, 3))
    assert torch.allclose(taught[image], expected, atol=2)
    silent = teacher.teach(dataclasses.replace(batch, inputs={}, texts=[None, None])).taught
    assert not silent[image].any()
    assert silent[text].shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("live", [False, True], ids=["stored", "live"])
def test_heads_that_mimic_are_trained_resumed_and_not_exported(
    write_config, taught_shards: Path, run: Path, tmp_path: Path, live: bool
):
    teacher = f"teacher.run={run}" if live else f"data.teachers={{image: {NAME}}}"
    path, given = write_config(taught_shards), [teacher, "loss.mimic=1", "optim.warmup=0", "steps=4"]
    train(path, given, tmp_path / "whole", quiet)
    steps = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    found = {name for step in steps for name in step.get("losses", {}) if name.startswith("mimic.")}
    assert found == ({"mimic.text", "mimic.image", "mimic.audio"} if live else {"mimic.image"})
    # A run that is ended and goes on has the same heads again, else it would end elsewhere.
    train(path, [*given, "max_minutes=1e-9"], tmp_path / "cut", quiet)
    assert train(path, given, tmp_path / "cut", quiet)["step"] == 4
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() == load_model(run)[0].state_dict().keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    # Heads of another training begin anew, and the run can be gone on with by one that has none.
    train(path, [*given, "steps=1", f"start.run={tmp_path / 'cut'}"], tmp_path / "again", quiet)
    train(path, ["optim.warmup=0", "steps=1", f"start.run={tmp_path / 'again'}"], tmp_path / "without", quiet)
