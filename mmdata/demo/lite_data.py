"""The pairs that `lite` is fitted on: drawings with their words, and concepts of ImageNet with theirs.

Never the stamps: they are what `lite` is measured on.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# Generated or abstract families of thousands, whose titles say nothing of what is seen.
_DULL_KEYWORDS: Final = {"magick", "theme", "gradients"}
_DULL_TITLES: Final = {"card"}
# Words that the archive files its pictures by, which name nothing in them.
_FILING_WORDS: Final = {
    "clip art", "clipart", "hash", "icon", "icons", "image", "media", "png", "public domain", "sign",
    "signs and symbols", "special", "svg", "symbol", "theme", "united nations member", "unsorted", "work",
}  # fmt: skip
# A prolific author whose name stands in titles, file names and keywords; his titles are Italian.
_AUTHOR: Final = re.compile(r" archite?t?t?o?.*", re.IGNORECASE)
_AUTHOR_MARK: Final = "architet"
_SERIES: Final = re.compile(r"^clip ?art by [^-]* - ", re.IGNORECASE)
_FILE_AUTHOR: Final = re.compile(r"_[a-z.]*_\d+$")
_NOT_WORDS: Final = re.compile(r"[_.\-]+|\b\w*\d\w*\b")
_MAX_TITLE_USES: Final = 3
_MIN_TITLE_CHARS: Final = 3
_KEYWORDS_JOINED: Final = 4
_KEYWORDS_ALONE: Final = 3
_LEMMAS: Final = 3
# A concept above one class only is that class; one above a quarter of ImageNet ("whole", "object") looks like nothing.
_CLASSES_UNDER: Final = range(2, 251)


@dataclass(frozen=True)
class Drawing:
    """An image file and several ways to say what it shows, the best first."""

    path: Path
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Concept:
    """Classes of ImageNet (0 to 999, in the classifier's order) and several ways to name what they are."""

    classes: tuple[int, ...]
    texts: tuple[str, ...]


def sentence(noun: str) -> str:
    """A caption as people write it: `A red bird.`."""
    noun = noun.strip().lower()
    return f"{'An' if noun[:1] in 'aeiou' else 'A'} {noun}."


def read_clipart(folder: Path) -> Iterator[Drawing]:
    """Clip-art that says what it shows, one of each family of equal names in equal files left to `drop_copies`."""
    rows = list(_read_csv(folder / "clipart.csv"))
    uses = Counter(row["title"] for row in rows)
    for row in rows:
        keywords = row["keywords"].split("|")
        if _DULL_KEYWORDS.intersection(keywords) or row["title"] in _DULL_TITLES:
            continue
        title = row["title"] if uses[row["title"]] <= _MAX_TITLE_USES else ""
        if texts := _clipart_texts(Path(row["path"]).stem, title, keywords):
            yield Drawing(folder / row["path"], texts)


def _clipart_texts(stem: str, title: str, keywords: list[str]) -> tuple[str, ...]:
    words = [word for word in map(_clean, keywords) if word and word.lower() not in _FILING_WORDS]
    words = [word for word in dict.fromkeys(words) if _AUTHOR_MARK not in word]
    name = _clean(_SERIES.sub("", title))
    if len(name) < _MIN_TITLE_CHARS:
        name = _AUTHOR.sub("", _clean(_FILE_AUTHOR.sub("", stem)))
    if words and (_AUTHOR_MARK in stem or len(name) < _MIN_TITLE_CHARS):
        name = words[0]
    return _phrasings(name, [word for word in words if word != name]) if len(name) >= _MIN_TITLE_CHARS else ()


def read_emoji(folder: Path) -> Iterator[Drawing]:
    """Emoji with their Unicode names."""
    for row in _read_csv(folder / "emoji.csv"):
        name = _clean(row["name"].replace(":", " "))
        if name:
            yield Drawing(folder / row["path"], _phrasings(name, [_clean(row["group"])]))


def read_scenes(folder: Path) -> Iterator[Drawing]:
    """Generated scenes (`mmdata.demo.scenes`) with their captions."""
    for path in sorted(folder.glob("*.txt")):
        caption = path.read_text(encoding="utf-8").strip()
        yield Drawing(path.with_suffix(".png"), (caption, caption.lower()))


def read_concepts(wordnet: Path) -> list[Concept]:
    """ImageNet's classes, and what stands above them in WordNet 3.0, whose offsets are ImageNet's class names."""
    entries = dict(_read_nouns(wordnet / "data.noun"))
    below: dict[str, list[int]] = defaultdict(list)
    labels: list[str] = _imagenet().label_names()
    for index, label in enumerate(labels):
        for offset in _ancestry(label[1:], entries):
            below[offset].append(index)
    classes = [Concept((index,), entries[label[1:]].texts) for index, label in enumerate(labels)]
    above = [Concept(tuple(under), entries[at].texts) for at, under in below.items() if len(under) in _CLASSES_UNDER]
    return classes + above


def read_classes() -> list[Concept]:
    """ImageNet's classes alone, with the names and definitions that timm carries."""
    info = _imagenet()
    return [
        Concept((index,), _concept_texts(lemmas.split(", "), definition))
        for index in range(info.num_classes())
        for lemmas, _, definition in [info.index_to_description(index, detailed=True).partition(": ")]
    ]


@dataclass(frozen=True)
class _Noun:
    texts: tuple[str, ...]
    above: tuple[str, ...]


def _read_nouns(path: Path) -> Iterator[tuple[str, _Noun]]:
    """Parse WordNet's `data.noun` (its format: wndb(5WN)); the licence on top is indented."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith(" "):
                continue
            data, _, gloss = line.partition("|")
            fields = data.split()
            count = int(fields[3], 16)
            lemmas = [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
            pointers = fields[5 + 2 * count :]
            above = tuple(at for mark, at in zip(pointers[::4], pointers[1::4], strict=False) if mark in {"@", "@i"})
            definition = gloss.split(";")[0].split('"')[0].strip()
            yield fields[0], _Noun(_concept_texts(lemmas, definition), above)


def _ancestry(offset: str, entries: dict[str, _Noun]) -> set[str]:
    """A noun and everything above it; there are several ways up."""
    seen: set[str] = set()
    open_ends = [offset]
    while open_ends:
        if (at := open_ends.pop()) not in seen:
            seen.add(at)
            open_ends.extend(entries[at].above)
    return seen


def _imagenet() -> Any:
    from timm.data.imagenet_info import ImageNetInfo

    untyped: Any = ImageNetInfo
    return untyped("imagenet-1k")


def _concept_texts(lemmas: list[str], definition: str) -> tuple[str, ...]:
    return (*(sentence(lemma) for lemma in lemmas[:_LEMMAS]), ", ".join(lemmas), definition)


def _phrasings(name: str, words: list[str]) -> tuple[str, ...]:
    texts = [sentence(name), name.lower()]
    if words:
        texts.append(", ".join([name, *words[:_KEYWORDS_JOINED]]).lower())
        texts += [sentence(word) for word in words[:_KEYWORDS_ALONE]]
    return tuple(dict.fromkeys(texts))


def _clean(text: str) -> str:
    """Words only: no separators of file names, no numbers."""
    return " ".join(_NOT_WORDS.sub(" ", text).split())


def _read_csv(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
