"""Each term of the loss: it can be overfitted, and it is what it says."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fused_case import NAMES, OFF, batch_of, example, fit, make_model
from torch.nn import functional

from mmdata.train.batch import Example, Lesson, Space
from mmdata.train.dice import Dice
from mmdata.train.losses.config import TERM_NAMES, LossConfig
from mmdata.train.losses.distill import affinity_loss
from mmdata.train.losses.match import hard_negatives
from mmdata.train.losses.objective import TERMS, Objective


def terms_of(model, loss: LossConfig, batch) -> dict[str, float]:
    _, terms = Objective(model, loss)(batch, Dice.of(0, 99, batch.row_B))
    return {name: term.item() for name, term in terms.items()}


def test_every_kind_of_term_has_a_weight_and_every_weight_a_kind():
    numbers = {name for name, field in LossConfig.model_fields.items() if field.annotation is float}
    assert tuple(TERMS) == TERM_NAMES
    assert set(TERMS) == numbers - {"modality_dropout", "masked_share", "condition_dropout", "distill_temperature"}


@pytest.mark.slow
@pytest.mark.parametrize("contrastive", ["infonce", "siglip"])
def test_partners_are_learned_by_heart(contrastive: str):
    loss = LossConfig(contrastive=contrastive, modality_dropout=0)
    model, batch = make_model(loss), batch_of([example(row) for row in range(8)])
    history = fit(model, loss, batch, 40 if contrastive == "infonce" else 80)
    assert set(history[-1]) == {
        "text~image", "text~audio", "image~audio", "fusion~text", "fusion~image", "fusion~audio",
    }  # fmt: skip
    for name, value in history[-1].items():
        assert value < 0.1 * history[0][name], name


@pytest.mark.slow
def test_what_is_hidden_is_rebuilt():
    loss = LossConfig(**OFF, masked=1, masked_share=0.3)
    model, batch = make_model(loss), batch_of([example(row) for row in range(4)])
    history = fit(model, loss, batch, 200)
    assert set(history[0]) == {"masked.text", "masked.image", "masked.audio"}
    last = {name: sum(step[name] for step in history[-10:]) / 10 for name in history[0]}
    # A guess costs ln 61 = 4.1 nats for a token, the variance of 1 for a patch, that of the frames for sound.
    assert last["masked.text"] < 0.8
    assert last["masked.image"] < 0.7
    assert last["masked.audio"] < 0.04


def test_what_is_hidden_is_not_seen():
    """Values at hidden places do not reach the tower's tokens."""
    loss = LossConfig(**OFF, masked=1)
    model, batch = make_model(loss).eval(), batch_of([example(0)])
    for name, change in (("text", 5), ("image", 50), ("audio", 0)):
        inputs, tower = batch.inputs[name], model.towers[name]
        hidden = torch.zeros_like(tower.slots(inputs.values, inputs.length_N))
        hidden[:, 1] = True
        before, mask = tower(inputs.values, inputs.length_N, hidden)
        assert torch.equal(mask, tower.slots(inputs.values, inputs.length_N))
        changed = inputs.values.clone()
        if name == "audio":
            changed[:, 8 * 160 + 400 : 16 * 160 - 400] = change  # frames of the second token that share nothing
        elif name == "text":
            changed[:, 1] = change
        else:
            changed[:, :, :4, 4:8] = change
        after, _ = tower(changed, inputs.length_N, hidden)
        seen, _ = tower(changed, inputs.length_N)
        assert torch.allclose(before, after, atol=1e-5), name
        assert not torch.allclose(seen, tower(inputs.values, inputs.length_N)[0], atol=1e-3), name


@pytest.mark.slow
def test_pairs_are_told_from_hard_negatives():
    loss = LossConfig(**OFF, match=1)
    model, batch = make_model(loss, ("text", "image")), batch_of([example(row) for row in range(8)], ("text", "image"))
    history = fit(model, loss, batch, 200)
    assert history[0]["match.text~image"] > 0.5
    # Who answers by the share of false pairs, two of three, pays 0.64; negatives are other ones each time.
    assert sum(step["match.text~image"] for step in history[-40:]) / 40 < 0.35


