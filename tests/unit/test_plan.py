"""Plans: the exact line of every fault that needs no model to see, and what an edit makes new."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmdata.errors import FatalError, MmdataError, PlanError
from mmdata.listing import parse_line
from mmdata.plan import Plan, make_plan, plan_to_build
from mmdata.steps.exchange import Declared

HEAD = """name: t
sources:
  - files:
      root: media
      members:
        image: "{stem}.png"
        caption: "{stem}.txt"
"""
COLUMNS = (
    "attributes, caption.bytes, caption.chars, caption.lang, caption.lang_guessed, caption.masked, caption.mime, "
    "caption.sha256, caption.text, caption.words, image.bytes, image.faces, image.height, image.mime, image.sha256, "
    "image.width, key, match, parent_id, sample_id, source, variant"
)
ALIGNERS = "clap, clip, crossfit, ocr, reconcile, regions, tags, timing, whisper"
NOT_SELECT = "does not parse: Only SELECT statements can be serialized to json!"
NEEDED = "a rule needs one of `sql:`, `by_source:`, `top:`, `bottom:`, `allow:`, `deny:`"
ONE_END = "give one of `top:` and `bottom:`"
FAR = """\
measure: [pdq: {of: image}, minhash: {of: caption}]
curate:
  - duplicates: {near: {pdq.image: 60, minhash.caption: 0.3}}
  - splits: {links: {minhash: 0.9}}
