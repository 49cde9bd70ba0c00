"""Values that an expression cannot take end a build in a sentence, whichever step meets them."""

from __future__ import annotations

from pathlib import Path

import pytest
from candidates import Row, loaded

from mmdata.errors import FatalError
from mmdata.steps.base import Curate
from mmdata.steps.curate.duplicates import Duplicates
from mmdata.steps.curate.faults import faults_told
from mmdata.steps.curate.mix import Mix
from mmdata.steps.curate.quota import Quota
from mmdata.steps.curate.rules import Rules
from mmdata.steps.curate.splits import Splits
from mmdata.steps.curate.terms import Terms
from mmdata.steps.curate.unknown import unknown
from mmdata.store import sql
from mmdata.store.curation import Curation

NUMBER = "CAST(caption.text AS INTEGER)"
WEIGHTS = {"a": 1.0}


def apply(curation: Curation, step: Curate) -> None:
    with faults_told(curation, step):
        unknown(curation, step)
        step.apply(curation)


@pytest.mark.parametrize(
    ("step", "place"),
    [
        (Splits(by=["key", NUMBER]), "splits.by"),
        (Splits(by=["key", "source"], first=NUMBER), "splits.first"),
        (Splits(stratify=[NUMBER]), "splits.stratify"),
        (Duplicates(of=[NUMBER]), "duplicates.of"),
        (Duplicates(of=["image"], best=f"{NUMBER} DESC, key"), "duplicates.best"),
        (Quota(by=[NUMBER], most=1), "quota.by"),
        (Quota(by=["key"], most=1, among=f"{NUMBER} > 3"), "quota.among"),
        (Mix(by=NUMBER, weights=WEIGHTS), "mix.by"),
        (Terms(of=f"CAST({NUMBER} AS VARCHAR)", most=1), "terms.of"),
        (Rules(keep={"number": f"{NUMBER} > 3"}), "rule 'number'"),
        (Rules(keep={"number": {"top": 0.5, "by": NUMBER}}), "rule 'number'"),
    ],
)
def test_the_expression_the_value_and_what_to_write_are_said(tmp_path: Path, step: Curate, place: str) -> None:
    curation = loaded(tmp_path, [Row("a", "1"), Row("b", "cat")])
    with pytest.raises(FatalError) as error:
        apply(curation, step)
    cast = "TRY_CAST(... AS ...) is NULL where a value cannot be cast"
    assert str(error.value).startswith(f"{place}: Conversion Error: Could not convert string 'cat' to INT32")
    assert str(error.value).endswith(f"; {cast}")


def test_a_number_that_is_too_large_is_said(tmp_path: Path) -> None:
    curation = loaded(tmp_path, [Row("a", "cat")])
    with pytest.raises(FatalError, match=r"^splits\.by: Out of Range Error: Overflow[^;]*$"):
        apply(curation, Splits(by=["image.width * 1000000000"]))


def test_what_is_wrong_with_the_query_is_no_fault_of_a_value(tmp_path: Path) -> None:
    curation = loaded(tmp_path, [Row("a")])
    with pytest.raises(sql.Error, match="nowhere"), faults_told(curation, Splits()):
        curation.one("SELECT nowhere FROM candidates")
