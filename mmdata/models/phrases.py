"""What a caption names: its noun phrases, each with its place in the text.

English by a part-of-speech tagger and a small grammar of chunks; other languages are cut where they list and join.
Importing this module does not import the tagger.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from mmdata.models.part_of_speech import tagger

# A caption is a sentence or some; what follows is boilerplate, and a tagger's time.
_MAX_CHARS: Final = 2000

# A full stop or comma inside a number or a name ends nothing: only where a blank or the end follows.
_PUNCTUATION: Final = re.compile(r"[;:!?()\[\]{}|/\n\"«»“”„…–—、。，；：！？・·]|[.,](?=\s|$)|\s-\s")  # noqa: RUF001 - punctuation of other scripts

# Classes of tokens, one letter each, so that a chunk is a regular expression over them. Penn Treebank tags:
# T article or possessive, D other determiner, C number, R adverb, J adjective or participle, G verb in -ing, V other
# verb, N noun, S possessive, O "of", A "and", L comma, P other punctuation, H hollow noun (see below), X anything else.
_CLASSES: Final = {
    "DT": "D", "PRP$": "T", "PDT": "D", "CD": "C", "RB": "R", "RBR": "R", "RBS": "R", "JJ": "J", "JJR": "J",
    "JJS": "J", "VBN": "J", "VBG": "G", "VB": "V", "VBP": "V", "VBZ": "V", "VBD": "V", "NN": "N", "NNS": "N",
    "NNP": "N", "NNPS": "N", "POS": "S", "CC": "A", ",": "L", ".": "P", ":": "P", "(": "P", ")": "P",
}  # fmt: skip
# Words that the tagger does not know, or rewrites.
_CLASS_OF_WORD: Final = {"of": "O", "a": "T", "an": "T", "the": "T", "'": "S"}
# Where a determiner or an adjective stands before it and a noun after it, a "verb" is part of the name ("a small stop
# sign", "the washing machine"); one in -ing also at the start of a clause ("cutting board"), else it is what someone
# does ("a man riding a horse").
_START: Final = r"(?:[TD][VG](?=[JN])|[TD]|(?:^|(?<=[LP]))G(?=N))?"
_ADJECTIVES: Final = r"R?J(?:[LA]R?J)*(?:[VG](?=N))?"
# After an article anything is a name where no noun follows: the tagger takes what it does not know for an adjective by
# its ending ("a butterflyfish"), and "a saw" for a verb.
_UNKNOWN: Final = r"T(?:R?J)*[JVG](?![JVGNCH]|AR?[JH])"
_CHUNK: Final = rf"(?:{_START}(?:C|{_ADJECTIVES}|NS*)*N|{_UNKNOWN})"
_CHUNKS: Final = re.compile(rf"{_CHUNK}(?:O{_CHUNK})*")

# Before "of" these name the picture, a place in it or an amount, nothing that can be pointed at.
_HOLLOW: Final = """
back background bit bottom center centre close-up closeup corner depiction drawing edge end foreground front
illustration image lot lots middle number photo photograph picture portrait shot side sketch top variety view
"""

# Words between two things: conjunctions, prepositions of place, "with". Not "of": "une bouteille de lait" is one thing.
_JOINTS: Final = {
    "ca": "amb davant darrere dins en entre i o prop sense sobre sota",
    "da": "bag eller foran hos i med mellem og over på under uden ved",
    "de": "am an auf aus bei beim gegen hinter im in mit neben oder ohne über um und unter vom von vor zwischen",
    "es": "bajo con contra delante detrás e en entre junto o sin sobre u y",
    "fr": "avec contre dans derrière devant en entre et ou près sans sous sur",
    "it": "accanto con davanti dentro dietro e ed fra in nel nella o senza sopra sotto sul sulla tra",
    "nl": "aan achter bij en in met naast of onder op over tussen voor zonder",
    "pl": "a bez i lub na nad obok oraz pod przed przy w z za ze",
    "pt": "ao atrás com e em entre na no ou sem sob sobre",
    "ru": "без в возле за и или между на над около перед под рядом с со у",  # noqa: RUF001 - Russian
    "sv": "bakom eller framför hos i med mellan och över på under utan vid",
    "uk": "без біля в за з зі і й між на над перед під та у чи",  # noqa: RUF001 - Ukrainian
}


_PLAINER: Final = str.maketrans({"\u2019": "'"})


class _Token(NamedTuple):
    """A word in lower case, its class, and its place in the caption."""

    word: str
    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Phrase:
    """What a caption names once: `caption[start:end] == text`."""

    text: str
    start: int
    end: int

    @property
    def span(self) -> tuple[int, int]:
        """First character and the one after the last."""
        return self.start, self.end


def find_phrases(caption: str, lang: str | None, at_most: int = 32) -> list[Phrase]:
    """The noun phrases of a caption, in its order.

    Args:
        caption: text; what exceeds 2,000 characters is not read.
        lang: BCP 47 tag. English (and None) is tagged and chunked. Other languages are cut at punctuation and, those of
            `_JOINTS`, at words that stand between two things.
        at_most: phrases; later ones are left out.

    Returns:
        At least one phrase for a caption with a letter or digit: the whole of it, where nothing smaller is found.

    Raises:
        MissingExtraError: English, and textblob is not installed.
    """
    caption = caption[:_MAX_CHARS]
    tag = (lang or "en").split("-")[0].lower()
    found = _chunk(caption) if tag == "en" else _cut(caption, tag)
    spans = list(found) or list(_trim(caption, 0, len(caption)))
    return [Phrase(caption[start:end], start, end) for start, end in spans[:at_most]]


def _chunk(caption: str) -> Iterator[tuple[int, int]]:
    tokens = list(_tokens(caption))
    hollow = _HOLLOW.split()
    of = [token.kind == "O" for token in tokens] + [False]
    kinds = ["H" if of[n + 1] and token.word in hollow else token.kind for n, token in enumerate(tokens)]
    for match in _CHUNKS.finditer("".join(kinds)):
        # The tagger takes a letter and the full stop after it for an abbreviation.
        yield from _trim(caption, tokens[match.start()].start, tokens[match.end() - 1].end)


def _tokens(caption: str) -> Iterator[_Token]:
    """The tagger gives words without places: each is looked for after the one before it."""
    # It knows no typographic apostrophe.
    plain, at = caption.translate(_PLAINER), 0
    for word, kind in tagger()(plain):
        start = plain.find(word, at)
        if start >= 0:
            at = start + len(word)
            yield _Token(word.lower(), _class_of(word.lower(), kind, plain[start - 1 : start]), start, at)


def _class_of(word: str, kind: str, before: str) -> str:
    # The tagger cuts "driver's" into three.
    if word == "s" and before == "'":
        return "S"
    return _CLASS_OF_WORD.get(word) or _CLASSES.get(kind, "X")


def _cut(caption: str, lang: str) -> Iterator[tuple[int, int]]:
    cuts = [match.span() for match in _PUNCTUATION.finditer(caption)]
    if joints := _JOINTS.get(lang):
        cuts += [word.span() for word in re.finditer(r"\w+", caption) if word[0].lower() in joints.split()]
    at = 0
    for start, end in [*sorted(cuts), (len(caption), len(caption))]:
        yield from _trim(caption, at, start)
        at = max(at, end)


def _trim(caption: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The span less blanks and punctuation around it; nothing where no letter or digit is left."""
    inside = re.search(r"\w.*\w|\w", caption[start:end], re.DOTALL)
    if inside:
        yield start + inside.start(), start + inside.end()
