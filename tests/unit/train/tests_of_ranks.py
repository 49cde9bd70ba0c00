"""What `test_term_ranks` runs on each rank."""

from __future__ import annotations

import dataclasses

import torch
from fused_case import NAMES, batch_of, example, make_model
from torch import distributed as dist

from mmdata.train.batch import Batch, Inputs, Lesson, Space
from mmdata.train.dice import Dice
from mmdata.train.losses.config import LossConfig
from mmdata.train.losses.objective import Objective

LOSS = LossConfig(masked=1, caption=1, answer=1, flow=1, route=1, distill=1, mimic=1)


# What the teacher says of pictures and of texts.
LESSONS = tuple(Lesson(name, Space("", 5)) for name in ("image", "text"))


def batch_for(rank: int, world: int) -> Batch:
    """Every other sample; those of even number have no sound, no teacher, and are not asked about."""
    examples = []
    for row in range(rank, 8, world):
        one = example(row)
        values = {name: value for name, value in one.values.items() if name != "audio" or row % 2}
        asked = {"question": one.values["text"], "answer": one.values["text"][:3]} if row % 2 else {}
        vector = torch.randn(5, generator=torch.Generator().manual_seed(row)).numpy()
        taught = {LESSONS[0]: vector, LESSONS[1]: vector[::-1].copy()} if row % 2 else {}
        examples.append(dataclasses.replace(one, values=values, asked=asked, taught=taught))
    batch = batch_of(examples)
    vectors = {
        one: torch.stack([torch.from_numpy(x.taught[one]) if x.taught else torch.zeros(5) for x in examples])
        for one in LESSONS
    }
    assert all(isinstance(part, Inputs) for part in batch.asked.values())
    return dataclasses.replace(batch, taught=vectors)


def gradients(rank: int, world: int, shared_trunk: bool) -> dict[str, torch.Tensor]:
    """Terms and gradients, averaged over ranks."""
    parts = {"decoders": ["text", "image", "audio"], "moe": {"experts": 2, "every": 1}, "shared_trunk": shared_trunk}
    model = make_model(LOSS, NAMES, mimicked=LESSONS, **parts)
    batch = batch_for(rank, world)
    loss, terms = Objective(model, LOSS)(batch, Dice.of(0, 3, batch.row_B))
    loss.backward()
    found = {f"term {name}": term.detach() for name, term in terms.items()}
    for name, parameter in model.named_parameters():
        found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    if world > 1:
        for name in sorted(found):
            dist.all_reduce(found[name])
            found[name] /= world
    return found