"""
PDQ, MINHASH = "'pdq' links samples up to 31", "'minhash' links samples up to 0.3"
MORE = "of the measure for more"
AS_A_COLUMN = "rules could not tell it from a column; give it another `name:`"
NO_WEIGHTS = "model folder nowhere/x is not there; give the folder of an open_clip model, or run: mmdata fetch lite"


@pytest.fixture(autouse=True)
def media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two pairs; a plan reads none of their content. The test runs in the folder above."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMDATA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "media"
    fill(folder, ["a", "b"])
    return folder


def fill(folder: Path, stems: Sequence[str]) -> None:
    folder.mkdir(exist_ok=True)
    for stem in stems:
        for suffix in ("png", "txt"):
            path = folder / f"{stem}.{suffix}"
            path.write_text(stem)
            os.utime(path, ns=(10**18, 10**18))


def planned(content: str, *overrides: str) -> Plan:
    Path("p.yaml").write_text(content)
    return make_plan(Path("p.yaml"), overrides)


def problems(content: str, *overrides: str) -> list[str]:
    with pytest.raises(MmdataError) as caught:
        planned(content, *overrides)
    found: list[str] = caught.value.problems  # type: ignore[attr-defined]
    return found


def clip_folder(path: Path, content: bytes = b"weights") -> Path:
    """What looks like a CLIP folder until somebody loads it."""
    path.mkdir()
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": {}}))
    (path / "open_clip_model.safetensors").write_bytes(content)
    return path


def test_a_distance_that_no_measure_links_is_refused_where_it_stands() -> None:
    assert problems(HEAD + FAR) == [
        f"p.yaml:10:25 curate[0].duplicates.near.pdq.image: 60 is too far: {PDQ}; raise `max_distance` {MORE}",
        f"p.yaml:11:22 curate[1].splits.links.minhash: 0.9 is too far: {MINHASH}; lower `min_similarity` {MORE}",
    ]


def test_a_good_plan_says_what_would_run() -> None:
    plan = planned(HEAD + "augment:\n  - joint: {name: flip, apply: [HorizontalFlip]}\n")
    assert plan.inputs == 2
    assert plan.output == Path("builds/t")
    assert [label for label, _ in plan.base_parts()] == ["ingest", "flip"]
    assert plan.score_parts() == []
    assert plan.done(plan.base_parts()) == 0
    assert not plan.written()
    assert not plan.output.exists()
    assert {name: member.modality for name, member in plan.pipeline.members.items()} == {
        "image": "image",
        "caption": "text",
    }
    assert sorted(plan.pipeline.ingest) == ["audio", "image", "tensor", "text", "video"]
    assert plan.pipeline.write.step == "webdataset"


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        (
            "align:\n  - clip: {modle: x}\n",
            [
                "p.yaml:9:5 align[0].clip: the key 'model' is missing",
                "p.yaml:9:12 align[0].clip.modle: unknown key 'modle'; did you mean 'model'?",
            ],
        ),
        ("align:\n  - clp: {model: x}\n", ["p.yaml:9:5 align[0].clp: unknown step 'clp'; did you mean 'clip'?"]),
        (
            "align:\n  - zzz\n",
            [f"p.yaml:9:5 align[0].zzz: unknown step 'zzz'; known here: {ALIGNERS}"],
        ),
        (
            "align:\n  - segments\n",
            ["p.yaml:9:5 align[0].segments: unknown step 'segments'; 'segments' belongs under `augment:`"],
        ),
        (
            "curate:\n  - rules: {keep: {a: 3}}\n",
            ["p.yaml:9:20 curate[0].rules.keep.a: input should be a valid string, not 3"],
        ),
        (
            "curate:\n  - rules: {keep: {a: {topp: 0.3, by: caption.words}}}\n",
            ["p.yaml:9:24 curate[0].rules.keep.a.topp: unknown key 'topp'; did you mean 'top'?"],
        ),
        (
            "curate:\n  - rules: {keep: {a: {not_for: x, of: key, dennny: list.txt}}}\n",
            ["p.yaml:9:45 curate[0].rules.keep.a.dennny: unknown key 'dennny'; did you mean 'deny'?"],
        ),
        (
            "curate:\n  - rules: {keep: {a: {not_for: x, zzz: 1}}}\n",
            [f"p.yaml:9:20 curate[0].rules.keep.a: {NEEDED}"],
        ),
        ("curate:\n  - rules: {keep: {a: {by: key}}}\n", [f"p.yaml:9:20 curate[0].rules.keep.a: {ONE_END}"]),
        ("curate:\n  - rules: {keep: [a]}\n", ["p.yaml:9:13 curate[0].rules.keep: input should be a valid dictionary"]),
        (
            "curate:\n  - splits: {shares: {train: 0.5, val: 0.6}}\n",
            ["p.yaml:9:14 curate[0].splits.shares: the shares add up to 1.1, not to 1"],
        ),
        (
            "curate:\n  - splits\n  - splits: {shares: {a: 1}}\n",
            ["p.yaml:10:5 curate[1].splits: a `splits` above places the samples already; leave one"],
        ),
        (
            "curate:\n  - splits: {shares: {train: 1.5, val: -0.5}}\n",
            ["p.yaml:9:14 curate[0].splits.shares: the share of 'val' is -0.5, not 0 or more"],
        ),
        (
            "curate:\n  - splits: {shars: {train: 1}}\n",
            ["p.yaml:9:14 curate[0].splits.shars: unknown key 'shars'; did you mean 'shares'?"],
        ),
        (
            "curate:\n  - splits: {shares: {tr-ain: 1}}\n",
            ["p.yaml:9:14 curate[0].splits.shares: the split 'tr-ain' must be letters, digits and '_': it names files"],
        ),
        (
            "curate:\n  - splits: {augmented: [trian]}\n",
            ["p.yaml:9:14 curate[0].splits.augmented: no split 'trian'; did you mean 'train'?"],
        ),
        (
            "curate:\n  - splits: {by: captio.text}\n",
            [
                (
                    'p.yaml:9:14 curate[0].splits.by: Binder Error: Referenced table "captio" not found!; '
                    "did you mean 'caption'?"
                )
            ],
        ),
        (
            "curate:\n  - duplicates: {of: [imge]}\n",
            ["p.yaml:9:18 curate[0].duplicates.of: no member 'imge'; did you mean 'image'?"],
        ),
        (
            "curate:\n  - duplicates: {of: [image], best: image.widht}\n",
            [
                (
                    'p.yaml:9:31 curate[0].duplicates.best: Binder Error: Could not find key "widht" in struct; '
                    "did you mean 'width'?"
                )
            ],
        ),
        (
            "align:\n  - clip: {model: ./nowhere/x, image: imge}\n",
            [
                "p.yaml:9:5 align[0].clip: no source declares the member 'imge'; did you mean 'image'?",
                f"p.yaml:9:12 align[0].clip.model: {NO_WEIGHTS}",
            ],
        ),
        (
            "measure:\n  - film\n",
            [
                (
                    "p.yaml:9:5 measure[0].film: no source declares the member 'video' ('of' where nothing is said); "
                    "known here: caption, image"
                )
            ],
        ),
        (
            "align:\n  - clip: {model: ./nowhere/x, image: caption}\n",
            [
                "p.yaml:9:5 align[0].clip: 'caption' is text, but clip needs image there",
                f"p.yaml:9:12 align[0].clip.model: {NO_WEIGHTS}",
            ],
        ),
        (
            "align:\n  - clip: {model: ViT-B-33}\n",
            [
                (
                    "p.yaml:9:12 align[0].clip.model: model 'ViT-B-33' is neither a folder nor an architecture that "
                    "open_clip knows; did you mean 'ViT-B-32'?"
                )
            ],
        ),
        (
            "align:\n  - clip: {model: ./nowhere/x, name: image}\n",
            [
                f"p.yaml:9:5 align[0].clip: an aligner cannot be called 'image': {AS_A_COLUMN}",
                f"p.yaml:9:12 align[0].clip.model: {NO_WEIGHTS}",
            ],
        ),
        (
            "align:\n  - clip: {model: ./nowhere/x, name: source}\n",
            [
                f"p.yaml:9:5 align[0].clip: an aligner cannot be called 'source': {AS_A_COLUMN}",
                f"p.yaml:9:12 align[0].clip.model: {NO_WEIGHTS}",
            ],
        ),
        (
            "align:\n  - clip: {model: ./nowhere/x}\n  - clip: {model: ./nowhere/x}\n",
            [
                "p.yaml:10:5 align[1].clip: a step above is called 'clip' too; give one a `name:` of its own",
                f"p.yaml:9:12 align[0].clip.model: {NO_WEIGHTS}",
                f"p.yaml:10:12 align[1].clip.model: {NO_WEIGHTS}",
            ],
        ),
        (
            "augment:\n  - joint: {apply: [HorizontalFlip]}\n  - joint: {apply: [HorizontalFlip]}\n",
            ["p.yaml:10:5 augment[1].joint: a step above is called 'joint' too; give one a `name:` of its own"],
        ),
        (
            "augment:\n  - segments: {speech: caption, subtitles: caption}\n  - joint: {apply: [HorizontalFlip]}\n",
            [
                "p.yaml:9:5 augment[0].segments: no aligner is called 'timing'",
                (
                    "p.yaml:10:5 augment[1].joint: its children would be of the inputs that 'segments' replaces; with "
                    "`mode: online` the loader makes them of what 'segments' made"
                ),
            ],
        ),
        (
            "augment:\n  - joint: {apply: [HorizontalFlip], name: ../../x}\n",
            [
                (
                    "p.yaml:9:5 augment[0].joint: a step cannot be called '../../x': its name is a folder's; use "
                    "letters, digits, . _ and -"
                )
            ],
        ),
        (
            "augment:\n  - joint: {apply: [HorizontalFlip], name: ingest}\n",
            ["p.yaml:9:5 augment[0].joint: a step cannot be called 'ingest': that is another folder of the build"],
        ),
        (
            "augment:\n  - joint: {apply: [HorizontalFlip], spoken: {a: [caption]}}\n",
            ["p.yaml:9:5 augment[0].joint: no source declares the member 'a'; known here: caption, image"],
        ),
        (
            "augment:\n  - joint:\n      apply: [HorizontalFlip, speed, jitter: {p: 0.5}]\n      max_match_loss: 0.1\n",
            [
                (
                    "p.yaml:10:31 augment[0].joint.apply[1]: speed changes audio and no member is any; declare one "
                    "under `sources:`, or take it out"
                ),
                (
                    "p.yaml:10:38 augment[0].joint.apply[2]: jitter changes tensor and no member is any; declare one "
                    "under `sources:`, or take it out"
                ),
                (
                    "p.yaml:11:7 augment[0].joint.max_match_loss: nothing says how well members match: no child is "
                    "dropped; add an aligner under `align:`, or take it out"
                ),
            ],
        ),
        (
            "augment:\n  - joint: {apply: [HorizontalFlip], sides: {image: {}}}\n",
            [
                (
                    "p.yaml:9:46 augment[0].joint.sides.image: 'image' is image, and sides are of the channels of a "
                    "tensor or audio"
                )
            ],
        ),
        (
            "augment:\n  - joint: {apply: [HorizontalFlip], heard: {image: []}}\n",
            [
                (
                    "p.yaml:9:46 augment[0].joint.heard.image: 'image' is image, and texts tell what is heard or felt "
                    "in audio or a tensor"
                )
            ],
        ),
        (
            "augment:\n  - joint: {apply: [HorizontalFlip], masks: {image: [image]}}\n",
            ["p.yaml:9:38 augment[0].joint.masks: 'image' is a mask of one image, and has none itself"],
        ),
        (
            (
                "ingest:\n  - image: {encode: png}\naugment:\n"
                "  - joint: {apply: [HorizontalFlip], masks: {image: [image]}}\n"
            ),
            [
                "p.yaml:11:38 augment[0].joint.masks: 'image' is a mask of one image, and has none itself",
                (
                    "p.yaml:11:38 augment[0].joint.masks: `ingest: - image` makes other pixels, of 'image' too: labels "
                    "would be mixed; bring images in their size and form, and let `ingest:` keep them"
                ),
            ],
        ),
        (
            "augment:\n  - joint: {apply: [HorizontalFlip], masks: {image: [caption]}}\n",
            ["p.yaml:9:5 augment[0].joint: 'caption' is text, but joint needs image there"],
        ),
        (
            "write:\n  - webdataset: {members: [captoin]}\n",
            ["p.yaml:9:5 write[0].webdataset: no source declares the member 'captoin'; did you mean 'caption'?"],
        ),
        (
            "write:\n  - webdataset\n  - webdataset\n",
            ["p.yaml:10:5 write[1].webdataset: a build writes one dataset; give the second a pipeline of its own"],
        ),
        (
            "ingest:\n  - image: {max_pixels: 3}\n  - image\n",
            ["p.yaml:10:5 ingest[1].image: how to read image stands twice; remove one"],
        ),
        (
            "write:\n  - webdataset: {bytes_per_shard: 64 MBB}\n",
            ["p.yaml:9:18 write[0].webdataset.bytes_per_shard: could not interpret byte unit: MBB, not '64 MBB'"],
        ),
    ],
)
def test_a_fault_is_said_with_its_place(added: str, expected: list[str]) -> None:
    assert problems(HEAD + added) == expected


def test_keys_are_named_as_files_write_them() -> None:
    table = "  - table: {file: t.csv, columns: [site], members: {a: {txet: b}}}\n"
    assert problems(f"name: t\nsources:\n{table}") == [
        "p.yaml:3:57 sources[0].table.members.a.txet: unknown key 'txet'; did you mean 'text'?",
        "p.yaml:3:26 sources[0].table.columns: unknown key 'columns'; known here: file, key, members, name, root",
    ]


ONE = "must be one SQL expression over the columns of a sample"
ALONE = (
    "looks at other samples (a subquery), but an expression is about one; for a share of them use "
    "`{top: 0.3, by: ...}` or the step `quota`"
)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("image.widht > 3", "Binder Error: Could not find key \"widht\" in struct; did you mean 'width'?"),
        (
            "captoin IS NOT NULL",
            "Binder Error: Referenced column \"captoin\" not found in FROM clause!; did you mean 'caption'?",
        ),
        ("x.y > 3", f'Binder Error: Referenced table "x" not found!; write one of {COLUMNS}'),
        (
            "site = 'a'",
            (
                'Binder Error: Referenced column "site" not found in FROM clause!; '
                f"write attributes['site'] where the source has a column of that name, else one of {COLUMNS}"
            ),
        ),
        ("caption.text ~ '('", "Invalid Input Error: missing ): ("),
        ("image.width >= 'wide'", "Conversion Error: Could not convert string 'wide' to INT32"),
        (
            "attributes['day']::DATE >= '2020-13-01'",
            'Conversion Error: date field value out of range: "2020-13-01"',
        ),
        ("image.width >=", 'does not parse: syntax error at or near "FROM"'),
        ("true, false", ONE),
        ("true FROM candidates; SELECT 1", ONE),
        (
            "true FROM candidates; DROP TABLE fates; SELECT true",
            NOT_SELECT,
        ),
        ("true FROM candidates WHERE false --", 'does not parse: syntax error at or near "FROM"'),
        ("true FROM candidates WHERE false UNION ALL SELECT true", ONE),
        ("true UNION SELECT true", ONE),
        ("DISTINCT true", ONE),
        ("sum(image.width) > 1", "Binder Error: WHERE clause cannot contain aggregates!"),
        ("row_number() OVER () < 3", "Binder Error: WHERE clause cannot contain window functions!"),
        (
            "(SELECT count(*) FROM read_csv('media/a.txt')) > 0",
            ALONE,
        ),
        (
            "(SELECT content FROM read_text('media/a.txt')) <> ''",
            ALONE,
        ),
    ],
)
def test_a_rule_that_cannot_hold_is_said_at_its_place(rule: str, expected: str) -> None:
    added = f"curate:\n  - rules:\n      keep:\n        good: 'true'\n        bad: {json.dumps(rule)}\n"
    assert problems(HEAD + added) == [f"p.yaml:12:9 curate[0].rules.keep.bad: rule 'bad': {expected}"]


def test_texts_are_compared_with_what_they_can_be() -> None:
    rules = [
        "caption.text = 'wide'",
        "image.width >= '9'",
        "attributes['day']::DATE >= '2020-02-29'",
        "len(list_filter(['a'], lambda image: image = 'a')) > 0",
        "len([image for image in ['a'] if image = 'a']) > 0",
        "'a' <> 'b'",
    ]
    keep = "".join(f"        r{number}: {json.dumps(rule)}\n" for number, rule in enumerate(rules))
    planned(f"{HEAD}curate:\n  - rules:\n      keep:\n{keep}")


ONE_STEM = "must have {stem} once, may have {lang} once, and nothing else"
ENDS = "must end with {lang} exactly if its path or line has {lang}"


@pytest.mark.parametrize(
    ("members", "place", "expected"),
    [
        ("{image: 'a.png'}", "3:36 members.image", f"the path 'a.png' {ONE_STEM}"),
        ("{image: '{stem}{stem}'}", "3:36 members.image", f"the path '{{stem}}{{stem}}' {ONE_STEM}"),
        ("{image: '{stem}.{ext}'}", "3:36 members.image", f"the path '{{stem}}.{{ext}}' {ONE_STEM}"),
        ("{image: '/x/{stem}.png'}", "3:36 members.image", "the path '/x/{stem}.png' must stay below root"),
        ("{image: '../{stem}.png'}", "3:36 members.image", "the path '../{stem}.png' must stay below root"),
        (
            "{image: '{stem}.xyz'}",
            "3:36 members.image",
            "cannot tell the modality of '{stem}.xyz'; add `modality:`",
        ),
        ("{image: {}}", "3:36 members.image", "the key 'path' is missing"),
        ("{image: 3}", "3:36 members.image", "must be a mapping, not 3"),
        ("{image: []}", "3:36 members.image", "list should have at least 1 item after validation, not 0"),
        ("[a]", "3:26 members", "input should be a valid dictionary"),
        ("{}", "3:26 members", "dictionary should have at least 1 item after validation, not 0"),
        (
            "{Image: '{stem}.png'}",
            "3:5",
            "the member name 'Image' must be lower case letters, digits and '_'",
        ),
        ("{'a_{lang}': '{stem}.txt'}", "3:5", f"the member 'a_{{lang}}' {ENDS}"),
        ("{a: {path: '{stem}.{lang}.txt', langs: [en]}}", "3:5", f"the member 'a' {ENDS}"),
        ("{a: {path: '{stem}.txt', line: x}}", "3:36 members.a", "the line template 'x' must have {text}"),
        (
            "{a: {path: '{stem}.txt', langs: [en]}}",
            "3:36 members.a",
            "`langs` lists the languages to take, and needs {lang} in the path or the line",
        ),
    ],
)
def test_a_fault_of_a_files_source(members: str, place: str, expected: str) -> None:
    where, _, key = place.partition(" ")
    path = f"sources[0].files.{key}".rstrip(".")
    assert problems(f"name: t\nsources:\n  - files: {{root: media, members: {members}}}\n") == [
        f"p.yaml:{where} {path}: {expected}"
    ]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ("{key: '{stem}.png'}", "a member cannot be called 'key': that is a column of the catalog"),
        ("{image: '{stem}.jpg'}", "the sources name no inputs; look at what they are given: folders, templates, files"),
    ],
)
def test_a_fault_that_only_all_sources_together_show(members: str, expected: str) -> None:
    content = f"name: t\nsources:\n  - files: {{root: media, members: {members}}}\n"
    assert problems(content) == [f"p.yaml:2:1 sources: {expected}"]


@pytest.mark.parametrize("name", ["Text", "a b", "a.b", "é", "a'); DROP TABLE fates; --", "_a", "a" * 41, ""])
def test_a_member_of_a_table_is_called_as_files_can_be(name: str) -> None:
    Path("t.csv").write_text("said\nx\n")
    content = json.dumps({"name": "t", "sources": [{"table": {"file": "t.csv", "members": {name: {"text": "said"}}}}]})
    assert problems(content) == [
        (
            f"p.yaml:1:28 sources[0].table: a member cannot be called '{name}': it names files and columns; "
            "use up to 40 lower case letters, digits and '_'"
        )
    ]


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("file", "no build can be here: {0}/file is no folder; give another folder with --output"),
        ("file/below", "no build can be here: {0}/file is no folder; give another folder with --output"),
        ("x" * 300, "no build can be here: File name too long; give another folder with --output"),
        ("loop/out", ""),  # pathlib tells it differently in each version
        ("a?b", "no build can be here: DuckDB takes what follows a '?' in a path for no part of it; give another"),
    ],
)
def test_a_folder_that_can_hold_no_build(tmp_path: Path, output: str, problem: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "p.yaml").write_text(HEAD)
    with pytest.raises(PlanError) as caught, plan_to_build(Path("p.yaml"), output=Path(output)):
        pass
    assert str(caught.value).startswith(f"{output}: {problem.format(tmp_path)}")
    if problem.startswith("no build"):
        with pytest.raises(PlanError, match="no build can be here"):
            make_plan(Path("p.yaml"), output=Path(output))


def test_a_folder_in_which_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.yaml").write_text(HEAD)
    plan = plan_to_build(Path("p.yaml"), output=Path("/proc/none"))
    with pytest.raises(FatalError, match=r"^/proc/none: cannot be made a folder: No such file or directory"), plan:
        pass
    monkeypatch.setattr(os, "access", lambda *_: False)
    plan = plan_to_build(Path("p.yaml"), output=Path("out"))
    with pytest.raises(FatalError, match=r"^out: nothing can be written there; name another"), plan:
        pass


@pytest.mark.parametrize("table", [False, True])
def test_the_home_of_nobody_is_a_folder_that_is_not_there(tmp_path: Path, table: bool) -> None:
    root = "~nobody-has-this-name/x"
    head = HEAD.replace("root: media", f"root: {root}")
    if table:
        head = f"name: t\nsources:\n  - table: {{file: t.csv, root: {root}, members: {{image: {{path: a}}}}}}\n"
    (tmp_path / "t.csv").write_text("a\nx.png\n")
    (tmp_path / "p.yaml").write_text(head)
    if table:
        assert make_plan(Path("p.yaml")).inputs == 1
    else:
        with pytest.raises(PlanError, match=f"the folder {root} is not there"):
            make_plan(Path("p.yaml"))


def test_a_folder_that_is_not_there() -> None:
    assert problems(HEAD, "sources.files.root=none") == ["p.yaml:2:1 sources: files: the folder none is not there"]


def test_two_sources_of_one_name_and_a_member_of_two_modalities() -> None:
    content = "name: t\nsources:\n" + "  - files: {root: media, members: {image: '{stem}.png'}}\n"
    assert problems(content + "  - files: {root: media, members: {image: '{stem}.txt'}}\n") == [
        "p.yaml:4:5 sources[1].files: the member 'image' is text here, image above",
        "p.yaml:4:5 sources[1].files: a step above is called 'files' too; give one a `name:` of its own",
    ]


@pytest.mark.parametrize("kind", ["table: {file: t.csv, members: {", "huggingface: {path: x, key: said, members: {"])
def test_what_is_masked_must_not_stand_in_keys(kind: str) -> None:
    """Keys are stored and written into shards as they are."""
    column = "text: said" if "table" in kind else "column: said"
    content = f"name: t\nsources:\n  - {kind}caption: {{{column}}}}}}}\ningest:\n  - text: {{mask: [email]}}\n"
    name = kind.partition(":")[0]
    told = "'said' is masked as a text, but names the samples too, as it stands"
    assert problems(content) == [
        f"p.yaml:3:5 sources[0].{name}: {told}; give a `key:` column that holds no such text",
    ]


def test_faults_of_all_lists_are_said_at_once() -> None:
    augment = "augment:\n  - joint: {apply: [HorizontalFlip], modus: online}\n"
    added = f"align:\n  - clp\n{augment}curate:\n  - splits: {{shares: {{a: 2}}}}\n"
    assert problems(HEAD + added) == [
        "p.yaml:9:5 align[0].clp: unknown step 'clp'; did you mean 'clip'?",
        "p.yaml:11:38 augment[0].joint.modus: unknown key 'modus'; did you mean 'mode'?",
        "p.yaml:13:14 curate[0].splits.shares: the shares add up to 2, not to 1",
    ]


# --- what an edit makes new -----------------------------------------------------------------------------------------

FULL = HEAD + (
    "align:\n  - clip: {model: model}\naugment:\n  - joint: {name: flip, apply: [HorizontalFlip]}\n"
    "curate:\n  - rules: {keep: {fits: caption.words >= 1}}\n"
)


def names(plan: Plan) -> dict[str, Any]:
    return {"base": plan.base_parts(), "scores": plan.score_parts(), "selection": plan.selection}


def changed(before: Plan, after: Plan) -> set[str]:
    return {key for key, value in names(before).items() if names(after)[key] != value}


@pytest.fixture
def before(tmp_path: Path) -> Plan:
    clip_folder(tmp_path / "model")
    return planned(FULL)


def test_the_same_plan_twice_has_the_same_fingerprints(before: Plan) -> None:
    assert changed(before, planned(FULL)) == set()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("curate.rules.keep.fits=caption.words >= 2", {"selection"}),
        ("write=[webdataset: {samples_per_shard: 10}]", {"selection"}),
        ("ingest=[image: {max_pixels: 100}]", {"base", "scores", "selection"}),
        ("ingest=[audio: {max_duration_s: 1}]", set()),
        ("align.clip.image=[image]", set()),
        ("align.clip.name=other", {"scores", "selection"}),
        ("augment=[]", {"base", "scores", "selection"}),
        ("seed=1", {"base", "scores", "selection"}),
        ("engine.workers=1", set()),
        ("engine.device=cpu", set()),
        ("name=other", set()),
        ("sources.files.name=other", {"base", "scores", "selection"}),
    ],
)  # fmt: skip
def test_an_edit_makes_new_only_what_it_decides(before: Plan, override: str, expected: set[str]) -> None:
    assert changed(before, planned(FULL, override)) == expected


@pytest.mark.parametrize(
    ("override", "other"),
    [
        ("curate.rules.keep={a: key > 'a', b: key < 'b'}", "curate.rules.keep={b: key < 'b', a: key > 'a'}"),
        ("curate=[splits: {shares: {a: 0.5, b: 0.5}}]", "curate=[splits: {shares: {b: 0.5, a: 0.5}}]"),
    ],
)
def test_another_order_of_rules_or_shares_decides_anew(tmp_path: Path, override: str, other: str) -> None:
    """The first of several rules is the one that drops a sample, and the first share begins where hashes do."""
    clip_folder(tmp_path / "model")
    assert changed(planned(FULL, override), planned(FULL, override)) == set()
    assert changed(planned(FULL, override), planned(FULL, other)) == {"selection"}


def test_other_weights_make_the_scores_new_wherever_they_lie(before: Plan, tmp_path: Path) -> None:
    assert changed(before, planned(FULL, f"align.clip.model={clip_folder(tmp_path / 'same')}")) == set()
    other = clip_folder(tmp_path / "other", b"others")
    assert changed(before, planned(FULL, f"align.clip.model={other}")) == {"scores", "selection"}


def test_moving_the_folder_makes_nothing_new(before: Plan, media: Path) -> None:
    media.rename(media.with_name("elsewhere"))
    assert changed(before, planned(FULL, "sources.files.root=elsewhere")) == set()


def many(media: Path, stems: Sequence[str]) -> Plan:
    fill(media, stems)
    return planned(HEAD, "engine.part_samples=16")


def test_a_touched_file_makes_exactly_one_chunk_new(media: Path) -> None:
    stems = [f"s{n:04d}" for n in range(300)]
    before = many(media, stems)
    os.utime(media / "s0150.txt", ns=(10**18, 2 * 10**18))
    after = planned(HEAD, "engine.part_samples=16")
    assert len(before.chunks) == len(after.chunks) > 10
    assert sum(a.fingerprint != b.fingerprint for a, b in zip(before.chunks, after.chunks, strict=True)) == 1


@pytest.mark.parametrize("added", ["0000", "s0007x", "s0151x", "s0299x", "zzz"])
def test_an_added_or_removed_file_makes_one_or_two_chunks_new(media: Path, added: str) -> None:
    before = {chunk.fingerprint for chunk in many(media, [f"s{n:04d}" for n in range(300)]).chunks}
    after = {chunk.fingerprint for chunk in many(media, [added]).chunks}
    assert 1 <= len(after - before) <= 2
    for suffix in ("png", "txt"):
        (media / f"{added}.{suffix}").unlink()
    assert {chunk.fingerprint for chunk in planned(HEAD, "engine.part_samples=16").chunks} == before


def test_the_listing_holds_the_inputs_of_each_chunk_and_goes_with_the_block(media: Path, tmp_path: Path) -> None:
    fill(media, [f"s{n:04d}" for n in range(50)])
    Path("p.yaml").write_text(HEAD)
    with plan_to_build(Path("p.yaml"), ["engine.part_samples=8"], tmp_path / "out") as plan:
        assert plan.listing is not None
        content = plan.listing.read_bytes()
        keys = []
        for chunk in plan.chunks:
            lines = content[chunk.offset : chunk.offset + chunk.length].splitlines()
            assert len(lines) == chunk.inputs
            keys += [parse_line(line).key for line in lines]
    assert keys == sorted(["a", "b", *(f"s{n:04d}" for n in range(50))])
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_sources_leave_no_listing(tmp_path: Path) -> None:
    Path("p.yaml").write_text(HEAD)
    with pytest.raises(PlanError), plan_to_build(Path("p.yaml"), ["sources.files.root=none"], tmp_path / "out"):
        pass
    assert list((tmp_path / "out").iterdir()) == []


def test_a_reference_holds_curves_of_its_aligner() -> None:
    curves = pa.table({"aligner": ["clip"], "edge": ["image_caption"], "curve": ["{}"]})
    pq.write_table(curves, "curves.parquet")
    align = HEAD + "align:\n  - clip: {model: ViT-B-32, pretrained: openai%s}\n"
    at, fix = "p.yaml:9:49 align[0].clip.reference:", "give gathered/<...>/calibrations.parquet of another build"
    assert problems(align % ", reference: media") == [f"{at} media is not a file; {fix}"]
    assert problems(align % ", reference: media/a.txt") == [f"{at} media/a.txt holds no calibrations; {fix}"]
    unnamed = "curves.parquet knows clip.image_caption: nothing of 'mine'; 'name' it as that build does"
    assert problems(align % ", reference: curves.parquet, name: mine") == [f"{at} {unnamed}"]
    with_curves = planned(align % ", reference: curves.parquet")
    assert with_curves.gathering != planned(align % "").gathering


def test_other_settings_of_a_fit_make_no_new_vectors() -> None:
    tower = "{kind: open_clip_%s, model: ViT-B-32, checkpoint: openai}"
    fit = f"{HEAD}align:\n  - crossfit: {{pair: [image, caption], left: {tower % 'image'}, right: {tower % 'text'}}}\n"
    one, other = planned(fit), planned(fit, "align.crossfit.folds=3")
    assert one.score_parts()[:-1] == other.score_parts()[:-1]
    assert one.score_parts()[-1] != other.score_parts()[-1]


def test_ocr_is_planned_as_it_comes() -> None:
    assert planned(HEAD + "align:\n  - ocr\n").pipeline.members["written"] == Declared("text", False)
