"""What each deciding step costs over generated candidates: seconds, CPU seconds, peak memory, and how they grow.

    python benchmarks/decisions.py            1M candidates, then 4M
    python benchmarks/decisions.py --quick    100k

Candidates stand in DuckDB as a build's do: an image, a caption of 8 words out of 50,000 by Zipf's law, one score, a URL
of one of 20,000 hosts, a speaker; 1 % of them are linked. Seconds are the step's, peak memory includes generating.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mmdata.store import sql
from mmdata.store.curation import Columns, Curation

COLUMNS = Columns({"image": "image", "caption": "text"}, {"clip": {"image_caption": {}}}, sources=("web", "radio"))
MEMORY = "3GB"
LIST_ENTRIES = 100_000


def steps(folder: Path) -> dict[str, Any]:
    """The steps that are timed, by what they do."""
    from mmdata.steps.curate.mix import Mix
    from mmdata.steps.curate.quota import Quota
    from mmdata.steps.curate.rules import Rules
    from mmdata.steps.curate.splits import Splits
    from mmdata.steps.curate.terms import Terms

    def rules(**keep: Any) -> Rules:
        return Rules.model_validate({"keep": keep})

    score = "clip.image_caption.score"
    host = {"deny": str(folder / "hosts.txt"), "of": "attributes['url']", "match": "domain"}
    ids = {"deny": str(folder / "ids.txt"), "of": "sample_id"}
    return {
        "rules: 3 expressions": rules(
            a=f"{score} >= 0.1", b="image.width >= 64 AND image.height >= 64", c="caption.words > 2"
        ),
        "rules: top 0.5 within lang, source": rules(a={"top": 0.5, "by": score, "within": ["caption.lang", "source"]}),
        "rules: deny 100k ids": rules(a=ids),
        "rules: deny 1k domains": rules(a=host),
        "quota: 100 a host": Quota(by=["regexp_extract(attributes['url'], '//([^/]+)', 1)"], most=100),
        "mix: two sources": Mix(weights={"web": 0.5, "radio": 0.5}),
        "terms: 2000 a word": Terms(of="caption.text", most=2000),
        "splits: by id": Splits(links=[]),
        "splits: speaker, caption, links; stratified": Splits(
            by=["attributes['speaker']", "caption.text"], stratify=["caption.lang"]
        ),
    }


def candidates(folder: Path, rows: int) -> Curation:
    """Generated; the same for the same number."""
    connection = sql.connect(str(folder / "c.duckdb"), memory_limit=MEMORY, temp_directory=str(folder / "spill"))
    run = connection.execute
    run("SET threads = 2; SET preserve_insertion_order = false")
    word = "'w' || CAST(floor(pow(50000.0, (hash(i, {}) % 1000003) / 1000003.0)) AS INTEGER)"
    caption = " || ' ' || ".join(word.format(n) for n in range(8))
    run(
        f"""CREATE TABLE candidates AS
        SELECT md5(i::VARCHAR) AS sample_id, if(hash(i, 20) % 4 = 0, 'radio', 'web') AS source, 'k' || i AS key,
            NULL::VARCHAR AS parent_id, NULL::VARCHAR AS variant,
            MAP {{'url': 'https://h' || (hash(i, 21) % 20000) || '.example.org/' || i,
                'speaker': 's' || (hash(i, 22) % ({rows} // 5 + 1))}} AS attributes,
            NULL::FLOAT AS match,
            struct_pack(bytes := 20000, mime := 'image/jpeg', sha256 := sha256(i::VARCHAR),
                width := (hash(i, 23) % 512)::INTEGER, height := (hash(i, 24) % 512)::INTEGER) AS image,
            struct_pack(bytes := 50, mime := 'text/plain', sha256 := sha256({caption}), "text" := {caption},
                lang := ['en', 'fr', 'ru'][(1 + hash(i, 25) % 3)::INTEGER], chars := 50, words := 8) AS caption,
            struct_pack(image_caption := struct_pack(score := ((hash(i, 26) % 1000003) / 1000003.0)::FLOAT,
                percentile := NULL::FLOAT, match := NULL::FLOAT)) AS clip
        FROM range({rows}) r(i)"""
    )
    run(
        "CREATE TABLE fates (sample_id VARCHAR, fate VARCHAR, step VARCHAR, rule VARCHAR, "
        "value DOUBLE, threshold DOUBLE, detail VARCHAR)"
    )
    run("CREATE TABLE places (sample_id VARCHAR, group_id VARCHAR, split VARCHAR)")
    run(
        f"""CREATE TABLE links AS SELECT 'pdq' AS measure, 'image' AS member, least(a, b) AS sample_id,
            greatest(a, b) AS other_id, 1.0 AS distance, NULL::VARCHAR AS other_source
        FROM (SELECT md5(i::VARCHAR) AS a, md5((i + 1)::VARCHAR) AS b FROM range(0, {rows}, 100) r(i))"""
    )
    run(
        "CREATE VIEW undecided AS SELECT * FROM candidates c "
        "WHERE NOT EXISTS (SELECT 1 FROM fates f WHERE f.sample_id = c.sample_id)"
    )
    columns = Columns(COLUMNS.members, COLUMNS.aligners, linked={"pdq": None}, sources=COLUMNS.sources)
    return Curation(connection, columns, 0)


def timed(name: str, rows: int) -> tuple[float, float, float, int]:
    """Wall seconds, CPU seconds, peak memory in GB and fates of one step, in a process of its own."""
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        (folder / "hosts.txt").write_text("\n".join(f"h{n * 7}.example.org" for n in range(1000)))
        curation = candidates(folder, rows)
        ids = curation.connection.execute(f"SELECT sample_id FROM candidates LIMIT {LIST_ENTRIES}").fetchall()
        (folder / "ids.txt").write_text("\n".join(one for (one,) in ids))
        step = steps(folder)[name]
        wall, cpu = time.perf_counter(), time.process_time()
        step.apply(curation)
        step.verify(curation)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        fates = curation.one("SELECT count(*) FROM fates")
        curation.connection.close()
        return wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, fates


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, nargs="*")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    sizes = arguments.rows or ([100_000] if arguments.quick else [1_000_000, 4_000_000])
    print(f"{'step':46} {'rows':>10} {'wall s':>8} {'CPU s':>8} {'peak GB':>8} {'fates':>9} {'growth':>7}")
    for name in steps(Path()):
        if arguments.only not in name:
            continue
        before = 0.0
        for rows in sizes:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                wall, cpu, peak, fates = alone.submit(timed, name, rows).result()
            growth = f"{cpu / before:.1f}x" if before else ""
            print(f"{name:46} {rows:>10,} {wall:>8.1f} {cpu:>8.1f} {peak:>8.2f} {fates:>9,} {growth:>7}", flush=True)
            before = cpu


if __name__ == "__main__":
    main()
