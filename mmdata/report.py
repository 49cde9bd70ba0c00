"""A page about a build: what became of its inputs and why, with samples to look at; one file that loads nothing.

All of it comes out of the catalog. What strangers wrote is shown as text, never as markup; pictures are drawn anew,
small, from decoded pixels.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from mmdata.errors import MmdataError, SampleError
from mmdata.media.image import small_rgb
from mmdata.query import writable
from mmdata.store import sql
from mmdata.store.catalog import open_catalog
from mmdata.store.files import appearing
from mmdata.store.parts import open_payloads
from mmdata.store.tar import read_range

_EXAMPLES: Final = 5
# Of the page: what drops a handful of samples by each of hundreds of rules must not make it endless.
_MOST_RULES: Final = 40
_THUMBNAIL_PX: Final = 120
_TEXT_CHARS: Final = 160
_BINS: Final = 20

_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: 0; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
h3 {{ font-size: 1rem; margin: 1.4rem 0 .4rem; }} h3 span {{ font-weight: normal; }} p {{ margin: .3rem 0; }}
h1, h2, h3, .dim {{ overflow-wrap: anywhere; }} .dim {{ color: #5d6c7b; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: .5rem 0; }}
td, th {{ padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e4e9ee; }}
td.n, th.n {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
.bars td:first-child {{ min-width: 4.5rem; }} .bars .n {{ min-width: 3.4rem; }}
.bars .bar {{ width: min(20rem, 30vw); }}
.bar i {{ background: #3b7dd8; height: .8rem; display: inline-block; vertical-align: middle; border-radius: 2px; }}
.hist, .axis {{ display: flex; gap: 2px; max-width: 420px; }}
.hist {{ align-items: flex-end; height: 60px; border-bottom: 1px solid #98a6b3; }}
.hist i {{ background: #3b7dd8; flex: 1; }} .axis {{ justify-content: space-between; font-size: .8rem; }}
.gallery {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .8rem; }}
.card {{ border: 1px solid #dfe5ea; border-radius: 6px; padding: .5rem; overflow-wrap: anywhere;
  font-size: .8rem; line-height: 1.35; }}
.card img {{ max-width: 100%; max-height: 120px; display: block; margin: 0 auto .4rem; }}
</style></head><body>
{body}
</body></html>
"""


def write_report(build: Path, out: Path | None = None) -> Path:
    """Write the page, beside the build where `out` does not say otherwise.

    Raises MmdataError where no build is, or where nothing can be written.
    """
    catalog = open_catalog(build)
    try:
        body = "\n".join(_sections(catalog))
        title = _one(catalog, "SELECT name FROM build")
    except sql.Error as error:
        raise MmdataError(f"{build}: the catalog cannot be read: {error}; build once more") from None
    finally:
        catalog.close()
    path = out or build / "report.html"
    with writable(path), appearing(path) as scratch:
        scratch.write_text(_PAGE.format(title=html.escape(str(title)), body=body), encoding="utf-8")
    return path


def _sections(catalog: Any) -> Iterator[str]:
    name, folder = catalog.execute("SELECT name, folder FROM build").fetchone()
    yield f"<h1>{_text(name)}</h1><p class='dim'>{_text(folder)}</p>"
    yield "<h2>What became of the inputs</h2>"
    fates = "SELECT coalesce(fate, 'not decided yet'), count(*) FROM samples WHERE {} GROUP BY 1 ORDER BY 2 DESC, 1"
    yield _bars(catalog, fates.format("parent_id IS NULL"))
    if _one(catalog, "SELECT count(*) FROM samples WHERE parent_id IS NOT NULL"):
        yield "<h2>What became of their children</h2>"
        yield _bars(catalog, fates.format("parent_id IS NOT NULL"))
    yield "<h2>Splits</h2>"
    yield _bars(catalog, "SELECT split, count(*) FROM samples WHERE fate = 'kept' GROUP BY 1 ORDER BY 2 DESC, 1")
    yield from _table(catalog, "SELECT * FROM crossings WHERE samples > 0", "Twins in two splits")
    yield from _matches(catalog)
    query = "SELECT policy, operator, made, vetoed, kept, dropped, round(mean_match_change, 3) AS match_change"
    yield from _table(catalog, f"{query} FROM operators ORDER BY ALL", "Operators")
    yield "<h2>What was left out, and why</h2>"
    yield from _left_out(catalog)


def _matches(catalog: Any) -> Iterator[str]:
    """Of each edge the noise, and how the probability of a true pair is distributed."""
    query = "SELECT aligner, edge, pairs, noise, noise_low, noise_high, problem FROM calibrations ORDER BY 1, 2"
    for aligner, edge, pairs, noise, low, high, problem in catalog.execute(query).fetchall():
        yield f"<h2>{_text(aligner)}: {_text(edge)}</h2>"
        if noise is None:
            yield f"<p>{pairs} pairs, not calibrated: {_text(problem)}</p>"
            continue
        share = f"{100 * noise:.1f} % of {pairs} pairs look mismatched (95 %: {100 * low:.1f} to {100 * high:.1f} %)"
        share += f"; {_text(problem)}" if problem else ""
        yield f"<p>{share}</p>"
        counted = f"SELECT least(floor(match * {_BINS}), {_BINS - 1})::INTEGER AS bin, count(*) FROM scores"
        where = "WHERE aligner = ? AND edge = ? AND match IS NOT NULL GROUP BY 1"
        yield _histogram(dict(catalog.execute(f"{counted} {where}", [aligner, edge]).fetchall()))