def test_a_hard_negative_is_alike_but_never_the_same():
    torch.manual_seed(0)
    base = functional.normalize(torch.randn(4, 16), dim=1)
    left = base.repeat_interleave(2, dim=0)  # 0 and 1 are alike, 2 and 3, ...
    same = torch.zeros(8, 8, dtype=torch.bool)
    drawn = torch.stack([hard_negatives(left, left, same, Dice.of(0, n, torch.arange(8)))[0] for n in range(50)])
    assert (drawn == torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])).float().mean() > 0.9
    same[0, 1] = same[1, 0] = True
    drawn = torch.stack([hard_negatives(left, left, same, Dice.of(0, n, torch.arange(8)))[0] for n in range(50)])
    assert not (drawn[:, 0] == 1).any()
    assert not (drawn == torch.arange(8)).any()
    every = torch.ones(8, 8, dtype=torch.bool)
    assert hard_negatives(left, left, every, Dice.of(0, 0, torch.arange(8)))[1].tolist() == [0.0] * 8


@pytest.mark.slow
def test_a_student_takes_over_who_is_like_whom():
    loss = LossConfig(**OFF, distill=1, distill_temperature=0.2)
    batch = batch_of([example(row) for row in range(8)])
    torch.manual_seed(1)
    text, image = (Lesson(name, Space("", 12)) for name in ("text", "image"))
    taught = {lesson: torch.randn(8, 12) for lesson in (text, image)}
    taught[text][3] = 0  # the teacher has not seen it
    batch = dataclasses.replace(batch, taught=taught)
    model = make_model(loss)
    history = fit(model, loss, batch, 60)
    assert set(history[0]) == {"distill.text~text", "distill.text~image", "distill.image~image"}
    for name, value in history[-1].items():
        assert value < 0.1 * history[0][name], name
    embeddings = model.encode(batch).embeddings
    rows = torch.tensor([0, 1, 2, 4, 5, 6, 7])
    theirs = functional.normalize(taught[text], dim=1)[rows] @ functional.normalize(taught[image], dim=1)[rows].T
    ours = embeddings[0][rows] @ embeddings[1][rows].T
    assert torch.corrcoef(torch.stack([theirs.flatten(), ours.flatten()]))[0, 1] > 0.9


@pytest.mark.slow
def test_a_teachers_vectors_are_foretold():
    loss = LossConfig(**OFF, mimic=1)
    batch = batch_of([example(row) for row in range(8)])
    torch.manual_seed(1)
    text, image = Lesson("text", Space("a", 12)), Lesson("image", Space("b", 12))
    taught = {lesson: torch.randn(8, 12) for lesson in (text, image)}
    taught[text][3] = 0  # the teacher has not seen it
    batch = dataclasses.replace(batch, taught=taught)
    model = make_model(loss, mimicked=(text, image))
    history = fit(model, loss, batch, 60)
    assert set(history[0]) == {"mimic.text", "mimic.image"}
    assert all(value > 0.7 for value in history[0].values())
    assert all(value < 0.05 for value in history[-1].values())
    silent = dataclasses.replace(batch, taught={lesson: torch.zeros(8, 12) for lesson in taught})
    assert terms_of(model, loss, silent) == {}


def test_mimicry_is_one_less_the_cosine_and_modalities_of_one_space_share_a_head():
    loss = LossConfig(**OFF, mimic=1)
    one, other = Space("one", 5), Space("other", 5)
    lessons = (Lesson("text", one), Lesson("image", other), Lesson("audio", one))
    model = make_model(loss, mimicked=lessons)
    assert len(model.mimic_heads.heads) == 2
    torch.manual_seed(1)
    taught = torch.randn(4, 5)
    batch = dataclasses.replace(batch_of([example(row) for row in range(4)]), taught={lessons[2]: taught})
    head, embedding_BD = model.mimic_heads.heads[0], model.encode(batch).embeddings[2]
    cosine_B = functional.normalize(head(embedding_BD), dim=1) * functional.normalize(taught, dim=1)
    expected = 1 - cosine_B.sum(dim=1).mean()
    assert terms_of(model, loss, batch) == {"mimic.audio": pytest.approx(expected.item(), abs=1e-6)}


