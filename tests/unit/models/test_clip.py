from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmdata.errors import FatalError, MissingExtraError, WeightsError
from mmdata.models.clip import Clip
from mmdata.models.clip_image import ImageRecipe, prepare_image
from mmdata.models.clip_weights import CONFIG_NAME, _listed_tags, locate
from mmdata.models.device import multiplies_bf16
from mmdata.models.passes import Passes

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
}
TEXTS = ["a red bird", "bird", "", "a very long caption of a bird that flies over the sea " * 12, "bird"]


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels[..., :3]).convert(mode)


def reference(recipe: ImageRecipe, image: Image.Image) -> np.ndarray:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    cfg = PreprocessCfg(
        size=recipe.side_px,
        mean=recipe.mean,
        std=recipe.std,
        interpolation=recipe.interpolation,
        resize_mode=recipe.resize_mode,
        fill_color=recipe.fill,
    )
    return image_transform_v2(cfg, is_train=False)(image).numpy()


def normalised(recipe: ImageRecipe, image: Image.Image) -> np.ndarray:
    unit_CHW = prepare_image(recipe, image) / np.float32(255)
    return (unit_CHW - np.reshape(recipe.mean, (3, 1, 1))) / np.reshape(recipe.std, (3, 1, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised ViT CLIP with the causal text tower, as an open_clip folder."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    model = open_clip.CLIP(**SMALL)
    # The default initialisation is so small that a wrong mask would hardly show.
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path / "open_clip_model.safetensors"
    )
    config = {
        "model_cfg": SMALL,
        "preprocess_cfg": {"mean": MEAN, "std": STD, "resize_mode": "longest", "fill_color": 255},
    }
    (path / CONFIG_NAME).write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return Clip.load(str(folder), device="cpu", precision="float32")


@pytest.fixture
def images_NCHW() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (70, 3, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(224, 224), (540, 480), (97, 333), (31, 17), (225, 224), (1, 5)])
def test_prepared_image_is_what_open_clip_prepares(resize_mode: str, interpolation: str, size: tuple[int, int]):
    recipe = ImageRecipe(224, MEAN, STD, interpolation, resize_mode, fill=255)
    image = noise(*size)
    np.testing.assert_allclose(normalised(recipe, image), reference(recipe, image), atol=1e-5)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("size", "rounded", "more"), [((640, 480), 0.01, 0), ((801, 1003), 0.01, 0), ((400, 3100), 0.3, 0.002)]
)
def test_a_large_image_is_what_open_clip_prepares_but_for_rounding(
    resize_mode: str, interpolation: str, size: tuple[int, int], rounded: float, more: float
):
    """Shares of the values that are a level off, and more; noise is the worst there is."""
    recipe = ImageRecipe(224, (0.0,) * 3, (1 / 255,) * 3, interpolation, resize_mode, fill=255)
    image = noise(*size)
    gap = np.abs(prepare_image(recipe, image) - reference(recipe, image))
    assert (gap > 0.5).mean() <= rounded
    assert (gap > 1.5).mean() <= more


@pytest.mark.parametrize(("side_px", "imported"), [(500, False), (600, True)])
def test_torch_is_imported_for_large_images_alone(side_px: int, imported: bool):
    code = (
        "import sys; from PIL import Image; from mmdata.models.clip_image import ImageRecipe, prepare_image;"
        f"prepare_image(ImageRecipe(8, (0, 0, 0), (1, 1, 1)), Image.new('RGB', ({side_px}, {side_px})));"
        "print('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == f"{imported}\n"
    )


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_modes_without_alpha_match_open_clip_on_their_rgb(mode: str):
    recipe = ImageRecipe(64, MEAN, STD)
    image = noise(90, 120, mode)
    np.testing.assert_allclose(normalised(recipe, image), reference(recipe, image.convert("RGB")), atol=1e-5)


@pytest.mark.parametrize("size", [(40, 4000), (4000, 40)])
def test_a_strip_is_cropped_before_it_is_scaled(size: tuple[int, int]):
    recipe = ImageRecipe(64, MEAN, STD)
    image = noise(*size)
    # Pillow may take the two directions in another order, which rounds and clips differently: no shift, no blur.
    assert np.abs(normalised(recipe, image) - reference(recipe, image)).mean() < 0.01


