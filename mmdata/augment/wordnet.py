"""Synonyms by WordNet 3.0, found on the machine; nothing is fetched."""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from mmdata.augment import libraries
from mmdata.errors import WeightsError
from mmdata.models.part_of_speech import tagger
from mmdata.models.weights import cache_dir

_SYSTEM: Final = (Path("/usr/share/wordnet"), Path("/usr/local/share/wordnet"))
# WordNet 3.0, lexnames(5WN): the 45 files of its lexicographers. Debian's package leaves the list out.
_LEXNAMES: Final = [
    "adj.all",
    "adj.pert",
    "adv.all",
    "noun.Tops",
    "noun.act",
    "noun.animal",
    "noun.artifact",
    "noun.attribute",
    "noun.body",
    "noun.cognition",
    "noun.communication",
    "noun.event",
    "noun.feeling",
    "noun.food",
    "noun.group",
    "noun.location",
    "noun.motive",
    "noun.object",
    "noun.person",
    "noun.phenomenon",
    "noun.plant",
    "noun.possession",
    "noun.process",
    "noun.quantity",
    "noun.relation",
    "noun.shape",
    "noun.state",
    "noun.substance",
    "noun.time",
    "verb.body",
    "verb.change",
    "verb.cognition",
    "verb.communication",
    "verb.competition",
    "verb.consumption",
    "verb.contact",
    "verb.creation",
    "verb.emotion",
    "verb.motion",
    "verb.perception",
    "verb.possession",
    "verb.social",
    "verb.stative",
    "verb.weather",
    "adj.ppl",
]
# Penn tags by what they begin with, as WordNet has them.
_POS_OF_TAG: Final = {"NN": "n", "JJ": "a", "VB": "v", "RB": "r"}
# "C" is a degree, "he" is helium there.
_SHORTEST: Final = 3
# A sense that was meant so many times as often as all others.
_SURE: Final = 20
_POS_OF: Final = {"adj": 3, "adv": 4, "noun": 1, "verb": 2}


def locate(path: str | None) -> Path:
    """A folder with WordNet's `data.noun` and `index.noun`. Raises WeightsError that says what to install."""
    places = [Path(path)] if path else [*_of_nltk(), *_SYSTEM, cache_dir() / "media" / "wordnet"]
    found = next((place for place in places if (place / "data.noun").is_file()), None)
    if found is None:
        tried = ", ".join(map(str, places))
        raise WeightsError(
            f"synonyms needs WordNet 3.0 ({tried}: not there); on Debian: apt-get install wordnet-base "
            "wordnet-sense-index, elsewhere give its folder as `wordnet:`"
        )
    return found


def _of_nltk() -> list[Path]:
    import nltk

    return [Path(place) / "corpora" / "wordnet" for place in nltk.data.path]


def synonym_augmenter(rate: float, most: int, path: str | None) -> Any:
    """Nlpaug's, over that folder, with a tagger that needs no data of its own. Raises WeightsError."""
    dictionary = _Dictionary(_with_lexnames(locate(path)))
    word = libraries.without_torch("nlpaug.augmenter.word")

    class Synonyms(word.SynonymAug):  # type: ignore[misc, name-defined] # untyped, and imported late
        """Its own dictionary fetches WordNet where NLTK has none."""

        @classmethod
        def get_model(cls, *_: Any) -> _Dictionary:
            """Ours."""
            return dictionary

    return Synonyms(aug_src="wordnet", aug_p=rate, aug_min=1, aug_max=most)


class _Dictionary:
    """What nlpaug asks of a dictionary, of words with one sense alone: of a bat's seven, none is known to be meant."""

    def __init__(self, folder: Path) -> None:
        self._reader = _reader(str(folder))
        self.predict = functools.lru_cache(maxsize=1 << 16)(self._predict)

    def _predict(self, word: str, pos: str | None = None) -> list[str]:
        """Lemmas of the word's sense that mean it themselves; none of an inflected word, whose ending would be lost."""
        sense = self._sense(word) if pos and len(word) >= _SHORTEST else None
        if sense is None or sense.pos().replace("s", "a") != pos:
            return []
        names = sense.lemma_names()
        if word.lower() not in map(str.lower, names):
            return []
        return [name for name in names if name.lower() != word.lower() and self._reader.synsets(name)[:1] == [sense]]

    def _sense(self, word: str) -> Any:
        """The only one, or nearly: by how often each was meant in the texts that WordNet counted."""
        first, *others = self._reader.synsets(word) or [None]
        if first is None or not others:
            return first
        meant, *else_meant = (_times_meant(word, sense) for sense in (first, *others))
        return first if meant >= _SURE * max(1, sum(else_meant)) else None

    def pos_tag(self, tokens: list[str]) -> list[tuple[str, str]]:
        """Penn tags by textblob: NLTK's tagger has data that no package carries.

        What has no synonym is told to be a determiner, which nlpaug leaves alone: so is a part of a name of several
        words ("hot dog").
        """
        found = tagger()(" ".join(tokens), tokenize=False)
        found = found if len(found) == len(tokens) else [(token, "X") for token in tokens]
        parts = {n for at in range(len(tokens)) for size in (2, 3) for n in self._named(tokens, at, size)}
        return [
            (word, tag if n not in parts and self.predict(word, _POS_OF_TAG.get(tag[:2])) else "DT")
            for n, (word, tag) in enumerate(found)
        ]

    def _named(self, tokens: list[str], at: int, size: int) -> range:
        words = tokens[at : at + size]
        named = len(words) == size and self._reader.synsets("_".join(words))
        return range(at, at + size) if named else range(0)


def _times_meant(word: str, sense: Any) -> int:
    return sum(lemma.count() for lemma in sense.lemmas() if lemma.name().lower() == word.lower())


def _with_lexnames(folder: Path) -> Path:
    """The folder itself where it has the list, else a copy in the cache: NLTK reads no links that lead elsewhere."""
    if (folder / "lexnames").is_file():
        return folder
    target = cache_dir() / "wordnet"
    if not (target / "lexnames").is_file():
        scratch = target.with_name(f"wordnet.{os.getpid()}")
        shutil.copytree(folder, scratch, ignore_dangling_symlinks=True)
        lines = [f"{n:02d}\t{name}\t{_POS_OF[name.partition('.')[0]]}" for n, name in enumerate(_LEXNAMES)]
        (scratch / "lexnames").write_text("\n".join(lines) + "\n")
        with suppress(OSError):
            # Another process was first.
            scratch.rename(target)
        shutil.rmtree(scratch, ignore_errors=True)
    return target


@functools.cache
def _reader(folder: str) -> Any:
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.data import FileSystemPathPointer

    class Reader(WordNetCorpusReader):  # type: ignore[misc] # untyped
        """English alone: other languages need a map to NLTK's own copy, which may not be there."""

        def map_wn(self, version: str = "wordnet") -> dict[Any, Any]:  # noqa: ARG002 - the interface
            """No map."""
            return {}

    if folder not in nltk.data.path:
        # It reads nothing outside of these.
        nltk.data.path.append(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = Reader(FileSystemPathPointer(folder), None)
    reader.ensure_loaded()
    return reader
