"""Classes: named by texts (zero-shot), and learnt on frozen embeddings (linear probe).

Shapes: N samples, C classes, D embedding dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mmdata.errors import MissingExtraError, SampleError, TrainError
from mmdata.train.batch import Collate, Example
from mmdata.train.dataset import MAX_TEXT_BYTES
from mmdata.train.decode import decode_text
from mmdata.train.evaluate.config import EvalConfig, LabelConfig
from mmdata.train.evaluate.features import Features, Opened, Run
from mmdata.train.evaluate.intervals import share_figure
from mmdata.train.manifest import open_folder
from mmdata.train.shards import ShardReader, index_split
from mmdata.train.tokens import encode

_TEXTS_AT_ONCE = 256


def labels_of(run: Run, opened: Opened, split: str, wanted: LabelConfig) -> list[str | None]:
    """The class of each sample of a split, by row; None where it has none. Raises TrainError where all have none."""
    known: dict[str, str] = {}
    data = run.config.data
    for one in data.all_sets().values():
        folder = open_folder(one.shards)
        if split in folder.manifest.splits:
            index = index_split(folder, split, [wanted.member] if wanted.member else [])
            reader = ShardReader(index, data.member_max_bytes)
            known |= {index.id(row): name for row in range(len(index)) if (name := _label(reader, row, wanted))}
    found = [known.get(name) for name in opened.ids(range(len(opened.dataset)))]
    if not any(found):
        raise TrainError(f"no sample of '{split}' has a class: {wanted.member or wanted.attribute} is nowhere")
    return found


def zero_shot(run: Run, features: Features, labels: Sequence[str | None], config: EvalConfig) -> dict[str, Any]:
    """Accuracy of the nearest class, by modality and by the fusion of all but text; chance is the commonest class."""
    assert config.labels is not None
    text = run.modalities.index("text")
    own = [labels[row] for row in features.row_N.tolist()]
    classes = sorted({name for name in own if name})
    class_CD = class_embeddings(run, classes, config.labels.templates)
    others = tuple(column for column in range(len(run.modalities)) if column != text)
    sides: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        run.modalities[column]: (features.single_MND[column], (column,)) for column in others
    }
    sides["fusion"] = (features.fused[others], others)
    found: dict[str, Any] = {}
    for name, (embedding_ND, columns) in sides.items():
        there_N = features.present_NM[:, list(columns)].any(dim=1).tolist()
        rows = [row for row, label in enumerate(own) if label and there_N[row]]
        if rows:
            chosen = (embedding_ND[rows] @ class_CD.T).argmax(dim=1).tolist()
            right = [classes[at] == own[row] for at, row in zip(chosen, rows, strict=True)]
            found[name] = _accuracy(right, [own[row] for row in rows])
    return found


def probe(
    sets: tuple[Features, Features],
    labels: tuple[Sequence[str | None], Sequence[str | None]],
    names: tuple[str, ...],
) -> dict[str, Any]:
    """Accuracy of a logistic regression on embeddings of the train split, by modality and by the fusion of all.

    Args:
        sets: the train split, and the one that is measured on.
        labels: of both, by row.
        names: of the modalities.

    Raises MissingExtraError without scikit-learn.
    """
    whole = tuple(range(len(names)))
    found: dict[str, Any] = {}
    for column, name in enumerate([*names, "fusion"]):
        parts = [_labelled(part, known, column, whole) for part, known in zip(sets, labels, strict=True)]
        (seen_ND, seen), (test_ND, truth) = parts
        if len(set(seen)) > 1 and truth:
            right = np.array(_classifier(seen_ND, seen).predict(test_ND.numpy())) == np.array(truth)
            found[name] = _accuracy(right.tolist(), truth)
    return found


def class_embeddings(run: Run, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Mean embedding of the texts that tell each class, of unit length. Shape (C, D)."""
    texts = [template.replace("{}", name) for name in classes for template in templates]
    parts = [_embed_texts(run, texts[at : at + _TEXTS_AT_ONCE]) for at in range(0, len(texts), _TEXTS_AT_ONCE)]
    return functional.normalize(torch.cat(parts).reshape(len(classes), len(templates), -1).mean(dim=1), dim=1)


def _embed_texts(run: Run, texts: Sequence[str]) -> Tensor:
    assert run.tokenizer is not None
    most = run.config.data.text_max_tokens
    examples = [Example(row, {"text": encode(run.tokenizer, text, most)}, (0,)) for row, text in enumerate(texts)]
    with torch.inference_mode():
        encoded = run.model.encode(Collate(run.modalities)(examples).to(run.device))
    return encoded.embeddings[run.modalities.index("text")].float().cpu()


def _labelled(
    features: Features, labels: Sequence[str | None], column: int, whole: tuple[int, ...]
) -> tuple[Tensor, list[str]]:
    """Embeddings of the samples that have the modality and a class, and their classes; past the last: the fusion."""
    single = column < len(whole)
    embedding_ND = features.single_MND[column] if single else features.fused[whole]
    there_N = features.present_NM[:, column] if single else features.present_NM.any(dim=1)
    pairs = [(at, labels[row]) for at, row in enumerate(features.row_N.tolist()) if there_N[at]]
    kept = [(at, label) for at, label in pairs if label]
    return embedding_ND[[at for at, _ in kept]], [label for _, label in kept]


def _classifier(seen_ND: Tensor, seen: list[str]) -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise MissingExtraError("the linear probe", "scikit-learn", "eval") from None
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(seen_ND.numpy(), seen)


def _accuracy(right: Sequence[bool], truth: Sequence[str | None]) -> dict[str, Any]:
    commonest = Counter(truth).most_common(1)[0][1] / len(truth)
    figure = share_figure(right, commonest)
    return {"samples": len(truth), "classes": len(set(truth)), "accuracy": figure}


def _label(reader: ShardReader, row: int, wanted: LabelConfig) -> str | None:
    try:
        if wanted.member:
            return " ".join(decode_text(reader.read(row, wanted.member, MAX_TEXT_BYTES)).split()) or None
        value: object = reader.record(row)
    except SampleError:
        return None
    for key in (wanted.attribute or "").split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return None if value is None else str(value)