def test_an_extreme_strip_takes_no_memory():
    started = time.process_time()
    assert prepare_image(ImageRecipe(224, MEAN, STD), Image.new("RGB", (3, 60_000), "red")).shape == (3, 224, 224)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_are_white(mode: str):
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0)).convert(mode)
    assert (prepare_image(ImageRecipe(16, MEAN, STD), image) == 255).all()


def test_half_transparent_black_is_grey():
    pixels = prepare_image(ImageRecipe(16, MEAN, STD), Image.new("RGBA", (20, 20), (0, 0, 0, 128)))
    assert set(np.unique(pixels)) == {127}


def test_a_transparent_palette_colour_is_white():
    image = Image.new("P", (20, 20), 3)
    image.info["transparency"] = 3
    assert (prepare_image(ImageRecipe(16, MEAN, STD), image) == 255).all()


def test_sixteen_bit_grey_keeps_its_levels():
    image = Image.fromarray(np.full((20, 20), 0x8000, dtype=np.uint16))
    assert set(np.unique(prepare_image(ImageRecipe(16, MEAN, STD), image))) == {128}


def test_recipe_pickles():
    recipe = ImageRecipe(16, MEAN, STD, fill=7)
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_light_processes_import_no_torch(folder: Path):
    code = (
        "import sys; from PIL import Image; from mmdata.models import clip, clip_image;"
        f"clip.locate({str(folder)!r}); clip.locate('ViT-B-32', 'openai');"
        "clip_image.prepare_image(clip.ImageRecipe(8, (0, 0, 0), (1, 1, 1)), Image.new('RGB', (9, 9)));"
        "assert not {'torch', 'open_clip', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_folder_identity_is_its_content(folder: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    before = locate(str(folder))
    assert before.path == folder
    assert locate(str(copy)).identity == before.identity
    assert locate(f"local-dir:{copy}").identity == before.identity
    (copy / "tokenizer.json").write_text("{}")
    assert locate(str(copy)).identity != before.identity


def test_folder_in_the_home_directory(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert locate(f"~/{folder.name}").path == folder


def test_missing_folder_of_the_cache_says_how_to_fetch_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MMDATA_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"lite is not there; run: mmdata fetch lite$"):
        locate(str(tmp_path / "models" / "lite"))
    # What is there, and another kind of model, is not to be fetched again.
    (tmp_path / "models" / "minilm").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"minilm has no .*; give the folder .*, or run: mmdata fetch lite$"):
        locate(str(tmp_path / "models" / "minilm"))


def test_a_checkpoint_that_is_no_dict_is_refused(tmp_path: Path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="does not load"):
        Clip.load("RN50", str(tmp_path / "list.pt"), "cpu")


@pytest.mark.parametrize("name", [CONFIG_NAME, "open_clip_model.safetensors"])
def test_incomplete_folder_says_what_is_missing(folder: Path, tmp_path: Path, name: str):
    for path in folder.iterdir():
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(WeightsError, match=f"has no {name}"):
        locate(str(tmp_path))


def test_named_weights_are_identified_by_name():
    assert locate("hf-hub:laion/model").identity == "hf-hub:laion/model"
    assert locate("ViT-B-32", "openai").identity == "ViT-B-32/openai"
    assert locate("ViT-B/32", "openai").path is None
    # As open_clip spells them itself.
    assert locate("ViT-B-32-quickgelu", "OpenAI").path is None
    assert locate("ViT-B-32", "laion2b-s34b-b79k").path is None


def test_the_tags_are_those_of_open_clip():
    from open_clip.pretrained import list_pretrained

    known = set(list_pretrained())
    listed = {(model, tag) for model, tags in _listed_tags().items() for tag in tags}
    assert listed <= known
    assert all(model.endswith("-quickgelu") for model, _ in known - listed)


