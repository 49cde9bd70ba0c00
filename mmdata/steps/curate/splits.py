"""`splits`: by a hash of the group, so that no group straddles and samples stay where they are when others come.

A group is all that hangs together: samples with an equal key, samples that a measure links, a parent and its children,
and by way of any of these with any other. Its split is a hash of its representative: the key of one of its samples, the
one that comes first by the order `first`, else the one with the smallest hash.

So a sample moves only when a newcomer's group joins its own and is represented by another, and then the whole group
goes. With one key and no links that cannot happen. With an order in which newcomers come last (a date, say) it happens
only to the later one of two groups that a newcomer joins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field, field_validator

from mmdata.document import Keys, nearest
from mmdata.errors import LedgerError
from mmdata.spec import Names, ParameterError
from mmdata.steps.base import Curate
from mmdata.steps.curate.components import components
from mmdata.steps.curate.draws import unit_interval
from mmdata.steps.curate.expressions import checked_type, written
from mmdata.store.curation import Curation
from mmdata.store.sql import quoted

_SUM_TOLERANCE: Final = 1e-6
_NO_LINKS: Final = "; under `measure:` stands none that does"

_Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Splits(Curate):
    """Shares of the samples, by a hash of their group: what belongs together is in one split, children with parents."""

    step: ClassVar[str] = "splits"
    shares: dict[str, float] = Field(
        default={"train": 0.9, "val": 0.1},
        min_length=1,
        description="name: share of the groups; the shares add up to 1",
    )
    by: Names = Field(
        default=["sample_id"],
        description="SQL expressions of originals (speaker, site, caption); samples where one is equal are one group",
    )
    links: list[str] | dict[str, _Distance] | None = Field(
        None,
        description="measures whose links keep samples together, or the largest distance of each; default: all, any",
    )
    first: str | None = Field(
        None, description="SQL expression; the sample where it is smallest decides for its group: a date, say"
    )
    stratify: Names = Field(
        default=[],
        description="SQL expressions; each stratum gets the shares, counted before rules drop any, not left to chance",
    )
    augmented: list[str] | None = Field(
        None, description="splits that children may be in; default: the first. Elsewhere they are dropped"
    )

    @field_validator("shares")
    @classmethod
    def _adds_up(cls, shares: dict[str, float]) -> dict[str, float]:
        for name, share in shares.items():
            if not share >= 0:
                raise ValueError(f"the share of '{name}' is {share:g}, not 0 or more")
        if abs(sum(shares.values()) - 1) > _SUM_TOLERANCE:
            raise ValueError(f"the shares add up to {sum(shares.values()):g}, not to 1")
        for name in shares:
            if not name.isidentifier():
                raise ValueError(f"the split '{name}' must be letters, digits and '_': it names files")
        return shares

    def check(self, curation: Curation) -> None:
        """Raises ParameterError for a split or a measure that is not there, an expression that does not bind."""
        linked = curation.columns.linked
        problems: list[tuple[Keys, str]] = [
            (("augmented",), f"no split '{name}'{nearest(name, self.shares)}")
            for name in self.augmented or []
            if name not in self.shares
        ]
        problems += [
            (("links",), f"no measure '{label}' links samples{nearest(label, linked) or _NO_LINKS}")
            for label in self.links or []
            if label not in linked
        ]
        problems += [
            (("links", label), beyond)
            for label, distance in (self.links.items() if isinstance(self.links, dict) else ())
            if label in linked and (beyond := curation.columns.beyond(label, distance))
        ]
        for keys, expression in self.sql_texts():
            try:
                checked_type(curation, expression)
            except ValueError as error:
                problems.append((keys, str(error)))
        if problems:
            raise ParameterError(problems)

    def sql_texts(self) -> Iterator[tuple[Keys, str]]:
        """Keys, who decides for a group, strata."""
        first = [self.first] if self.first else []
        for field, expressions in (("by", self.by), ("first", first), ("stratify", self.stratify)):
            yield from (((field,), expression) for expression in expressions)

    def apply(self, curation: Curation) -> None:
        """Place every candidate, then drop the children that ended in a split of originals only."""
        run = curation.connection.execute
        run("DELETE FROM places")
        self._name_groups(curation)
        run(f"INSERT INTO places {self._placed(curation)}")
        run(
            """INSERT INTO places SELECT c.sample_id, p.group_id, p.split
            FROM candidates c JOIN places p ON p.sample_id = c.parent_id WHERE c.parent_id IS NOT NULL"""
        )
        run("DROP VIEW grouped")
        run("DROP TABLE IF EXISTS named_groups")
        allowed = ", ".join(map(quoted, self.augmented if self.augmented is not None else [next(iter(self.shares))]))
        run(
            f"""INSERT INTO fates SELECT u.sample_id, 'dropped', 'splits', 'augmented_only_in', NULL, NULL, p.split
            FROM undecided u JOIN places p USING (sample_id)
            WHERE u.parent_id IS NOT NULL AND p.split NOT IN ({allowed or "''"})"""
        )

    def verify(self, curation: Curation) -> None:
        """Prove that nothing straddles. Raises LedgerError with what does."""
        for what, query in self._straddling(curation):
            count = curation.one(f"SELECT count(*) FROM ({query})")
            if count:
                raise LedgerError(f"splits leak: {count} {what} in two splits")

    # --- groups -----------------------------------------------------------------------------------------------------

    def _keys(self, curation: Curation) -> list[str]:
        return [f"CAST(({written(curation, expression)}) AS VARCHAR)" for expression in self.by]

    def _originals(self, curation: Curation) -> str:
        """A query of the originals: keys, and the anchor: a hash of the first key that a sample has, else of its id."""
        keys = self._keys(curation)
        # Keys of different expressions must not meet; the first stands as it is, so that one key is its own hash.
        anchors = [keys[0], *(f"{n} || ':' || {key}" for n, key in enumerate(keys[1:], 1)), "sample_id"]
        first = written(curation, self.first) if self.first else "NULL::INTEGER"
        stratum = " || '/' || ".join(_apart(f"CAST(({written(curation, one)}) AS VARCHAR)") for one in self.stratify)
        columns = "".join(f", {key} AS k{n}" for n, key in enumerate(keys))
        return f"""SELECT sample_id, md5(coalesce({", ".join(anchors)})) AS anchor, ({first}) AS first_of,
            {stratum or "''"} AS stratum{columns} FROM candidates WHERE parent_id IS NULL"""

    def _name_groups(self, curation: Curation) -> None:
        """View `grouped`: of each original its group, called by the anchor of the representative, and a stratum."""
        originals = self._originals(curation)
        linked = curation.one(f"SELECT count(*) FROM ({self._links(curation)})")
        # Where samples hang together by one key only, the key is the group.
        query = f"SELECT sample_id, anchor AS group_id, stratum FROM ({originals})"
        if linked or len(self.by) > 1:
            curation.connection.execute(f"CREATE OR REPLACE TEMP TABLE originals AS {originals}")
            self._find_components(curation, [_by_link(self._links(curation))] if linked else [])
            query = "FROM named_groups"
        curation.connection.execute(f"CREATE OR REPLACE TEMP VIEW grouped AS {query}")

    def _find_components(self, curation: Curation, linked: list[str]) -> None:
        """Table `named_groups`, of the table `originals`, which goes."""
        edges = [*(_equal(f"k{n}") for n in range(len(self.by))), *linked]
        run = curation.connection.execute
        curation.connection.register("labels", components(curation, "originals", edges))
        order = "{missing: first_of IS NULL, first_of: first_of, anchor: anchor}"
        name = f"arg_min(anchor, {order})" if self.first else "min(anchor)"
        run(
            f"""CREATE OR REPLACE TEMP TABLE named_groups AS
            WITH labelled AS (SELECT * FROM originals o JOIN labels l ON l.row = o.rowid),
            named AS (SELECT component, {name} AS group_id FROM labelled GROUP BY component)
            SELECT l.sample_id, n.group_id, l.stratum FROM labelled l JOIN named n USING (component)"""
        )
        curation.connection.unregister("labels")
        run("DROP TABLE originals")

    def _links(self, curation: Curation) -> str:
        """SQL of the pairs of originals that a measure links."""
        labels = sorted(curation.columns.linked) if self.links is None else list(self.links)
        most: dict[str, Any] = self.links if isinstance(self.links, dict) else {}
        near = [
            f"measure = {quoted(label)}" + (f" AND distance <= {float(most[label])!r}" if label in most else "")
            for label in labels
        ]
        where = " OR ".join(f"({one})" for one in near) or "false"
        return f"SELECT sample_id, other_id FROM links WHERE other_source IS NULL AND ({where})"

    # --- shares -----------------------------------------------------------------------------------------------------

    def _placed(self, curation: Curation) -> str:
        """A query of the places of the originals.

        A group's place in [0, 1) is its hash; with strata, where it stands by its hash among those of its stratum.
        """
        hashed = unit_interval(curation.seed, "group_id")
        if not self.stratify:
            return f"SELECT sample_id, group_id, {self._split_of(hashed)} FROM grouped"
        before = "sum(samples) OVER (PARTITION BY stratum ORDER BY hash, group_id)"
        return f"""
        WITH sized AS (SELECT group_id, min(stratum) AS stratum, count(*) AS samples FROM grouped GROUP BY group_id),
        hashed AS (SELECT *, {hashed} AS hash FROM sized),
        placed AS (SELECT group_id, ({before} - samples / 2.0) / sum(samples) OVER (PARTITION BY stratum) AS u
            FROM hashed)
        SELECT g.sample_id, group_id, {self._split_of("u")} FROM grouped g JOIN placed USING (group_id)"""

    def _split_of(self, unit: str) -> str:
        cases, bound = [], 0.0
        for name, share in self.shares.items():
            bound += share
            cases.append(f"WHEN {unit} < {bound!r} THEN {quoted(name)}")
        return f"CASE {' '.join(cases)} ELSE {quoted(list(self.shares)[-1])} END"

    def _straddling(self, curation: Curation) -> list[tuple[str, str]]:
        """What may not be in two splits, and a query of those that are."""
        two = "HAVING min(p.split) <> max(p.split)"
        found = [("groups", f"SELECT 1 FROM places p GROUP BY p.group_id {two}")]
        for expression, key in zip(self.by, self._keys(curation), strict=True):
            if expression == "sample_id":
                continue
            valued = f"SELECT sample_id, {key} AS value FROM candidates WHERE parent_id IS NULL"
            together = f"FROM ({valued}) JOIN places p USING (sample_id) WHERE value IS NOT NULL GROUP BY value"
            found.append((f"values of {expression}", f"SELECT 1 {together} {two}"))
        other = "JOIN places p USING (sample_id) JOIN places o ON o.sample_id = {} WHERE o.split <> p.split"
        found.append(("links", f"SELECT 1 FROM ({self._links(curation)}) {other.format('other_id')}"))
        children = "SELECT sample_id, parent_id FROM candidates WHERE parent_id IS NOT NULL"
        found.append(("children", f"SELECT 1 FROM ({children}) {other.format('parent_id')}"))
        return found


def _apart(text: str) -> str:
    """SQL of a text that may be joined by slashes: `a/b` and `c` are not `a` and `b/c`, and NULL is no empty text."""
    return f"coalesce(replace(replace({text}, '~', '~~'), '/', '~s'), '~n')"


def _by_link(links: str) -> str:
    """SQL of pairs of originals that are linked."""
    return f"""SELECT a.rowid AS a, b.rowid AS b FROM ({links}) l
        JOIN originals a ON a.sample_id = l.sample_id JOIN originals b ON b.sample_id = l.other_id"""


def _equal(key: str) -> str:
    """SQL of pairs of originals that have the same key: each with one of them."""
    first = f"SELECT {key}, min(rowid) AS row FROM originals WHERE {key} IS NOT NULL GROUP BY 1 HAVING count(*) > 1"
    return f"SELECT o.rowid AS a, f.row AS b FROM originals o JOIN ({first}) f USING ({key})"
