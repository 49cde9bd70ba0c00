"""Sound and text embeddings by CLAP (Wu et al. 2023, "Large-scale Contrastive Language-Audio Pretraining").

Shapes: N clips or texts, T audio samples, F mel frames, M mel bands, C mels of a clip (four in fused models, else one),
B frequency bins, W samples of an FFT window, L tokens of a text, D embedding size.

The spectrogram is that of transformers' `ClapFeatureExtractor`, with numpy alone, for workers; what is random there is
fixed here: of what is longer than the model's window, a fused model hears the middle of each third, another the middle.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mmdata.errors import MissingExtraError, WeightsError
from mmdata.models.clip_weights import as_folder
from mmdata.models.device import multiplies_bf16, resolve_device
from mmdata.models.passes import passes_on
from mmdata.models.weights import Weights, content_identity

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

CHECKPOINT_NAMES: Final = ("model.safetensors", "pytorch_model.bin")
_NEEDED: Final = ("config.json", "preprocessor_config.json")
# Whatever of these lies in a folder changes how it reads texts.
_TEXT_NAMES: Final = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
# Clips of a pass, at first and at most: a clip of ten seconds costs about what an image of 256 px does.
_CLIPS_A_PASS: Final = {"cuda": (64, 512)}
_CLIPS_A_PASS_ELSEWHERE: Final = (8, 8)
_TEXTS_A_PASS: Final = 128
# Below this power there is silence: -100 dB (`transformers.audio_utils.power_to_db`).
_FLOOR: Final = 1e-10
# Frames of the FFT at once, so that an hour of sound takes no more memory than ten seconds.
_FRAMES_AT_ONCE: Final = 1024


@dataclass(frozen=True, eq=False)
class ClapRecipe:
    """How a model wants its sounds; small and picklable, to be sent to worker processes.

    Attributes:
        rate_hz: samples a second.
        window_samples: length of what the model hears at once; shorter clips are repeated or padded to it.
        hop_samples: from one mel frame to the next.
        mel_BM: filter bank, `[fft / 2 + 1, bands]`.
        padding: `repeatpad`, `repeat` or `pad`, as in the model's `preprocessor_config.json`.
        fused: whether the model takes four mels of a longer clip.
    """

    rate_hz: int
    window_samples: int
    hop_samples: int
    mel_BM: NDArray[np.float64]
    padding: str
    fused: bool


@dataclass(frozen=True)
class Sound:
    """A clip as the model takes it: float32 `[C, F, M]` in decibels, and whether it is longer than the window."""

    mel_CFM: NDArray[np.float32]
    longer: bool


def locate(model: str) -> Weights:
    """Say which weights `model` names, a folder or a hub id (`laion/clap-htsat-unfused`), without loading them.

    Raises:
        WeightsError: a folder is missing, or something in it is.
    """
    folder = as_folder(model)
    if folder is None:
        return Weights(identity=model)
    checkpoints = [folder / name for name in CHECKPOINT_NAMES if (folder / name).is_file()]
    absent = [name for name in _NEEDED if not (folder / name).is_file()]
    if absent or not checkpoints:
        state = f"has no {', '.join(absent) or ' or '.join(CHECKPOINT_NAMES)}" if folder.is_dir() else "is not there"
        raise WeightsError(f"model folder {folder} {state}; give the folder of a transformers CLAP model, or a hub id")
    texts = [folder / name for name in _TEXT_NAMES if (folder / name).is_file()]
    files = [checkpoints[0], *(folder / name for name in _NEEDED), *texts]
    return Weights(identity=content_identity(files), path=folder)


def prepare_sound(recipe: ClapRecipe, audio_T: NDArray[np.float32]) -> Sound:
    """The log-mel spectrogram of a clip of any length but zero, at `recipe.rate_hz`."""
    import numpy as np

    window = recipe.window_samples
    if len(audio_T) <= window:
        mel_FM = _log_mel(recipe, _filled(audio_T, window, recipe.padding))
        return Sound(np.stack([mel_FM] * (4 if recipe.fused else 1)), False)
    if recipe.fused:
        return _fused(_log_mel(recipe, audio_T), window // recipe.hop_samples + 1)
    start = (len(audio_T) - window) // 2
    return Sound(_log_mel(recipe, audio_T[start : start + window])[None], True)


class Clap:
    """A sound tower and a text tower whose embeddings lie in one space."""

    def __init__(self, model: Any, tokenizer: Any, recipe: ClapRecipe, device: torch.device) -> None:
        """Take over a built `transformers.ClapModel`; use `Clap.load`."""
        self.recipe = recipe
        self.width = int(model.config.projection_dim)
        self._device = device
        self._model = model.to(device).eval()
        self._tokenizer = tokenizer
        text = model.config.text_config
        # Positions are counted from behind the padding id, as in RoBERTa.
        self._max_tokens = int(min(text.max_position_embeddings - text.pad_token_id - 1, tokenizer.model_max_length))
        clips, most = _CLIPS_A_PASS.get(device.type, _CLIPS_A_PASS_ELSEWHERE)
        self._audio_passes = passes_on(device, clips, most)
        self._text_passes = passes_on(device, _TEXTS_A_PASS, _TEXTS_A_PASS)

    @classmethod
    def load(cls, model: str, device: str = "auto") -> Clap:
        """Load a model through transformers; checkpoints are never unpickled.

        Args:
            model: as in `locate`.
            device: as in `resolve_device`.

        Raises:
            MissingExtraError: transformers or torch is not installed.
            WeightsError: the weights are missing, or are not those of a CLAP model.
            FatalError: the device is not there.
        """
        folder = locate(model).path
        try:
            import torch
            from safetensors import SafetensorError
            from transformers import AutoConfig, AutoTokenizer, ClapFeatureExtractor, ClapModel
        except ImportError as error:
            raise MissingExtraError(f"the CLAP model {model!r}", "transformers", "clap") from error
        target, name = resolve_device(device), str(folder or model)
        try:
            kind = AutoConfig.from_pretrained(name).model_type
            if kind != "clap":
                raise WeightsError(f"model {model!r} is a {kind} model, not CLAP")
            loaded: Any = ClapModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
            built, found = loaded
            tokenizer = AutoTokenizer.from_pretrained(name)
            recipe = _recipe_of(ClapFeatureExtractor.from_pretrained(name), built)
        except (RuntimeError, OSError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
            raise WeightsError(f"model {model!r} does not load: {error}") from error
        if found["missing_keys"]:
            # transformers only warns, and makes the rest up.
            raise WeightsError(f"model {model!r} has no weights for {', '.join(sorted(found['missing_keys'])[:3])}")
        return cls(built, tokenizer, recipe, target)

    def embed_sounds(self, sounds: list[Sound]) -> NDArray[np.float32]:
        """Embed what `prepare_sound` returned.

        Returns:
            float32 `[N, D]`, each row of length 1; independent of what else is embedded, but for rounding.

        Raises torch.OutOfMemoryError where not even one clip fits.
        """
        import numpy as np

        out_ND = np.zeros((len(sounds), self.width), dtype=np.float32)
        for rows, emb_ND in self._audio_passes.over(len(sounds), lambda rows: self._sound_pass(sounds[rows])):
            out_ND[rows] = emb_ND
        return out_ND

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Embed texts, each distinct one once; what exceeds the model's context is cut off.

        Returns:
            float32 `[N, D]`, each row of length 1; independent of what else is embedded, but for rounding.
        """
        import numpy as np

        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        ids = [self._tokenizer(text, truncation=True, max_length=self._max_tokens)["input_ids"] for text in distinct]
        # Short texts with short ones, so that little of a pass is padding.
        order_N = np.argsort([len(row) for row in ids], kind="stable")
        out_ND = np.zeros((len(distinct), self.width), dtype=np.float32)
        for rows, emb_ND in self._text_passes.over(
            len(ids), lambda rows: self._text_pass([ids[i] for i in order_N[rows]])
        ):
            out_ND[order_N[rows]] = emb_ND
        return out_ND[[distinct[text] for text in texts]]

    def _sound_pass(self, sounds: list[Sound]) -> NDArray[np.float32]:
        import numpy as np
        import torch

        mel_NCFM = torch.from_numpy(np.stack([sound.mel_CFM for sound in sounds])).to(self._device)
        # Said as it is. transformers' extractor calls one of a batch without longer clips longer, at random, which
        # the original code does in training only.
        longer_N1 = torch.tensor([[sound.longer] for sound in sounds], device=self._device)
        with torch.inference_mode(), self._autocast():
            return _unit_rows(self._model.get_audio_features(input_features=mel_NCFM, is_longer=longer_N1))

    def _text_pass(self, ids: list[list[int]]) -> NDArray[np.float32]:
        import torch

        padded = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self._device)
        with torch.inference_mode(), self._autocast():
            return _unit_rows(
                self._model.get_text_features(input_ids=padded.input_ids, attention_mask=padded.attention_mask)
            )

    def _autocast(self) -> torch.autocast:
        import torch

        # Processors stay with float32: most of them emulate bf16, slower and less exact.
        half = self._device.type == "cuda" and multiplies_bf16(self._device)
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=half)


