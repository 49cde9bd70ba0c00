from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import whisper
from hypothesis import given
from hypothesis import strategies as st
from whisper.audio import log_mel_spectrogram
from whisper.model import ModelDimensions

from mmdata.errors import FatalError, MissingExtraError, SampleError, WeightsError
from mmdata.models.whisper import MAX_AUDIO_S, Whisper, _padded_s, locate
from mmdata.models.whisper_weights import load_network

MULTILINGUAL, ENGLISH = 51865, 51864
SEED = 0
TEXTS = ["Hello there.", "One", "Ein längerer Satz, der mehr Zeichen hat als die anderen.", "One", "a b c"]
SECONDS = [0.4, 7.3, 1.2, 2.9, 1.3]


def network(n_vocab: int) -> whisper.model.Whisper:
    """Small and random, with weights large enough that its likelihoods differ from clip to clip."""
    torch.manual_seed(n_vocab)
    network = whisper.model.Whisper(ModelDimensions(80, 1500, 64, 2, 2, n_vocab, 448, 64, 2, 2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    return network


@pytest.fixture(scope="module")
def multilingual() -> Whisper:
    return Whisper(network(MULTILINGUAL), torch.device("cpu"), precision="float32")


@pytest.fixture(scope="module")
def english() -> Whisper:
    return Whisper(network(ENGLISH), torch.device("cpu"), precision="float32")


def clips(seconds: list[float]) -> list[np.ndarray]:
    random = np.random.default_rng(SEED)
    return [random.normal(0, 0.1, int(16_000 * s)).astype(np.float32) for s in seconds]


def slow_mean_logprob(net: whisper.model.Whisper, audio: np.ndarray, text: str, language: str | None) -> float:
    """One token at a time, through openai-whisper's own forward passes with the position table cut."""
    tokenizer = whisper.tokenizer.get_tokenizer(
        net.is_multilingual, num_languages=net.num_languages, language=language, task="transcribe"
    )
    frames = len(audio) // 320
    table = net.encoder.positional_embedding
    row, total = list(tokenizer.sot_sequence_including_notimestamps), 0.0
    targets = [*tokenizer.encode(" " + text), tokenizer.eot]
    try:
        net.encoder.positional_embedding = table[:frames]
        with torch.no_grad():
            states = net.embed_audio(log_mel_spectrogram(audio)[None])
            for target in targets:
                logits = net.logits(torch.tensor([row]), states)[0, -1]
                total += float(logits.log_softmax(-1)[target])
                row.append(target)
    finally:
        net.encoder.positional_embedding = table
    return total / len(targets)


def padded(audio: np.ndarray) -> np.ndarray:
    return np.pad(audio, (0, int(_padded_s(len(audio)) * 16_000) - len(audio)))


@pytest.mark.parametrize("languages", [["de", "en", "de"], ["fr", "fr", "fr"]])
def test_scores_equal_a_token_by_token_reference(multilingual: Whisper, languages: list[str]) -> None:
    audio, texts = clips(SECONDS[:3]), TEXTS[:3]
    silence = np.zeros(480_000, np.float32)
    for score, clip, text, code in zip(
        multilingual.score(audio, texts, languages), audio, texts, languages, strict=True
    ):
        heard = slow_mean_logprob(multilingual.network, padded(clip), text, code)
        prior = slow_mean_logprob(multilingual.network, silence, text, code)
        assert score.logprob_per_token == pytest.approx(heard, abs=1e-3)
        assert score.silence_logprob_per_token == pytest.approx(prior, abs=1e-3)
        assert score.score == pytest.approx(heard - prior, abs=2e-3)


def test_an_english_only_model_equals_the_reference(english: Whisper) -> None:
    audio = clips([1.7])
    (score,) = english.score(audio, ["Hello there."], [None])
    assert score.logprob_per_token == pytest.approx(
        slow_mean_logprob(english.network, padded(audio[0]), "Hello there.", None), abs=1e-3
    )
    assert score.tokens == 4  # " Hello", " there", ".", end


def test_the_batch_and_its_order_do_not_matter(multilingual: Whisper) -> None:
    audio, codes = clips(SECONDS), ["en", "fr", "de", "en", "en"]
    together = multilingual.score(audio, TEXTS, codes)
    alone = [multilingual.score([a], [t], [c])[0] for a, t, c in zip(audio, TEXTS, codes, strict=True)]
    order = [3, 0, 4, 2, 1]
    shuffled = multilingual.score([audio[i] for i in order], [TEXTS[i] for i in order], [codes[i] for i in order])
    assert len({round(score.score, 3) for score in together}) == len(TEXTS)
    for index, score in enumerate(together):
        other = shuffled[order.index(index)]
        assert score.score == pytest.approx(alone[index].score, abs=1e-3)
        assert score.score == pytest.approx(other.score, abs=1e-3)
        assert score.no_speech_prob == pytest.approx(alone[index].no_speech_prob, rel=1e-2)


def test_the_same_call_gives_the_same_bits(multilingual: Whisper) -> None:
    audio = clips(SECONDS)
    assert multilingual.score(audio, TEXTS, ["en"] * 5) == multilingual.score(audio, TEXTS, ["en"] * 5)


def test_nothing_in_nothing_out(english: Whisper) -> None:
    assert english.score([], [], []) == []
    assert english.transcribe([], []) == []


def test_a_missing_language_is_detected_as_the_library_does(multilingual: Whisper) -> None:
    (audio,) = clips([29.9])  # padded to 30 s, as the library wants it
    mel = log_mel_spectrogram(np.pad(audio, (0, 480_000 - len(audio))))
    _, probabilities = whisper.detect_language(multilingual.network, mel)
    detected = max(probabilities, key=probabilities.__getitem__)
    (unknown,) = multilingual.score([audio], ["Hello"], [None])
    (given_code,) = multilingual.score([audio], ["Hello"], [detected])
    (other,) = multilingual.score([audio], ["Hello"], ["fr" if detected != "fr" else "de"])
    assert unknown.score == pytest.approx(given_code.score, abs=1e-4)
    assert unknown.score != pytest.approx(other.score, abs=1e-4)
    (transcript,) = multilingual.transcribe([audio], [None])
    assert transcript.language == detected


def test_languages_are_told_and_held_to(english: Whisper, multilingual: Whisper) -> None:
    assert english.languages == {"en"}
    assert {"en", "fr", "ru", "es"} < multilingual.languages
    assert len(multilingual.languages) == 99
    with pytest.raises(FatalError, match="knows only English, not fr"):
        english.score(clips([1.0]), ["Bonjour"], ["fr"])
    with pytest.raises(FatalError, match="not tlh"):
        multilingual.transcribe(clips([1.0]), ["tlh"])


@pytest.mark.parametrize(
    ("audio", "text", "reason"),
    [
        (np.zeros((2, 16_000), np.float32), "x", "audio_shape"),
        (np.zeros(1599, np.float32), "x", "audio_too_short"),
        (np.zeros(480_001, np.float32), "x", "audio_too_long"),
        (np.full(16_000, np.nan, np.float32), "x", "audio_not_finite"),
        (np.zeros(16_000, np.float32), "  ", "text_empty"),
        (np.zeros(16_000, np.float32), "word " * 225, "text_too_long"),
    ],
)
def test_what_cannot_be_scored_is_said_with_a_reason(
    english: Whisper, audio: np.ndarray, text: str, reason: str
) -> None:
    with pytest.raises(SampleError) as caught:
        english.check(audio, text)
    assert caught.value.reason == reason
    with pytest.raises(ValueError, match="item 1: "):
        english.score([*clips([1.0]), audio], ["x", text], [None, None])


def test_the_limits_themselves_are_scored(english: Whisper) -> None:
    audio = [np.zeros(1600, np.float32), np.zeros(480_000, np.float32)]
    scores = english.score(audio, ["<|endoftext|>", "word " * 224], [None, "en"])
    assert scores[0].tokens > 2  # letters, not the special token that they spell
    assert scores[1].tokens == 225
    assert scores[1].score == pytest.approx(0, abs=1e-3)  # silence beside silence


def test_how_a_text_is_broken_into_lines_does_not_matter(english: Whisper) -> None:
    (clip,) = clips([2.0])
    one, other = english.score([clip, clip], ["Call me in the morning.", "Call me\n  in the\r\nmorning."], [None, None])
    assert other == one


def test_lists_of_unequal_length_are_refused(english: Whisper) -> None:
    with pytest.raises(ValueError, match="2 clips, 1 languages"):
        english.score(clips([1.0, 1.0]), ["a", "b"], ["en"])


@given(st.integers(1600, 480_000))
def test_padding_grows_with_the_clip_and_leaves_a_margin(samples: int) -> None:
    length_s = _padded_s(samples)
    assert min(MAX_AUDIO_S, samples / 16_000 + 1.0) <= length_s <= MAX_AUDIO_S
    assert length_s <= max(samples / 16_000 * 1.2, samples / 16_000 + 2.0)
    assert (length_s * 50).is_integer()


def test_locate_loads_no_torch() -> None:
    code = (
        "import sys; from mmdata.models.whisper import locate; print(locate('tiny.en').identity);"
        "assert not {'torch', 'whisper', 'safetensors'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "tiny.en\n", "")


def test_locate_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDATA_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"'tinny\.en'; did you mean tiny\.en"):
        locate("tinny.en")
    with pytest.raises(WeightsError, match="is not there; run: mmdata fetch whisper-base"):
        locate(str(tmp_path / "models" / "whisper-base"))
    (tmp_path / "models" / "whisper-base").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"is missing; run: mmdata fetch whisper-base"):
        locate(str(tmp_path / "models" / "whisper-base"))
    (tmp_path / "models" / "lite").mkdir()
    with pytest.raises(WeightsError, match=r"lite: .* is missing; give a CTranslate2 folder"):
        locate(str(tmp_path / "models" / "lite"))
    with pytest.raises(WeightsError, match=r"is not there; give a CTranslate2 folder"):
        locate("./nowhere.pt")


def test_locate_finds_what_the_library_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert locate("turbo").path is None
    (tmp_path / "whisper").mkdir()
    (tmp_path / "whisper" / "large-v3-turbo.pt").touch()
    assert locate("turbo").path == tmp_path / "whisper" / "large-v3-turbo.pt"


def test_a_checkpoint_file_is_read_and_named_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDATA_CACHE", str(tmp_path / "cache"))
    net = network(ENGLISH)
    path = tmp_path / "mine.pt"
    torch.save({"dims": vars(net.dims), "model_state_dict": net.state_dict()}, path)
    loaded = load_network(str(path))
    assert all(torch.equal(values, net.state_dict()[name]) for name, values in loaded.state_dict().items())
    first = locate(str(path)).identity
    torch.save({"dims": vars(net.dims), "model_state_dict": {}}, path)
    assert locate(str(path)).identity != first
    with pytest.raises(WeightsError, match="does not fit a Whisper model"):
        load_network(str(path))


def test_weights_that_name_no_alignment_heads_get_those_of_their_size(tmp_path: Path) -> None:
    sizes = ModelDimensions(80, 1500, 12, 6, 4, ENGLISH, 448, 12, 6, 4)  # layers and heads of tiny.en, but narrow
    for name, dims, count in (("tiny", sizes, 8), ("other", network(ENGLISH).dims, 2)):
        path = tmp_path / f"mine-{name}.pt"
        torch.save({"dims": vars(dims), "model_state_dict": whisper.model.Whisper(dims).state_dict()}, path)
        heads = load_network(str(path)).alignment_heads.coalesce().indices().T.tolist()
        assert len(heads) == count
        assert heads[0] == [1, 0]


class _Bomb:
    def __reduce__(self) -> tuple[type[Path], tuple[str]]:
        return Path, ("bomb",)


@pytest.mark.parametrize("name", ["bad.pt", "bad.safetensors"])
def test_a_stranger_s_file_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("MMDATA_CACHE", str(tmp_path / "cache"))
    torch.save({"dims": _Bomb(), "model_state_dict": {}}, tmp_path / name)
    with pytest.raises(WeightsError, match=name):
        load_network(str(tmp_path / name))


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "whisper", None)
    with pytest.raises(MissingExtraError, match=r"openai-whisper: pip install 'mmdata\[whisper\]'"):
        load_network("tiny.en")


