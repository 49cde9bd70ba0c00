"""Which language a recording is taken to be in."""

from __future__ import annotations

from mmdata.sample import Member


def spoken_language(speech: Member | None, text: Member | None, known: frozenset[str] | None) -> str | None:
    """What the source says of the speech, else of its text, else what was guessed from the text where a model knows it.

    The guess for a short text is often wrong (every eleventh of 568 English telephone prompts), so that it keeps no
    model from listening, and one that knows a single language takes it to be that.

    Args:
        speech: the recording.
        text: what it is held against.
        known: languages of the model; None where there is none.

    Returns:
        a language, which the model may not know where the source gave it; None where the model is to find out.
    """
    told = (speech.told_language if speech else None) or (text.told_language if text else None)
    guess = text.language if text else None
    if told or known is None:
        return told or guess
    if guess and len(known) == 1:
        return next(iter(known))
    return guess if guess in known else None
