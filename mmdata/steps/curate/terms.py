"""`terms`: balance by what captions speak of: what is said a million times shall not drown what is said ten times.

After Xu et al. 2023, "Demystifying CLIP Data" (MetaCLIP), algorithm 1: texts are matched with a list of terms; a term
that more than t texts have is kept with the probability t / count; a text stays if one of its terms is kept. The paper
draws anew for each term of a text; here a sample has one draw, which is held against its rarest term, so that it stays
where it was when the list or the counts change a little.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from mmdata.document import Keys
from mmdata.spec import Names, ParameterError
from mmdata.steps.base import Curate
from mmdata.steps.curate import lists
from mmdata.steps.curate.draws import unit_interval
from mmdata.steps.curate.expressions import check_condition, check_text, written
from mmdata.store.curation import Curation

_MOST_WORDS: Final = 4


class Terms(Curate):
    """About `most` samples of each term of the captions: a sample stays with the probability of its rarest term.

    That is min(1, most / samples that have the term). Terms are those of a list, or all that enough captions have.
    """

    step: ClassVar[str] = "terms"
    of: str = Field(description="SQL expression of the text: `caption.text`; where it is NULL a sample stays")
    most: int = Field(ge=1, description="samples of a term that stay, about; a rarer term keeps all of its samples")
    entries: Names | None = Field(
        None,
        description="files of the list: .txt (a term a line), .csv, .tsv or .parquet; default: the captions' own terms",
    )
    column: str | None = Field(None, description="of a table; may be left out where it has but one")
    words: int = Field(
        1, ge=1, le=_MOST_WORDS, description="words of the longest terms that are looked for; in Chinese, characters"
    )
    at_least: int = Field(5, ge=1, description="captions that must have a term of their own for it to count")
    unmatched: Literal["keep", "drop"] | None = Field(
        None, description="samples without any term; default: with a list they are dropped, as in the paper, else kept"
    )
    among: str = Field("parent_id IS NULL", description="SQL condition: who is counted; children go with their parents")

    def identity(self) -> dict[str, Any]:
        """Parameters, and the content of the list."""
        files = [Path(file) for file in self.entries or []]
        return {**super().identity(), **({"lists": [lists.digest(file) for file in files]} if files else {})}

    def check(self, curation: Curation) -> None:
        """Raises ParameterError for what does not bind, and for lists that cannot be read."""
        problems: list[tuple[Keys, str]] = []
        for field, check, expression in (("of", check_text, self.of), ("among", check_condition, self.among)):
            try:
                check(curation, expression)
            except ValueError as error:
                problems.append(((field,), str(error)))
        for file in self.entries or []:
            try:
                lists.check_list(Path(file), self.column)
            except ValueError as error:
                problems.append((("entries",), str(error)))
        if not problems and "words" not in self.model_fields_set:
            problems += self._too_long(curation)
        if problems:
            raise ParameterError(problems)

    def _too_long(self, curation: Curation) -> Iterator[tuple[Keys, str]]:
        """A term of the list that no text would be found to have, where nothing says that it is meant so."""
        if not self.entries:
            return
        lists.load_list(curation, [Path(file) for file in self.entries], self.column, "words", "entries")
        counted = "SELECT entry, len(string_split(entry, ' ')) AS words FROM entries ORDER BY words DESC, entry LIMIT 1"
        for entry, words in curation.connection.execute(counted).fetchall():
            if words > self.words:
                most = min(words, _MOST_WORDS)
                fix = f"say `words: {most}`, or `words: 1` to do without longer ones"
                yield ("entries",), f"'{entry}' is {words} words, but terms of one word are looked for; {fix}"
        curation.connection.execute("DROP TABLE entries")

    def sql_texts(self) -> Iterator[tuple[Keys, str]]:
        """The text, and who is counted."""
        yield ("of",), self.of
        yield ("among",), self.among

    def apply(self, curation: Curation) -> None:
        """Count the terms, then drop: `value` is the draw, `threshold` the probability of the rarest term."""
        run = curation.connection.execute
        run(
            f"""CREATE OR REPLACE TEMP TABLE spoken AS
            SELECT sample_id, {unit_interval(curation.seed, "'terms:' || sample_id")} AS draw,
                list_distinct({self._terms(written(curation, self.of))}) AS terms
            FROM undecided AS candidates
            WHERE ({written(curation, self.among)}) AND ({written(curation, self.of)}) IS NOT NULL"""
        )
        self._count(curation)
        kept = "true" if (self.unmatched or ("drop" if self.entries else "keep")) == "keep" else "false"
        run(
            f"""INSERT INTO fates
            WITH had AS (SELECT s.rowid AS row, unnest(s.terms) AS term FROM spoken s),
            rarest AS (SELECT row, min(samples) AS samples, arg_min(term, (samples, term)) AS term
                FROM had JOIN counted USING (term) GROUP BY row),
            judged AS (SELECT s.sample_id, s.draw, {self.most}::DOUBLE / r.samples AS share, r.samples, r.term
                FROM spoken s LEFT JOIN rarest r ON r.row = s.rowid)
            SELECT sample_id, 'dropped', 'terms', if(term IS NULL, 'no_term', 'terms'),
                if(term IS NULL, NULL, draw), share, if(term IS NULL, NULL, term || ': ' || samples || ' samples')
            FROM judged WHERE draw >= share OR (term IS NULL AND NOT {kept})"""
        )
        run("DROP TABLE spoken")
        run("DROP TABLE counted")

    def _terms(self, text: str) -> str:
        """SQL of the words of a text, and of its runs of up to `words` words."""
        words = lists.words(text)
        runs = [
            f"list_transform(range(1, len(w) - {n - 2}), lambda i: array_to_string(w[i:i + {n - 1}], ' '))"
            for n in range(2, self.words + 1)
        ]
        if not runs:
            return words
        together = " || ".join(["w", *runs])
        # A list of one stands in for LET: the words are found once.
        return f"list_transform([{words}], lambda w: {together})[1]"

    def _count(self, curation: Curation) -> None:
        """Table `counted`: each term that counts and how many samples have it."""
        had = "SELECT unnest(terms) AS term FROM spoken"
        if self.entries:
            lists.load_list(curation, [Path(file) for file in self.entries], self.column, "words", "entries")
            had = f"SELECT term FROM ({had}) SEMI JOIN entries ON entry = term"
        fewest = 1 if self.entries else self.at_least
        curation.connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE counted AS
            SELECT term, count(*) AS samples FROM ({had}) GROUP BY term HAVING count(*) >= {fewest}"""
        )
