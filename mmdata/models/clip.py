"""Image and text embeddings by any model that open_clip can build.

Shapes: N samples, D embedding size, H and W pixels, C colour channels, L tokens of a text,
S those of them that are kept.

Importing this module imports neither torch nor open_clip: only `Clip.load` needs them.
"""

from __future__ import annotations

import json
import pickle
import textwrap
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdata.errors import MissingExtraError, WeightsError
from mmdata.models.clip_image import ImageRecipe
from mmdata.models.clip_text import text_tower
from mmdata.models.clip_weights import CONFIG_NAME, as_folder, is_path, locate
from mmdata.models.device import Precision, multiplies_bf16, resolve_device, whole_float32
from mmdata.models.passes import passes_on
from mmdata.models.weights import refusal

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

# Images of a pass, at first and at most. An accelerator is filled by what it finds itself (`Passes`). On a processor
# small passes stay in its caches: EfficientNet-Lite0 sees 26 images a second and core in 16s, 17 in 64s.
_IMAGES_A_PASS = {"cuda": (64, 1024)}
_IMAGES_A_PASS_ELSEWHERE = (16, 16)
# Passes of texts differ in length, so their speed tells little: they shrink where memory runs out, and never grow.
# On a processor 16 texts are as fast as 64 of their length, and seldom padded: of captions whose longest has 37 tokens
# and the mean 14, passes of 16 cost a third of passes of 64.
_TEXTS_A_PASS = {"cuda": 256}
_TEXTS_A_PASS_ELSEWHERE = 16