def _histogram(count_of: dict[int, int]) -> str:
    most = max(count_of.values(), default=1)
    counts = [count_of.get(number, 0) for number in range(_BINS)]
    cells = (f"<i title='{count}' style='height:{100 * count / most:.1f}%'></i>" for count in counts)
    about = "<span>0</span><span>probability that a pair belongs together</span><span>1</span>"
    return f"<div class='hist'>{''.join(cells)}</div><div class='axis dim'>{about}</div>"


def _left_out(catalog: Any) -> Iterator[str]:
    """Each reason with its samples nearest to the threshold: where one would set it otherwise."""
    query = "SELECT fate, step, rule, count(*) AS samples FROM explained GROUP BY ALL ORDER BY samples DESC, step, rule"
    reasons = catalog.execute(query).fetchall()
    for fate, step, rule, samples in reasons[:_MOST_RULES]:
        yield f"<h3>{_text(rule or fate)} <span class='dim'>{_text(fate)} by {_text(step)}: {samples}</span></h3>"
        rows = catalog.execute(
            f"""SELECT e.sample_id, e.key, e.sentence, (SELECT min_by(m.text, m.name) FROM members m
                WHERE m.sample_id = e.sample_id AND m.text IS NOT NULL) AS text
            FROM explained e WHERE e.fate = ? AND e.step IS NOT DISTINCT FROM ? AND e.rule IS NOT DISTINCT FROM ?
            ORDER BY abs(e.value - e.threshold) NULLS LAST, e.sample_id LIMIT {_EXAMPLES}""",
            [fate, step, rule],
        ).fetchall()
        pictures = _pictures(catalog, [row[0] for row in rows])
        yield f"<div class='gallery'>{''.join(_card(pictures, *row) for row in rows)}</div>"
    if len(reasons) > _MOST_RULES:
        yield f"<p class='dim'>and {len(reasons) - _MOST_RULES} reasons more: ask the view <code>explained</code></p>"


def _card(pictures: dict[str, str], sample_id: str, key: str, sentence: str, text: str | None) -> str:
    picture = f"<img alt='' src='{pictures[sample_id]}'>" if sample_id in pictures else ""
    words = f"<p>{_text(text)}</p>" if text else ""
    return f"<div class='card'>{picture}<b>{_text(key)}</b>{words}<p class='dim'>{_text(sentence)}</p></div>"


def _pictures(catalog: Any, ids: Sequence[str]) -> dict[str, str]:
    """A thumbnail of each of these samples that has a picture, as a data URI."""
    if not ids:
        return {}
    rows = catalog.execute(
        """SELECT sample_id, part, m."offset", m.bytes FROM (
            SELECT sample_id, filename AS part, unnest(members) AS m FROM base WHERE sample_id IN (SELECT unnest(?)))
        WHERE m.modality = 'image' AND m.error IS NULL ORDER BY sample_id, m.name DESC""",
        [list(ids)],
    ).fetchall()
    found = {}
    for sample_id, part, offset, size in rows:
        with open_payloads(Path(part)) as tar:
            uri = _thumbnail(read_range(tar, offset, size))
        if uri:
            found[sample_id] = uri
    return found


def _thumbnail(data: bytes) -> str | None:
    try:
        image = small_rgb(data, _THUMBNAIL_PX)
    except (SampleError, OSError):
        return None
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _bars(catalog: Any, query: str) -> str:
    """Names and counts, each with its share of all, as a number and as a bar."""
    rows = catalog.execute(query).fetchall()
    total = sum(count for _, count in rows)
    cells = (
        f"<tr><td>{_text(name)}</td><td class='n'>{count}</td><td class='n'>{100 * count / total:.1f} %</td>"
        f"<td class='bar'><i style='width:{100 * count / total:.1f}%'></i></td></tr>"
        for name, count in rows
    )
    return f"<table class='bars'>{''.join(cells)}</table>" if rows else "<p class='dim'>none</p>"


def _table(catalog: Any, query: str, title: str) -> Iterator[str]:
    result = catalog.execute(query)
    names, rows = [column[0] for column in result.description], result.fetchall()
    if rows:
        kinds = [" class='n'" if all(_is_number(row[n]) for row in rows) else "" for n in range(len(names))]
        lines = [_cells("th", kinds, [name.replace("_", " ") for name in names])]
        lines += [_cells("td", kinds, row) for row in rows]
        yield f"<h2>{_text(title)}</h2><div class='wide'><table>{''.join(lines)}</table></div>"


def _cells(tag: str, kinds: Sequence[str], values: Sequence[Any]) -> str:
    cells = (f"<{tag}{kind}>{_text(value)}</{tag}>" for kind, value in zip(kinds, values, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _one(catalog: Any, query: str) -> Any:
    row = catalog.execute(query).fetchone()
    return row[0] if row else None


def _text(value: Any) -> str:
    """Text of strangers, cut and made harmless."""
    text = "" if value is None else str(value)
    return html.escape(text if len(text) <= _TEXT_CHARS else text[:_TEXT_CHARS] + "…")
