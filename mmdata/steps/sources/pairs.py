"""The pairs of recorded web pages: what the sources `web` and `warc` have in common."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Final, Literal

from pydantic import ByteSize, Field, model_validator

from mmdata.errors import SampleError
from mmdata.sample import Modality
from mmdata.steps.base import Discovered
from mmdata.steps.exchange import OPTED_OUT, Declared, Input, Keep, Place, Ref
from mmdata.steps.sources.places import printable, text_ref, web_ref
from mmdata.store.remote import opened

if TYPE_CHECKING:
    from mmdata.crawl.records import Record
    from mmdata.media.html import Page
    from mmdata.net.rights import Rights

Taken = Literal["image", "video", "audio"]
TextKind = Literal[
    "figcaption", "alt", "aria_label", "title", "json_ld", "og", "shared_figcaption", "heading", "transcript"
]
# What is said of several pictures together is the last: of one of them it is half true.
_PREFERRED: Final[list[TextKind]] = ["figcaption", "alt", "aria_label", "title", "json_ld", "og", "shared_figcaption"]
_PAGES: Final = frozenset({"text/html", "application/xhtml+xml", "text/xml"})
_MEDIA: Final = ("image/", "video/", "audio/")
_FOR_IMAGES_ALONE: Final = "noimageai"


class Pages(Discovered):
    """What a source of recorded pages lets one choose.

    Attributes of a pair: `page`, `page_title`, `page_lang`, `licence`, `opt_out`, `caption_kind`, and
    `captions_on_page` where the page shows the media under several such texts: each makes a pair, and not all need be
    true.
    """

    version: ClassVar[int] = 4
    merges: ClassVar[bool] = True
    take: list[Taken] = Field(default=["image"], min_length=1, description="media that are wanted")
    texts: list[TextKind] = Field(
        default=_PREFERRED,
        min_length=1,
        description="texts that may be the caption, the best first; `shared_figcaption` is said of a figure of several",
    )
    all_texts: bool = Field(False, description="make a member of each kind of text too: alt, figcaption, ...")
    caption_required: bool = Field(True, description="whether media without any such text have failed")
    obey_opt_out: bool = Field(True, description="leave out media of pages that say noai, noimageai, noml or TDM")
    max_page_bytes: ByteSize = Field(ByteSize(8 << 20), description="longer pages are not read")
    max_media_bytes: ByteSize = Field(ByteSize(200 << 20), description="of media that stand in the recording itself")

    @model_validator(mode="after")
    def _no_kind_twice(self) -> Pages:
        for name in ("take", "texts"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}: something stands there twice")
        return self

    @property
    def scattered(self) -> bool:
        """Neighbours share a host."""
        return True

    def members(self) -> dict[str, Declared]:
        """The media, their caption, subtitles of video, transcripts of audio."""
        alone = len(self.take) == 1
        found: dict[str, Declared] = {kind: Declared(_modality(kind), alone) for kind in self.take}
        found["caption"] = Declared("text", self.caption_required)
        if "video" in self.take:
            found["subtitles"] = Declared("text", False)
        names = [*self.texts, "transcript"] if self.all_texts else ["transcript"] if "audio" in self.take else []
        return found | {name: Declared("text", False) for name in names}

    def pairs(self, place: Place, keep: Keep, *, with_media: bool) -> Iterator[Input]:
        """All pairs of a WARC file; `with_media`: it may hold the media themselves.

        Raises SampleError `no_answers` for a file of what was made of another.
        """
        from mmdata.crawl.records import Damage, instead_of_answers, records

        path, shown = place.path, printable(place.path)
        with opened(path) as file, closing(_Inside(file, keep, int(self.max_media_bytes))) as inside:
            if with_media:
                inside.look()
            record = None
            for record in records(file):
                name = f"{place.key} {record.offset}"
                if isinstance(record, Damage):
                    yield Input(name, (), {}, ("bad_record", f"{shown} at byte {record.offset}: {record.message}"))
                    continue
                try:
                    yield from self._of_page(record, inside)
                except SampleError as error:
                    yield Input(name, (), {}, (error.reason, f"{record.url} ({shown}): {error}"))
            if record is None and (instead := instead_of_answers(file)):
                fix = "give the WARC file it was made of, whose records are answers of servers"
                raise SampleError("no_answers", f"it holds {instead}; {fix}")

    def _of_page(self, record: Record, inside: _Inside) -> Iterator[Input]:
        """Raises SampleError where the record cannot be read."""
        from mmdata.media.html import extract
        from mmdata.media.html_tree import Limits
        from mmdata.net.rights import header_rights, meta_rights

        if record.mime() not in _PAGES:
            return
        most = int(self.max_page_bytes)
        page = extract(record.body(most), record.url, record.charset, Limits(page_bytes=most))
        rights = header_rights(record.headers, "mmdata") | meta_rights(page.meta, "mmdata")
        about = {"page": record.url, "page_title": page.title, "page_lang": page.lang, "page_licence": page.licence}
        for media in page.media:
            if media.kind in self.take:
                yield from self._inputs(media, {k: v for k, v in about.items() if v}, rights, inside)
        if beyond := self._beyond(page):
            yield Input(f"{record.url} beyond", (), {}, ("page_cut", f"{record.url}: {beyond}"))

    def _beyond(self, page: Page) -> str | None:
        """What of a page was not looked at, in a sentence."""
        counts = [f"{page.media_beyond[kind]} {kind}s" for kind in self.take if page.media_beyond[kind]]
        counts += ["what follows more tags than are read"] if page.is_cut else []
        return f"left out, for it shows too much: {', '.join(counts)}" if counts else None

    def _inputs(self, media: Any, about: dict[str, str], rights: Rights, inside: _Inside) -> Iterator[Input]:
        """One for each caption that the page has of a media, as where several pages show it."""
        texts = {**media.texts, **({"transcript": media.transcript} if media.transcript else {})}
        kind = next((kind for kind in self.texts if texts.get(kind)), None)
        problem = self._refused(media, rights)
        # What is not to be used is not kept either.
        place = None if problem else inside.place(media.url)
        refs = [_media_ref(media, place), *self._subtitles(media)]
        captions = [texts[kind], *media.other_texts.get(kind, ())] if kind else [None]
        facts = {
            "caption_kind": kind,
            "captions_on_page": str(len(captions)) if len(captions) > 1 else None,
            "licence": media.licence or about.pop("page_licence", None),
            "opt_out": ", ".join(rights.opt_out) or None,
        }
        attributes = {**about, **{name: value for name, value in facts.items() if value}}
        for caption in captions:
            key = f"{media.url} {hashlib.sha256(caption.encode()).hexdigest()[:8] if caption else '-'}"
            told = texts if kind is None else {**texts, kind: caption}
            yield Input(key, (*refs, *self._texts(caption, told)), attributes, problem)

    def _refused(self, media: Any, rights: Rights) -> tuple[str, str] | None:
        says = [word for word in rights.opt_out if word != _FOR_IMAGES_ALONE or media.kind == "image"]
        if says and self.obey_opt_out:
            return OPTED_OUT, f"its page says {', '.join(says)}"
        return ("noindex", "its page says noindex") if "noindex" in rights.robots else None

    def _texts(self, caption: str | None, texts: Mapping[str, Any]) -> Iterator[Ref]:
        yield text_ref("caption", caption, "a text of the page", required=self.caption_required)
        for name in self.members():
            if name not in {"caption", "subtitles"} and texts.get(name):
                yield text_ref(name, texts[name], name, required=False)

    def _subtitles(self, media: Any) -> Iterator[Ref]:
        if "subtitles" in self.members() and media.tracks:
            track = media.tracks[0]
            yield web_ref("subtitles", "text", track.url, required=False, lang=track.lang)


class _Inside:
    """Media that a recording holds: an index of where, on disk, and of what was taken out of it."""

    def __init__(self, file: BinaryIO, keep: Keep, max_bytes: int) -> None:
        self._file = file
        self._keep = keep
        self._max_bytes = max_bytes
        self._index = sqlite3.connect("")
        self._index.execute(
            "CREATE TABLE media (url TEXT PRIMARY KEY, at INTEGER, path TEXT, first INTEGER, size INTEGER, digest TEXT)"
        )

    def close(self) -> None:
        """Remove the index."""
        self._index.close()

    def look(self) -> None:
        """Find all; of several records of a URL the last counts."""
        from mmdata.crawl.records import Record, records

        found = (
            (one.url, one.offset)
            for one in records(self._file)
            if isinstance(one, Record) and one.leads and one.is_whole and _is_media(one)
        )
        self._index.executemany("INSERT OR REPLACE INTO media (url, at) VALUES (?, ?)", found)

    def place(self, url: str) -> tuple[str, tuple[int, int], str] | None:
        """Where the payload of a URL is now, and its digest; None where the recording has none."""
        row = self._index.execute("SELECT * FROM media WHERE url = ?", (url,)).fetchone()
        if row is None:
            return None
        _, at, path, first, size, digest = row
        if path is not None:
            return path, (first, size), digest
        data = self._read(at)
        if not data:
            self._index.execute("DELETE FROM media WHERE url = ?", (url,))
            return None
        path, span = self._keep(data)
        kept = (path, *span, hashlib.sha256(data).hexdigest()[:16])
        self._index.execute("UPDATE media SET path = ?, first = ?, size = ?, digest = ? WHERE url = ?", (*kept, url))
        return path, span, kept[-1]

    def _read(self, at: int) -> bytes:
        from mmdata.crawl.records import record_at

        # Somebody is reading the pages of the same file.
        before = self._file.tell()
        try:
            record = record_at(self._file, at)
            return record.body(self._max_bytes) if record else b""
        except SampleError:
            return b""
        finally:
            self._file.seek(before)


def _media_ref(media: Any, place: tuple[str, tuple[int, int], str] | None) -> Ref:
    modality = _modality(media.kind)
    if place is None:
        return web_ref(media.kind, modality, media.url, required=True)
    path, span, digest = place
    return Ref(media.kind, modality, path, version=digest, span=span)


def _is_media(record: Record) -> bool:
    return record.header("content-type").strip().lower().startswith(_MEDIA)


def _modality(kind: str) -> Modality:
    return {"image": "image", "video": "video", "audio": "audio"}[kind]  # type: ignore[return-value]