class Clip:
    """An image tower and a text tower whose embeddings lie in one space."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        recipe: ImageRecipe,
        width: int,
        device: torch.device,
        precision: Precision = "auto",
    ) -> None:
        """Take over a built model; use `Clip.load`."""
        import torch

        from mmdata.models.clip_inference import fold_quick_gelu, pool_class_early

        self.recipe = recipe
        self.width = width
        self._device = device
        fold_quick_gelu(model)
        # Convolutions are faster with the channels last, on processors and on accelerators; equal but for rounding.
        # Weights in bf16, as open_clip's `pure_bf16`: autocast would cast them anew in each pass.
        self._dtype = torch.bfloat16 if precision == "auto" and multiplies_bf16(device) else torch.float32
        self._model = model.to(device, self._dtype, memory_format=torch.channels_last).eval()
        self._tokenize = tokenizer
        self._text_tower = text_tower(self._model)
        pool_class_early(self._model.visual)
        images, most = _IMAGES_A_PASS.get(device.type, _IMAGES_A_PASS_ELSEWHERE)
        self._image_passes = passes_on(device, images, most)
        texts = _TEXTS_A_PASS.get(device.type, _TEXTS_A_PASS_ELSEWHERE)
        self._text_passes = passes_on(device, texts, texts)
        self._mean_C11 = torch.tensor(recipe.mean, device=device).view(3, 1, 1)
        self._std_C11 = torch.tensor(recipe.std, device=device).view(3, 1, 1)

    @classmethod
    def load(
        cls, model: str, pretrained: str | None = None, device: str = "auto", precision: Precision = "auto"
    ) -> Clip:
        """Build a model with open_clip's own factory; checkpoints are never unpickled.

        Args:
            model: as in `locate`.
            pretrained: as in `locate`.
            device: as in `resolve_device`.
            precision: of weights and activations; `auto` is bf16 where `multiplies_bf16`, which moves cosines by about
                0.001, those of `lite` by some thousandths.

        Raises:
            MissingExtraError: open_clip is not installed.
            WeightsError: the weights are missing, or are not those of this model.
            FatalError: the device is not there.
        """
        target = resolve_device(device)
        built, tokenizer, width = _load(model, pretrained)
        return cls(built, tokenizer, _recipe_of(built), width, target, precision)

    def embed_images(self, images_NCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed what `prepare_image` returned, stacked.

        Returns:
            float32 `[N, D]`, each row of length 1. The same input gives the same output, but for rounding where
            passes are of other sizes (on CUDA they are found by trying).

        Raises torch.OutOfMemoryError where not even one image fits.
        """
        out_ND = np.zeros((len(images_NCHW), self.width), dtype=np.float32)
        passes = self._image_passes.over(len(images_NCHW), lambda rows: self._image_pass(images_NCHW[rows]))
        # Each is waited for when the next has begun: an accelerator computes while the host copies.
        for (rows, wait), _ in pairwise(chain(passes, [(slice(0), lambda: out_ND[:0])])):
            out_ND[rows] = wait()
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
        lengths_N = self._text_tower.lengths(ids_NL)
        # Short texts with short ones, so that little of a pass is padding.
        order_N = np.argsort(lengths_N, kind="stable")
        out_ND = np.zeros((len(distinct), self.width), dtype=np.float32)

        def run(rows: slice) -> NDArray[np.float32]:
            some = order_N[rows]
            return self._text_pass(ids_NL[some, : int(lengths_N[some].max())])

        for rows, emb_ND in self._text_passes.over(len(distinct), run):
            out_ND[order_N[rows]] = emb_ND
        return out_ND[[distinct[text] for text in texts]]

    def _image_pass(self, images_NCHW: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
        """Begin to embed; what comes back waits for the embeddings. It has ended where its time is of interest."""
        import torch

        with torch.inference_mode(), whole_float32():
            pixels_NCHW = self._to_device(images_NCHW)
            unit_NCHW = (pixels_NCHW.float() / 255 - self._mean_C11) / self._std_C11
            unit_NCHW = unit_NCHW.contiguous(memory_format=torch.channels_last)
            emb_ND = _unit_rows(self._model.encode_image(unit_NCHW.to(self._dtype)))
            wait = _fetch(emb_ND)
        if self._image_passes.grows:
            wait()
        return wait

    def _text_pass(self, ids_NS: torch.Tensor) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            return _fetch(_unit_rows(self._text_tower.encode(ids_NS.to(self._device))))()

    def _to_device(self, images_NCHW: NDArray[np.uint8]) -> torch.Tensor:
        """A copy on the device; to CUDA out of page-locked memory, so that the host need not wait for it."""
        import torch

        if self._device.type != "cuda":
            # A copy: torch refuses negative strides, and warns of read-only memory.
            return torch.from_numpy(np.array(images_NCHW, order="C")).to(self._device)
        pinned_NCHW = torch.empty(images_NCHW.shape, dtype=torch.uint8, pin_memory=True)
        np.copyto(pinned_NCHW.numpy(), images_NCHW)
        return pinned_NCHW.to(self._device, non_blocking=True)


def build_network(model: str, pretrained: str | None = None) -> tuple[Any, ImageRecipe]:
    """open_clip's network alone, in float32 on the CPU, and how it wants its images; raises as `Clip.load`."""
    built = _load(model, pretrained)[0]
    return built, _recipe_of(built)


def _load(model: str, pretrained: str | None) -> tuple[Any, Any, int]:
    """Network, tokenizer and dimensions of an embedding."""
    locate(model, pretrained)
    try:
        import open_clip
        from safetensors import SafetensorError
    except ImportError as error:
        raise MissingExtraError(f"the CLIP model {model!r}", "open-clip-torch", "clip") from error
    folder = as_folder(model)
    name = f"local-dir:{folder}" if folder else model
    try:
        built = _build(open_clip, name, pretrained, folder)
        return built, open_clip.get_tokenizer(name), int(open_clip.get_model_config(name)["embed_dim"])
    except (
        RuntimeError,
        OSError,
        ValueError,
        KeyError,
        AssertionError,
        AttributeError,  # of a checkpoint that is no dict
        pickle.UnpicklingError,
        SafetensorError,
    ) as error:
        # A hub that cannot be reached, a checkpoint of another model, a pointer of Git LFS and a file that would run
        # code all end here. Another model's checkpoint is told by each of its tensors.
        why = textwrap.shorten(refusal(error), 600, placeholder=" ...")
        raise WeightsError(f"model {model!r} (pretrained {pretrained!r}) does not load: {why}") from error


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


def _unit_rows(features_ND: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import normalize

    return normalize(features_ND.float(), dim=-1)


def _fetch(emb_ND: torch.Tensor) -> Callable[[], NDArray[np.float32]]:
    """Begin to copy to the host; what comes back waits for the copy, and for nothing that was begun after it."""
    import torch

    if emb_ND.device.type != "cuda":
        return lambda: np.asarray(emb_ND.cpu().numpy(), dtype=np.float32)
    here_ND = emb_ND.to("cpu", non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(emb_ND.device))

    def wait() -> NDArray[np.float32]:
        done.synchronize()
        return np.asarray(here_ND.numpy(), dtype=np.float32)

    return wait
