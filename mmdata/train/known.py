"""Whether the shards hold what a training file names."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from mmdata.document import Document, Keys, nearest
from mmdata.train.config import DataConfig, TrainConfig


def unknown_members(config: TrainConfig, document: Document, known: dict[str, str]) -> list[str]:
    """A line for each configured member that the shards lack or hold as another modality.

    Args:
        config: the training file.
        document: its places.
        known: the members of the shards, with their modality.
    """
    lines = []
    for keys, modality, member in _named_members(config.data):
        if member not in known:
            lines.append(document.problem(keys, f"the shards have no member '{member}'{nearest(member, known)}"))
        elif known[member] != modality:
            fix = "name a text" if keys[1] == "answers" else f"list it under '{known[member]}'"
            lines.append(document.problem(keys, f"the member '{member}' is of modality '{known[member]}'; {fix}"))
    return lines


def _named_members(data: DataConfig) -> Iterator[tuple[Keys, str, str]]:
    """Path, modality and name of every member."""
    for modality, members in data.modalities.items():
        yield from ((("data", "modalities", modality, index), modality, name) for index, name in enumerate(members))
    for name, member in (data.answers.members if data.answers else {}).items():
        yield ("data", "answers", name), "text", member


def unknown_vectors(config: TrainConfig, document: Document, known: Collection[str]) -> list[str]:
    """A line for each teacher whose vectors no shards hold."""
    fix = "write them: `- webdataset: {embeddings: [aligner.member]}`"
    return [
        document.problem(("data", "teachers", modality), f"no vectors '{name}'{nearest(name, known) or '; ' + fix}")
        for modality, names in config.data.teachers.items()
        for name in names
        if name not in known
    ]
