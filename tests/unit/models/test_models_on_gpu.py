"""Models on an accelerator score as on the processor in float32; weights are random."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerator import DEVICE, ON_ACCELERATOR, Record, least_cosine, needs_cuda
from PIL import Image

from mmdata.models.clip import Clip
from mmdata.models.clip_image import ImageRecipe
from mmdata.models.device import accelerators, resolve_device
from mmdata.models.passes import Passes

pytestmark = ON_ACCELERATOR

CPU = torch.device("cpu")
TEXTS = ["a red bird", "bird", "", "a very long caption of a bird that flies over the sea " * 12, "two ships at anchor"]
WORDS = (
    "a", "b", "c", "d", "the", "red", "blue", "bird", "dog", "ship", "sea", "rain", "sings", "barks", "over", "and",
    "of", "on", "runs", "sleeps", "house", "tree",
)  # fmt: skip


@needs_cuda
def test_what_is_there_is_found():
    assert accelerators("auto") == [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    assert resolve_device("auto").type == "cuda"


def spread(network: torch.nn.Module, factor: float = 2.0) -> torch.nn.Module:
    """Larger matrices than fresh ones, so that inputs that differ come out different."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(factor)
    return network


def clip_on(device: torch.device, precision: str = "auto") -> Clip:
    import open_clip

    torch.manual_seed(0)
    network = spread(open_clip.create_model("ViT-B-32"))
    recipe = ImageRecipe(224, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    return Clip(network, open_clip.get_tokenizer("ViT-B-32"), recipe, 512, device, precision)


@pytest.fixture(scope="module")
def exact() -> Clip:
    return clip_on(CPU, "float32")


@pytest.fixture(scope="module")
def fast() -> Clip:
    return clip_on(DEVICE)


@pytest.fixture(scope="module")
def images_NCHW() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (24, 3, 7, 7), dtype=np.uint8)
    return coarse.repeat(32, axis=2).repeat(32, axis=3)


def test_clip_embeds_as_on_the_processor(exact: Clip, fast: Clip, images_NCHW: np.ndarray, record_property: Record):
    image_ND, text_ND = exact.embed_images(images_NCHW), exact.embed_texts(TEXTS)
    assert (image_ND @ image_ND.T).min() < 0.95, "images that look alike would prove nothing"
    cosines = least_cosine(fast.embed_images(images_NCHW), image_ND), least_cosine(fast.embed_texts(TEXTS), text_ND)
    record_property("least cosines", cosines)
    assert min(cosines) > 0.999


def test_clip_in_float32_is_nearer(exact: Clip, images_NCHW: np.ndarray, record_property: Record):
    whole = clip_on(DEVICE, "float32")
    cosines = (
        least_cosine(whole.embed_images(images_NCHW), exact.embed_images(images_NCHW)),
        least_cosine(whole.embed_texts(TEXTS), exact.embed_texts(TEXTS)),
    )
    record_property("least cosines", cosines)
    assert min(cosines) > 0.99999


@needs_cuda
def test_passes_grow_by_themselves(fast: Clip, images_NCHW: np.ndarray, record_property: Record):
    many_NCHW = np.concatenate([images_NCHW] * 200)
    first_ND = fast.embed_images(images_NCHW)
    many_ND = fast.embed_images(many_NCHW)
    record_property("rows a pass", fast._image_passes.rows)
    assert fast._image_passes.rows > 64
    assert least_cosine(many_ND, np.concatenate([first_ND] * 200)) > 0.999


@pytest.fixture
def nearly_full() -> Iterator[None]:
    """All of the device's memory is taken but 500 MB."""
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info()
    ballast = [torch.empty(free_bytes - (500 << 20), dtype=torch.uint8, device=DEVICE)]
    yield
    ballast.clear()
    torch.cuda.empty_cache()


@needs_cuda
def test_out_of_memory_halves_the_passes(
    fast: Clip, images_NCHW: np.ndarray, nearly_full: None, record_property: Record
):
    many_NCHW = np.concatenate([images_NCHW] * 43)[:1024]
    passes, fast._image_passes = fast._image_passes, Passes(1024, 1024)
    try:
        many_ND = fast.embed_images(many_NCHW)
        record_property("rows a pass in 500 MB", fast._image_passes.rows)
        assert fast._image_passes.rows < 1024
    finally:
        fast._image_passes = passes
    assert least_cosine(many_ND[:24], fast.embed_images(images_NCHW)) > 0.999


