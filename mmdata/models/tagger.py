"""What a sound is, in the words of a tagger's label list; how well these words go with a caption.

Shapes: T audio samples, F frames of a spectrogram, M mel bands, B frequency bins, P patches, K labels.

A tagger is a folder with `model.onnx`, `labels.csv` and, where the model is quantised or gives logits, `tagger.json`
(see `Settings`). Two kinds of sound models are known by the shape of their input: YAMNet's patches
`[1 or any, 1, 96, 64]`, and a waveform `[T]` or `[1, T]` at 16 kHz.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from mmdata.errors import MissingExtraError, WeightsError
from mmdata.models.weights import Weights, content_identity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL_NAME: Final = "model.onnx"
LABELS_NAME: Final = "labels.csv"
SETTINGS_NAME: Final = "tagger.json"
RATE_HZ: Final = 16_000
# YAMNet's `params.py` (tensorflow/models, research/audioset/yamnet): magnitudes of 25 ms every 10 ms, 64 mel bands from
# 125 to 7,500 Hz, log(x + 0.001), patches of 96 frames every 48.
_FRAME_SAMPLES: Final = 400
_HOP_SAMPLES: Final = 160
_FFT_SAMPLES: Final = 512
_MEL_BANDS: Final = 64
_MEL_RANGE_HZ: Final = (125.0, 7_500.0)
_LOG_OFFSET: Final = 0.001
_PATCH_FRAMES: Final = 96
_PATCH_HOP_FRAMES: Final = 48
_PATCH_NDIM: Final = 4
# Less likely tags say nothing and are not listed.
_LISTED_PROBABILITY: Final = 0.1
_LISTED: Final = 5


@dataclass(frozen=True)
class Settings:
    """`tagger.json`: what an ONNX file does not say of itself.

    Attributes:
        logits: whether the output still needs a sigmoid.
        input_scale: of a quantised input: `value = scale * (stored - zero_point)`.
        input_zero_point: the same.
        output_scale: of a quantised output.
        output_zero_point: the same.
    """

    logits: bool = False
    input_scale: float = 1.0
    input_zero_point: float = 0.0
    output_scale: float = 1.0
    output_zero_point: float = 0.0


@dataclass(frozen=True)
class Tag:
    """A label and how likely it is, 0 to 1."""

    label: str
    probability: float


class Tagger(Protocol):
    """A model that names what it is given."""

    labels: Sequence[str]

    def probabilities(self, audio_T: NDArray[np.float32]) -> NDArray[np.float64]:
        """Of each label, `[K]`, for a clip at 16 kHz, mono."""


def locate(model: str, labels: str | None = None) -> tuple[Path, Path, Weights]:
    """The ONNX file, the label list and their identity, without loading them.

    Args:
        model: a folder, or the ONNX file itself.
        labels: a CSV file with a column `display_name`; None: `labels.csv` beside the model.

    Raises:
        WeightsError: something is missing.
    """
    path = Path(model).expanduser()
    onnx = path / MODEL_NAME if path.is_dir() or not path.suffix else path
    table = Path(labels).expanduser() if labels else onnx.with_name(LABELS_NAME)
    for wanted in (onnx, table):
        if not wanted.is_file():
            raise WeightsError(f"tagger {model!r} has no {wanted}: give the folder of an ONNX tagger and its labels")
    # Large models keep their tensors in files beside them, under any name.
    beside = [other for other in onnx.parent.iterdir() if other.suffix in {".data", ".json"}]
    return onnx, table, Weights(identity=content_identity([onnx, table, *beside]), path=onnx)


def load_tagger(model: str, labels: str | None = None) -> Tagger:
    """Load a tagger; runs on the processor.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        WeightsError: something is missing, is no sound tagger, or does not fit together.
    """
    onnx, table, _ = locate(model, labels)
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(f"the tagger {model!r}", "onnxruntime", "tags") from error
    options = onnxruntime.SessionOptions()
    # These models are small: threads would wait for each other, and equal sums need an equal order.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises types of its own, that it does not export
        raise WeightsError(f"tagger {model!r} does not load: {error}") from error
    return OnnxTagger(session, _read_labels(table), _read_settings(onnx.with_name(SETTINGS_NAME)))


class OnnxTagger:
    """A sound tagger as an ONNX session: one probability a label, the mean over the clip's patches."""

    def __init__(self, session: Any, labels: Sequence[str], settings: Settings) -> None:
        """Take over a session. Raises WeightsError where it is no sound tagger with so many labels."""
        self.labels = labels
        self._session = session
        self._settings = settings
        self._input = session.get_inputs()[0]
        self._output = next((out.name for out in session.get_outputs() if out.shape[-1] == len(labels)), None)
        if self._output is None:
            shapes = [out.shape for out in session.get_outputs()]
            raise WeightsError(f"the tagger's outputs are {shapes}, and its list has {len(labels)} labels")
        patches = self._input.shape[1:] == [1, _PATCH_FRAMES, _MEL_BANDS]
        if not patches and len(self._input.shape) >= _PATCH_NDIM - 1:
            raise WeightsError(f"the tagger's input is {self._input.shape}: neither a waveform nor YAMNet's patches")
        self._run: Callable[[NDArray[np.float32]], list[Any]] = self._run_patches if patches else self._run_waveform

    def probabilities(self, audio_T: NDArray[np.float32]) -> NDArray[np.float64]:
        """Of each label, `[K]`: the mean over patches, as YAMNet's authors summarise a clip."""
        import numpy as np

        stored_PK = np.concatenate([out.reshape(-1, len(self.labels)) for out in self._run(audio_T)])
        cfg = self._settings
        values_PK = cfg.output_scale * (stored_PK.astype(np.float64) - cfg.output_zero_point)
        return np.asarray((1 / (1 + np.exp(-values_PK)) if cfg.logits else values_PK).mean(axis=0))

    def _run_patches(self, audio_T: NDArray[np.float32]) -> list[Any]:
        # One by one: quantised exports have a fixed batch of one, and these models are small.
        return [self._run_one(patch_FM[None, None]) for patch_FM in yamnet_patches(audio_T)]

    def _run_waveform(self, audio_T: NDArray[np.float32]) -> list[Any]:
        import numpy as np

        # YAMNet wants at least one patch: 96 frames, and what the last of them reaches over its hop.
        least = (_PATCH_FRAMES - 1) * _HOP_SAMPLES + _FRAME_SAMPLES
        long_T = np.pad(audio_T, (0, max(0, least - len(audio_T))))
        return [self._run_one(long_T[None] if len(self._input.shape) > 1 else long_T)]

    def _run_one(self, values: NDArray[np.float32]) -> Any:
        import numpy as np

        kind = re.fullmatch(r"tensor\((u?int(8|16))\)", self._input.type)
        fed: Any = values.astype(np.float32)
        if kind:
            bounds = np.iinfo(kind[1])
            stored = np.rint(values / self._settings.input_scale + self._settings.input_zero_point)
            fed = stored.clip(bounds.min, bounds.max).astype(kind[1])
        return self._session.run([self._output], {self._input.name: fed})[0]


