"""The part of speech of English words, by textblob's tagger, which brings its lexicon with it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

from mmdata.errors import MissingExtraError


@functools.cache
def tagger() -> Callable[..., list[tuple[str, str]]]:
    """From a text (or words between blanks, with `tokenize=False`) to pairs of a word and its Penn Treebank tag.

    Raises MissingExtraError.
    """
    try:
        from textblob.en import tag
    except ImportError as error:
        raise MissingExtraError("finding English phrases and names", "textblob", "regions") from error
    with warnings.catch_warnings():
        # It reads its lexicon when first used, and leaves the files to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        tag("a")
    return tag  # type: ignore[no-any-return]
