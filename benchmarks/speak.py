"""Synthesizes the ten digits with espeak-ng and writes their spectrograms: kd_lightning/data/files/speech/digits.npz.

pip install 'kd-lightning[speech]'; python -m benchmarks.speak

Every word is synthetic: the voices of the synthesizer stand in for speakers. The file has log-mel spectrograms, by
librosa, of each digit by each speaker: 32 mel bands and 32 frames over one second, the loudest 80 dB in 256 steps.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).parent.parent / "kd_lightning/data/files/speech/digits.npz"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en", "en-us", "en-gb-scotland")
PACE = (130, 175)  # words a minute
PITCH = (35, 60)
SEEN = [*(f"m{i}" for i in range(1, 6)), *(f"f{i}" for i in range(1, 4))]
SEEN += ["Andy", "Annie", "Gene", "Denis", "linda", "ed", "john", "klatt2"]
UNSEEN = ["m6", "m7", "m8", "f4", "f5", "belinda", "steph", "robert"]
BANDS = 32
SECONDS = 1.0


class Speaker:
    """espeak-ng, loaded into this process."""

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate: int = self.library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0)
        self.heard: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.listen = kind(self._listen)  # kept, because the library calls it later
        self.library.espeak_SetSynthCallback(self.listen)

    def say(self, word: str, voice: str, pace: int, pitch: int) -> np.ndarray:
        """Synthesize a text: samples in [-1, 1]."""
        self.heard.clear()
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"there is no voice {voice!r}")
        self.library.espeak_SetParameter(1, pace, 0)
        self.library.espeak_SetParameter(3, pitch, 0)
        text = word.encode()
        self.library.espeak_Synth(text, len(text) + 1, 0, 1, 0, 1, None, None)
        self.library.espeak_Synchronize()
        return np.concatenate(self.heard).astype(np.float32) / 2**15

    def _listen(self, sound: Any, count: int, events: Any) -> int:
        if sound and count > 0:
            self.heard.append(np.ctypeslib.as_array(sound, (count,)).copy())
        return 0


def spectrogram(sound: np.ndarray, rate: int) -> np.ndarray:
    """Compute the log-mel spectrogram of the first second, uint8 (bands, frames)."""
    import librosa

    length = int(SECONDS * rate)
    padded = np.zeros(length, dtype=np.float32)
    padded[: min(length, len(sound))] = sound[:length]
    power = librosa.feature.melspectrogram(y=padded, sr=rate, n_fft=1024, hop_length=length // BANDS, n_mels=BANDS)
    decibels = librosa.power_to_db(power[:, :BANDS], ref=np.max, top_db=80)
    return np.round((decibels / 80 + 1) * 255).astype(np.uint8)


def main() -> None:
    speaker = Speaker()
    said: dict[str, np.ndarray] = {}
    for name, variants in (("seen", SEEN), ("unseen", UNSEEN)):
        manners = [(f"{a}+{v}", pace, pitch) for v in variants for a in ACCENTS for pace in PACE for pitch in PITCH]
        said[name] = np.stack(
            [np.stack([spectrogram(speaker.say(word, *how), speaker.rate) for how in manners]) for word in WORDS]
        )
        print(name, said[name].shape)
    PAGE.parent.mkdir(exist_ok=True)
    np.savez_compressed(PAGE, **said)
    print(PAGE, PAGE.stat().st_size)


if __name__ == "__main__":
    main()
