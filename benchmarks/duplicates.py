"""What it costs to find near-duplicates among a million, how many of those planted are found, and what others cost.

Score parts as a build has them, with near copies planted; `link_corpus`, as a worker of a build runs it, and `choose`
over its links. Each size in a process of its own, so that its peak memory is its own. Beside it, on as many queries as
take some seconds, and multiplied up:

* PDQ hashes, 1 % of them copies with 1 to 31 bits flipped: faiss `IndexBinaryFlat` (all compared, the bound) and
  `IndexBinaryMultiHash` (the same idea: 16 hashes of 16 bits, one flip).
* MinHash of made-up captions, 1 % of them copies with a typo (beyond 200,000: random signatures, of which copies
  have one in ten changed): datasketch's `MinHashLSH` with the same threshold.
* Embeddings of 384 numbers, 1 % of them copies at a cosine distance of about 0.02: faiss `IndexFlatIP` (all compared).

Usage: python benchmarks/duplicates.py [--quick] [--only pdq,minhash,neighbours]. The last line printed is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmdata.engine.measure import link_corpus
from mmdata.near import words
from mmdata.near.groups import Close, choose
from mmdata.near.pairs import Pairs
from mmdata.steps.measure.minhash import Minhash
from mmdata.steps.measure.neighbours import Neighbours
from mmdata.steps.measure.pdq import Pdq
from mmdata.store.parts import SCORE_SCHEMA, write_table, write_vectors

_PART_ROWS = 10_000
_PLANTED = 0.01
_LENGTH = 384
# Beyond, signing the texts would take most of the time.
_MOST_TEXTS = 200_000
_SIZES = {"pdq": (100_000, 1_000_000), "minhash": (100_000, 1_000_000), "neighbours": (50_000, 200_000)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes")
    parser.add_argument("--only", default="pdq,minhash,neighbours")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"cores": os.cpu_count()}
    for kind in arguments.only.split(","):
        sizes = [size // 10 for size in _SIZES[kind]] if arguments.quick else list(_SIZES[kind])
        runs = [_apart(_ours, kind, size) for size in sizes]
        peers = _apart(_PEERS[kind], sizes[-1])
        found[kind] = {"ours": runs, "peers": peers, "growth": _growth(runs)}
        _show(kind, found[kind])
    print(json.dumps(found))


def _growth(runs: list[dict[str, Any]]) -> dict[str, float]:
    first, last = runs[0], runs[-1]
    times = last["rows"] / first["rows"]
    return {"rows": times, **{name: round(last[name] / max(first[name], 1e-3), 1) for name in ("cpu_s", "peak_mb")}}


def _show(kind: str, found: dict[str, Any]) -> None:
    for run in found["ours"]:
        print(
            f"{kind:<11}{run['rows']:>9,} rows {run['wall_s']:>8.1f} s {run['cpu_s']:>8.1f} CPU-s "
            f"{run['peak_mb']:>6.0f} MB  {run['links']:>7,} links  recall {run['recall']:.4f}  "
            f"choosing {run['choose_cpu_s']:.2f} CPU-s"
        )
    for name, peer in found["peers"].items():
        print(f"{'':<11}{name}: {peer}")
    print(f"{'':<11}growth: {found['growth']}")


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _ours(kind: str, rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parts, planted = _MADE[kind](folder, rows)
        step = {"pdq": Pdq(of=["x"]), "minhash": Minhash(of=["x"]), "neighbours": Neighbours(of=["x"], aligner="clip")}
        began = time.perf_counter()
        linked = _apart(_linked, step[kind], parts, folder / "links.parquet")
        wall_s = time.perf_counter() - began
        table = pq.read_table(folder / "links.parquet")
        ends = [table.column(name).to_numpy() for name in ("sample_id", "other_id")]
        left, right = (np.array([int(one, 16) for one in end], np.int64) for end in ends)
        there = set(zip(left.tolist(), right.tolist(), strict=True))
        recall = sum(pair in there for pair in planted) / len(planted)
        cpu = time.process_time()
        choose(rows, rows, [Close(Pairs(left, right, table.column("distance").to_numpy()), np.inf)])
        return {
            "rows": rows,
            "wall_s": round(wall_s, 2),
            **linked,
            "links": len(table),
            "recall": round(recall, 5),
            "choose_cpu_s": round(time.process_time() - cpu, 2),
        }


def _linked(step: Any, parts: list[Path], out: Path) -> dict[str, Any]:
    before = time.process_time()
    link_corpus(step, parts, out)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu_s": round(time.process_time() - before, 2), "peak_mb": round(peak_mb)}


# --- what is linked ---------------------------------------------------------------------------------------------------


def _ids(start: int, stop: int) -> list[str]:
    return [f"{row:032x}" for row in range(start, stop)]


def _spans(rows: int) -> Iterator[tuple[int, int]]:
    yield from ((at, min(at + _PART_ROWS, rows)) for at in range(0, rows, _PART_ROWS))


def _planted(rows: int) -> list[tuple[int, int]]:
    """Row and its near copy: the first ones and the last ones."""
    count = int(rows * _PLANTED)
    return [(row, rows - count + row) for row in range(count)]


def _write(folder: Path, label: str, rows: int, measures: Callable[[int], dict[str, Any]]) -> list[Path]:
    parts = []
    for start, stop in _spans(rows):
        found = [
            {"sample_id": one, "aligner": label, "edge": "x", "measures": json.dumps(measures(row))}
            for row, one in enumerate(_ids(start, stop), start)
        ]
        parts.append(folder / f"{start:09}.parquet")
        write_table(parts[-1], pa.Table.from_pylist(found, SCORE_SCHEMA))
    return parts


def _hashes(rows: int) -> Any:
    rng = np.random.default_rng(0)
    hash_NB = rng.integers(0, 256, (rows, 32), dtype=np.uint8)
    for row, copy in _planted(rows):
        bits = np.unpackbits(hash_NB[row])
        bits[rng.choice(256, rng.integers(1, 32), replace=False)] ^= 1
        hash_NB[copy] = np.packbits(bits)
    return hash_NB


def _make_pdq(folder: Path, rows: int) -> tuple[list[Path], list[tuple[int, int]]]:
    texts = [hash_B.tobytes().hex() for hash_B in _hashes(rows)]
    made = _write(folder, "pdq", rows, lambda row: {"hash": texts[row], "mirror": texts[row], "quality": 100})
    return made, _planted(rows)


def _captions(rows: int) -> list[str]:
    """Eight words of a vocabulary of 20,000, drawn as words are (Zipf)."""
    drawn = random.Random(0)
    known = ["".join(drawn.choices("etaoinshrdlu", k=drawn.randint(2, 9))) for _ in range(20_000)]
    weights = np.cumsum(1 / np.arange(1, len(known) + 1)).tolist()
    texts = [" ".join(drawn.choices(known, cum_weights=weights, k=8)) for _ in range(rows)]
    for row, copy in _planted(rows):
        at = drawn.randrange(len(texts[row]))
        texts[copy] = texts[row][:at] + drawn.choice("bcfgjkmpqvwxyz") + texts[row][at + 1 :]
    return texts


def _make_minhash(folder: Path, rows: int) -> tuple[list[Path], list[tuple[int, int]]]:
    """Planted pairs are those whose true similarity is at least the limit."""
    if rows > _MOST_TEXTS:
        signed = [signature_K.tobytes().hex() for signature_K in _signatures(rows)]
        return _write(folder, "minhash", rows, lambda row: {"signature": signed[row]}), _planted(rows)
    texts = _captions(rows)

    def measures(row: int) -> dict[str, Any]:
        return {"runs": 1, "signature": words.signature(words.shingles(texts[row], 3)).tobytes().hex()}

    near = [(a, b) for a, b in _planted(rows) if _jaccard(texts[a], texts[b]) >= Minhash(of=["x"]).min_similarity]
    return _write(folder, "minhash", rows, measures), near


def _signatures(rows: int) -> Any:
    rng = np.random.default_rng(0)
    signature_NK = rng.integers(0, 256, (rows, words.FUNCTIONS), dtype=np.uint8)
    for row, copy in _planted(rows):
        signature_NK[copy] = signature_NK[row]
        signature_NK[copy, rng.choice(words.FUNCTIONS, words.FUNCTIONS // 10, replace=False)] ^= 1
    return signature_NK


def _jaccard(left: str, right: str) -> float:
    one, other = (set(words.shingles(text, 3).tolist()) for text in (left, right))
    return len(one & other) / len(one | other)


def _vectors(rows: int) -> Any:
    """Around 2,000 centres, as embeddings of pictures are."""
    rng = np.random.default_rng(0)
    centre_CD = rng.normal(size=(2000, _LENGTH)).astype(np.float32)
    vector_ND = centre_CD[rng.integers(0, 2000, rows)] + rng.normal(size=(rows, _LENGTH)).astype(np.float32)
    for row, copy in _planted(rows):
        vector_ND[copy] = vector_ND[row] + 0.2 * rng.normal(size=_LENGTH) * vector_ND[row].std()
    return vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)


def _make_neighbours(folder: Path, rows: int) -> tuple[list[Path], list[tuple[int, int]]]:
    vector_ND = _vectors(rows)
    parts = []
    for start, stop in _spans(rows):
        parts.append(folder / f"{start:09}.parquet")
        write_vectors(parts[-1], {"x": list(zip(_ids(start, stop), vector_ND[start:stop], strict=True))})
        write_table(parts[-1], pa.Table.from_pylist([], SCORE_SCHEMA))
    near = [(a, b) for a, b in _planted(rows) if 1 - float(vector_ND[a] @ vector_ND[b]) <= 0.045]
    return parts, near


_MADE = {"pdq": _make_pdq, "minhash": _make_minhash, "neighbours": _make_neighbours}

# --- peers ------------------------------------------------------------------------------------------------------------


def _timed(rows: int, queries: int, search: Callable[[], Any]) -> dict[str, Any]:
    before = time.process_time()
    search()
    spent = time.process_time() - before
    return {"queries": queries, "cpu_s": round(spent, 2), "cpu_s_for_all": round(spent * rows / queries, 1)}


def _pdq_peers(rows: int) -> dict[str, Any]:
    import faiss

    hash_NB = _hashes(rows)
    flat, multi = faiss.IndexBinaryFlat(256), faiss.IndexBinaryMultiHash(256, 16, 16)
    multi.nflip = 1
    flat.add(hash_NB)
    multi.add(hash_NB)
    # faiss takes "less than".
    return {
        "faiss IndexBinaryFlat": _timed(rows, 1000, lambda: flat.range_search(hash_NB[:1000], 32)),
        "faiss IndexBinaryMultiHash": _timed(rows, 2000, lambda: multi.range_search(hash_NB[:2000], 32)),
    }


def _minhash_peers(rows: int) -> dict[str, Any]:
    from datasketch import MinHash, MinHashLSH

    some = min(rows, 20_000)
    texts = _captions(some)
    before = time.process_time()
    many = [_signed(MinHash(num_perm=words.FUNCTIONS), text) for text in texts]
    signing_us = (time.process_time() - before) / some * 1e6
    before = time.process_time()
    for text in texts:
        words.signature(words.shingles(text, 3))
    ours_us = (time.process_time() - before) / some * 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = MinHashLSH(threshold=Minhash(of=["x"]).min_similarity, num_perm=words.FUNCTIONS)

    def insert_and_ask() -> None:
        for name, one in enumerate(many):
            index.insert(name, one)
        for one in many:
            index.query(one)

    timed = _timed(rows, some, insert_and_ask)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    return {
        "datasketch MinHashLSH": {**timed, "index_mb": round(grown), "index_mb_for_all": round(grown * rows / some)},
        "signing one text, us": {"datasketch": round(signing_us), "ours": round(ours_us)},
    }


def _signed(made: Any, text: str) -> Any:
    said = f" {words.plain(text)} "
    made.update_batch([said[at : at + 3].encode() for at in range(len(said) - 2)])
    return made


def _neighbours_peers(rows: int) -> dict[str, Any]:
    import faiss

    vector_ND = _vectors(rows)
    flat = faiss.IndexFlatIP(_LENGTH)
    flat.add(vector_ND)
    return {"faiss IndexFlatIP": _timed(rows, 2000, lambda: flat.search(vector_ND[:2000], 65))}


_PEERS = {"pdq": _pdq_peers, "minhash": _minhash_peers, "neighbours": _neighbours_peers}


if __name__ == "__main__":
    main()
