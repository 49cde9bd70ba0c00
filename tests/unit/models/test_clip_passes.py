from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmdata.models.passes import Passes, is_out_of_memory


class Machine:
    """Runs passes in simulated time, and has memory for so many rows."""

    def __init__(self, fits: int = 1 << 30, full_rate_rows: int = 1 << 30) -> None:
        self.fits, self.full_rate_rows = fits, full_rate_rows
        self.now_s, self.tried = 0.0, []

    def run(self, rows: slice) -> list[int]:
        import torch

        count = rows.stop - rows.start
        self.tried.append(count)
        if count > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        # Up to `full_rate_rows` a pass takes one second whatever it holds.
        self.now_s += max(1.0, count / self.full_rate_rows)
        return list(range(rows.start, rows.stop))

    def clock(self) -> float:
        return self.now_s


def everything(passes: Passes, machine: Machine, count: int) -> list[int]:
    parts = list(passes.over(count, machine.run))
    assert [rows.start for rows, _ in parts] == [0, *(rows.stop for rows, _ in parts)][:-1]
    return [row for _, made in parts for row in made]


def test_a_pass_that_does_not_fit_is_halved_and_the_size_is_remembered():
    machine, passes = Machine(fits=5), Passes(64, 64)
    assert everything(passes, machine, 100) == list(range(100))
    assert machine.tried[:5] == [64, 32, 16, 8, 4]
    assert set(machine.tried[5:]) == {4}
    assert passes.rows == 4
    machine.tried.clear()
    assert everything(passes, machine, 8) == list(range(8))
    assert machine.tried == [4, 4]


def test_a_short_rest_that_does_not_fit_is_halved_too():
    machine, passes = Machine(fits=2), Passes(64, 64)
    assert everything(passes, machine, 7) == list(range(7))
    assert machine.tried == [7, 3, 1, 1, 1, 1, 1, 1, 1]


def test_one_row_that_does_not_fit_is_an_error():
    import torch

    with pytest.raises(torch.OutOfMemoryError):
        everything(Passes(8, 8), Machine(fits=0), 3)


def test_other_errors_are_not_retried():
    def run(rows: slice) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        list(Passes(8, 8).over(16, run))


@pytest.mark.parametrize(
    "words",
    [
        "MPS backend out of memory (MPS allocated: 1 GB)",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    ],
)
def test_other_devices_say_it_in_words(words: str):
    assert is_out_of_memory(RuntimeError(words))


def test_a_real_refusal_of_the_processor_is_known():
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_it_doubles_while_that_pays():
    machine = Machine(full_rate_rows=256)
    passes = Passes(16, 1024, clock=machine.clock)
    assert everything(passes, machine, 8000) == list(range(8000))
    # 512 rows are no faster than 256: it goes back, and stays.
    assert machine.tried[:12] == [16, 16, 32, 32, 64, 64, 128, 128, 256, 256, 512, 512]
    assert passes.rows == 256
    assert set(machine.tried[12:-1]) == {256}


def test_it_never_grows_beyond_the_largest_nor_where_that_is_the_first():
    machine = Machine()
    passes = Passes(16, 64, clock=machine.clock)
    everything(passes, machine, 1000)
    assert passes.rows == max(machine.tried) == 64
    fixed = Passes(16, 16, clock=machine.clock)
    everything(fixed, machine, 1000)
    assert fixed.rows == 16


def test_it_stops_before_memory_is_full():
    machine = Machine()
    passes = Passes(16, 1024, lambda: passes.rows * 0.005, machine.clock)
    everything(passes, machine, 5000)
    # 128 rows take 64 %, and 256 would take more than there is.
    assert passes.rows == 128


def test_after_running_out_it_grows_no_more():
    machine = Machine(fits=40)
    passes = Passes(16, 1024, clock=machine.clock)
    assert everything(passes, machine, 2000) == list(range(2000))
    assert passes.rows == 32
    assert machine.tried.count(64) == 1


class Hungry:
    """A model that has memory for `fits` rows of a pass."""

    def __init__(self, model: Any, fits: int) -> None:
        self.model, self.fits, self.refused = model, fits, 0

    def lengths(self, ids_NL: Any) -> Any:
        return self.model.lengths(ids_NL)

    def encode_image(self, unit_NCHW: Any) -> Any:
        self._check(len(unit_NCHW))
        return self.model.encode_image(unit_NCHW)

    def encode(self, ids_NS: Any) -> Any:
        self._check(len(ids_NS))
        return self.model.encode(ids_NS)

    def _check(self, rows: int) -> None:
        import torch

        if rows > self.fits:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")


def test_clip_embeds_the_same_where_memory_is_short():
    import torch
    from open_clip.model import CLIP

    from mmdata.models.clip import Clip
    from mmdata.models.clip_image import ImageRecipe

    torch.manual_seed(0)
    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 12, "vocab_size": 40, "width": 32, "heads": 2, "layers": 2}
    recipe = ImageRecipe(16, (0.5,) * 3, (0.5,) * 3)
    ids_NL = torch.randint(1, 40, (50, 12))
    clip = Clip(CLIP(32, vision, text), lambda texts: ids_NL[: len(texts)], recipe, 32, torch.device("cpu"))
    images = np.random.default_rng(0).integers(0, 256, (21, 3, 16, 16), dtype=np.uint8)
    texts = [str(n) for n in range(50)]
    image_ND, text_ND = clip.embed_images(images), clip.embed_texts(texts)
    clip._model, clip._text_tower = Hungry(clip._model, 3), Hungry(clip._text_tower, 5)
    np.testing.assert_allclose(clip.embed_images(images), image_ND, atol=1e-6)
    np.testing.assert_allclose(clip.embed_texts(texts), text_ND, atol=1e-6)
    assert (clip._image_passes.rows, clip._model.refused) == (2, 3)
    assert (clip._text_passes.rows, clip._text_tower.refused) == (4, 2)
