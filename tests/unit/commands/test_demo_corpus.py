# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The embedded corpus: what is in it, that a seed decides it, and that half of it never looks whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_tutornet.commands import demo_corpus as embedded
from nemo_tutornet.commands.demo_corpus import (
    SAMPLE_RATE,
    SPEAKERS,
    Espeak,
    Speaker,
    corpus_is_complete,
    write_corpus,
)
from nemo_tutornet.data.manifest import read_manifest
from nemo_tutornet.errors import TutorError

try:
    import espeakng_loader  # noqa: F401
except ImportError:
    HAS_ESPEAK = False
else:
    HAS_ESPEAK = True

needs_espeak = pytest.mark.skipif(
    not HAS_ESPEAK, reason="espeakng-loader is not installed (the extra named demo)"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus at its full size."""
    folder = tmp_path_factory.mktemp("embedded") / "corpus"
    write_corpus(folder)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrinks the corpus to one utterance per speaker."""
    monkeypatch.setattr(
        embedded, "UTTERANCES", {split: len(speakers) for split, speakers in SPEAKERS.items()}
    )


def rows_of(folder: Path) -> dict[str, list[dict]]:
    return {
        split: [
            json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for split in ("train", "valid", "test")
    }


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@needs_espeak
def test_splits_have_their_sizes_and_share_no_speaker(corpus: Path) -> None:
    rows = rows_of(corpus)
    speakers = {split: {row["speaker"] for row in rows[split]} for split in rows}
    assert {split: len(rows[split]) for split in rows} == {"train": 480, "valid": 60, "test": 100}
    assert {split: len(speakers[split]) for split in rows} == {"train": 12, "valid": 2, "test": 3}
    assert len(set.union(*speakers.values())) == 17


def test_no_two_splits_share_a_variant() -> None:
    variants = [
        variant
        for speakers in SPEAKERS.values()
        for variant in {speaker.voice.partition("+")[2] for speaker in speakers}
    ]
    assert len(variants) == len(set(variants)) == 17


@needs_espeak
def test_texts_are_short_commands_of_a_small_vocabulary(corpus: Path) -> None:
    rows = rows_of(corpus)
    texts = {split: [row["text"] for row in rows[split]] for split in rows}
    words = {split: {word for text in texts[split] for word in text.split()} for split in rows}
    for text in (text for split in texts for text in texts[split]):
        assert set(text) <= set("abcdefghijklmnopqrstuvwxyz' ")
        assert 2 <= len(text.split()) <= 6
    assert 30 <= len(words["train"]) <= 60
    assert words["valid"] | words["test"] <= words["train"]
    assert len(set(texts["train"])) > 100


@needs_espeak
def test_files_are_audible_16_khz_mono_and_as_long_as_their_rows_say(corpus: Path) -> None:
    for rows in rows_of(corpus).values():
        for row in rows:
            info = soundfile.info(str(corpus / row["audio_filepath"]))
            assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16")
            assert info.duration == row["duration"]
            assert 1 <= row["duration"] <= 3
            samples, _ = soundfile.read(corpus / row["audio_filepath"])
            assert 0.05 < np.abs(samples).max() < 1


@needs_espeak
def test_the_speech_stands_out_of_its_noise(corpus: Path) -> None:
    """The middle of each file is louder than its first 0.1 s, which are noise alone, by 10 to 30 dB or so."""
    contrast = []
    for row in rows_of(corpus)["train"]:
        samples, _ = soundfile.read(corpus / row["audio_filepath"])
        edge, power = np.mean(samples[:1600] ** 2), np.mean(samples**2)
        contrast.append(10 * np.log10(power / edge))
    assert 10 < np.median(contrast) < 30
    assert min(contrast) > 5
    assert max(contrast) - min(contrast) > 10


@needs_espeak
def test_the_manifests_are_ones_that_the_package_reads(corpus: Path) -> None:
    assert corpus_is_complete(corpus)
    assert len(read_manifest(corpus / "valid.jsonl", shortest=0.04)) == 60


@needs_espeak
def test_every_corpus_has_the_same_bytes_and_every_recording_its_own(tmp_path: Path, small: None) -> None:
    for name in ("first", "second"):
        write_corpus(tmp_path / name)
    first = bytes_of(tmp_path / "first")
    assert first == bytes_of(tmp_path / "second")
    assert len(set(first.values())) == len(first)


@needs_espeak
def test_progress_counts_to_the_end(tmp_path: Path, small: None) -> None:
    seen: list[tuple] = []
    write_corpus(tmp_path / "corpus", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 17) for done in range(1, 18)]


@needs_espeak
@pytest.mark.parametrize("last", [1, 12, 13, 17])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, small: None, last: int) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path / "corpus", progress=interrupt)
    assert not corpus_is_complete(tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []
    write_corpus(tmp_path / "corpus")
    assert corpus_is_complete(tmp_path / "corpus")


@needs_espeak
@pytest.mark.parametrize("lost", ["test.jsonl", "train.jsonl", "audio/valid/0001.wav"])
def test_a_corpus_that_lost_a_file_is_not_complete(tmp_path: Path, small: None, lost: str) -> None:
    write_corpus(tmp_path)
    assert corpus_is_complete(tmp_path)
    (tmp_path / lost).unlink()
    assert not corpus_is_complete(tmp_path)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("mine", encoding="utf-8")
    with pytest.raises(TutorError, match="is not an empty folder"):
        write_corpus(tmp_path)
    with pytest.raises(TutorError, match="is not an empty folder"):
        write_corpus(tmp_path / "train.jsonl")
    assert bytes_of(tmp_path) == {"train.jsonl": b"mine"}


@needs_espeak
@pytest.mark.parametrize("voice", ["no-such-accent", "no-such-accent+f1", "en-us+no_such_variant", "en-us+"])
def test_an_unknown_voice_is_refused_and_not_replaced_by_the_last(voice: str) -> None:
    espeak = Espeak()
    espeak.speak("call mum", SPEAKERS["train"][0])
    with pytest.raises(TutorError, match="no voice"):
        espeak.speak("call mum", Speaker(voice, words_per_minute=170, pitch=50, intonation=50))


@needs_espeak
def test_speakers_differ_in_spectrum_and_rate() -> None:
    def spectrum(speaker: Speaker, espeak: Espeak) -> np.ndarray:
        """Log power in nine bands, its mean removed, `[9]` dB."""
        power = np.abs(np.fft.rfft(espeak.speak("open the garden window please", speaker), n=1 << 17)) ** 2
        edges = (
            np.array([150, 300, 500, 750, 1000, 1500, 2200, 3000, 4000, 6000])
            * (1 << 17)
            // espeak.sample_rate
        )
        bands = 10 * np.log10(np.add.reduceat(power, edges)[:-1])
        return bands - bands.mean()

    espeak = Espeak()
    speakers = [
        speaker._replace(words_per_minute=175, pitch=50) for split in SPEAKERS.values() for speaker in split
    ]
    spectra = [spectrum(speaker, espeak) for speaker in speakers]
    repeat = max(
        np.abs(spectrum(speaker, espeak) - spectra[number]).max() for number, speaker in enumerate(speakers)
    )
    between = min(np.abs(one - two).max() for number, one in enumerate(spectra) for two in spectra[:number])
    assert between > 2 * repeat
    slow, fast = (
        espeak.speak("open the garden window please", speakers[0]._replace(words_per_minute=rate))
        for rate in (140, 220)
    )
    assert len(slow) > 1.3 * len(fast)


def test_without_the_package_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(TutorError, match=r'pip install "nemo_tutornet\[demo\]"'):
        write_corpus(tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []
