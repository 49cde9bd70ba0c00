"""One suite over every registered step: whoever adds a step adds an example here, and keeps these promises."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from candidates import gathered
from film import write_film
from onnx_file import colours_onnx
from PIL import Image as Pictures

from mmdata.augment.policy import nobody
from mmdata.engine import align, children, measure
from mmdata.errors import SampleError
from mmdata.models.clap import ClapRecipe
from mmdata.models.clip_image import ImageRecipe
from mmdata.models.towers import TextRecipe
from mmdata.sample import MODALITIES, Member, Sample, child_id
from mmdata.steps import registry
from mmdata.steps.align.reconcile import _Recipe as ReconcileRecipe
from mmdata.steps.base import Align, Augment, Curate, Discovered, Ingest, Linked, Measure, Source, Step, Write
from mmdata.steps.exchange import Input, Ref, Veto
from mmdata.store.curation import LINKED, Columns, Curation, Rows
from mmdata.store.parts import SCORE_SCHEMA, BasePartWriter, iter_samples, read_base_rows, write_table

STEPS = {f"{block}.{name}": step for block, names in registry.all_steps().items() for name, step in names.items()}
# Parameters with which a step runs over `sample()` and the folder that `media` fills.
EXAMPLES: dict[str, dict[str, Any]] = {
    "sources.files": {"root": "media", "members": {"image": "{stem}.png", "caption": "{stem}.txt"}},
    "sources.table": {"file": "media/t.csv", "members": {"speech": {"path": "file"}, "caption": {"text": "said"}}},
    "sources.huggingface": {
        "path": "parquet",
        "data_files": ["media/t.parquet"],
        "members": {"speech": "sound", "caption": "text"},
    },
    "sources.video": {"files": "media/film.mp4", "min_s": 0.5, "frames": 1},
    "sources.warc": {"files": "media/t.warc.gz"},
    "sources.web": {"seeds": "http://example.org/"},
    "sources.webdataset": {"files": "media/t.tar", "members": {"image": "png", "caption": "txt"}},
    "ingest.image": {},
    "ingest.audio": {},
    "ingest.text": {},
    "ingest.video": {},
    "ingest.tensor": {"clocks": {"imu": {"rate_hz": 100}}},
    "align.clip": {"model": "model", "image": ["image", "depth"], "text": ["caption", "caption_fr"]},
    "align.whisper": {"model": "model", "pairs": {"speech": "caption"}},
    "align.crossfit": {
        "pair": ["image", "caption"],
        "left": {"kind": "timm", "model": "resnet18"},
        "right": {"kind": "sentence", "model": "model"},
    },
    "align.regions": {"model": "model"},
    "align.timing": {"model": "model", "subtitles": "subtitles"},
    "align.reconcile": {"texts": ["caption", "caption_fr"], "into": "right", "speech": "speech", "whisper": "model"},
    "align.ocr": {},
    "align.clap": {"model": "model", "sound": ["speech"], "text": ["caption"]},
    "align.tags": {"tagger": {"model": "model"}, "sound": ["speech"], "text": ["caption"]},
    "measure.picture": {},
    "measure.writing": {},
    "measure.nsfw": {},
    "measure.classifier": {"model": "media/colours.onnx", "labels": ["red", "green", "blue"]},
    "measure.wording": {"of": ["caption", "caption_fr"]},
    "measure.personal": {},
    "measure.acoustics": {},
    "measure.voice": {},
    "measure.film": {"of": ["film"]},
    "measure.content": {"of": ["image"]},
    "measure.pdq": {"of": ["image", "depth"], "min_quality": 0},
    "measure.minhash": {"of": ["caption", "caption_fr"]},
    "measure.soundprint": {"of": ["speech"]},
    "measure.neighbours": {"of": ["image"], "aligner": "clip"},
    "augment.joint": {"apply": ["HorizontalFlip"], "sides": {"imu": {}}},
    "augment.segments": {"subtitles": "subtitles"},
    "curate.duplicates": {"of": ["image"]},
    "curate.rules": {"keep": {"words": "caption.words >= 3"}},
    "curate.clusters": {"of": "clip.image", "count": 2},
    "curate.quota": {"by": "caption.lang", "most": 1},
    "curate.mix": {"by": "key", "weights": {"k1": 1}},
    "curate.terms": {"of": "caption.text", "most": 1, "at_least": 1, "unmatched": "drop"},
    "curate.splits": {"shares": {"train": 0.5, "val": 0.5}},
    "write.webdataset": {"members": ["image"]},
}
# Whose payload is broken, where it is not the first the step works on: any bytes that decode are a text.
BREAKS = {"align.reconcile": "audio", "augment.segments": "audio"}
RECIPES: dict[str, Any] = {
    "clip": ImageRecipe(8, (0.5,) * 3, (0.5,) * 3),
    "whisper": frozenset({"en"}),
    "clap": ClapRecipe(48_000, 48_000, 480, np.ones((513, 64)), "repeatpad", False),
    "tags": 16_000,
    "regions": ImageRecipe(8, (0.5,) * 3, (0.5,) * 3),
    "timing": frozenset({"en"}),
    "reconcile": ReconcileRecipe(frozenset({"en"}), None),
    "ocr": None,
    "crossfit": (ImageRecipe(8, (0.5,) * 3, (0.5,) * 3), TextRecipe()),
}
COLUMNS = Columns(
    {"image": "image", "depth": "image", "caption": "text", "caption_fr": "text", "speech": "audio"},
    {"clip": {"image_caption": {}}},
)


def png(shade: int = 9) -> bytes:
    buffer = io.BytesIO()
    Pictures.new("RGB", (6, 4), (shade, 8, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def wav() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(0).integers(-9000, 9000, 8000).astype("<i2").tobytes())
    return buffer.getvalue()


WAVE: dict[str, Any] = {
    "shape": [2, 50],
    "dtype": "float32",
    "ndim": 2,
    "elements": 100,
    "finite_share": 1.0,
    "min": 0.0,
    "max": 99.0,
    "mean": 49.5,
    "rate_hz": 100.0,
    "duration_s": 0.5,
}


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(100, dtype=np.float32).reshape(2, 50))
    return buffer.getvalue()


@functools.cache
def film() -> bytes:
    """Three scenes of a second."""
    with tempfile.TemporaryDirectory() as folder:
        return write_film(Path(folder) / "film.mp4", [1.0, 1.0, 1.0]).read_bytes()


def text(name: str, content: str, lang: str) -> Member:
    measures = {"text": content, "lang_guessed": False, "chars": len(content), "words": len(content.split())}
    return Member(name, "text", "text/plain", "txt", content.encode(), lang, measures)


def sample(number: int = 1) -> Sample:
    size = {"width": 6, "height": 4}
    sound = {"duration_s": 0.5, "sample_rate": 16_000, "channels": 1}
    members = [
        Member("image", "image", "image/png", "png", png(number), None, size),
        Member("depth", "image", "image/png", "png", png(number + 100), None, size),
        text("caption", f"square {number}", "en"),
        text("caption_fr", f"carré {number}", "fr"),
        text("subtitles", "WEBVTT\n\n00:00.000 --> 00:00.400\na square\n", "en"),
        Member("speech", "audio", "audio/wav", "wav", wav(), "en", sound),
        Member("imu", "tensor", "application/x-npy", "npy", npy(), None, dict(WAVE)),
        Member("film", "video", "video/mp4", "mp4", film(), "en", {"width": 128, "height": 64, "duration_s": 3.0}),
    ]
    segments = [
        {"start_s": 0.1, "end_s": 0.4, "text": "a square", "score": 2.0},
        {"text": "a circle", "reason": "not_heard"},
    ]
    found = {"timing": {"speech_subtitles": {"segments": segments}}}
    return Sample(f"{number:032x}", "s", f"k{number}", {m.name: m for m in members}, found=found)


def broken(modality: str) -> Sample:
    """Every payload of that modality is what no decoder takes."""
    whole = sample()
    members = {n: replace(m, data=m.data[:30]) if m.modality == modality else m for n, m in whole.members.items()}
    return replace(whole, members=members)


@pytest.fixture(autouse=True)
def media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the sources' examples read."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "media"
    folder.mkdir()
    for n in range(3):
        (folder / f"s{n}.png").write_bytes(png(n))
        (folder / f"s{n}.txt").write_text(f"square {n}")
        (folder / f"s{n}.wav").write_bytes(wav())
    (folder / "colours.onnx").write_bytes(colours_onnx())
    (folder / "t.csv").write_text("file,said\n" + "".join(f"s{n}.wav,square {n}\n" for n in range(3)))
    return folder


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights whose content stands for itself: no step is loaded here."""
    from mmdata.models.weights import Weights

    for name, step in STEPS.items():
        if name.startswith("align.") or (issubclass(step, Measure) and "weights" in vars(step)):
            monkeypatch.setattr(step, "weights", lambda _: Weights("content", Path("model")))