@pytest.fixture(scope="module")
def prompts(prompts_dir: Path) -> list[tuple[np.ndarray, str]]:
    """English studio prompts whose transcript is words, not a note such as `[beep]`."""
    found = []
    with (prompts_dir / "prompts.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            audio, rate = soundfile.read(prompts_dir / row["path"], dtype="float32")
            if not row["text"].startswith(("[", "(")) and 0.1 <= len(audio) / rate <= MAX_AUDIO_S:
                times = np.arange(0, len(audio), rate / 16_000)
                found.append((np.interp(times, np.arange(len(audio)), audio).astype(np.float32)[:480_000], row["text"]))
    return found


@pytest.fixture(scope="module")
def tiny_en(whisper_tiny_dir: Path) -> Whisper:
    return Whisper.load(str(whisper_tiny_dir), "cpu")


@pytest.mark.slow
def test_scores_tell_prompts_from_deranged_prompts(tiny_en: Whisper, prompts: list[tuple[np.ndarray, str]]) -> None:
    from sklearn.metrics import roc_auc_score

    pairs = prompts[::3]
    order = np.random.default_rng(SEED).permutation(len(pairs))
    other = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))  # one cycle: nothing stays in place
    audio = [clip for clip, _ in pairs]
    matched = tiny_en.score(audio, [text for _, text in pairs], ["en"] * len(pairs))
    mismatched = tiny_en.score(audio, [pairs[other[i]][1] for i in range(len(pairs))], ["en"] * len(pairs))
    labels = [1] * len(pairs) + [0] * len(pairs)
    assert len(pairs) > 150
    assert roc_auc_score(labels, [score.score for score in matched + mismatched]) >= 0.99


@pytest.mark.slow
def test_transcripts_of_long_prompts_are_right(tiny_en: Whisper, prompts: list[tuple[np.ndarray, str]]) -> None:
    long = [(clip, text) for clip, text in prompts if 10 <= len(text.split()) <= 20][:6]
    heard = tiny_en.transcribe([clip for clip, _ in long], [None] * len(long))
    words = [
        (set(transcript.text.lower().split()), set(text.lower().split()))
        for transcript, (_, text) in zip(heard, long, strict=True)
    ]
    assert sum(len(a & b) for a, b in words) >= 0.85 * sum(len(b) for _, b in words)
    assert all(transcript.language == "en" and transcript.avg_logprob > -1 for transcript in heard)


@pytest.mark.gpu
def test_half_precision_scores_like_the_cpu(multilingual: Whisper) -> None:
    accelerated = Whisper(network(MULTILINGUAL), torch.device("cuda"))
    audio, codes = clips(SECONDS), ["en", "fr", "de", "en", "en"]
    for ours, theirs in zip(
        accelerated.score(audio, TEXTS, codes), multilingual.score(audio, TEXTS, codes), strict=True
    ):
        assert ours.logprob_per_token == pytest.approx(theirs.logprob_per_token, abs=0.1)
