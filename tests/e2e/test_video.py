"""A film through the command line: scenes with their sound, their words and their frames."""

from __future__ import annotations

import io
import tarfile

import pytest
from film import write_film
from small_clip import write_small_clip

SRT = "1\n00:00:00,200 --> 00:00:01,200\nOne is red.\n\n2\n00:00:02,500 --> 00:00:03,900\nTwo is green.\n"


@pytest.mark.slow
def test_a_film_becomes_samples_of_its_scenes(cli):
    write_film(cli.folder / "media" / "talk.mp4", [2.0, 3.0, 2.0])
    (cli.folder / "media" / "talk.srt").write_text(SRT)
    (cli.folder / "media" / "broken.mp4").write_bytes(b"no film")
    cli.spec(
        sources=[{"video": {"files": "media/*.mp4", "frames": 2, "lang": "en"}}],
        ingest=[{"video": {"side_px": 32}}, {"image": {"resize": "longest", "side_px": 32}}, {"audio": {"mono": True}}],
    )
    assert "4 inputs = 3 kept + 1 failed" in cli.build().stdout
    members = cli.query(
        "SELECT s.key, m.name, m.mime, round(m.duration_s, 1) AS seconds, m.height, m.text FROM samples s "
        "JOIN members m USING (sample_id) ORDER BY ALL"
    )
    assert [(row["name"], row["mime"], row["seconds"], row["height"], row["text"]) for row in members[:5]] == [
        ("audio", "audio/flac", 2.0, None, None),
        ("frame_0", "image/jpeg", None, 16, None),
        ("frame_1", "image/jpeg", None, 16, None),
        ("video", "video/mp4", 2.0, 32, None),
        ("words", "text/plain", None, None, "One is red."),
    ]
    assert len(members) == 14
    (fate,) = cli.query("SELECT f.step, f.rule FROM fates f WHERE fate = 'failed'")
    assert fate == {"step": "ingest", "rule": "not_video"}
    names = set()
    for path in (cli.folder / "out" / "shards").glob("*.tar"):
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
            names |= {name.partition(".")[2] for name in tar.getnames()}
    assert names == {"mp4", "flac", "jpg", "frame_1.jpg", "txt", "json"}
    assert "nothing to do" in cli.build().stdout


@pytest.mark.slow
def test_subtitles_that_cannot_be_read_cost_a_film_its_words_alone(cli):
    write_film(cli.folder / "media" / "talk.mp4", [2.0, 3.0])
    (cli.folder / "media" / "talk.srt").write_bytes(SRT.replace("red", "r\u00f6t").encode("latin-1"))
    cli.spec(sources=[{"video": {"files": "media/*.mp4", "frames": 0}}])
    assert "2 inputs = 2 kept" in cli.build().stdout
    bad = cli.query("SELECT name, modality, error FROM members WHERE error IS NOT NULL")
    assert [(row["name"], row["modality"]) for row in bad] == [("words", "text")] * 2
    assert all(row["error"].startswith("not_utf8: its subtitles talk.srt: not UTF-8 at byte 4") for row in bad)


@pytest.mark.slow
def test_clip_looks_at_frames_spread_over_a_film(cli):
    write_film(cli.folder / "media" / "talk.mp4", [2.0, 3.0, 2.0])
    (cli.folder / "media" / "talk.srt").write_text(SRT)
    folder = str(write_small_clip(cli.folder / "clip"))
    given = {"model": folder, "text": ["words"], "precision": "float32"}
    cli.spec(
        sources=[{"video": {"files": "media/*.mp4", "frames": 1, "lang": "en"}}],
        align=[
            {"clip": {"name": "stills", "image": ["frame_0"], **given}},
            {"clip": {"name": "films", "video": ["video"], "frames": 3, **given}},
        ],
    )
    cli.build()
    rows = cli.query("SELECT aligner, edge, sample_id, score FROM scores WHERE score IS NOT NULL ORDER BY ALL")
    of = {(row["aligner"], row["sample_id"]): row["score"] for row in rows}
    films = {sample: score for (aligner, sample), score in of.items() if aligner == "films"}
    assert {row["edge"] for row in rows} == {"frame_0_words", "video_words"}
    # Two of the scenes have words. A scene is of one colour, so that any of its frames says what all of them do.
    assert len(films) == 2
    assert len(set(films.values())) == 2
    for sample, score in films.items():
        assert score == pytest.approx(of["stills", sample], abs=0.01)