def test_of_several_teachers_the_mean_is_taken_over_samples_and_teachers():
    loss = LossConfig(**OFF, mimic=1, distill=1)
    seen, read = Lesson("image", Space("seen", 5)), Lesson("image", Space("read", 7))
    words = Lesson("text", Space("read", 7))
    model = make_model(loss, mimicked=(seen, read, words))
    batch = batch_of([example(row) for row in range(6)])
    torch.manual_seed(1)
    taught = {lesson: torch.randn(6, lesson.space.width) for lesson in (seen, read, words)}
    taught[seen][:2] = 0  # this teacher knows four of six
    alone = {one: terms_of(model, loss, dataclasses.replace(batch, taught={one: taught[one]})) for one in (seen, read)}
    terms = terms_of(model, loss, dataclasses.replace(batch, taught=taught))
    for name in ("mimic.image", "distill.image~image"):
        assert terms[name] == pytest.approx((4 * alone[seen][name] + 6 * alone[read][name]) / 10, rel=1e-5)
    both = terms_of(model, loss, dataclasses.replace(batch, taught={one: taught[one] for one in (read, words)}))
    # Only one of them has a space that texts lie in too.
    assert terms["distill.text~image"] == both["distill.text~image"]


def test_a_student_that_is_its_teacher_loses_nothing():
    torch.manual_seed(0)
    left, right = (functional.normalize(torch.randn(5, 6), dim=1) for _ in range(2))
    mine = torch.arange(5)
    for itself in (False, True):
        sides = (left, left) if itself else (left, right)
        assert affinity_loss(sides, sides, mine, itself, 0.1).abs().max() < 1e-6
    turned = affinity_loss((left, right), (left, right.roll(1, 0)), mine, False, 0.1)
    assert (turned > 0.01).all()
    # By the formula, for one query.
    ours, theirs = (side @ right.T / 0.1 for side in (left, left.roll(1, 0)))
    expected = sum(p * (p.log() - q.log()) for p, q in zip(theirs[0].softmax(0), ours[0].softmax(0), strict=True))
    back_o, back_t = right @ left.T / 0.1, right @ left.roll(1, 0).T / 0.1
    expected += sum(p * (p.log() - q.log()) for p, q in zip(back_t[0].softmax(0), back_o[0].softmax(0), strict=True))
    got = affinity_loss((left, right), (left.roll(1, 0), right), mine, False, 0.1)[0]
    assert got.item() == pytest.approx(expected.item() / 2, rel=1e-4)


def test_a_term_without_samples_says_nothing():
    loss = LossConfig(masked=1, caption=1, answer=1, flow=1, route=1, match=1, distill=1)
    model = make_model(loss, decoders=["text", "image", "audio"])
    one = example(0)
    batch = batch_of([dataclasses.replace(one, values={"text": one.values["text"]})])
    assert set(terms_of(model, loss, batch)) <= {"masked.text"}
    assert Objective(model, LossConfig())(batch, Dice.of(0, 0, batch.row_B)) == (None, {})


def test_all_terms_together_reach_every_parameter():
    loss = LossConfig(masked=1, caption=1, answer=1, flow=1, route=1, match=1, distill=1, contrastive="siglip")
    model = make_model(loss, decoders=["text", "image", "audio"])
    batch = batch_of([example(row) for row in range(4)], copies=3)
    texts = batch.inputs["text"]
    batch = dataclasses.replace(
        batch, asked={"question": texts, "answer": texts}, taught={Lesson("image", Space("", 3)): torch.randn(12, 3)}
    )
    total, _ = Objective(model, loss)(batch, Dice.of(0, 0, batch.row_B))
    total.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_terms_of_a_sample_do_not_depend_on_its_place_in_the_batch():
    loss = LossConfig(masked=1, caption=1, flow=1, route=1)
    model = make_model(loss, decoders=["text", "image", "audio"]).eval()
    rows: list[Example] = [example(row) for row in range(5)]
    forth, back = batch_of(rows), batch_of(rows[::-1])
    assert terms_of(model, loss, forth) == pytest.approx(terms_of(model, loss, back), rel=1e-4)
    assert model.modalities == NAMES