def test_regions_are_found_where_the_processor_finds_them(exact: Clip):
    from mmdata.models.regions import RegionFinder, grid, see

    rng = np.random.default_rng(1)
    coarse = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((300, 200)) for _ in range(4)]
    boxes = grid([1, 2])
    pictures = [see(exact.recipe, image, boxes, is_grid=True) for image in coarse]
    phrases = [[["a red bird", "two ships"], ["the sea"]]] * 4
    found = [RegionFinder(clip).find(pictures, phrases) for clip in (exact, clip_on(DEVICE, "float32"))]
    flat = [[region for picture in one for caption in picture for region in caption] for one in found]
    assert len(flat[0]) == 12
    assert sum(ours.box == theirs.box for ours, theirs in zip(*flat, strict=True)) >= 11
    np.testing.assert_allclose([r.score for r in flat[0]], [r.score for r in flat[1]], atol=0.05)


# --- Whisper --------------------------------------------------------------------------------------------------------


def whisper_network(width: int = 64, layers: int = 2) -> Any:
    from whisper.model import ModelDimensions
    from whisper.model import Whisper as Network

    torch.manual_seed(0)
    network = Network(ModelDimensions(80, 1500, width, 2, layers, 51865, 448, width, 2, layers))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2 if width <= 64 else 0.05)
    return network.eval()


def speech(count: int = 24) -> tuple[list[np.ndarray], list[str]]:
    rng = np.random.default_rng(0)
    clips = [rng.normal(0, 0.1, int(16_000 * s)).astype(np.float32) for s in rng.uniform(0.4, 9.0, count)]
    return clips, [" ".join(rng.choice(WORDS, int(rng.integers(1, 20)))) for _ in range(count)]


def test_speech_scores_as_on_the_processor(record_property: Record):
    from scipy.stats import spearmanr

    from mmdata.models.whisper import Whisper

    clips, texts = speech()
    codes = ["en", "de", None] * 8
    exact = Whisper(whisper_network(), CPU, precision="float32").score(clips, texts, codes)
    fast = Whisper(whisper_network(), DEVICE).score(clips, texts, codes)
    gap_N = np.array([ours.score - theirs.score for ours, theirs in zip(fast, exact, strict=True)])
    order = spearmanr([one.score for one in fast], [one.score for one in exact]).statistic
    record_property("largest gap, nats a token", round(float(np.abs(gap_N).max()), 5))
    record_property("rank correlation", round(float(order), 5))
    assert np.abs(gap_N).max() < 0.1
    assert order > 0.99
    assert [one.language for one in fast] == [one.language for one in exact]


def test_words_are_timed_as_on_the_processor(record_property: Record):
    from mmdata.models.whisper import Whisper

    clips, texts = speech(12)
    found = [
        Whisper(whisper_network(), device, precision="float32").word_times(clips, texts, ["en"] * 12)
        for device in (CPU, DEVICE)
    ]
    starts = [np.array([word.start_s for words in one for word in words]) for one in found]
    same = np.abs(starts[0] - starts[1]) < 0.03
    record_property("share of words that start alike", round(float(same.mean()), 4))
    assert same.mean() > 0.95


def test_speech_is_transcribed():
    from mmdata.models.whisper import Whisper

    clips, _ = speech(3)
    transcripts = Whisper(whisper_network(), DEVICE).transcribe(clips, ["en", "de", None])
    assert len(transcripts) == 3
    assert all(np.isfinite(one.avg_logprob) for one in transcripts)


# --- CLAP -----------------------------------------------------------------------------------------------------------


