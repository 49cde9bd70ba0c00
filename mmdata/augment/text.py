"""Text operators: nlpaug's by their class names, and `synonyms` over WordNet.

What must stay (numbers, names, negations, what effects mind, phrases with a box) is never given to a library: it works
on the stretches between.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field

from mmdata.augment import libraries
from mmdata.augment.audio_own import validated
from mmdata.augment.base import Change, Operator, Text, VetoError, View
from mmdata.augment.lexicon import primary
from mmdata.augment.meaning import protected, told
from mmdata.augment.notes import claims
from mmdata.errors import WeightsError
from mmdata.spec import Frozen

_SYNONYMS: Final = "synonyms"
_NOT_FOR_US: Final = frozenset({"name", "verbose", "tokenizer", "reverse_tokenizer", "use_custom_api", "device"})
_TRIALS: Final = ("children play in a garden with several friends and animals of every kind " * 3,)
_Apply = Callable[[str], str]


@functools.cache
def _table() -> dict[str, str]:
    data = libraries.table("text_effects.yaml")
    return {name: module for module in ("word", "char") for name in data[module]}


def text_operators() -> list[str]:
    """Names, without importing nlpaug."""
    return [_SYNONYMS, *_table()]


def text_operator(name: str, params: Mapping[str, Any]) -> Operator:
    """An operator with its parameters checked; `texts` names the members it may change, all without it.

    Raises ValueError that names the parameter, WeightsError where WordNet or a model is not there.
    """
    only = tuple(params.get("texts", ()))
    own = {key: value for key, value in params.items() if key != "texts"}
    if name == _SYNONYMS:
        return TextOperator(name, _synonyms(validated(name, _Synonyms, own)), only, frozenset({"en"}))
    return TextOperator(name, _nlpaug(name, own), only, None)


class _Synonyms(Frozen):
    """Parameters of `synonyms`."""

    rate: float = Field(0.3, gt=0, le=1, description="share of the words that may change which do")
    most: int = Field(10, ge=1, description="words that change at most")
    wordnet: str | None = Field(None, description="folder of WordNet 3.0; default: NLTK's, or the system's")


def _synonyms(params: _Synonyms) -> _Apply:
    from mmdata.augment.wordnet import synonym_augmenter

    augmenter = synonym_augmenter(params.rate, params.most, params.wordnet)
    return lambda text: str(augmenter.augment(text)[0])


def _nlpaug(name: str, params: Mapping[str, Any]) -> _Apply:
    from_path = name == "ContextualWordEmbsAug"
    if from_path and not Path(str(params.get("model_path", ""))).joinpath("config.json").is_file():
        raise WeightsError(f"{name}: model_path: give the folder of a transformers model; nothing is fetched for it")
    module = f"nlpaug.augmenter.{_table()[name]}"
    cls = getattr(_imported(module) if from_path else libraries.without_torch(module), name)
    libraries.checked(name, cls.__init__, params, _NOT_FOR_US)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            augmenter = cls(**dict(params))
        except (ValueError, TypeError, AssertionError, OSError) as error:
            raise ValueError(f"{name}: {libraries.first_line(error)}") from None

    def apply(text: str) -> str:
        found = augmenter.augment(text)
        return str(found[0]) if found else text

    if not from_path:
        _try(name, apply)
    return apply


def _try(name: str, apply: _Apply) -> None:
    """Raises ValueError where it takes its parameters, and then no text: its classes look at them late."""
    with warnings.catch_warnings(), libraries.seeded(np.random.default_rng(0)):
        warnings.simplefilter("ignore")
        try:
            for text in _TRIALS:
                apply(text)
        except Exception as error:  # noqa: BLE001 - NotImplementedError, and whatever it comes across
            raise ValueError(f"{name}: no text can be changed with these parameters: {error!r}") from None


def _imported(module: str) -> Any:
    import importlib

    return importlib.import_module(module)


@dataclass(frozen=True)
class TextOperator:
    """An operator on the words of texts.

    Attributes:
        name: as the pipeline file has it.
        apply: changes a stretch of text.
        only: members it may change; empty: all.
        languages: it knows; None: any.
    """

    name: str
    apply: _Apply = field(repr=False, compare=False)
    only: tuple[str, ...]
    languages: frozenset[str] | None
    changes: frozenset[str] = frozenset({"text"})
    needs_boxes: bool = False

    def __call__(self, view: View, rng: np.random.Generator) -> Change:
        """Change every text that may change.

        Raises VetoError `spoken`, `written`, `unknown_language`, `nothing_to_change`, `not_applicable`, `says_more`.
        """
        reasons, texts = [], dict(view.texts)
        for name, text in view.texts.items():
            if self.only and name not in self.only:
                continue
            try:
                texts[name] = self._changed(view, name, text, rng)
            except VetoError as veto:
                reasons.append(veto)
        changed = {name: text.text for name, text in texts.items() if text != view.texts[name]}
        if not changed:
            raise reasons[0] if reasons else VetoError("nothing_to_change", "no word may change")
        return Change(replace(view, texts=texts), drawn={"texts": changed})

    def _changed(self, view: View, name: str, text: Text, rng: np.random.Generator) -> Text:
        if any(name in said for sound, said in view.spoken.items() if sound not in view.gone):
            raise VetoError("spoken", f"'{name}' is what a sound of the sample says")
        if name in view.written:
            raise VetoError("written", f"'{name}' is what is written in a picture")
        if self.languages is not None and primary(text.lang) not in self.languages:
            raise VetoError(
                "unknown_language", f"'{name}' is '{text.lang}'; {self.name} knows {', '.join(self.languages)}"
            )
        spans = protected(text.text, text.lang, claims(view, name))
        with libraries.seeded(rng):
            made = "".join(self._pieces(text.text, spans))
        if told(made, text.lang) != told(text.text, text.lang):
            raise VetoError("says_more", f"{self.name} made '{made[:80]}' of '{text.text[:80]}'")
        return Text(made, text.lang)

    def _pieces(self, text: str, spans: list[tuple[int, int]]) -> list[str]:
        pieces, at = [], 0
        for start, end in [*spans, (len(text), len(text))]:
            pieces += [self._stretch(text[at:start]), text[start:end]]
            at = end
        return pieces

    def _stretch(self, text: str) -> str:
        """One stretch between what must stay; its outer blanks stay as well."""
        core = text.strip()
        if not any(map(str.isalpha, core)):
            return text
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                made = self.apply(core)
            except Exception as error:  # noqa: BLE001 - it has none of its own for a text that is too short
                raise VetoError("not_applicable", f"{self.name}: {libraries.first_line(error)}") from None
        start = text.index(core)
        return text[:start] + made.strip() + text[start + len(core) :]
