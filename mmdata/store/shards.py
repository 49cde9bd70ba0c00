"""Write shards from a selection: deterministic tars, their indexes, the manifest and the dataset card."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mmdata.errors import FatalError
from mmdata.sample import Modality
from mmdata.store.files import appearing, write_json
from mmdata.store.gather import records_path
from mmdata.store.parts import open_payloads
from mmdata.store.selection import ShardPlan
from mmdata.store.tar import TarWriter, read_range

INDEX_SCHEMA: Final = pa.schema(
    [
        ("sample_id", pa.string()),
        ("name", pa.string()),
        ("field", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)
_HF_TYPES: Final = {"image": "image", "audio": "audio", "video": "video", "text": "string"}
_RECORD: Final = ("sample_id", "key", "source", "parent_id", "variant")


def index_path(shard: Path) -> Path:
    """The index beside a shard: where each file's payload begins, its size and digest."""
    return shard.with_suffix(".index.parquet")


def is_written(folder: Path, plan: ShardPlan) -> bool:
    """Whether the shard that is there is the one that is wanted."""
    about = _about(folder, plan.path)
    return about is not None and about["fingerprint"] == plan.fingerprint


def write_shard(output: Path, gathered: Path, decided: Path, plan: ShardPlan) -> int:
    """Write one shard; returns how many samples it holds.

    The index goes last and names the fingerprint of the selection, so that a shard without it, or beside an older one,
    counts as not written. Raises FatalError where a part no longer holds what the selection says.
    """
    shard = output / "shards" / plan.path
    index: list[dict[str, Any]] = []
    with appearing(shard) as scratch, scratch.open("wb") as file, ExitStack() as stack:
        digested = _Digested(file)
        tar = TarWriter(digested)
        parts: dict[str, FileIO] = {}
        for row in read_records(gathered, decided, plan):
            if row["part"] not in parts:
                parts[row["part"]] = stack.enter_context(open_payloads(output / row["part"]))
            index += _add_sample(tar, row, parts[row["part"]])
        tar.finish()
        file.flush()
    about = {
        "fingerprint": plan.fingerprint,
        "sha256": digested.sha256.hexdigest(),
        "bytes": tar.offset,
        "samples": plan.samples,
    }
    table = pa.Table.from_pylist(index, INDEX_SCHEMA).replace_schema_metadata({"mmdata": json.dumps(about)})
    with appearing(index_path(shard)) as scratch:
        pq.write_table(table, scratch, compression="zstd")
    return plan.samples


def read_records(gathered: Path, decided: Path, plan: ShardPlan) -> Iterator[dict[str, Any]]:
    """What a shard says of its samples, in order: `sample_id`, `json`, `part`, `files`."""
    with ExitStack() as stack:
        files: dict[int, FileIO] = {}
        for row in _read_rows(decided / "selection.parquet", plan.first, plan.samples):
            block = row["block"]
            if block not in files:
                files[block] = stack.enter_context(records_path(gathered, block).open("rb", buffering=0))
            # Not `splitlines`: JSON may hold other ends of lines as they are.
            record, about, _ = read_range(files[block], row["offset"], row["bytes"]).decode().split("\n")
            yield {"sample_id": row["sample_id"], "json": record, **json.loads(about)}


def _read_rows(path: Path, first: int, count: int) -> list[dict[str, Any]]:
    """Rows of a Parquet file, of which only the row groups that hold them are read."""
    file = pq.ParquetFile(path)
    starts = [0]
    for group in range(file.num_row_groups):
        starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
    groups = [g for g in range(file.num_row_groups) if starts[g] < first + count and starts[g + 1] > first]
    table = file.read_row_groups(groups, columns=["sample_id", "block", "offset", "bytes"])
    rows: list[dict[str, Any]] = table.slice(first - starts[groups[0]], count).to_pylist()
    return rows


