"""The sound of a generated scene, 16 kHz mono WAV: its caption spoken by espeak-ng, or a melody that stands for it.

The melody has a phrase for each shape, in the caption's order. A listener can read it:

* colour is pitch: the i-th colour of `scenes.COLOURS` is the i-th degree of C major, from C4 (261.63 Hz) upwards;
* size is octave: large as above, small an octave higher;
* kind is rhythm: circle one long note, triangle three short, square four short, star five very short, hexagon long and
  short;
* a rest of `_REST_S` stands between two phrases.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import wave
from random import Random
from typing import TYPE_CHECKING, Any, Final

from mmdata.errors import MmdataError
from mmdata.media.audio import SCORING_RATE_HZ, decode_mono

if TYPE_CHECKING:
    import numpy as np

    Audio = np.ndarray[Any, np.dtype[np.float32]]

PROGRAM: Final = "espeak-ng"
VOICES: Final = ("en-us", "en-gb", "en-gb-scotland", "en-us+f3", "en-gb+f2", "en-us+m3")
_WORDS_PER_MINUTE: Final = (130, 180)
_PITCH: Final = (35, 65)
_TIMEOUT_S: Final = 30
_MAX_SPEECH_S: Final = 30.0

# Equal temperament, A4 = 440 Hz: C4 lies nine semitones below.
_C4_HZ: Final = 440 * 2 ** (-9 / 12)
_MAJOR_SEMITONES: Final = (0, 2, 4, 5, 7, 9, 11)
_RHYTHMS_S: Final = {
    "circle": (0.6,),
    "triangle": (0.2, 0.2, 0.2),
    "square": (0.15, 0.15, 0.15, 0.15),
    "star": (0.1, 0.1, 0.1, 0.1, 0.1),
    "hexagon": (0.4, 0.15),
}
_REST_S: Final = 0.25
_FADE_S: Final = 0.02
_LOUDNESS: Final = (0.3, 0.6)


def can_speak() -> bool:
    """Whether espeak-ng is on this machine."""
    return shutil.which(PROGRAM) is not None


def speech_wav(text: str, rng: Random) -> bytes:
    """`text` spoken in an English voice, pace and pitch that `rng` chooses.

    Raises MmdataError where espeak-ng is missing or fails.
    """
    pace, pitch = rng.randint(*_WORDS_PER_MINUTE), rng.randint(*_PITCH)
    command = [PROGRAM, "-v", rng.choice(VOICES), "-s", str(pace), "-p", str(pitch), "--stdout", "--", text]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT_S)
    except FileNotFoundError:
        raise MmdataError(f"speech needs the program {PROGRAM}: apt-get install espeak-ng, or ask for tones") from None
    except subprocess.CalledProcessError as error:
        raise MmdataError(f"{PROGRAM} failed: {error.stderr.decode(errors='replace').strip()}") from None
    return _wav(decode_mono(done.stdout, _MAX_SPEECH_S))


def melody_wav(phrases: list[tuple[int, str, str]], rng: Random) -> bytes:
    """The melody of shapes given as (number of the colour, kind, size), as loud as `rng` chooses."""
    import numpy as np

    rest_T = np.zeros(round(_REST_S * SCORING_RATE_HZ), np.float32)
    parts = [part for phrase in phrases for part in (*_phrase(*phrase), rest_T)]
    return _wav(np.concatenate(parts) * np.float32(rng.uniform(*_LOUDNESS)))


def pitch_hz(colour_number: int, size: str) -> float:
    """The pitch that stands for a colour and a size."""
    octave, degree = divmod(colour_number, len(_MAJOR_SEMITONES))
    octaves_up = octave + (size == "small")
    return float(_C4_HZ * 2 ** (octaves_up + _MAJOR_SEMITONES[degree] / 12))


def _phrase(colour_number: int, kind: str, size: str) -> list[Audio]:
    return [_note(pitch_hz(colour_number, size), seconds) for seconds in _RHYTHMS_S[kind]]


def _note(hz: float, seconds: float) -> Audio:
    """A sine that fades in and out, so that notes of one pitch stay apart."""
    import numpy as np

    time_T = np.arange(round(seconds * SCORING_RATE_HZ)) / SCORING_RATE_HZ
    fade_T = np.minimum(1, np.minimum(time_T, seconds - time_T) / _FADE_S)
    return np.asarray(np.sin(2 * np.pi * hz * time_T) * fade_T, np.float32)


def _wav(audio_T: Audio) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SCORING_RATE_HZ)
        file.writeframes((audio_T.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()