def yamnet_patches(audio_T: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-mel patches `[P, 96, 64]` of a clip at 16 kHz, as YAMNet's `features.py` makes them; silence fills the last.

    A periodic Hann window, magnitudes, bands whose slopes are straight in mels; at least one patch.
    """
    import numpy as np

    hop = _PATCH_HOP_FRAMES * _HOP_SAMPLES
    patch = (_PATCH_FRAMES - 1) * _HOP_SAMPLES + _FRAME_SAMPLES
    count = 1 + max(0, -(-(len(audio_T) - patch) // hop))
    padded_T = np.pad(audio_T, (0, max(0, patch + (count - 1) * hop - len(audio_T))))
    frames_FT = np.lib.stride_tricks.sliding_window_view(padded_T, _FRAME_SAMPLES)[::_HOP_SAMPLES]
    hann_T = np.hanning(_FRAME_SAMPLES + 1)[:-1]
    magnitude_FB = np.abs(np.fft.rfft(frames_FT * hann_T, _FFT_SAMPLES))
    mel_FM = np.log(magnitude_FB @ _mel_bands() + _LOG_OFFSET).astype(np.float32)
    starts = range(0, count * _PATCH_HOP_FRAMES, _PATCH_HOP_FRAMES)
    return np.stack([mel_FM[start : start + _PATCH_FRAMES] for start in starts])


@lru_cache(maxsize=1)
def _mel_bands() -> NDArray[np.float64]:
    """`[B, M]`, as `tf.signal.linear_to_mel_weight_matrix`: HTK mels, no weight on the constant."""
    import numpy as np

    def mel(hertz: Any) -> Any:
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    bins_B1 = mel(np.linspace(0, RATE_HZ / 2, _FFT_SAMPLES // 2 + 1))[:, None]
    edges = np.linspace(mel(_MEL_RANGE_HZ[0]), mel(_MEL_RANGE_HZ[1]), _MEL_BANDS + 2)
    lower_M, centre_M, upper_M = edges[:-2], edges[1:-1], edges[2:]
    rising_BM = (bins_B1 - lower_M) / (centre_M - lower_M)
    falling_BM = (upper_M - bins_B1) / (upper_M - centre_M)
    bands_BM = np.maximum(0, np.minimum(rising_BM, falling_BM))
    bands_BM[0] = 0
    return np.asarray(bands_BM)


class Vocabulary:
    """The words of a tagger's labels, to be found in captions.

    A label such as "Bird vocalization, bird call" names alternatives; each goes with a caption as far as its words
    stand there, in whatever form: `dogs` is `dog`.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        """Split every label into its alternatives, once."""
        self._alternatives = [[words for part in _parts(label) if (words := stems(part))] for label in labels]

    def similarity(self, caption: str) -> dict[int, float]:
        """Labels that share a word with the caption: the share of words of their best alternative that stand in it."""
        there = stems(caption)
        best = [max((_share(words, there) for words in parts), default=0.0) for parts in self._alternatives]
        return {k: share for k, share in enumerate(best) if share > 0}

    def agreement(self, probability_K: NDArray[np.float64], caption: str) -> tuple[float | None, int | None]:
        """The highest product of a label's probability and its similarity to the caption, and that label's number.

        (None, None) where no label shares a word with the caption: the tagger has no word for what it says.
        """
        products = {k: float(probability_K[k]) * share for k, share in self.similarity(caption).items()}
        if not products:
            return None, None
        best = max(products, key=lambda k: (products[k], -k))
        return products[best], best


def listed(labels: Sequence[str], probability_K: NDArray[np.float64]) -> list[Tag]:
    """The few most likely tags, most likely first."""
    order = sorted(range(len(labels)), key=lambda k: (-probability_K[k], k))[:_LISTED]
    return [Tag(labels[k], float(probability_K[k])) for k in order if probability_K[k] >= _LISTED_PROBABILITY]


def stems(text: str) -> frozenset[str]:
    """Words without their endings, in lower case; words of one letter and articles are none."""
    return frozenset(_stem(word) for word in re.findall(r"[^\W\d_]{2,}", text.lower()) if word not in _STOP)


_STOP: Final = frozenset(
    {"a", "an", "and", "at", "by", "for", "from", "in", "is", "of", "on", "or", "the", "to", "with"}
)
# English endings in the order they are tried, with what stands for them, and the letters that must be left.
_ENDINGS: Final = (("ies", "y", 2), ("sses", "ss", 1), ("ches", "ch", 1), ("shes", "sh", 1), ("xes", "x", 1))
_VERB_ENDINGS: Final = (("ing", 3), ("ed", 3))


def _stem(word: str) -> str:
    """One spelling for the forms of an English word: not always a word (`bak`), but the same for all of them."""
    for ending, instead, left in _ENDINGS:
        if word.endswith(ending) and len(word) >= left + len(ending):
            return word.removesuffix(ending) + instead
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > len("gas"):
        word = word.removesuffix("s")
    for ending, left in _VERB_ENDINGS:
        if word.endswith(ending) and len(word) >= left + len(ending):
            word = word.removesuffix(ending)
            # run-n-ing, but not call-ing.
            return word[:-1] if word[-1] == word[-2] and word[-1] not in "lsz" else word
    # bark-s, bake-s and bak-ing meet without the e.
    return word.removesuffix("e") if len(word) > len("bee") else word


def _parts(label: str) -> list[str]:
    """Alternatives of a label: "Domestic animals, pets" are two; what stands in brackets is a remark."""
    return re.sub(r"\([^)]*\)", " ", label).split(",")


def _share(words: Collection[str], there: Collection[str]) -> float:
    return sum(word in there for word in words) / len(words)


def _read_labels(table: Path) -> list[str]:
    with table.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if "display_name" not in (rows.fieldnames or ()):
            raise WeightsError(f"label list {table} has no column 'display_name', but {rows.fieldnames}")
        return [row["display_name"] for row in rows]


def _read_settings(path: Path) -> Settings:
    if not path.is_file():
        return Settings()
    try:
        found = json.loads(path.read_text())
        unknown = set(found) - {field.name for field in fields(Settings)}
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if unknown:
        raise WeightsError(f"{path} has unknown keys: {', '.join(sorted(unknown))}")
    return Settings(**found)
