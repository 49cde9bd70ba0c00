"""Image and text embeddings by any model that open_clip can build.

Shapes: N samples, D embedding size, H and W pixels, C colour channels, L tokens of a text.

Importing this module imports neither torch nor open_clip: only `Clip.load` needs them.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdata.errors import MissingExtraError, WeightsError
from mmdata.models.clip_image import ImageRecipe
from mmdata.models.clip_weights import CONFIG_NAME, as_folder, is_path, locate
from mmdata.models.device import resolve_device

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

# Bounds the memory of one forward pass: a ViT-L/14 at 336 px stays under 8 GiB on an accelerator in bf16. On a
# processor small passes stay in its caches: EfficientNet-Lite0 sees 26 images a second and core in 16s, 17 in 64s.
_IMAGES_A_PASS = {"cuda": 256}
_IMAGES_A_PASS_ELSEWHERE = 16
_TEXTS_A_PASS = 256


class Clip:
    """An image tower and a text tower whose embeddings lie in one space."""

    def __init__(self, model: Any, tokenizer: Any, recipe: ImageRecipe, width: int, device: torch.device) -> None:
        """Take over a built model; use `Clip.load`."""
        import torch

        self.recipe = recipe
        self.width = width
        self._device = device
        # Convolutions are faster with the channels last, on processors and on accelerators; equal but for rounding.
        self._model = model.to(device, memory_format=torch.channels_last).eval()
        self._tokenize = tokenizer
        self._mean_C11 = torch.tensor(recipe.mean, device=device).view(3, 1, 1)
        self._std_C11 = torch.tensor(recipe.std, device=device).view(3, 1, 1)

    @classmethod
    def load(cls, model: str, pretrained: str | None = None, device: str = "auto") -> Clip:
        """Build a model with open_clip's own factory; checkpoints are never unpickled.

        Args:
            model: as in `locate`.
            pretrained: as in `locate`.
            device: as in `resolve_device`.

        Raises:
            MissingExtraError: open_clip is not installed.
            WeightsError: the weights are missing, or are not those of this model.
            FatalError: the device is not there.
        """
        locate(model, pretrained)
        try:
            import open_clip
        except ImportError as error:
            raise MissingExtraError(f"the CLIP model {model!r}", "open-clip-torch", "clip") from error
        folder = as_folder(model)
        name = f"local-dir:{folder}" if folder else model
        target = resolve_device(device)
        try:
            built = _build(open_clip, name, pretrained, folder)
            tokenizer = open_clip.get_tokenizer(name)
            width = int(open_clip.get_model_config(name)["embed_dim"])
        except (RuntimeError, OSError, ValueError, KeyError, AssertionError, pickle.UnpicklingError) as error:
            # A hub that cannot be reached, a checkpoint of another model and a file that would run code all end here.
            raise WeightsError(f"model {model!r} (pretrained {pretrained!r}) does not load: {error}") from error
        return cls(built, tokenizer, _recipe_of(built), width, target)

    def embed_images(self, images_NCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed what `prepare_image` returned, stacked.

        Returns:
            float32 `[N, D]`, each row of length 1. The same input gives the same output.
        """
        size = _IMAGES_A_PASS.get(self._device.type, _IMAGES_A_PASS_ELSEWHERE)
        out_ND = np.zeros((len(images_NCHW), self.width), dtype=np.float32)
        for start in range(0, len(images_NCHW), size):
            out_ND[start : start + size] = self._image_pass(images_NCHW[start : start + size])
        return out_ND

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Embed texts, each distinct one once; what exceeds the model's context is cut off, as open_clip does.

        Returns:
            float32 `[N, D]`, each row of length 1. The same input gives the same output.
        """
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        ids_NL = self._tokenize(list(distinct))
        out_ND = np.zeros((len(distinct), self.width), dtype=np.float32)
        for rows in _by_length(self._lengths(ids_NL), _TEXTS_A_PASS):
            out_ND[rows] = self._text_pass(ids_NL[rows])
        return out_ND[[distinct[text] for text in texts]]

    def _image_pass(self, images_NCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            # A copy: torch refuses negative strides, and warns of read-only memory.
            pixels_NCHW = torch.from_numpy(np.array(images_NCHW, order="C")).to(self._device)
            unit_NCHW = (pixels_NCHW.float() / 255 - self._mean_C11) / self._std_C11
            unit_NCHW = unit_NCHW.contiguous(memory_format=torch.channels_last)
            with self._autocast():
                return _unit_rows(self._model.encode_image(unit_NCHW))

    def _text_pass(self, ids_NL: torch.Tensor) -> NDArray[np.float32]:
        import torch

        longest = int(self._lengths(ids_NL).max())
        with torch.inference_mode(), self._autocast():
            cut_NL = ids_NL[:, :longest].to(self._device)
            if cut_NL.shape[1] < ids_NL.shape[1] and _is_causal(self._model):
                return _unit_rows(_encode_causal(self._model, cut_NL))
            return _unit_rows(self._model.encode_text(cut_NL))

    def _autocast(self) -> torch.autocast:
        import torch

        # Off the accelerator, bf16 is emulated on most processors: slower and less exact.
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._device.type == "cuda")

    def _lengths(self, ids_NL: torch.Tensor) -> NDArray[np.int64]:
        """How many columns of each row the text tower must see for its embedding to be exact."""
        pad_id = _ignored_id(self._model)
        if pad_id is None:
            return np.full(len(ids_NL), ids_NL.shape[1])
        used_NL = (ids_NL != pad_id).numpy()
        return np.asarray(used_NL.shape[1] - used_NL[:, ::-1].argmax(axis=1))


def _build(open_clip: Any, name: str, pretrained: str | None, folder: Path | None) -> Any:
    extra: dict[str, Any] = {}
    if folder is not None:
        extra = _inner_text_tower(folder)
        pretrained = None
    elif pretrained is not None and is_path(pretrained):
        pretrained = str(Path(pretrained).expanduser())
    elif pretrained is not None:
        # Some tags were trained with QuickGELU; with the plain architecture name open_clip only warns and scores worse.
        tag = open_clip.get_pretrained_cfg(name, pretrained) or {}
        extra["force_quick_gelu"] = bool(tag.get("quick_gelu"))
    return open_clip.create_model(name, pretrained, require_pretrained=True, weights_only=True, **extra)


def _inner_text_tower(folder: Path) -> dict[str, Any]:
    """Make a text tower config that lies inside the model folder an absolute path.

    open_clip resolves `hf_model_name` against the working directory, so a folder that may be moved cannot name it.
    """
    text_cfg = json.loads((folder / CONFIG_NAME).read_text())["model_cfg"]["text_cfg"]
    name = text_cfg.get("hf_model_name")
    if not name or not (folder / name / "config.json").is_file():
        return {}
    return {"text_cfg": {**text_cfg, "hf_model_name": str(folder / name), "hf_model_pretrained": False}}


def _recipe_of(model: Any) -> ImageRecipe:
    cfg = model.visual.preprocess_cfg
    size = cfg["size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise WeightsError(f"the model wants images of {size} px; only square ones are supported")
    interpolation = "bilinear" if cfg["interpolation"] == "bilinear" else "bicubic"
    return ImageRecipe(
        side_px=sides.pop(),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=interpolation,
        resize_mode=cfg["resize_mode"],
        fill=int(cfg["fill_color"]),
    )


def _ignored_id(model: Any) -> int | None:
    """The token id whose trailing columns cannot change an embedding, None where they can.

    Hugging Face towers mask padding. open_clip's own causal tower pads with 0 after the end token, whose position it
    pools at, and which sees nothing to its right. Its other towers attend to padding.
    """
    config = getattr(getattr(model, "text", None), "config", None)
    pad_id = getattr(config, "pad_token_id", None)
    if isinstance(pad_id, int):
        return pad_id
    return 0 if _is_causal(model) else None


def _is_causal(model: Any) -> bool:
    pools_at_end = getattr(model, "text_pool_type", None) in {"argmax", "eos"}
    return pools_at_end and getattr(model, "attn_mask", None) is not None and hasattr(model, "positional_embedding")


def _encode_causal(model: Any, ids_NL: torch.Tensor) -> Any:
    """`CLIP.encode_text` of open_clip 3 with the position table and the mask cut to L.

    open_clip's own method only takes the full context; the result is the same (a test compares them).
    """
    from open_clip.transformer import text_global_pool

    length = ids_NL.shape[1]
    dtype = model.transformer.get_cast_dtype()
    x_NLK = model.token_embedding(ids_NL).to(dtype) + model.positional_embedding[:length].to(dtype)
    x_NLK = model.transformer(x_NLK, attn_mask=model.attn_mask[:length, :length])
    pooled_NK: Any = text_global_pool(
        model.ln_final(x_NLK), ids_NL, model.text_pool_type, eos_token_id=getattr(model, "text_eos_id", None)
    )
    projection = model.text_projection
    if projection is None:
        return pooled_NK
    return projection(pooled_NK) if callable(projection) else pooled_NK @ projection


def _by_length(lengths_N: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers in groups of `size`, short texts with short ones, so that little of a pass is padding."""
    order = np.argsort(lengths_N, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _unit_rows(features_ND: torch.Tensor) -> NDArray[np.float32]:
    from torch.nn.functional import normalize

    return np.asarray(normalize(features_ND.float(), dim=-1).cpu().numpy(), dtype=np.float32)