def _recipe_of(extractor: Any, model: Any) -> ClapRecipe:
    import numpy as np

    fused = extractor.truncation == "fusion"
    if fused != bool(model.config.audio_config.enable_fusion):
        raise WeightsError(f"truncation {extractor.truncation!r} does not go with enable_fusion of the model's config")
    # Two filter banks, because the authors trained with two (`ClapFeatureExtractor._np_extract_fbank_features`).
    mel_BM = extractor.mel_filters if fused else extractor.mel_filters_slaney
    return ClapRecipe(
        rate_hz=int(extractor.sampling_rate),
        window_samples=int(extractor.nb_max_samples),
        hop_samples=int(extractor.hop_length),
        mel_BM=np.asarray(mel_BM, dtype=np.float64),
        padding=str(extractor.padding),
        fused=fused,
    )


def _filled(audio_T: NDArray[np.float32], length: int, padding: str) -> NDArray[np.float32]:
    """A clip of `length` samples: whole repeats then silence, repeats to the end, or silence at once."""
    import numpy as np

    repeats = length // len(audio_T)
    times = {"repeat": repeats + 1, "repeatpad": repeats}.get(padding, 1)
    long_T = np.tile(audio_T, times)[:length]
    return np.pad(long_T, (0, length - len(long_T)))