def test_architecture_with_a_checkpoint_is_identified_by_content(folder: Path):
    checkpoint = folder / "open_clip_model.safetensors"
    weights = locate("ViT-B-32", str(checkpoint))
    assert weights.path == checkpoint
    assert weights.identity != locate("ViT-B-16", str(checkpoint)).identity


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-32", None, "random ones would score noise"),
        ("ViT-B-32", "./nowhere.pt", "is not there"),
        ("ViT-B-33", "openai", "did you mean 'ViT-B-32'"),
        ("ViT-B-32", "openia", "did you mean 'openai'"),
        ("ViT-B-32", "checkpoint", "it has openai, "),
        ("ViT-M-16", "openai", "it has none, give the path"),
        ("./nowhere", None, "is not there"),
    ],
)
def test_what_has_no_weights_is_refused(model: str, pretrained: str | None, message: str):
    with pytest.raises(WeightsError, match=message):
        locate(model, pretrained)


def test_recipe_is_the_models(clip: Clip):
    assert clip.recipe == ImageRecipe(32, MEAN, STD, "bicubic", "longest", 255)


def test_image_embeddings_are_open_clips(clip: Clip, images_NCHW: np.ndarray):
    import torch

    unit = (torch.from_numpy(images_NCHW) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.inference_mode():
        expected_ND = clip._model.encode_image(unit, normalize=True).numpy()
    got_ND = clip.embed_images(images_NCHW)
    assert got_ND.dtype == np.float32
    np.testing.assert_allclose(got_ND, expected_ND, atol=2e-6)
    np.testing.assert_array_equal(got_ND, clip.embed_images(images_NCHW))


def test_cut_texts_embed_as_full_ones(clip: Clip):
    import open_clip
    import torch

    with torch.inference_mode():
        expected_ND = clip._model.encode_text(open_clip.get_tokenizer("ViT-B-32")(TEXTS), normalize=True).numpy()
    got_ND = clip.embed_texts(TEXTS)
    assert np.ptp(expected_ND, axis=0).max() > 0.05, "the texts must differ for the comparison to mean anything"
    np.testing.assert_allclose(got_ND, expected_ND, atol=3e-6)
    np.testing.assert_allclose(clip.embed_texts(TEXTS[:2]), expected_ND[:2], atol=3e-6)


def test_half_the_bits_hardly_move_an_embedding(
    folder: Path, clip: Clip, images_NCHW: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mmdata.models.clip.multiplies_bf16", lambda _: True)
    half = Clip.load(str(folder), device="cpu")
    for got_ND, exact_ND in (
        (half.embed_images(images_NCHW), clip.embed_images(images_NCHW)),
        (half.embed_texts(TEXTS), clip.embed_texts(TEXTS)),
    ):
        assert got_ND.dtype == np.float32
        assert np.abs(got_ND - exact_ND).max() > 1e-5, "nothing was rounded"
        assert (got_ND * exact_ND).sum(axis=1).min() > 0.999


def test_processors_without_its_instructions_keep_float32(monkeypatch: pytest.MonkeyPatch):
    import torch

    cpu = torch.device("cpu")
    for capabilities, native in (
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_f": True}, False),
    ):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda found=capabilities: found)
        assert multiplies_bf16(cpu) is native


def test_each_distinct_text_is_embedded_once(clip: Clip, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    embed = clip._text_pass
    monkeypatch.setattr(clip, "_text_pass", lambda ids_NL: seen.append(ids_NL) or embed(ids_NL))
    out_ND = clip.embed_texts(["bird", "sea", "bird"] * 300)
    assert [ids.shape[0] for ids in seen] == [2]
    np.testing.assert_array_equal(out_ND[0], out_ND[2])
    assert out_ND.shape == (900, 32)


def test_passes_are_bounded_and_keep_order(clip: Clip, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clip, "_text_passes", Passes(2, 2))
    monkeypatch.setattr(clip, "_image_passes", Passes(2, 2))
    small_ND, images = clip.embed_texts(TEXTS), np.zeros((3, 3, 32, 32), dtype=np.uint8)
    images[1] = 255
    image_ND = clip.embed_images(images)
    monkeypatch.undo()
    np.testing.assert_allclose(small_ND, clip.embed_texts(TEXTS), atol=3e-6)
    np.testing.assert_allclose(image_ND, clip.embed_images(images), atol=3e-6)
    assert abs(image_ND[0] - image_ND[1]).max() > 0.01


@pytest.mark.parametrize(
    ("most", "order"),
    [
        (2, ["begin", "begin", "wait", "begin", "wait", "wait"]),
        # While a better size is looked for, passes are timed.
        (64, ["begin", "wait"] * 2 + ["wait"] + ["begin", "wait"] + ["wait"] * 2),
    ],
)
def test_a_pass_is_waited_for_when_the_next_has_begun(
    clip: Clip, monkeypatch: pytest.MonkeyPatch, most: int, order: list[str]
):
    import mmdata.models.clip as module

    done: list[str] = []
    fetch = module._fetch

    def follow(emb_ND: Any) -> Any:
        done.append("begin")
        wait = fetch(emb_ND)
        return lambda: (done.append("wait"), wait())[1]

    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    expected_ND = clip.embed_images(images)
    monkeypatch.setattr(module, "_fetch", follow)
    # A clock that stands still: twice as many rows are twice as fast, so the size would double again.
    monkeypatch.setattr(clip, "_image_passes", Passes(2, most, clock=lambda: 0.0))
    np.testing.assert_allclose(clip.embed_images(images), expected_ND, atol=3e-6)
    assert done == order


def test_nothing_embeds_to_no_rows(clip: Clip):
    assert clip.embed_texts([]).shape == (0, 32)
    assert clip.embed_images(np.zeros((0, 3, 32, 32), dtype=np.uint8)).shape == (0, 32)


def test_hugging_face_tower_is_cut_exactly():
    """Padding is masked: the tower gives the same for a text alone and beside a longer one."""
    import torch
    from open_clip.hf_model import HFTextEncoder
    from open_clip.model import CustomTextCLIP
    from transformers import BertConfig

    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    model = CustomTextCLIP(32, SMALL["vision_cfg"], SMALL["text_cfg"])
    model.text = HFTextEncoder("", 32, config=config, pooler_type="mean_pooler", proj_type="mlp")
    clip = Clip(
        model, lambda texts: tokens[: len(texts)], ImageRecipe(32, MEAN, STD), 32, torch.device("cpu"), "float32"
    )
    tokens = torch.randint(1, 50, (3, 64))
    tokens[0, 5:], tokens[1, 60:], tokens[2, 9:] = 0, 0, 0
    with torch.inference_mode():
        expected_ND = model.encode_text(tokens, normalize=True).numpy()
    assert list(clip._text_tower.lengths(tokens)) == [5, 60, 9]
    np.testing.assert_allclose(clip.embed_texts(["a", "b", "c"]), expected_ND, atol=3e-6)
    np.testing.assert_allclose(clip.embed_texts(["a"]), expected_ND[:1], atol=3e-6)


def test_checkpoint_of_another_model_is_refused(folder: Path):
    with pytest.raises(WeightsError, match="does not load") as caught:
        Clip.load("ViT-B-32", str(folder / "open_clip_model.safetensors"), device="cpu")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", None])
def test_a_damaged_checkpoint_is_refused(folder: Path, tmp_path: Path, content: bytes | None):
    half = (folder / "open_clip_model.safetensors").read_bytes()[:100_000]
    (tmp_path / CONFIG_NAME).write_bytes((folder / CONFIG_NAME).read_bytes())
    (tmp_path / "open_clip_model.safetensors").write_bytes(half if content is None else content)
    with pytest.raises(WeightsError, match="does not load"):
        Clip.load(str(tmp_path), device="cpu")


def test_a_pickle_that_runs_code_is_refused(folder: Path, tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / CONFIG_NAME).write_bytes((folder / CONFIG_NAME).read_bytes())
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(WeightsError, match="does not load"):
        Clip.load(str(tmp_path), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_without_open_clip_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"needs open-clip-torch: pip install 'mmdata\[clip\]'"):
        Clip.load(str(folder), device="cpu")


def test_absent_device_is_refused(folder: Path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(FatalError, match="no CUDA device"):
        Clip.load(str(folder), device="cuda")


@pytest.mark.gpu
def test_accelerator_agrees_with_the_processor(folder: Path, clip: Clip, images_NCHW: np.ndarray):
    fast = Clip.load(str(folder), device="cuda")
    cosine_N = (fast.embed_images(images_NCHW) * clip.embed_images(images_NCHW)).sum(axis=1)
    assert cosine_N.min() > 0.99
    assert (fast.embed_texts(TEXTS) * clip.embed_texts(TEXTS)).sum(axis=1).min() > 0.99