def write_tokenizer(folder: Path) -> Any:
    """Whole words, as BERT's tokenizer marks them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)
    whole.save_pretrained(folder)
    return whole


@pytest.mark.parametrize("fused", [False, True])
def test_clap_embeds_as_on_the_processor(tmp_path: Path, fused: bool):
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    from mmdata.models.clap import Clap, _recipe_of, prepare_sound

    text = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
    audio = {
        "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4], "patch_embeds_hidden_size": 16, "hidden_size": 128,
        "enable_fusion": fused, "fusion_type": "aff_2d" if fused else None,
    }  # fmt: skip
    torch.manual_seed(0)
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=32)).eval()
    recipe = _recipe_of(ClapFeatureExtractor(truncation="fusion" if fused else "rand_trunc"), model)
    rng, tokenizer = np.random.default_rng(0), write_tokenizer(tmp_path)
    sounds = [prepare_sound(recipe, rng.normal(0, 0.1, int(48_000 * s)).astype(np.float32)) for s in (0.3, 4, 10, 17)]
    exact = Clap(model, tokenizer, recipe, CPU)
    sound_ND, text_ND = exact.embed_sounds(sounds), exact.embed_texts(list(WORDS))
    fast = Clap(model, tokenizer, recipe, DEVICE)
    assert least_cosine(fast.embed_sounds(sounds), sound_ND) > 0.999
    assert least_cosine(fast.embed_texts(list(WORDS)), text_ND) > 0.999


# --- Towers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An image network, a sentence encoder and a Whisper in files, as users have them."""
    import dataclasses

    import timm
    from transformers import BertConfig, BertModel

    from mmdata.models.tower_spec import TowerSpec

    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    torch.save(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict(), folder / "lite0.pth")
    size = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    BertModel(BertConfig(vocab_size=64, **size)).save_pretrained(folder / "bert")
    write_tokenizer(folder / "bert")
    network = whisper_network()
    torch.save(
        {"dims": dataclasses.asdict(network.dims), "model_state_dict": network.state_dict()}, folder / "heard.pt"
    )
    return {
        "timm": TowerSpec("timm", "tf_efficientnet_lite0", str(folder / "lite0.pth"), "longest"),
        "sentence": TowerSpec("sentence", str(folder / "bert")),
        "whisper": TowerSpec("whisper", str(folder / "heard.pt")),
    }


def tower_inputs(kind: str, recipe: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    if kind == "timm":
        coarse = rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
        side = recipe.side_px // 8
        return list(coarse.repeat(side, axis=2).repeat(side, axis=3))
    clips, texts = speech(12)
    return texts if kind == "sentence" else clips


@pytest.mark.parametrize("kind", ["timm", "sentence", "whisper"])
def test_towers_see_what_they_see_on_the_processor(specs: dict[str, Any], kind: str):
    exact, fast = specs[kind].load("cpu"), specs[kind].load(str(DEVICE))
    inputs = tower_inputs(kind, exact.recipe)
    assert least_cosine(fast.embed(inputs), exact.embed(inputs)) > 0.9999


def test_heads_fitted_on_what_the_accelerator_saw_are_the_same(specs: dict[str, Any], record_property: Record):
    """Few pairs of noise tell roundings apart: those of TF32 (0.001) take the correlation to 0.93, of float32 to 1."""
    from mmdata.models.crossfit import CrossfitConfig, Features, crossfit

    scores, seen = [], []
    for device in ("cpu", str(DEVICE)):
        viewer, reader = specs["timm"].load(device), specs["sentence"].load(device)
        images, ids = tower_inputs("timm", viewer.recipe), np.arange(40)
        texts = [f"{WORDS[row % 20]} {WORDS[(7 * row) % 19]} {WORDS[row % 3]}" for row in range(40)]
        features = Features(viewer.embed(images), reader.embed(texts), ids, ids)
        seen.append(features.left_NF)
        scores.append(crossfit(features, CrossfitConfig(folds=3, rounds=2)).score_N)
    correlation = float(np.corrcoef(scores[0], scores[1])[0, 1])
    record_property("least cosine of features, correlation of scores", (least_cosine(*seen), correlation))
    assert correlation > 0.999


@needs_cuda
def test_no_kernel_is_compiled_for_word_times(monkeypatch: pytest.MonkeyPatch, record_property: Record):
    """openai-whisper's own kernels need a compiler where they run."""
    import whisper.timing

    def refuse(*_: Any) -> None:
        raise AssertionError("a kernel was compiled")

    monkeypatch.setattr(whisper.timing, "dtw_cuda", refuse)
    test_words_are_timed_as_on_the_processor(record_property)
