from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmdata.errors import MissingExtraError, WeightsError
from mmdata.models.transcribe import FastTranscriber, rejection, speech_span
from mmdata.models.whisper import Whisper

SURE, UNSURE = (-0.2, 0.05), (-0.9, 0.7)


@pytest.mark.parametrize(
    "text",
    [
        "Thanks for watching!",
        "Thank you for watching, and I'll see you next time.",
        "Subtitles by the Amara.org community",
        "Sous-titres réalisés par la communauté d'Amara.org",
        "Sous-titrage Société Radio-Canada",
        "Untertitel der Amara.org-Community",
        "Untertitel im Auftrag des ZDF, 2021",
        "ご視聴ありがとうございました。",
        "チャンネル登録お願いします",
        "Субтитры создавал DimaTorzok",
        "Редактор субтитров А.Семкин Корректор А.Егорова",  # noqa: RUF001
        "Продолжение следует...",
        "시청해주셔서 감사합니다!",
        "Ondertitels ingediend door de Amara.org gemeenschap",
        "Abone olmayı unutmayın.",  # noqa: RUF001
        "字幕志愿者 李宗盛",
        "请不吝点赞 订阅 转发 打赏支持明镜与点点栏目",
        "¡Gracias por ver el video!",
        "Subtítulos realizados por la comunidad de Amara.org",
        "Legendas pela comunidade Amara.org",
        "Sottotitoli creati dalla comunità Amara.org",
    ],
)
def test_what_whisper_writes_when_nobody_speaks_is_known(text: str) -> None:
    assert rejection(text, *SURE) == "known_phrase"


@pytest.mark.parametrize(
    "text",
    [
        "Thank you.",
        "You",
        "Thank you for watching the children while I was away.",
        "The subtitle was hard to read on the train.",
        "Please press 1 to mute or unmute yourself, 2 to lock or unlock the conference, 3 to eject the last user.",
        "No no no, not at all.",
        "Danke.",
        "One two three one two three one two.",
        "この動画はとても長いです。",
    ],
)
def test_what_people_say_is_believed(text: str) -> None:
    assert rejection(text, *SURE) is None


def test_a_common_phrase_is_doubted_where_the_decoder_is_unsure() -> None:
    assert rejection("Thank you.", *UNSURE) == "known_phrase"
    assert rejection("Thank you.", -1.3, 0.1) == "known_phrase"
    assert rejection("Thank you for the map.", *UNSURE) is None
    assert rejection("Thank you for the map.", -1.1, 0.7) == "no_speech"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (" ...", "no_words"),
        ("", "no_words"),
        ("Thank you, Mr. President, " * 6, "loop"),
        ("so it was " * 4, "loop"),
        ("a a a a a a a a", "loop"),
        ("ハ" * 120, "loop"),
    ],
)
def test_loops_and_noise_are_no_words(text: str, why: str) -> None:
    assert rejection(text, *SURE) == why


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    monkeypatch.setitem(sys.modules, "faster_whisper.vad", None)
    with pytest.raises(MissingExtraError, match=r"faster-whisper: pip install 'mmdata\[whisper\]'"):
        FastTranscriber.load(tmp_path, torch.device("cpu"))
    with pytest.raises(MissingExtraError, match="faster-whisper"):
        speech_span(np.zeros(16_000, np.float32))


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="CTranslate2 cannot load it"):
        FastTranscriber.load(tmp_path, torch.device("cpu"))


@pytest.fixture(scope="module")
def prompts(prompts_dir: Path) -> list[tuple[np.ndarray, str]]:
    found = []
    with (prompts_dir / "prompts.csv").open(newline="") as file:
        for row in list(csv.DictReader(file))[4:200:28]:
            audio, rate = soundfile.read(prompts_dir / row["path"], dtype="float32")
            times = np.arange(0, len(audio), rate / 16_000)
            found.append((np.interp(times, np.arange(len(audio)), audio).astype(np.float32)[:480_000], row["text"]))
    return found


def test_speech_is_cut_out_of_silence(prompts: list[tuple[np.ndarray, str]]) -> None:
    clip = prompts[0][0]
    silence = np.zeros(48_000, np.float32)
    span = speech_span(np.concatenate([silence, clip, silence]))
    assert span is not None
    assert clip.size * 0.5 <= span.size <= clip.size + 2 * 8_000
    noise = np.random.default_rng(0).normal(0, 0.05, 80_000).astype(np.float32)
    assert [speech_span(quiet) for quiet in (silence, noise)] == [None, None]


@pytest.mark.slow
def test_transcripts_do_not_depend_on_the_batch(whisper_tiny_dir: Path, prompts: list[tuple[np.ndarray, str]]) -> None:
    model = Whisper.load(str(whisper_tiny_dir), "cpu")
    clips = [clip for clip, _ in prompts[:4]]
    silence = np.zeros(32_000, np.float32)
    together = model.transcribe([silence, *clips], [None] * 5)
    alone = [model.transcribe([clip], ["en"])[0] for clip in clips]
    assert (together[0].text, together[0].rejected, together[0].avg_logprob) == ("", "no_speech", None)
    assert [heard.text for heard in together[1:]] == [heard.text for heard in alone]
    assert len({heard.text for heard in alone}) == len(clips)
    for ours, theirs in zip(together[1:], alone, strict=True):
        assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=0.02)
        assert (ours.language, ours.rejected) == ("en", None)


@pytest.mark.slow
def test_the_language_is_detected(whisper_base_dir: Path, prompts: list[tuple[np.ndarray, str]]) -> None:
    long = max(prompts, key=lambda pair: pair[0].size)
    (heard,) = Whisper.load(str(whisper_base_dir), "cpu").transcribe([long[0]], [None])
    assert heard.language == "en"
    assert len(set(heard.text.lower().split()) & set(long[1].lower().split())) > 3
