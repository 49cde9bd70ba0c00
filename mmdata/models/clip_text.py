"""Text towers of open_clip, cut to the longest text of a batch wherever that is exact.

A tower is fed its full context (77 tokens, say) however short the texts are. Where nothing to the right of a text can
reach its embedding, those columns are left out. What is not known to be exact gets the full context.

Shapes: N texts, L tokens of the padded context, S tokens that are kept, K width of the tower, D embedding size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

# Hugging Face encoders whose positions count from the left and whose attention never sees padding; those that open_clip
# has an entry for (`hf_configs.arch_dict`), each compared with its full context in a test.
_MASKED_ENCODERS: Final = {"bert", "roberta", "xlm-roberta", "mt5", "m2m_100"}
_MASKED_POOLERS: Final = {"MeanPooler", "ClsPooler", "ClsLastHiddenStatePooler"}


class TextTower(Protocol):
    """One way to run the text tower of a model."""

    def lengths(self, ids_NL: torch.Tensor) -> NDArray[np.int64]:
        """How many columns of each row the tower must see for that row's embedding to be exact; `[N]`."""

    def encode(self, ids_NS: torch.Tensor) -> Any:
        """Features `[N, D]`, not normalised, of rows that were cut to the longest of their lengths."""


def text_tower(model: Any) -> TextTower:
    """The fastest exact way to run the text tower of a model that open_clip built."""
    tower = getattr(model, "text", model)
    if hasattr(tower, "pooler"):
        masked = getattr(tower.config, "model_type", None) in _MASKED_ENCODERS
        pools_masked = type(tower.pooler).__name__ in _MASKED_POOLERS
        pad_id = getattr(tower.config, "pad_token_id", None)
        return _Masked(model, pad_id) if masked and pools_masked and isinstance(pad_id, int) else _Full(model)
    if not _is_causal(tower):
        return _Full(model)
    if getattr(tower, "cls_emb", None) is not None:
        return _AppendedClass(tower)
    pool = getattr(tower, "pool_type", None) or getattr(tower, "text_pool_type", None)
    return _Causal(tower, pool) if pool in ("argmax", "eos") else _Full(model)


