from __future__ import annotations

import pytest
import torch

from mmdata.train import recall
from mmdata.train.eval import Embedded, measure
from mmdata.train.recall import chance_level, recall_at


def brute_force(query, candidate, hashes, k):
    hits = 0
    for i in range(len(query)):
        order = sorted(range(len(candidate)), key=lambda j: -float(query[i] @ candidate[j]))
        positives = {j for j in range(len(candidate)) if j == i or (hashes[j] == hashes[i] != 0)}
        hits += bool(positives & set(order[:k]))
    return hits / len(query)


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_recall_is_brute_force_in_any_chunks(monkeypatch: pytest.MonkeyPatch, chunk):
    monkeypatch.setattr(recall, "_CHUNK", chunk)
    torch.manual_seed(1)
    query, candidate = torch.randn(40, 4), torch.randn(40, 4)
    candidate += 0.8 * query
    hashes = torch.randint(0, 12, (40,))
    found = recall_at(query, candidate, hashes, [1, 5, 10])
    values = [found[f"recall@{k}"]["value"] for k in (1, 5, 10)]
    assert values == pytest.approx([brute_force(query, candidate, hashes.tolist(), k) for k in (1, 5, 10)])
    assert 0 < values[0] < values[1] < values[2] < 1


def test_equal_texts_count_as_found():
    query = torch.eye(3)
    candidate = torch.eye(3)[[1, 0, 2]]
    assert recall_at(query, candidate, torch.tensor([1, 2, 3]), [1])["recall@1"]["value"] == pytest.approx(1 / 3)
    assert recall_at(query, candidate, torch.tensor([1, 1, 3]), [1])["recall@1"]["value"] == 1.0
    assert recall_at(query, candidate, torch.tensor([0, 0, 3]), [1])["recall@1"]["value"] == pytest.approx(1 / 3)


def test_collapsed_embeddings_find_nothing():
    same = torch.ones(20, 4)
    assert recall_at(same, same, torch.zeros(20, dtype=torch.int64), [1, 10])["recall@10"]["value"] == 0.0


def test_chance_is_what_random_orders_give():
    torch.manual_seed(0)
    hashes = torch.tensor([1] * 4 + [0] * 16)
    expected = chance_level([4] * 4 + [1] * 16, 20, 5)
    trials = [recall_at(torch.randn(20, 8), torch.randn(20, 8), hashes, [5])["recall@5"] for _ in range(400)]
    assert trials[0]["chance"] == pytest.approx(expected)
    assert sum(trial["value"] for trial in trials) / 400 == pytest.approx(expected, abs=0.02)
    assert chance_level([1, 1], 10, 1) == pytest.approx(0.1)
    assert chance_level([1, 1], 2, 10) == 1.0


def test_a_fusion_of_nothing_is_not_asked():
    """A picture alone is enough where questions are asked about it: what is left without it finds nothing."""
    torch.manual_seed(0)
    present_N2 = torch.tensor([[True, True], [True, True], [True, False], [True, True]])
    single, fused = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    embedded = Embedded(torch.arange(4), present_N2, torch.zeros(4, dtype=torch.int64), single, fused, [])
    counts = {name: cell["queries"] for name, cell in measure(embedded, ("image", "text"), [1]).items()}
    assert counts == {"image->text": 3, "text->image": 3, "fusion->image": 3, "fusion->text": 3}
