from __future__ import annotations

import gc
import io
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from mmdata.errors import PlanError
from mmdata.steps.exchange import Input
from mmdata.steps.ingest.tensor import Tensor
from mmdata.steps.sources.huggingface import HuggingFace

# datasets leaves files open for the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
MEMBERS = {"image": "image", "caption": "text"}
Kept = dict[tuple[str, tuple[int, int]], bytes]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What readers leave open is closed here, not in a test of something else."""
    yield
    gc.collect()


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Two files of three rows, images inside."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "n": datasets.Value("int32"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    rows = {
        "image": [{"bytes": png(n), "path": None} for n in range(6)],
        "text": [f"text {n}" if n != 4 else None for n in range(6)],
        "n": list(range(6)),
        "label": [0, 1] * 3,
    }
    data = datasets.Dataset.from_dict(rows, features=features)
    for name, part in (("a", range(3)), ("b", range(3, 6))):
        data.select(part).to_parquet(tmp_path / f"{name}.parquet")
    return tmp_path


def look(**given: Any) -> tuple[list[Input], Kept]:
    source = HuggingFace.model_validate({"members": MEMBERS, **given})
    kept: Kept = {}

    def keep(data: bytes) -> tuple[str, tuple[int, int]]:
        place = ("kept", (len(kept), len(data)))
        kept[place] = data
        return place

    return [found for place in source.places(Path()) for found in source.look(place, keep)], kept


def test_rows_of_parquet_files_with_their_images(parquet: Path):
    found, kept = look(path=str(parquet))
    assert [one.key for one in found] == [f"{s:06d}/{n:08d}" for s in range(2) for n in range(3)]
    image, caption = found[1].refs
    assert kept["kept", image.span] == png(1)
    assert (caption.text, image.version) == ("text 1", found[1].refs[0].version)
    assert found[1].attributes == {"n": "1", "label": "dog"}
    assert found[4].refs[1].version is None
    # The same by a builder's name and patterns.
    again, _ = look(path="parquet", data_files=[str(parquet / "*.parquet")])
    assert look(path="parquet", data_files=str(parquet / "*.parquet"))[0] == again
    assert again == found


def test_a_column_may_name_the_row_and_a_label_is_a_text(parquet: Path):
    found, _ = look(path=str(parquet), key="n", members={"image": "image", "caption": "label"})
    assert [one.key for one in found] == list("012345")
    assert found[1].refs[1].text == "dog"


def test_a_row_without_a_label_has_none(tmp_path: Path):
    """-1 is what data sets have there whose labels are kept back."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat"])})
    rows = {"text": ["a", "b", "c"], "label": [0, -1, None]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    found, _ = look(path=str(tmp_path), members={"caption": "text"})
    assert [one.attributes for one in found] == [{"label": "cat"}, {}, {}]


def test_dates_and_decimals_are_attributes(tmp_path: Path):
    when = datetime(2020, 1, 31, 12, 30, tzinfo=UTC).replace(tzinfo=None)
    kinds = {"text": "string", "when": "timestamp[s]", "day": "date32", "at": "time32[s]", "price": "decimal128(6, 2)"}
    features = datasets.Features({name: datasets.Value(kind) for name, kind in kinds.items()})
    rows = {"text": ["a"], "when": [when], "day": [when.date()], "at": [when.time()], "price": [Decimal("1.50")]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    (found,), _ = look(path=str(tmp_path), members={"caption": "text"})
    assert found.attributes == {"when": "2020-01-31 12:30:00", "day": "2020-01-31", "at": "12:30:00", "price": "1.50"}


def test_a_folder_of_images_with_their_texts(tmp_path: Path):
    (tmp_path / "train").mkdir()
    for n in range(3):
        (tmp_path / "train" / f"{n}.png").write_bytes(png(n))
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\n0.png,zero\n1.png,one\n2.png,two\n")
    found, kept = look(path=str(tmp_path))
    texts = {kept["kept", one.refs[0].span]: one.refs[1].text for one in found}
    assert texts == {png(0): "zero", png(1): "one", png(2): "two"}


def test_the_version_changes_with_the_files(parquet: Path):
    def versions() -> list[str]:
        source = HuggingFace.model_validate({"path": str(parquet), "members": MEMBERS})
        return [place.version for place in source.places(Path())]

    before = versions()
    assert versions() == before
    os.utime(parquet / "a.parquet", (1, 1))
    assert versions() != before


def test_a_row_that_names_a_file_of_mine_is_refused(tmp_path: Path):
    (tmp_path / "secret.png").write_bytes(png(1))
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}], "text": ["x"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "p.parquet")
    # `to_parquet` takes pictures in: write the path as a stranger would.
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "p.parquet")
    image = pa.array([{"bytes": None, "path": str(tmp_path / "secret.png")}], table.schema.field("image").type)
    table = table.set_column(0, table.schema.field("image"), image)
    (tmp_path / "d").mkdir()
    pq.write_table(table, tmp_path / "d" / "p.parquet")
    ((found,), kept) = look(path=str(tmp_path / "d"))
    assert found.problem is not None
    assert found.problem[0] == "path_outside"
    assert kept == {}


def test_a_file_that_breaks_off_costs_what_is_behind_the_break(parquet: Path):
    data = (parquet / "b.parquet").read_bytes()
    (parquet / "b.parquet").write_bytes(data[:4] + bytes(400) + data[404:])
    found, _ = look(path=str(parquet))
    assert len([one for one in found if not one.problem]) >= 3
    assert [one.problem[0] for one in found if one.problem] == ["broken_shard"]


def test_mistakes_are_said_before_anything_runs(parquet: Path):
    with pytest.raises(PlanError, match="no column 'imgae'; did you mean 'image'"):
        look(path=str(parquet), members={"image": "imgae"})
    with pytest.raises(PlanError, match="cannot be opened"):
        look(path=str(parquet / "none"))
    with pytest.raises(ValueError, match="cannot tell the modality of 'x'"):
        look(path=str(parquet), members={"x": "image"})


def test_lists_of_numbers_are_tensors(tmp_path: Path):
    rows = {"wave": [[[1.0, 2.5], [3.0, 4.0]], [[0.0, float("nan")], [1.0, 1.0]], None], "text": ["a", "b", "c"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    members = {"imu": {"column": "wave", "modality": "tensor"}, "caption": "text"}
    found, kept = look(path=str(tmp_path), members=members)
    first, second, third = (one.refs[0] for one in found)
    member = Tensor().decode(first, kept["kept", first.span or (0, 0)])
    assert (member.measures["shape"], member.measures["mean"]) == ([2, 2], 2.625)
    assert Tensor().decode(second, kept["kept", second.span or (0, 0)]).measures["finite_share"] == 0.75
    assert (third.modality, third.version) == ("tensor", None)