class _Full:
    """Any tower, at its full context: those that attend to padding or pool at the last column, and unknown ones."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def lengths(self, ids_NL: torch.Tensor) -> NDArray[np.int64]:
        return np.full(len(ids_NL), ids_NL.shape[1], dtype=np.int64)

    def encode(self, ids_NS: torch.Tensor) -> Any:
        return self._model.encode_text(ids_NS)


class _Masked:
    """A Hugging Face encoder: padding is masked in attention and in pooling."""

    def __init__(self, model: Any, pad_id: int) -> None:
        self._model = model
        self._pad_id = pad_id

    def lengths(self, ids_NL: torch.Tensor) -> NDArray[np.int64]:
        return _used_columns(ids_NL, self._pad_id)

    def encode(self, ids_NS: torch.Tensor) -> Any:
        return self._model.encode_text(ids_NS)


class _Causal:
    """`CLIP.encode_text` and `TextTransformer.forward` of open_clip 3, the position table and the mask cut to S.

    The token that is pooled at, the end of the text, sees nothing to its right; open_clip's own methods only take the
    full context.
    """

    def __init__(self, tower: Any, pool: str) -> None:
        self._tower = tower
        self._pool = pool
        end_id = getattr(tower, "eos_id", None)
        self._end_id: Any = getattr(tower, "text_eos_id", None) if end_id is None else end_id

    def lengths(self, ids_NL: torch.Tensor) -> NDArray[np.int64]:
        return np.asarray(self._ends(ids_NL).cpu().numpy() + 1, dtype=np.int64)

    def encode(self, ids_NS: torch.Tensor) -> Any:
        tower, length = self._tower, ids_NS.shape[1]
        dtype = tower.transformer.get_cast_dtype()
        x_NSK = tower.token_embedding(ids_NS).to(dtype) + tower.positional_embedding[:length].to(dtype)
        ended_N1K = self._at_ends(x_NSK, self._ends(ids_NS), tower.attn_mask[:length, :length])
        return _project(tower, tower.ln_final(ended_N1K)[:, 0])

    def _at_ends(self, x_NSK: torch.Tensor, ends_N: torch.Tensor, mask_SS: torch.Tensor) -> torch.Tensor:
        """What the transformer makes of the tokens that are pooled; `[N, 1, K]`."""
        from mmdata.models.clip_inference import has_last_block, last_block

        transformer = self._tower.transformer
        if has_last_block(transformer):
            *blocks, last = transformer.resblocks
            for block in blocks:
                x_NSK = block(x_NSK, attn_mask=mask_SS)
            return last_block(last, x_NSK, ends_N, mask_SS)
        x_NSK = transformer(x_NSK, attn_mask=mask_SS)
        return x_NSK.take_along_dim(ends_N[:, None, None], dim=1)

    def _ends(self, ids_NL: torch.Tensor) -> torch.Tensor:
        """The column pooled at, as `text_global_pool` finds it: the first of the highest ids, or the first end token.

        The first column, where there is no end token.
        """
        rank_NL = ids_NL if self._pool == "argmax" else ids_NL.eq(self._end_id).int()
        return rank_NL.argmax(dim=1)


class _AppendedClass:
    """CoCa: a class token after the last column, which sees what is not padding; its position is kept.

    With open_clip's legacy mask (`correct_cls_mask` false) it also sees one column of padding, so that one is kept too.
    """

    def __init__(self, tower: Any) -> None:
        self._tower = tower

    def lengths(self, ids_NL: torch.Tensor) -> NDArray[np.int64]:
        extra = 0 if self._tower.correct_cls_mask else 1
        return np.minimum(_used_columns(ids_NL, self._tower.pad_id) + extra, ids_NL.shape[1])

    def encode(self, ids_NS: torch.Tensor) -> Any:
        import torch

        tower, (count, length) = self._tower, ids_NS.shape
        dtype = tower.transformer.get_cast_dtype()
        class_N1K = tower.cls_emb.expand(count, 1, -1)
        x_NSK = torch.cat([tower.token_embedding(ids_NS).to(dtype), class_N1K.to(dtype)], dim=1)
        positions = torch.cat([tower.positional_embedding[:length], tower.positional_embedding[-1:]])
        padding = tower._build_additive_mask(ids_NS, length + 1, dtype)
        mask = tower.attn_mask[: length + 1, : length + 1] + padding
        x_NSK = tower.transformer(x_NSK + positions.to(dtype), attn_mask=mask)
        return _project(tower, tower.ln_final(x_NSK[:, -1]))


def _is_causal(tower: Any) -> bool:
    """Whether the tower is one of open_clip's own and its mask hides everything to the right."""
    parts = ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "attn_mask")
    mask = getattr(tower, "attn_mask", None)
    if mask is None or mask.ndim != 2 or not all(hasattr(tower, part) for part in parts):  # noqa: PLR2004 - [L, L]
        return False
    rows, columns = mask.shape
    hidden = mask.isneginf()
    above = int(hidden.triu(1).sum()) == rows * (rows - 1) // 2
    return rows == columns and above and bool((mask.tril() == 0).all())


def _used_columns(ids_NL: torch.Tensor, pad_id: int) -> NDArray[np.int64]:
    """Columns of each row up to its last token that is not padding; all of them in a row of padding alone."""
    used_NL = (ids_NL != pad_id).cpu().numpy()
    return np.asarray(used_NL.shape[1] - used_NL[:, ::-1].argmax(axis=1), dtype=np.int64)


def _project(tower: Any, pooled_NK: Any) -> Any:
    projection = tower.text_projection
    if projection is None:
        return pooled_NK
    return projection(pooled_NK) if callable(projection) else pooled_NK @ projection