def made(name: str) -> Any:
    return STEPS[name].model_validate(EXAMPLES[name])


def of(family: type[Step]) -> list[str]:
    return [name for name, step in STEPS.items() if issubclass(step, family)]


def part(folder: Path, *samples: Sample) -> Path:
    with BasePartWriter(folder / "base.parquet") as writer:
        for one in samples:
            writer.add(one)
    return folder / "base.parquet"


def curated(step: Curate, folder: Path, *samples: Sample) -> Any:
    folder.mkdir(exist_ok=True)
    write_table(folder / "scores.parquet", pa.Table.from_pylist([], SCORE_SCHEMA))
    curation = gathered(COLUMNS, Rows([part(folder, *samples)], [folder / "scores.parquet"]), folder)
    step.apply(curation)
    return [
        curation.connection.execute(f"SELECT * FROM {table} ORDER BY ALL").fetchall() for table in ("fates", "places")
    ]


def inputs_of(source: Source) -> list[Input]:
    """All inputs; of a source that looks into files, of all of them."""
    if not isinstance(source, Discovered):
        return list(source.inputs())
    kept: list[bytes] = []

    def keep(data: bytes) -> tuple[str, tuple[int, int]]:
        kept.append(data)
        return "kept", (len(kept), len(data))

    places = list(source.places(Path("media/crawled")))
    assert places == sorted(source.places(Path("media/crawled")), key=lambda place: place.key)
    return sorted((found for place in places for found in source.look(place, keep)), key=lambda found: found.key)


