from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdata.errors import TrainError
from mmdata.train.batch import Collate
from mmdata.train.config import load_config
from mmdata.train.dataset import MixedDataset, SampleDataset, eval_loader, iter_texts, open_split, train_loader
from mmdata.train.manifest import MemberEntry, open_folder
from mmdata.train.order import Endless, Mix, StepSampler
from mmdata.train.tokens import fit_tokenizer, text_hash


@pytest.fixture
def make_dataset(write_config: Callable[..., Path]):
    def make(shards, *overrides: str):
        config = load_config(write_config(shards), overrides)
        split = open_split(open_folder(shards), "train", config.data)
        tokenizer = fit_tokenizer(iter_texts(split, config.data), 400)
        return SampleDataset(split, config.data, config.seed, tokenizer, config.cache_mib), config

    return make


def steps(first: int, last: int) -> StepSampler:
    """Batches of 8 of 24 samples."""
    return StepSampler(Mix([Endless(24, 8, 0)], [1.0], 0), 8, range(first, last))


def same(left, right):
    return torch.equal(left.row_B, right.row_B) and all(
        torch.equal(left.inputs[name].values, right.inputs[name].values) for name in left.inputs
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores is the point
@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_nothing_even_more_than_shards(make_dataset, shape_shards: Path, workers):
    """Two shards, up to four workers."""
    one, config = make_dataset(shape_shards)
    many, other = make_dataset(shape_shards, f"workers={workers}")
    one, many = MixedDataset([one]), MixedDataset([many])
    pairs = list(zip(train_loader(one, config, steps(1, 7)), train_loader(many, other, steps(1, 7)), strict=True))
    assert len(pairs) == 6
    assert all(same(left, right) for left, right in pairs)
    rows = [row for batch in eval_loader(many, other) for row in batch.row_B.tolist()]
    assert rows == list(range(24))


def test_a_worker_that_dies_is_told_of_in_a_line(make_dataset, shape_shards: Path, monkeypatch: pytest.MonkeyPatch):
    dataset, config = make_dataset(shape_shards, "workers=1")
    monkeypatch.setattr(SampleDataset, "__getitem__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(TrainError, match=r"a process that decodes has died .*want of memory.*the same command goes on"):
        next(iter(train_loader(MixedDataset([dataset]), config, steps(0, 1))))


def test_batches_for_cuda_are_locked_in_memory(make_dataset, shape_shards: Path, monkeypatch: pytest.MonkeyPatch):
    dataset, config = make_dataset(shape_shards)
    assert not train_loader(MixedDataset([dataset]), config, steps(0, 1)).pin_memory
    monkeypatch.setattr("mmdata.train.dataset.resolve_device", lambda _: torch.device("cuda"))
    assert train_loader(MixedDataset([dataset]), config, steps(0, 1)).pin_memory


def test_all_of_a_batch_is_locked_in_memory(make_dataset, shape_shards: Path, monkeypatch: pytest.MonkeyPatch):
    """Page-locked memory needs an accelerator: another copy stands for it."""
    dataset, config = make_dataset(shape_shards)
    batch = next(iter(train_loader(MixedDataset([dataset]), config, steps(0, 1))))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    locked = batch.pin_memory()
    assert same(batch, locked)
    assert locked.row_B.data_ptr() != batch.row_B.data_ptr()
    for name, part in batch.inputs.items():
        assert torch.equal(locked.inputs[name].length_N, part.length_N)
        assert locked.inputs[name].values.data_ptr() != part.values.data_ptr()
    assert same(batch, batch.to(torch.device("cpu")))


def test_a_loader_leaves_the_model_s_random_numbers_alone(make_dataset, shape_shards: Path):
    dataset, config = make_dataset(shape_shards)
    before = torch.get_rng_state()
    next(iter(train_loader(MixedDataset([dataset]), config, steps(0, 2))))
    assert torch.equal(before, torch.get_rng_state())


def test_one_of_several_members_is_drawn_in_training_and_the_first_in_evaluation(
    write_config: Callable[..., Path], write_shards: Callable[..., Path]
):
    both = {"png": b"x", "txt": b"a dog", "caption_fr.txt": b"un chien"}
    shards = write_shards({"train": [[both, {"png": b"x", "caption_fr.txt": b"un chat"}]]})
    members = "data.modalities={text: [caption, caption_fr], image: [image]}"
    data = load_config(write_config(shards), [members]).data
    split = open_split(open_folder(shards), "train", data)
    assert list(iter_texts(split, data)) == ["a dog", "un chien", "un chat"]
    dataset = SampleDataset(split, data, 0, fit_tokenizer(iter_texts(split, data), 400), 0)
    assert {dataset._chosen(epoch, 0)["text"] for epoch in range(20)} == {"caption", "caption_fr"}
    assert [dataset._chosen(7, 0) for _ in range(3)] == [dataset._chosen(7, 0)] * 3
    assert [dataset._chosen(None, row)["text"] for row in (0, 1)] == ["caption", "caption_fr"]
    _, hashes, text = dataset._text(0, "caption_fr", None)
    assert (hashes, text) == ((text_hash("un chien"), text_hash("a dog")), "un chien")


def test_what_cannot_be_decoded_is_a_failure_with_shard_and_key(make_dataset, write_shards: Callable[..., Path]):
    good = {"png": b"", "txt": b"a red circle"}
    bad = {"png": b"no picture", "txt": b"a red circle", "tone.ogg": b""}
    dataset, _ = make_dataset(write_shards({"train": [[good, good], [good, bad]]}))
    assert len(dataset) == 1
    failure = dataset[0, 0]
    assert (failure.shard, failure.key, failure.member) == ("train-000001.tar", "key-1001", "image")
    assert "bad_image" in failure.reason
    assert str(failure).startswith("'image' of key-1001 (")


def test_the_cache_is_bounded_and_changes_nothing(make_dataset, shape_shards: Path):
    cached, _ = make_dataset(shape_shards, "cache_mib=1")
    without, _ = make_dataset(shape_shards, "cache_mib=0")
    twice = [cached[0, 1], cached[0, 1], without[0, 1]]
    for name in ("image", "text"):
        assert all(np.array_equal(twice[0].values[name], item.values[name]) for item in twice)
    assert len(cached._cache) >= 1
    assert not without._cache
    assert sum(array.nbytes for array in cached._cache.values()) + cached._cache_bytes_left == 1 << 20


def test_questions_and_answers_are_tokens_beside_the_modalities(
    write_config: Callable[..., Path], write_shards: Callable[..., Path], shapes
):
    """Pictures that are asked about are usable alone; a question without an answer is none."""
    _, media = shapes(2, 0)
    asked = {"png": media["png"], "txt": b"which colour?", "caption_fr.txt": b"red"}
    half = {"png": media["png"], "txt": b"which shape?", "tone.ogg": media["tone.ogg"]}
    lone = {"png": media["png"], "txt": b"which shape?"}
    shards = write_shards({"train": [[asked, half, lone]]})
    members = "data.modalities={text: [never], image: [image], audio: [tone]}"
    answers = "data.answers={question: caption, answer: caption_fr}"
    path = write_config(shards)
    folder = open_folder(shards)
    folder.manifest.members["never"] = MemberEntry(modality="text", fields=["never.txt"])
    data = load_config(path, [members, answers]).data
    split = open_split(folder, "train", data)
    assert (len(split.index), split.skipped) == (2, 1)
    texts = list(iter_texts(split, data))
    assert texts == ["which colour?", "red", "which shape?"]
    tokenizer = fit_tokenizer(texts, 400)
    dataset = SampleDataset(split, data, 0, tokenizer, 0)
    batch = Collate(("image", "audio"))([dataset[0, 0], dataset[0, 1]])
    assert batch.asked["question"].row_N.tolist() == batch.asked["answer"].row_N.tolist() == [0]
    assert tokenizer.decode(batch.asked["question"].values[0].tolist()) == "which colour?"
    assert tokenizer.decode(batch.asked["answer"].values[0].tolist()) == "red"
    assert "text" not in batch.inputs
