"""Find operators by name: our own, those of the libraries, and those that other packages offer.

An entry point of the group `mmdata.operators` names a callable that takes the parameters as keywords and gives an
`Operator` or a `Mixer`; it raises ValueError for parameters it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mmdata.augment import libraries, mix, tensor
from mmdata.augment.audio import audio_operator, audio_operators
from mmdata.augment.audio_own import validated
from mmdata.augment.base import Mixer, Operator
from mmdata.augment.image import image_operator, image_operators
from mmdata.augment.text import text_operator, text_operators
from mmdata.document import nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_OWN = {**mix.OWN, **tensor.OWN}
_Maker = Callable[[str, Mapping[str, Any]], Operator | Mixer]


def operators() -> list[str]:
    """Every name; one that two libraries have stands with its modality before it (`audio.Normalize`)."""
    return [*_makers(), *(point.name for point in _offered())]


def operators_by_kind() -> dict[str, list[str]]:
    """Every name, by the modality that it is for; those of other packages by themselves."""
    kinds: dict[_Maker, str] = {image_operator: "image", audio_operator: "audio", text_operator: "text"}
    found: dict[str, list[str]] = {}
    for name, (maker, _) in sorted(_makers().items()):
        found.setdefault(kinds.get(maker, "tensors and whole samples"), []).append(name)
    others = [point.name for point in _offered()]
    return {**found, "other packages": others} if others else found


def operator(name: str, params: Mapping[str, Any]) -> Operator | Mixer:
    """Raises ValueError with the nearest right name, of the operator or of its parameter."""
    makers = _makers()
    if name in makers:
        maker, own = makers[name]
        return maker(own, params)
    point = next((point for point in _offered() if point.name == name), None)
    if point is None:
        if reason := _left_out().get(name):
            raise ValueError(f"'{name}' is no operator here: {reason}")
        twice = [other for other in makers if other.endswith(f".{name}")]
        hint = f"; say which: {' or '.join(twice)}" if twice else nearest(name, operators())
        raise ValueError(f"unknown operator '{name}'{hint}")
    found: Operator | Mixer = point.load()(**params)
    return found


def _left_out() -> dict[str, str]:
    """Of the libraries' own, and why."""
    tables = (libraries.table(f"{modality}_effects.yaml") for modality in ("image", "audio", "text"))
    return {name: reason for table in tables for name, reason in table["left_out"].items()}


def _makers() -> dict[str, tuple[_Maker, str]]:
    offered: Mapping[str, tuple[_Maker, list[str]]] = {
        "image": (image_operator, image_operators()),
        "audio": (audio_operator, audio_operators()),
        "text": (text_operator, text_operators()),
    }
    every = [name for _, names in offered.values() for name in names]
    found: dict[str, tuple[_Maker, str]] = {name: (_own, name) for name in _OWN}
    for modality, (maker, names) in offered.items():
        for name in names:
            found[name if every.count(name) == 1 else f"{modality}.{name}"] = (maker, name)
    return found


def _own(name: str, params: Mapping[str, Any]) -> Operator | Mixer:
    found: Operator | Mixer = validated(name, _OWN[name], params)
    return found


def _offered() -> tuple[EntryPoint, ...]:
    from importlib.metadata import entry_points

    return tuple(entry_points(group="mmdata.operators"))