def write_archives(folder: Path) -> None:
    """The three samples again: in a tar, in a table of bytes, on recorded pages."""
    import tarfile

    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with tarfile.open(folder / "t.tar", "w") as tar:
        for stem in ("s0", "s1", "s2"):
            for extension in ("png", "txt"):
                tar.add(folder / f"{stem}.{extension}", f"{stem}.{extension}")
    (folder / "film.mp4").write_bytes(film())
    cues = [f"{n + 1}\n00:00:0{n},100 --> 00:00:0{n},900\nScene {n}.\n" for n in range(3)]
    (folder / "film.srt").write_text("\n".join(cues))
    rows = [{"sound": {"bytes": wav(), "path": None}, "text": f"said {n}"} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    (folder / "crawled").mkdir()
    with (folder / "t.warc.gz").open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for n in range(3):
            page = io.BytesIO(b'<html><img src="%d.jpg" alt="picture %d">' % (n, n))
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
            one = writer.create_warc_record("http://example.org/", "response", payload=page, http_headers=headers)
            writer.write_record(one)
            one.raw_stream.close()
    (folder / "crawled" / "pages-00000.warc.gz").write_bytes((folder / "t.warc.gz").read_bytes())


def test_every_step_has_an_example() -> None:
    assert set(EXAMPLES) == set(STEPS)


@pytest.mark.parametrize("name", STEPS)
def test_it_is_called_and_listed_as_its_family_is(name: str) -> None:
    block, _, own = name.partition(".")
    assert STEPS[name].step == own
    assert issubclass(STEPS[name], registry.FAMILIES[block])
    assert sum(issubclass(STEPS[name], family) for family in registry.FAMILIES.values()) == 1


@pytest.mark.parametrize("name", STEPS)
def test_it_is_documented(name: str) -> None:
    step = STEPS[name]
    assert len((step.__doc__ or "").strip()) > 20
    undescribed = [field for field, info in step.model_fields.items() if not info.description]
    assert undescribed == []
    schema = json.dumps(step.model_json_schema())
    inner = [
        f"{model}.{field}"
        for model, about in json.loads(schema).get("$defs", {}).items()
        for field, info in about.get("properties", {}).items()
        if not info.get("description")
    ]
    assert inner == []


@pytest.mark.parametrize("name", STEPS)
def test_it_is_frozen_takes_no_unknown_key_and_pickles(name: str) -> None:
    from pydantic import ValidationError

    step = made(name)
    assert pickle.loads(pickle.dumps(step)) == step
    with pytest.raises(ValidationError):
        setattr(step, next(iter(STEPS[name].model_fields)), None)
    with pytest.raises(ValidationError, match="unknown_key"):
        STEPS[name].model_validate({**EXAMPLES[name], "unknown_key": 1})


@pytest.mark.parametrize("name", STEPS)
def test_its_identity_is_json_that_stays(name: str) -> None:
    first, again = (json.dumps(made(name).identity(), sort_keys=True) for _ in range(2))
    assert first == again
    assert json.loads(first).items() >= {"step": STEPS[name].step, "version": STEPS[name].version}.items()


@pytest.mark.parametrize("name", STEPS)
def test_importing_it_is_light(name: str) -> None:
    code = f"import sys; import {STEPS[name].__module__}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert STEPS[name].__module__ in loaded
    assert {"torch", "numpy", "transformers", "pyarrow", "PIL", "duckdb", "av"} & set(loaded) == set()


@pytest.mark.parametrize("name", of(Source))
# warcio and datasets leave temporary files to the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_source_names_declared_members_sorted_by_unique_keys_the_same_twice(name: str, media: Path) -> None:
    write_archives(media)
    source: Source = made(name)
    first, again = inputs_of(source), inputs_of(source)
    assert first == again
    assert len(first) == 3
    keys = [found.key for found in first]
    assert keys == sorted(set(keys))
    assert not any(found.problem for found in first)
    declared = source.members()
    for found in first:
        assert {ref.name: ref.modality for ref in found.refs} == {n: d.modality for n, d in declared.items()}
        assert all(ref.version for ref in found.refs)
    assert {declared.modality for declared in source.members().values()} <= set(MODALITIES)


@pytest.mark.parametrize("name", of(Ingest))
def test_ingest_gives_a_measured_member_the_same_twice_or_an_error_of_the_sample(name: str) -> None:
    step: Ingest = made(name)
    whole = next(member for member in sample().members.values() if member.modality == step.modality)
    ref = Ref(whole.name, step.modality, lang="en")
    assert step.decode(ref, whole.data) == step.decode(ref, whole.data) == replace(whole, lang="en")
    for data in (b"\xff\xfe\0broken", b"\0", whole.data[:20] + b"\xff\xff", os.urandom(64), bytes(2000)):
        try:
            assert step.decode(ref, data).data  # random bytes may be a whole payload
        except SampleError as error:
            assert (error.reason.isidentifier(), str(error) != "") == (True, True)  # noqa: PT017


def _prepare(step: Align, base: Path, count: int) -> align.Prepared:
    return align.prepare_batch(step, RECIPES[step.step], align.Batch(base, (), None, (0, count)), {})


@pytest.mark.parametrize("name", of(Align))
def test_an_aligner_prepares_the_same_twice_and_an_empty_batch(name: str, tmp_path: Path) -> None:
    step: Align = made(name)
    base = part(tmp_path, sample(1), sample(2))
    first, again = (_prepare(step, base, 2) for _ in range(2))
    assert first.ids == ["0" * 31 + "1", "0" * 31 + "2"]
    assert first.failures == []
    assert pickle.dumps(first.items) == pickle.dumps(again.items)
    empty = _prepare(step, part(tmp_path / "empty"), 0)
    assert (empty.ids, empty.items, empty.failures) == ([], [], [])


@pytest.mark.parametrize("name", of(Align))
def test_an_aligner_makes_an_error_of_the_sample_of_a_broken_member_and_nothing_of_none(
    name: str, tmp_path: Path
) -> None:
    step: Align = made(name)
    found = _prepare(step, part(tmp_path, broken(BREAKS.get(name, step.modalities[0]))), 1)
    assert found.items == []
    assert [failure.step for failure in found.failures] == [step.label]
    nothing = replace(sample(), members={})
    assert _prepare(step, part(tmp_path / "none", nothing), 1).items == []


@pytest.mark.parametrize("name", of(Align))
def test_an_aligner_declares_what_it_reads_and_what_it_makes(name: str) -> None:
    step: Align = made(name)
    ends = {name for edge in step.edges() for name in (edge.left, edge.right)}
    assert ends <= set(step.reads()) | set(step.new_members())
    touched = Touched(sample().members)
    step.prepare(RECIPES[step.step], replace(sample(), members=cast("dict[str, Member]", touched)), step.edges())
    assert touched.names - {""} <= ends | set(step.reads())
    assert len({edge.name for edge in step.edges()}) == len(step.edges())


class Touched(dict[str, Member]):
    """Members that note which of them were asked for."""

    def __init__(self, members: dict[str, Member]) -> None:
        super().__init__(members)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Member:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def measured(step: Measure, folder: Path, *samples: Sample) -> list[dict[str, Any]]:
    """Rows of the score part; the values of each by column."""
    out = folder / "measured.parquet"
    measure.measure_part(step, align.Batch(part(folder, *samples), (), None, (0, None)), out, {})
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return [{**row, "measures": row["measures"] and json.loads(row["measures"])} for row in rows]


def maps(step: Measure) -> bool:
    """Whether it measures members itself."""
    return not (isinstance(step, Linked) and step.vectors_of())


def fingerprint(step: Measure) -> dict[str, str]:
    return step.fingerprint() if isinstance(step, Linked) else {}


@pytest.mark.parametrize("name", of(Linked))
def test_a_linked_measure_pairs_equals_the_same_twice_and_nothing_of_none(name: str, tmp_path: Path) -> None:
    step: Linked = made(name)
    if not maps(step):
        return
    same = replace(sample(1), sample_id="f" * 32)
    links = [linked(step, tmp_path / n, same, sample(2), sample(1)) for n in "ab"]
    assert links[0] == links[1]
    ends = {(link["member"], link["sample_id"], link["other_id"], link["distance"]) for link in links[0]}
    assert {(member, sample(1).sample_id, "f" * 32, 0.0) for member in step.of} <= ends
    assert {link["other_source"] for link in links[0]} == {None}
    assert linked(step, tmp_path / "c") == []


def linked(step: Linked, folder: Path, *samples: Sample) -> list[dict[str, Any]]:
    folder.mkdir()
    measured(step, folder, *samples)
    measure.link_corpus(step, [folder / "measured.parquet"], folder / "links.parquet")
    links: list[dict[str, Any]] = pq.read_table(folder / "links.parquet").to_pylist()
    return links


@pytest.mark.parametrize("name", of(Linked))
def test_what_only_links_are_made_by_is_measured_once(name: str) -> None:
    step: Linked = made(name)
    assert step.only_linking <= set(STEPS[name].model_fields)
    assert not step.only_linking & step.identity()["params"].keys()
    assert set(step.linking()) == step.only_linking


@pytest.mark.parametrize("name", of(Measure))
def test_a_measure_gives_its_columns_and_the_same_twice(name: str, tmp_path: Path) -> None:
    step: Measure = made(name)
    assert set(step.reads().values()) == {step.modality}
    curation = Curation.empty(Columns({}, {}, {"m": {"x": step.columns() | LINKED}}))  # SQL types that there are
    assert curation.one("SELECT count(*) FROM candidates") == 0
    if not maps(step):
        return
    rows = measured(step, tmp_path, sample(1), sample(2))
    assert rows == measured(step, tmp_path, sample(1), sample(2))
    assert [(row["sample_id"][-1], row["edge"]) for row in rows] == [(n, m) for n in "12" for m in sorted(step.of)]
    for row in rows:
        assert (row["aligner"], row["score"], row["reason"]) == (step.label, None, None)
        assert set(row["measures"]) <= set(step.columns()) | set(fingerprint(step))


@pytest.mark.parametrize("name", of(Measure))
def test_a_measure_says_why_a_broken_member_has_no_values_and_nothing_of_none(name: str, tmp_path: Path) -> None:
    step: Measure = made(name)
    if not maps(step):
        return
    for row in measured(step, tmp_path, broken(step.modality or "image")) if step.modality != "text" else ():
        assert (row["measures"], bool(row["reason"]), bool(row["detail"])) == (None, True, True)
    assert measured(step, tmp_path / "none", replace(sample(), members={})) == []
    assert measured(step, tmp_path / "empty") == []


@pytest.mark.parametrize("name", of(Augment))
def test_an_operator_makes_the_same_child_twice_of_declared_kinds(name: str) -> None:
    step: Augment = made(name)
    parent = sample()
    made_here = [child for child in step.make(parent, 7, nobody) if isinstance(child, Sample)]
    assert made_here == [child for child in step.make(sample(), 7, nobody) if isinstance(child, Sample)]
    assert made_here
    assert parent == sample()
    declared = {n: d.modality for n, d in step.new_members().items()}
    for child in made_here:
        assert child.parent_id == parent.sample_id
        assert (child.variant or "").startswith(step.step)
        assert child.sample_id == child_id(parent.sample_id, child.variant or "")
        kinds = declared | {n: m.modality for n, m in parent.members.items()}
        assert {n: m.modality for n, m in child.members.items()}.items() <= kinds.items()
    assert set(step.reads()) <= set(parent.members)


@pytest.mark.parametrize("name", of(Augment))
def test_an_operator_refuses_a_broken_sample_in_words(name: str, tmp_path: Path) -> None:
    step: Augment = made(name)
    for bad in (broken(BREAKS.get(name, "image")), replace(sample(), members={})):
        try:
            reasons = [child.reason for child in step.make(bad, 0, nobody) if isinstance(child, Veto)]
        except SampleError as error:
            reasons = [error.reason]
        assert reasons
        assert all(reason.isidentifier() for reason in reasons)
    if step.findings():
        return  # a part alone has none of them
    done = children.augment_part(
        step, 0, children.Known(part(tmp_path, sample(), broken("image")), {}, ()), tmp_path / "out.parquet", {}
    )
    assert (done.samples, done.failed) == (2, 0)
    rows = read_base_rows(tmp_path / "out.parquet")
    assert [row["reason"] is None for row in rows] == [True, False]
    assert len(list(iter_samples(tmp_path / "out.parquet", rows, frozenset()))) == 1


@pytest.mark.parametrize("name", of(Augment))
def test_an_operator_over_an_empty_part(name: str, tmp_path: Path) -> None:
    children.augment_part(made(name), 0, children.Known(part(tmp_path), {}, ()), tmp_path / "out.parquet", {})
    assert read_base_rows(tmp_path / "out.parquet") == []


# Only gives the steps after it a column: tests/unit/steps/test_clusters.py.
DECIDING = [name for name in of(Curate) if name != "curate.clusters"]


@pytest.mark.parametrize("name", DECIDING)
def test_curation_decides_the_same_twice_and_over_nothing(name: str, tmp_path: Path) -> None:
    step: Curate = made(name)
    step.check(Curation.empty(COLUMNS))
    samples = [sample(1), sample(2), replace(sample(1), sample_id="f" * 32, key="again")]
    first = curated(step, tmp_path / "a", *samples)
    assert first == curated(step, tmp_path / "b", *reversed(samples))
    assert any(first)
    assert curated(step, tmp_path / "c") == [[], []]


@pytest.mark.parametrize("name", DECIDING)
def test_what_curation_drops_it_names(name: str, tmp_path: Path) -> None:
    fates, places = curated(made(name), tmp_path / "a", sample(1), replace(sample(1), sample_id="f" * 32, key="again"))
    for _, fate, step, rule, *_ in fates:
        assert fate in {"dropped", "duplicate"}
        assert step == STEPS[name].step
        assert rule
    assert len(fates) == len({fate[0] for fate in fates})
    assert all(group and split for _, group, split in places)


@pytest.mark.parametrize("name", of(Write))
def test_a_writer_reads_what_it_was_told_to_write(name: str) -> None:
    step: Write = made(name)
    assert set(step.reads()) == {"image"}
    assert min(step.samples_per_shard, step.bytes_per_shard) >= 1


@pytest.mark.slow
def test_an_order_that_hashes_decide_is_in_no_item(tmp_path: Path) -> None:
    """Two processes hash names differently; a batch must be the same in both."""
    code = (
        "import pickle, sys, hashlib; step, recipe, sample = pickle.load(sys.stdin.buffer)\n"
        "items = step.prepare(recipe, sample, step.edges())\n"
        "print(hashlib.sha256(pickle.dumps(items)).hexdigest())"
    )
    for name in of(Align):
        step: Align = made(name)
        payload = pickle.dumps((step, RECIPES[step.step], sample()))
        digests = set()
        for seed in ("1", "2", "3"):
            env = {**os.environ, "PYTHONHASHSEED": seed}
            run = subprocess.run([sys.executable, "-c", code], input=payload, capture_output=True, check=True, env=env)
            digests.add(run.stdout)
        assert len(digests) == 1
