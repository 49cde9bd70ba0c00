"""The tokenizer of a pretrained text tower, in the form that the loader uses. Nothing is fetched or unpickled."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from mmdata.errors import MissingExtraError, WeightsError
from mmdata.train.model.sizes import PretrainedTower

# CLIP's words (openai's simple_tokenizer.py, as in transformers' CLIPTokenizerFast).
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_BOUNDS = ["<start_of_text>", "<end_of_text>"]


def tower_tokenizer(tower: PretrainedTower) -> Tokenizer:
    """The tokenizer that belongs to a text tower.

    Raises WeightsError where it is missing or of a kind that is not known, MissingExtraError without open_clip.
    """
    tokenizer = _of_folder(Path(tower.model).expanduser()) if tower.kind == "sentence" else _of_clip(tower.model)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _of_folder(folder: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception for whatever is wrong with the file
        raise WeightsError(f"text encoder {folder}: no tokenizer.json that can be read: {error}") from None


def _of_clip(model: str) -> Tokenizer:
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtraError(f"the CLIP model {model!r}", "open-clip-torch", "clip") from error
    folder = Path(model).expanduser()
    simple = open_clip.get_tokenizer(f"local-dir:{folder}" if folder.is_dir() else model)
    if not hasattr(simple, "bpe_ranks"):
        inner = sorted(folder.glob("**/tokenizer.json")) if folder.is_dir() else []
        if not inner:
            raise WeightsError(f"CLIP model {model!r}: its tokenizer is neither CLIP's own nor a tokenizer.json in it")
        return _of_folder(inner[0].parent)
    tokenizer = Tokenizer(models.BPE(simple.encoder, list(simple.bpe_ranks), end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.add_special_tokens(_CLIP_BOUNDS)
    return tokenizer
