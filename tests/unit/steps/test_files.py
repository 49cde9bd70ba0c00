"""The `files` source: which files make which inputs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mmdata.engine.payloads import Payloads
from mmdata.errors import PlanError, SampleError
from mmdata.sample import sample_id
from mmdata.steps.exchange import Declared, Input
from mmdata.steps.sources.files import Files


def source(root: Path, **members: Any) -> Files:
    return Files.model_validate({"root": root, "members": members})


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


def there(found: Input) -> dict[str, str]:
    """Name of each member that is there, and the file it is in, by name."""
    return {ref.name: os.path.basename(str(ref.url)) for ref in found.refs if ref.version is not None}


def missing(found: Input) -> dict[str, str]:
    return {ref.name: str(ref.url) for ref in found.refs if ref.version is None}


def test_files_of_one_stem_are_one_input_sorted_by_stem(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "b.txt", "a.txt", "a.png", "x/a.png", "x/a.txt", "notes.md")
    found = list(source(tmp_path, image="{stem}.png", caption="{stem}.txt").inputs())
    assert [i.key for i in found] == ["a", "b", "x/a"]
    assert there(found[2]) == {"image": "a.png", "caption": "a.txt"}
    assert found[2].refs[0].url == f"{tmp_path}/x/a.png"
    assert [missing(i) for i in found] == [{}, {}, {}]
    assert [i.problem for i in found] == [None, None, None]


def test_extensions_are_told_in_any_case_the_one_that_is_written_first(tmp_path: Path) -> None:
    touch(tmp_path, "IMG_1.JPG", "img_2.Jpg", "c.jpg", "c.JPG", "d_mask.JPG", "IMG_1.TXT", "E.jpg/x.txt")
    members = {"image": "{stem}.jpg", "mask": "{stem}_mask.jpg", "caption": "{stem}.txt"}
    optional = {name: {"path": path, "required": False} for name, path in members.items()}
    assert {found.key: there(found) for found in source(tmp_path, **optional).inputs()} == {
        "IMG_1": {"image": "IMG_1.JPG", "caption": "IMG_1.TXT"},
        "E.jpg/x": {"caption": "x.txt"},
        "c": {"image": "c.jpg"},
        "d": {"mask": "d_mask.JPG"},
        "img_2": {"image": "img_2.Jpg"},
    }


def test_a_required_member_that_is_missing_stands_there_without_a_version(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.txt")
    files = source(tmp_path, image=["{stem}.png", "{stem}.svg"], caption="{stem}.txt")
    a, b = files.inputs()
    assert missing(a) == {"caption": "a.txt"}
    assert missing(b) == {"image": "b.png or b.svg"}
    with pytest.raises(SampleError, match="not there") as caught:
        Payloads([]).of(b.refs[0], 10)
    assert caught.value.reason == "missing_member"


def test_an_optional_member_that_is_missing_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (found,) = source(tmp_path, image="{stem}.png", sound={"path": "{stem}.ogg", "required": False}).inputs()
    assert [ref.name for ref in found.refs] == ["image"]


def test_the_first_path_that_exists_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a.svg", "b.svg")
    a, b = source(tmp_path, image=["{stem}.png", "{stem}.svg"]).inputs()
    assert (there(a), there(b)) == ({"image": "a.png"}, {"image": "b.svg"})


def test_sidecars_may_lie_in_other_folders(tmp_path: Path) -> None:
    touch(tmp_path, "images/x/a.png", "captions/x/a.txt", "images/b.png")
    found = list(source(tmp_path, image="images/{stem}.png", caption="captions/{stem}.txt").inputs())
    assert [(i.key, sorted(there(i)), sorted(missing(i))) for i in found] == [
        ("b", ["image"], ["caption"]),
        ("x/a", ["caption", "image"], []),
    ]


def test_the_most_literal_template_takes_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a_desc.ogg", "a_desc_fr.ogg", "a.ogg")
    files = source(
        tmp_path,
        image="{stem}.png",
        sound="{stem}.ogg",
        speech="{stem}_desc.ogg",
        **{"speech_{lang}": {"path": "{stem}_desc_{lang}.ogg", "langs": ["fr"]}},
    )
    (found,) = files.inputs()
    assert found.key == "a"
    assert there(found) == {
        "image": "a.png",
        "sound": "a.ogg",
        "speech": "a_desc.ogg",
        "speech_fr": "a_desc_fr.ogg",
    }


def test_languages_that_nobody_asked_for_are_neither_members_nor_inputs(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a.fr.txt", "a.de.txt", "b.de.txt")
    files = source(
        tmp_path, image="{stem}.png", **{"caption_{lang}": {"path": "{stem}.{lang}.txt", "langs": ["fr", "pt-BR"]}}
    )
    (found,) = files.inputs()
    assert there(found) == {"image": "a.png", "caption_fr": "a.fr.txt"}
    assert {ref.name: ref.lang for ref in found.refs} == {"image": None, "caption_fr": "fr"}
    assert files.members() == {
        "image": Declared("image", True),
        "caption_fr": Declared("text", False, "fr"),
        "caption_pt_br": Declared("text", False, "pt-BR"),
    }


def test_a_line_by_language_is_one_member_each_out_of_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt")
    files = source(
        tmp_path,
        caption={"path": "{stem}.txt", "line": 1, "lang": "en"},
        **{"caption_{lang}": {"path": "{stem}.txt", "line": "{lang}.utf8={text}", "langs": ["fr", "es"]}},
    )
    (found,) = files.inputs()
    assert [(r.name, r.line, r.lang, r.required) for r in found.refs] == [
        ("caption", 1, "en", True),
        ("caption_fr", "fr.utf8={text}", "fr", False),
        ("caption_es", "es.utf8={text}", "es", False),
    ]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", ".b.png", ".git/c.png", "x/.d/e.png")
    assert [i.key for i in source(tmp_path, image="{stem}.png").inputs()] == ["a"]


def test_a_link_out_of_root_is_an_input_with_a_problem(tmp_path: Path) -> None:
    touch(tmp_path, "secret.txt", "root/a.png", "root/b.png", "root/b.txt")
    os.symlink(tmp_path / "secret.txt", tmp_path / "root/a.txt")
    os.symlink("b.txt", tmp_path / "root/c.txt")
    os.symlink("b.png", tmp_path / "root/c.png")
    os.symlink(tmp_path, tmp_path / "root/up")
    found = list(source(tmp_path / "root", image="{stem}.png", caption="{stem}.txt").inputs())
    assert [(i.key, i.problem) for i in found] == [
        ("a", ("link_outside_root", f"{tmp_path}/root/a.txt is a link that leads out of root")),
        ("b", None),
        ("c", None),
    ]


def test_a_link_that_leads_nowhere_is_no_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    os.symlink("gone", tmp_path / "b.png")
    assert [i.key for i in source(tmp_path, image="{stem}.png").inputs()] == ["a"]


def test_names_that_are_not_utf8_are_inputs_that_have_failed_each_for_itself(tmp_path: Path) -> None:
    # The second is what the first looks like escaped, the fourth what the third does.
    names = [b"caf\xe9.png", b"caf\\xe9.png", b"\\x\xe9.png", b"\\\\x\\xe9.png"]
    try:
        for name in names:
            (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    found = {one.key: one.problem for one in source(tmp_path, image="{stem}.png").inputs()}
    bad = ("bad_name", f"the name of {tmp_path}///caf\\xe9.png is not UTF-8")
    assert found.pop("//caf\\xe9") == bad
    assert found.pop("//\\\\x\\xe9", (None,))[0] == "bad_name"  # type: ignore[index]
    assert found == {"caf\\xe9": None, "\\\\x\\xe9": None}
    assert all(sample_id("files", key) for key in found)


def test_names_with_signs_that_patterns_know_are_taken_literally(tmp_path: Path) -> None:
    touch(tmp_path, "a+(1).png", "a+(1).x.txt", "a+(1).xxtxt")
    (found,) = source(tmp_path, image="{stem}.png", caption="{stem}.x.txt").inputs()
    assert there(found) == {"image": "a+(1).png", "caption": "a+(1).x.txt"}


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.png").write_text("a")
    scandir = os.scandir

    def refused(path: Path) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    source = Files.model_validate({"root": str(tmp_path), "members": {"image": "{stem}.png"}})
    with pytest.raises(PlanError, match=f"files: {tmp_path}/locked cannot be read: Permission denied"):
        list(source.inputs())


def test_the_version_of_a_file_changes_with_size_and_time(tmp_path: Path) -> None:
    def version() -> str | None:
        (found,) = source(tmp_path, image="{stem}.png").inputs()
        return found.refs[0].version

    touch(tmp_path, "a.png")
    os.utime(tmp_path / "a.png", ns=(1, 10**18))
    assert version() == "5-1000000000000000000"
    os.utime(tmp_path / "a.png", ns=(1, 10**18 + 1))
    assert version() == "5-1000000000000000001"


def test_where_the_folder_lies_is_no_part_of_the_identity(tmp_path: Path) -> None:
    assert source(tmp_path, image="{stem}.png").identity() == source(tmp_path / "x", image="{stem}.png").identity()
    assert source(tmp_path, image="{stem}.png").identity() != source(tmp_path, image="{stem}.jpg").identity()


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "m/a.png")
    assert [i.key for i in source(Path("~/m"), image="{stem}.png").inputs()] == ["a"]
