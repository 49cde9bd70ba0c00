"""Byte-level BPE: no text is without tokens, in any script. Fitted on the train split, saved with the model."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mmdata.errors import TrainError

PAD, START, END = 0, 1, 2
_SPECIAL = ("<pad>", "<start>", "<end>")
_BOUNDS = (
    ("<start>", "<end>"), ("[CLS]", "[SEP]"), ("<s>", "</s>"), ("<start_of_text>", "<end_of_text>"),
    ("<|startoftext|>", "<|endoftext|>"),
)  # fmt: skip


def fit_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer with at most `vocab_size` entries. Equal texts in equal order give an equal tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """A saved tokenizer. Raises TrainError where it cannot be read."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception for whatever is wrong with the file
        raise TrainError(f"{path}: no tokenizer: {error}") from None


def encode(tokenizer: Tokenizer, text: str, max_tokens: int) -> npt.NDArray[np.int64]:
    """Token ids between a start and an end, at most `max_tokens` together. Shape (S,), S at least 2."""
    # A token stands for at least one character's byte: what lies beyond these characters is surely cut.
    ids = tokenizer.encode(text[: 32 * max_tokens], add_special_tokens=False).ids
    start, end = bounds(tokenizer)
    return np.array([start, *ids[: max_tokens - 2], end], dtype=np.int64)


def bounds(tokenizer: Tokenizer) -> tuple[int, int]:
    """What a text begins and ends with: our own, those of BERT and its kin, or CLIP's. Raises TrainError for others."""
    for pair in _BOUNDS:
        start, end = (tokenizer.token_to_id(name) for name in pair)
        if start is not None and end is not None:
            return start, end
    raise TrainError(f"the tokenizer has no start and end that are known: {', '.join(map(' '.join, _BOUNDS))}")


def text_hash(text: str) -> int:
    """A positive number that is equal for texts that differ only in case, blanks or Unicode form."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return 1 + (int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "little") >> 2)