class _Digested:
    """A file and the digest of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)


def _add_sample(tar: TarWriter, row: Mapping[str, Any], part: FileIO) -> list[dict[str, Any]]:
    record = row["json"].encode()
    entries = [("", "json", record, hashlib.sha256(record).hexdigest())]
    for file in row["files"]:
        data = file["text"].encode() if file["offset"] is None else read_range(part, file["offset"], file["bytes"])
        if hashlib.sha256(data).hexdigest() != file["sha256"]:
            raise FatalError(
                f"{row['part']}: '{file['name']}' of {row['sample_id']} was changed on disk; delete the part"
            )
        entries.append((file["name"], file["field"], data, file["sha256"]))
    return [
        {
            "sample_id": row["sample_id"],
            "name": name,
            "field": field,
            "offset": tar.add(f"{row['sample_id']}.{field}", data),
            "bytes": len(data),
            "sha256": digest,
        }
        for name, field, data, digest in entries
    ]


def write_manifest(
    output: Path,
    name: str,
    fingerprint: str,
    plans: Sequence[ShardPlan],
    members: Mapping[str, tuple[Modality, str | None]],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Write `manifest.json` and the dataset card; remove shards that are no longer part of the set.

    The manifest is what a trainer reads: counts, sizes and digests of every shard, which field holds which member, and
    `more`: the policies of augmentation with their seed (`augment`), the vectors beside the shards (`embeddings`).
    """
    folder = output / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {plan.path for plan in plans}
    for stale in folder.glob("*.tar"):
        if stale.name not in wanted:
            index_path(stale).unlink(missing_ok=True)
            stale.unlink()
    splits: dict[str, Any] = {}
    for plan in plans:
        about = _about(folder, plan.path) or {}
        split = splits.setdefault(plan.split, {"samples": 0, "bytes": 0, "shards": []})
        split["samples"] += about["samples"]
        split["bytes"] += about["bytes"]
        split["shards"].append({"path": plan.path, **{key: about[key] for key in ("samples", "bytes", "sha256")}})
    manifest = {
        "format": "mmdata-shards",
        "version": 1,
        "name": name,
        "fingerprint": fingerprint,
        "members": _members(folder, plans, members),
        "splits": splits,
        **_crossings(output / "decided" / fingerprint / "crossings.parquet"),
        **more,
    }
    _write_card(folder, manifest)
    # The name and shape that open_clip looks for, so that it need not be told `--train-num-samples`.
    write_json(folder / "sizes.json", {plan.path: plan.samples for plan in plans})
    write_json(folder / "manifest.json", manifest)
    return manifest


def _crossings(path: Path) -> dict[str, Any]:
    """What lies in two splits: see `mmdata.store.crossings`; nothing where there is but one split."""
    rows = pq.read_table(path).to_pylist() if path.exists() else []
    return {"crossings": rows} if rows else {}


def _about(folder: Path, path: str) -> dict[str, Any] | None:
    shard = folder / path
    try:
        metadata = pq.read_schema(index_path(shard)).metadata or {}
        about: dict[str, Any] = json.loads(metadata[b"mmdata"])
        return about if shard.stat().st_size == about["bytes"] else None
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None


def _members(
    folder: Path, plans: Sequence[ShardPlan], members: Mapping[str, tuple[Modality, str | None]]
) -> dict[str, Any]:
    """For each member its modality, the fields it stands under and how many samples of each split have it."""
    fields: dict[str, set[str]] = {}
    counts: dict[str, Counter[str]] = {}
    for plan in plans:
        index = pq.read_table(index_path(folder / plan.path), columns=["name", "field"])
        for entry in index.group_by(["name", "field"]).aggregate([([], "count_all")]).to_pylist():
            fields.setdefault(entry["name"], set()).add(entry["field"])
            counts.setdefault(entry["name"], Counter())[plan.split] += entry["count_all"]
    return {
        name: {
            "modality": modality,
            "lang": lang,
            "fields": sorted(fields[name]),
            "samples": dict(sorted(counts[name].items())),
        }
        for name, (modality, lang) in members.items()
        if name in fields
    }


def _write_card(folder: Path, manifest: Mapping[str, Any]) -> None:
    """A dataset card, by which `datasets.load_dataset(folder)` knows the splits and every field's type.

    Without it HF datasets infers the fields from the first five samples and refuses a set whose samples differ.
    """
    types = {
        field: _HF_TYPES.get(member["modality"], "binary")
        for member in manifest["members"].values()
        for field in member["fields"]
    }
    features: list[dict[str, Any]] = [{"name": field, "dtype": kind} for field, kind in sorted(types.items())]
    # HF hands out the record decoded: as a string it would be Python's notation, not JSON. Only what every sample can
    # have is of one type.
    features.append({"name": "json", "struct": [{"name": name, "dtype": "string"} for name in _RECORD]})
    features += [{"name": name, "dtype": "string"} for name in ("__key__", "__url__")]
    files = [{"split": split, "path": f"{split}-*.tar"} for split in manifest["splits"]]
    card = {
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {"config_name": "default", "features": features},
    }
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True)
    with appearing(folder / "README.md") as scratch:
        scratch.write_text(
            f"---\n{text}---\n\nBuilt by mmdata from the pipeline `{manifest['name']}`.\n", encoding="utf-8"
        )
