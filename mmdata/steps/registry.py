"""Find steps by name: our own, one file each, and those that other packages offer by entry point.

An entry point of the group `mmdata.steps` names a subclass of one of the families of `mmdata.steps.base`; the family
says in which list of the pipeline file it belongs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from mmdata.errors import PlanError
from mmdata.steps import base

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

FAMILIES: Final[dict[str, type[base.Step]]] = {
    "sources": base.Source,
    "ingest": base.Ingest,
    "align": base.Align,
    "measure": base.Measure,
    "augment": base.Augment,
    "curate": base.Curate,
    "write": base.Write,
}
# Name -> module and class; imported only when named, so that a plan stays fast.
OWN: Final[dict[str, dict[str, str]]] = {
    "sources": {
        "files": "sources.files:Files",
        "table": "sources.table:Table",
        "video": "sources.video:Video",
        "huggingface": "sources.huggingface:HuggingFace",
        "webdataset": "sources.webdataset:WebDataset",
        "warc": "sources.warc:Warc",
        "web": "sources.web:Web",
    },
    "ingest": {
        "image": "ingest.image:Image",
        "audio": "ingest.audio:Audio",
        "text": "ingest.text:Text",
        "video": "ingest.video:Video",
        "tensor": "ingest.tensor:Tensor",
    },
    "align": {
        "clip": "align.clip:Clip",
        "whisper": "align.whisper:Whisper",
        "crossfit": "align.crossfit:Crossfit",
        "regions": "align.regions:Regions",
        "timing": "align.timing:Timing",
        "reconcile": "align.reconcile:Reconcile",
        "ocr": "align.ocr:Ocr",
        "clap": "align.clap:Clap",
        "tags": "align.tags:Tags",
    },
    "measure": {
        "picture": "measure.picture:Picture",
        "writing": "measure.writing:Writing",
        "nsfw": "measure.nsfw:Nsfw",
        "classifier": "measure.classifier:Classifier",
        "wording": "measure.wording:Wording",
        "personal": "measure.personal:Personal",
        "acoustics": "measure.acoustics:Acoustics",
        "voice": "measure.voice:Voice",
        "film": "measure.film:Film",
        "content": "measure.content:Content",
        "pdq": "measure.pdq:Pdq",
        "minhash": "measure.minhash:Minhash",
        "soundprint": "measure.soundprint:Soundprint",
        "neighbours": "measure.neighbours:Neighbours",
    },
    "augment": {"joint": "augment.joint:Joint", "segments": "augment.segments:Segments"},
    "curate": {
        "duplicates": "curate.duplicates:Duplicates",
        "rules": "curate.rules:Rules",
        "clusters": "curate.clusters:Clusters",
        "quota": "curate.quota:Quota",
        "mix": "curate.mix:Mix",
        "terms": "curate.terms:Terms",
        "splits": "curate.splits:Splits",
    },
    "write": {"webdataset": "write.webdataset:WebDataset"},
}


def find(block: str, name: str) -> type[base.Step] | None:
    """The class of the step `name` of a list (`align`, ...), None where nobody offers one.

    Raises PlanError where a package offers something that is no step of that family.
    """
    if name in OWN[block]:
        module, _, attribute = OWN[block][name].partition(":")
        return getattr(importlib.import_module(f"mmdata.steps.{module}"), attribute)  # type: ignore[no-any-return]
    return _offered(block, name)


def known(block: str) -> list[str]:
    """Names that a list may hold."""
    return [*OWN[block], *(point.name for point in _entry_points())]


def all_steps() -> dict[str, dict[str, type[base.Step]]]:
    """Every step of ours, by list and name: for the schema and the contract tests."""
    return {block: {name: cls for name in names if (cls := find(block, name))} for block, names in OWN.items()}


def _offered(block: str, name: str) -> type[base.Step] | None:
    for point in _entry_points():
        if point.name == name:
            step = point.load()
            if isinstance(step, type) and issubclass(step, FAMILIES[block]):
                return step
            if not (isinstance(step, type) and issubclass(step, base.Step)):
                raise PlanError([f"entry point {point.value} of '{name}' is no step"])
    return None


def _entry_points() -> tuple[EntryPoint, ...]:
    # Slow to import, and needed only for a name that is none of ours.
    from importlib.metadata import entry_points

    return tuple(entry_points(group="mmdata.steps"))
