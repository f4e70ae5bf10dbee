# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The demo's speech corpus: voice commands, synthesised with espeak-ng, so that the demo downloads no data.

The corpus shows that the pipeline works. The voices of one synthesizer do not show how well a model
recognises people.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from nemo_tutornet.data.manifest import read_manifest
from nemo_tutornet.errors import TutorError
from nemo_tutornet.utils.files import expand_user
from nemo_tutornet.utils.full_disk import name_full_disk
from nemo_tutornet.utils.leftovers import locked_temporary_folder, remove_leftovers

SAMPLE_RATE = 16000  # Hz, of the files
UTTERANCES = {"train": 480, "valid": 60, "test": 100}
_SEED = 0  # of the sentences and of the recordings


class Speaker(NamedTuple):
    """One voice of the corpus.

    Attributes:
        voice: espeak-ng's name of the voice, accent+variant; also the speaker's name in the manifests.
        words_per_minute: speed.
        pitch: 0 to 100; 50 is the variant's own pitch.
        intonation: 0 (monotone) to 100; 50 is the variant's own intonation.
    """

    voice: str
    words_per_minute: int
    pitch: int
    intonation: int


# Variants with clearly different spectra and pitch; no variant is in two splits. Variants with a Klatt
# synthesizer are left out, because they draw from the C library's rand(), whose state the whole process
# shares.
SPEAKERS: dict[str, tuple[Speaker, ...]] = {
    "train": (
        Speaker("en-us+m1", words_per_minute=170, pitch=45, intonation=50),
        Speaker("en-us+f1", words_per_minute=185, pitch=50, intonation=60),
        Speaker("en-gb-scotland+m4", words_per_minute=155, pitch=60, intonation=40),
        Speaker("en-gb-x-rp+f2", words_per_minute=165, pitch=42, intonation=75),
        Speaker("en-us-nyc+m7", words_per_minute=200, pitch=55, intonation=70),
        Speaker("en-029+Andrea", words_per_minute=160, pitch=40, intonation=50),
        Speaker("en-gb-x-gbclan+m2", words_per_minute=190, pitch=35, intonation=30),
        Speaker("en-us+croak", words_per_minute=160, pitch=50, intonation=50),
        Speaker("en+f5", words_per_minute=205, pitch=55, intonation=45),
        Speaker("en-us+ed", words_per_minute=180, pitch=65, intonation=65),
        Speaker("en-gb-x-gbcwmd+norbert", words_per_minute=195, pitch=45, intonation=80),
        Speaker("en-us+whisper", words_per_minute=152, pitch=50, intonation=50),
    ),
    "valid": (
        Speaker("en-us+m6", words_per_minute=180, pitch=60, intonation=55),
        Speaker("en-gb-scotland+f3", words_per_minute=170, pitch=45, intonation=50),
    ),
    "test": (
        Speaker("en-us+m8", words_per_minute=175, pitch=58, intonation=45),
        Speaker("en-gb-x-rp+f4", words_per_minute=190, pitch=58, intonation=60),
        Speaker("en-029+paul", words_per_minute=165, pitch=52, intonation=70),
    ),
}

_COMMANDS = (
    "turn the {room} {device} {switch}",
    "turn {switch} the {device} {when}",
    "is the {room} {device} {switch}",
    "set a timer for {units} minutes",
    "set timer for {tens} {units} minutes",
    "wake me at {units} {tens}",
    "call {name}",
    "call {name} {when}",
    "play some {style} music",
    "play {style} music {day}",
    "what's the weather {day}",
    "what's the time",
    "{move} the {room} {opening}",
    "don't {move} the {opening} {when}",
    "stop the music",
)
_WORDS = {
    "room": ("kitchen", "bedroom", "garden"),
    "device": ("light", "heater", "radio", "fan"),
    "switch": ("on", "off"),
    "when": ("now", "please"),
    "units": ("two", "three", "five", "seven", "eight", "nine"),
    "tens": ("twenty", "thirty", "forty", "fifty"),
    "name": ("mum", "anna", "david"),
    "style": ("jazz", "rock"),
    "day": ("today", "tomorrow"),
    "move": ("open", "close"),
    "opening": ("door", "window"),
}

