"""Word and character error rates of a transcript against a given text, by jiwer."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from mmdata.errors import MissingExtraError

# On one or two words the word error rate says little (Tux Paint's: 73 % for right pairs under tiny.en).
MIN_WORDS = 4


@dataclass(frozen=True)
class WordErrors:
    """Errors as a share of the reference: substitutions, deletions and insertions; above 1 is possible.

    Attributes:
        wer: by words.
        cer: by characters, the blanks between words among them.
    """

    wer: float
    cer: float


def word_errors(reference: str, heard: str) -> WordErrors | None:
    """Compare what was heard with the reference, both normalised; None where the reference has too few words.

    Raises MissingExtraError without jiwer.
    """
    try:
        import jiwer
    except ImportError as error:
        raise MissingExtraError("word error rates", "jiwer", "whisper") from error
    wanted, found = normalised(reference), normalised(heard)
    if len(wanted.split()) < MIN_WORDS:
        return None
    return WordErrors(float(jiwer.wer(wanted, found)), float(jiwer.cer(wanted, found)))


def normalised(text: str) -> str:
    """Case and punctuation taken away; numbers stay as they are written, marks inside them too.

    An apostrophe goes without a trace (`don't` is `dont`); other punctuation and symbols part words, as a blank does.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<=\w)['\u2019](?=\w)", "", text)
    signs = {sign for sign in text if unicodedata.category(sign)[0] in "PSZC"}
    if signs:
        marks = "".join(re.escape(sign) for sign in sorted(signs))
        text = re.sub(rf"(?!(?<=\d)[.,](?=\d))[{marks}]", " ", text)
    return " ".join(text.split())
