"""`duplicates`: of samples that are equal or close one stays, and the catalog says of each other one which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from mmdata.document import Keys, nearest
from mmdata.spec import ParameterError
from mmdata.steps.base import Curate
from mmdata.steps.curate.expressions import check_order, checked_type, written, written_order
from mmdata.store.curation import Curation
from mmdata.store.sql import identifier, quoted

if TYPE_CHECKING:
    from mmdata.near.groups import Close
    from mmdata.near.pairs import Pairs

# Most samples have no twin, and counting numbers is a fraction of sorting all by a text. Two hashes that are equal by
# chance cost a rank.
_ALIKE: Final = """{hash} IN (SELECT {hash} FROM undecided AS candidates WHERE parent_id IS NULL
    GROUP BY 1 HAVING count(*) > 1)"""
_IN_A_LINK: Final = """sample_id IN (SELECT sample_id FROM links WHERE other_source IS NULL
    UNION ALL SELECT other_id FROM links WHERE other_source IS NULL)"""

_Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Duplicates(Curate):
    """Of samples with equal or close members the best stays, the others say of which they are duplicates.

    A sample is dropped only where it is linked directly to one that stays: in a chain of small changes the ends are not
    alike. Those that stay although they are linked by way of others `splits` keeps together.
    """

    step: ClassVar[str] = "duplicates"
    of: list[str] = Field(
        [],
        description="members or expressions (`content.image.digest`) that must all be equal; who lacks one is left",
    )
    near: dict[str, _Distance] = Field(
        {}, description="measure and member, `pdq.image`: the largest distance; samples close by any of them are one"
    )
    best: str = Field("key", description="SQL order; the first of a group stays, for example `image.width DESC`")
    reference: Literal["drop", "keep"] = Field(
        "drop", description="whether samples go that are as close to an item of a reference set"
    )

    @model_validator(mode="after")
    def _says_how(self) -> Self:
        if not (self.of or self.near):
            raise ValueError("say by what: `of: [image]`, or `near: {pdq.image: 31}`")
        return self

    def check(self, curation: Curation) -> None:
        """Raises ParameterError for an unknown member or measure, a distance too far, SQL that does not bind."""
        members, links = curation.columns.members, _links(curation)
        problems: list[tuple[Keys, str]] = []
        for name, distance in self.near.items():
            if name not in links:
                missing = f"no measure links samples by '{name}'{nearest(name, links) or _hint(links)}"
                problems.append((("near", name), missing))
            elif beyond := curation.columns.beyond(name.partition(".")[0], distance):
                problems.append((("near", name), beyond))
        for name in self.of:
            try:
                if name not in members and name.isidentifier():
                    raise ValueError(f"no member '{name}'{nearest(name, members)}")
                checked_type(curation, _key(curation, name))
            except ValueError as error:
                problems.append((("of",), str(error)))
        try:
            check_order(curation, self.best)
        except ValueError as error:
            problems.append((("best",), str(error)))
        if problems:
            raise ParameterError(problems)

    def sql_texts(self) -> Iterator[tuple[Keys, str]]:
        """What must be equal, where it is no member, and the order."""
        yield from ((("of",), name) for name in self.of if not name.isidentifier())
        yield ("best",), self.best

    def apply(self, curation: Curation) -> None:
        """Children are not judged: they share members with their parent on purpose."""
        run = curation.connection.execute
        if self.reference == "drop":
            for name, limit in self.near.items():
                run(f"INSERT INTO fates {_in_reference(name, limit)}")
        run(f"CREATE TEMP TABLE ranked AS {self._ranked(curation)}")
        judged = curation.one("SELECT count(*) FROM ranked")
        # Of equal fingerprints all are linked to the first, whatever has become of it: it stands at the end.
        last = f"{judged} + row_number() OVER (ORDER BY sample_id) - 1"
        run(
            f"""INSERT INTO ranked (sample_id, place) SELECT sample_id, {last}
            FROM (SELECT sample_id FROM links UNION SELECT other_id FROM links WHERE other_source IS NULL)
            WHERE sample_id NOT IN (SELECT sample_id FROM ranked)"""
        )
        self._drop(curation, judged)
        run("DROP TABLE ranked")

    def _ranked(self, curation: Curation) -> str:
        """Originals without a fate that may have a twin, by rank, the best first; with what must be equal."""
        keys = [f"({written(curation, _key(curation, name))})" for name in self.of]
        named = "".join(f"{key} AS key_{n}, " for n, key in enumerate(keys))
        place = f"row_number() OVER (ORDER BY {written_order(curation, self.best)}, source, key) - 1"
        some = [_ALIKE.format(hash=f"hash({', '.join(keys)})")] if keys else []
        some += [_IN_A_LINK] if self.near else []
        return f"""SELECT sample_id, {named}{place} AS place FROM undecided AS candidates
            WHERE parent_id IS NULL AND ({" OR ".join(some)})"""

    def _equal(self, curation: Curation) -> Pairs:
        """Each of those that are equal in all of `of`, paired with the best."""
        keys = ", ".join(f"key_{n}" for n in range(len(self.of)))
        there = " AND ".join(f"key_{n} IS NOT NULL" for n in range(len(self.of)))
        return _pairs(
            curation,
            f"""SELECT * FROM (SELECT min(place) OVER (PARTITION BY {keys}) AS best, place, 0.0::DOUBLE AS distance
            FROM ranked WHERE {there}) WHERE best <> place""",
        )

    def _drop(self, curation: Curation, judged: int) -> None:
        """Fates of those that go; of equal ones the catalog gives no distance."""
        from mmdata.near.groups import Close

        methods = [("+".join(self.of), 0.0, self._equal(curation))] if self.of else []
        methods += [(name, limit, _linked(curation, name, limit)) for name, limit in self.near.items()]
        rows, compact = _compact([pairs for _, _, pairs in methods])
        closes = [Close(pairs, limit) for (_, limit, _), pairs in zip(methods, compact, strict=True)]
        gone = _chosen(rows, judged, closes)
        for number, (name, limit, _) in enumerate(methods):
            mine = gone["method"] == number
            shown = "NULL, NULL" if self.of and not number else f"d.distance, {float(limit)!r}"
            _insert(
                curation,
                {column: values[mine] for column, values in gone.items()},
                f"""INSERT INTO fates
                SELECT r.sample_id, 'duplicate', 'duplicates', {quoted(name)}, {shown}, k.sample_id
                FROM found d JOIN ranked r ON r.place = d.place JOIN ranked k ON k.place = d.kept""",
            )


def _key(curation: Curation, name: str) -> str:
    """SQL of what must be equal: of a member its digest."""
    return f"{identifier(name)}.sha256" if name in curation.columns.members else name


def _links(curation: Curation) -> list[str]:
    columns = curation.columns
    return [f"{label}.{member}" for label in sorted(columns.linked) for member in columns.measures[label]]


def _hint(links: list[str]) -> str:
    return f"; there are {', '.join(links)}" if links else "; `measure:` has no step that links (pdq, minhash, ...)"


def _linked(curation: Curation, name: str, limit: float) -> Pairs:
    """Links of a measure between originals, by rank."""
    label, _, member = name.partition(".")
    return _pairs(
        curation,
        f"""SELECT least(a.place, b.place) AS best, greatest(a.place, b.place) AS place, l.distance
        FROM links l JOIN ranked a USING (sample_id) JOIN ranked b ON b.sample_id = l.other_id
        WHERE l.measure = {quoted(label)} AND l.member = {quoted(member)} AND l.other_source IS NULL
            AND l.distance <= {float(limit)!r}""",
    )


def _in_reference(name: str, limit: float) -> str:
    """Fates of samples that a reference set has too; the nearest item is named."""
    label, _, member = name.partition(".")
    return f"""