# Constants of espeak-ng's speak_lib.h
_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """An instance of espeak-ng with its own global state.

    The library keeps globals that neither a new voice nor espeak_Terminate resets, so the second synthesis of
    a sentence differs from the first. Each instance therefore loads its own copy of the library file, with
    fresh globals. It does not affect other users of espeak-ng in the process.

    Attributes:
        sample_rate: samples per second of the synthesised audio.

    Raises:
        TutorError: espeakng-loader is not installed, or its library does not load.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise TutorError(
                "the embedded corpus needs espeak-ng (GPL-3); install it with: pip install "
                '"nemo_tutornet[demo]"'
            ) from None
        self._data = Path(espeakng_loader.get_data_path())
        # Linux and macOS keep a loaded library after its file is deleted; Windows refuses the deletion.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                self._library = ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), folder))
            except OSError as error:
                raise TutorError(
                    f"espeak-ng does not load ({error}); set TMPDIR to a folder that allows executable files "
                    "or reinstall espeakng-loader."
                ) from None
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self.sample_rate = self._library.espeak_Initialize(
            _SYNCHRONOUS, 0, os.fsencode(self._data), _DONT_EXIT
        )
        if self.sample_rate <= 0:
            raise TutorError(
                f"espeak-ng cannot read its data in {self._data}; reinstall espeakng-loader in a place where "
                "that path has fewer than 160 characters."
            )
        self._library.espeak_ng_SetRandSeed(0)  # the default seed is the clock
        self._blocks: list[bytes] = []
        self._callback = _Callback(self._append_block)  # the library keeps no reference to it
        self._library.espeak_SetSynthCallback(self._callback)

    def _append_block(self, samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            self._blocks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def speak(self, text: str, speaker: Speaker) -> np.ndarray:
        """Synthesises a sentence.

        Args:
            text: the sentence.
            speaker: the voice.

        Returns:
            Samples `[T]`, float32, -1 to 1, at `sample_rate`.

        Raises:
            TutorError: espeak-ng has no such voice.
        """
        # For an unknown accent espeak-ng keeps the previous voice; an unknown variant it ignores silently.
        _, plus, variant = speaker.voice.partition("+")
        known = not plus or (self._data / "voices" / "!v" / variant).is_file()
        if not known or self._library.espeak_SetVoiceByName(speaker.voice.encode()) != 0:
            raise TutorError(f"this espeak-ng has no voice {speaker.voice}; install a newer espeakng-loader.")
        for parameter, value in (
            (_RATE, speaker.words_per_minute),
            (_PITCH, speaker.pitch),
            (_RANGE, speaker.intonation),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._blocks.clear()
        data = text.encode()
        if self._library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None) != 0:
            raise RuntimeError(f"espeak-ng could not synthesise {text!r}")
        self._library.espeak_Synchronize()
        return np.frombuffer(b"".join(self._blocks), dtype=np.int16).astype(np.float32) / 32768


def write_corpus(folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes the corpus: `train.jsonl`, `valid.jsonl`, `test.jsonl`, and 16 kHz mono WAV files in `audio/`.

    No speaker is in two splits, but sentences may be. The folder appears once all files are written. The same
    version of espeak-ng gives the same bytes each time.

    Args:
        folder: the folder to create; it may exist if it is empty.
        progress: called after each utterance with the number of finished utterances and of all utterances.

    Raises:
        TutorError: the folder is not empty, or espeak-ng is missing.
    """
    folder = expand_user(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TutorError(
            f"{folder} is not an empty folder; give an empty or new folder for the embedded corpus, or "
            "remove it."
        )
    espeak = Espeak()
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    stem = f"{folder.name[:50]}."
    with name_full_disk(folder), locked_temporary_folder(folder.parent, stem) as temporary:
        root = temporary / "corpus"  # only the owner may read a temporary folder itself
        done = 0
        for number, (split, count) in enumerate(UTTERANCES.items()):
            rng = np.random.default_rng([_SEED, number])
            (root / "audio" / split).mkdir(parents=True)
            rows = []
            for index in range(count):
                name = f"audio/{split}/{index:04d}.wav"
                rows.append(_write_utterance(root, name, split, index, espeak, rng))
                done += 1
                if progress is not None:
                    progress(done, sum(UTTERANCES.values()))
            (root / f"{split}.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
            )
        os.replace(root, folder)


def corpus_is_complete(folder: Path) -> bool:
    """Tells whether the three manifests exist and every audio file in them is readable."""
    folder = expand_user(folder)
    try:
        return all(read_manifest(folder / f"{split}.jsonl") for split in UTTERANCES)
    except TutorError:
        return False


def _write_utterance(
    root: Path, name: str, split: str, index: int, espeak: Espeak, rng: np.random.Generator
) -> dict[str, object]:
    """Synthesises and writes one file, and returns its manifest row."""
    text = _sentence(rng)
    speaker = SPEAKERS[split][index % len(SPEAKERS[split])]
    varied = speaker._replace(
        words_per_minute=speaker.words_per_minute + int(rng.integers(-12, 13)),
        pitch=speaker.pitch + int(rng.integers(-8, 9)),
    )
    speech = soxr.resample(espeak.speak(text, varied), espeak.sample_rate, SAMPLE_RATE)
    recording = _record(speech, rng)
    soundfile.write(root / name, recording, SAMPLE_RATE, subtype="PCM_16")
    return {
        "audio_filepath": name,
        "duration": len(recording) / SAMPLE_RATE,
        "text": text,
        "speaker": speaker.voice,
    }


def _sentence(rng: np.random.Generator) -> str:
    """Draws a voice command of two to six words."""
    command = _COMMANDS[rng.integers(len(_COMMANDS))]
    return command.format(**{slot: words[rng.integers(len(words))] for slot, words in _WORDS.items()})


def _record(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Makes speech `[T]` sound like a recording in a room.

    The noise is between white and pink, 10 to 30 dB below the speech. The peak is at -20 to -1 dB. On each
    side of the speech are 0.1 to 0.3 s of noise, and more where the utterance would be shorter than a second.
    """
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max())
    speech = speech[loud[0] : loud[-1] + 1]
    level = np.sqrt(np.mean(np.square(speech)))
    before, after = (int(seconds * SAMPLE_RATE) for seconds in rng.uniform(0.1, 0.3, size=2))
    mixture = np.pad(speech, (before, max(after, SAMPLE_RATE - before - len(speech))))
    mixture = mixture + _noise(len(mixture), rng) * level * 10 ** (-rng.uniform(10, 30) / 20)
    return mixture * (10 ** (rng.uniform(-20, -1) / 20) / np.abs(mixture).max())


def _noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """Draws Gaussian noise `[length]` of unit power; it falls by 0 (white) to 3 dB (pink) per octave."""
    size = 1 << length.bit_length()  # a Fourier transform of a power of two is fast
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum[0] = 0
    spectrum[1:] *= np.arange(1, len(spectrum)) ** (-rng.uniform(0, 1) / 2)
    noise = np.fft.irfft(spectrum, size)[:length]
    return noise / np.sqrt(np.mean(np.square(noise)))