def _log_mel(recipe: ClapRecipe, audio_T: NDArray[np.float32]) -> NDArray[np.float32]:
    """`transformers.audio_utils.spectrogram` with a periodic Hann window, centred, in decibels of power; `[F, M]`."""
    import numpy as np

    size = 2 * (len(recipe.mel_BM) - 1)
    padded_T = np.pad(audio_T.astype(np.float64), size // 2, mode="reflect")
    frames_FW = np.lib.stride_tricks.sliding_window_view(padded_T, size)[:: recipe.hop_samples]
    hann_W = np.hanning(size + 1)[:-1]
    blocks = []
    for start in range(0, len(frames_FW), _FRAMES_AT_ONCE):
        spectrum_FB = np.fft.rfft(frames_FW[start : start + _FRAMES_AT_ONCE] * hann_W).astype(np.complex64)
        power_FB = np.abs(spectrum_FB, dtype=np.float64) ** 2
        blocks.append(10 * np.log10(np.maximum(power_FB @ recipe.mel_BM, _FLOOR)).astype(np.float32))
    return np.concatenate(blocks)


def _fused(mel_FM: NDArray[np.float32], frames: int) -> Sound:
    """The whole clip shrunk, and a window out of the middle of each third of it (section 3.3 of the paper)."""
    import numpy as np

    spare = len(mel_FM) - frames
    if spare == 0:
        return Sound(np.stack([mel_FM] * 4), False)
    thirds = np.array_split(np.arange(spare + 1), 3)
    starts = [int(third[len(third) // 2]) if len(third) else 0 for third in thirds]
    chunks = [mel_FM[start : start + frames] for start in starts]
    return Sound(np.stack([_shrunk(mel_FM, frames), *chunks]), True)


def _shrunk(mel_FM: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
    """Linear in time, as `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`: places in float32."""
    import numpy as np

    scale = np.float32(len(mel_FM) / frames)
    at_F = np.clip(scale * (np.arange(frames, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0, None)
    low_F = np.minimum(np.floor(at_F).astype(int), len(mel_FM) - 1)
    high_F = np.minimum(low_F + 1, len(mel_FM) - 1)
    share_F1 = (at_F - low_F)[:, None]
    return np.asarray(mel_FM[low_F] * (1 - share_F1) + mel_FM[high_F] * share_F1, dtype=np.float32)


def _unit_rows(features: Any) -> NDArray[np.float32]:
    """Rows of length 1; transformers 5 returns an output object where 4 returned the tensor."""
    import numpy as np
    from torch.nn.functional import normalize

    features_ND = getattr(features, "pooler_output", features)
    return np.asarray(normalize(features_ND.float(), dim=-1).cpu().numpy(), dtype=np.float32)