SELECT sample_id, 'duplicate', 'duplicates', {quoted(name)}, min(l.distance), {float(limit)!r},
    arg_min(l.other_source || ': ' || l.other_id, (l.distance, l.other_source, l.other_id))
FROM links l JOIN undecided u USING (sample_id)
WHERE l.measure = {quoted(label)} AND l.member = {quoted(member)} AND l.other_source IS NOT NULL
    AND l.distance <= {float(limit)!r} AND u.parent_id IS NULL
GROUP BY sample_id"""


def _pairs(curation: Curation, query: str) -> Pairs:
    """Rows of (best, place, distance), in a fixed order."""
    import numpy as np

    from mmdata.near.pairs import Pairs

    found = curation.connection.execute(f"{query} ORDER BY 1, 2").fetchnumpy()
    best, place, distance = (np.asarray(found[name]) for name in ("best", "place", "distance"))
    return Pairs(best.astype(np.int64), place.astype(np.int64), distance.astype(float))


def _compact(found: list[Pairs]) -> tuple[Any, list[Pairs]]:
    """The rows that stand in some pair, ascending; and the pairs by place among those."""
    import numpy as np

    from mmdata.near.pairs import Pairs

    ends = [end for pairs in found for end in (pairs.left_P, pairs.right_P)]
    rows = np.unique(np.concatenate([np.zeros(0, np.int64), *ends]))
    placed = [np.searchsorted(rows, end) for end in ends]
    return rows, [
        Pairs(left, right, pairs.distance_P)
        for left, right, pairs in zip(placed[::2], placed[1::2], found, strict=True)
    ]


def _chosen(rows: Any, judged: int, closes: list[Close]) -> dict[str, Any]:
    from mmdata.near.groups import choose

    gone = choose(len(rows), int((rows < judged).sum()), closes)
    return {
        "place": rows[gone.sample_P],
        "kept": rows[gone.kept_P],
        "method": gone.method_P,
        "distance": gone.distance_P,
    }


def _insert(curation: Curation, found: Mapping[str, Any], query: str) -> None:
    """Run a query over columns called `found`."""
    curation.connection.register("found", dict(found))
    curation.connection.execute(query)
    curation.connection.unregister("found")
