# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""`.nemo` files are untrusted input: damaged ones are refused in one sentence, other classes too; and what
leaves of a config.
"""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from nemo.collections.asr.parts.submodules.ctc_decoding import CTCDecodingConfig
from omegaconf import DictConfig, OmegaConf

from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.archive import NemoArchive, sha256_of_model
from nemo_tutornet.nemo_io.stock_config import STOCK_BPE, STOCK_CHAR, check_teacher, ctc_class, stock_config
from tests.conftest import refusal

CONFIG = f"target: {STOCK_CHAR}\nsample_rate: 16000\n".encode()
WEIGHTS = random.Random(0).randbytes(3000)


def write_tar(path: Path, *members: tuple, mode: str = "w") -> Path:
    """Writes an archive of (name, content) or (name, kind of member, link)."""
    with tarfile.open(path, mode) as archive:
        for name, content, *link in members:
            info = tarfile.TarInfo(name)
            if link:
                info.type, info.linkname = content, link[0]
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def nemo_file(folder: Path, config: bytes = CONFIG, mode: str = "w") -> Path:
    return write_tar(
        folder / "m.nemo", ("./model_config.yaml", config), ("./model_weights.ckpt", WEIGHTS), mode=mode
    )


# --- The config


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("name", ["./model_config.yaml", "model_config.yaml"])
def test_the_config_is_read_from_the_archive(tmp_path: Path, mode: str, name: str) -> None:
    path = write_tar(tmp_path / "m.nemo", ("./model_weights.ckpt", WEIGHTS), (name, CONFIG), mode=mode)
    assert NemoArchive(path).config == {"target": STOCK_CHAR, "sample_rate": 16000}


def test_the_config_is_read_from_a_folder(tmp_path: Path) -> None:
    assert "model_config.yaml" in refusal(NemoArchive, tmp_path)
    (tmp_path / "model_config.yaml").write_bytes(CONFIG)
    assert NemoArchive(tmp_path).config.target == STOCK_CHAR


def test_a_folder_has_a_sha256_of_its_content(tmp_path: Path) -> None:
    """So that the targets of one teacher are not taken for those of another in the same folder."""
    (tmp_path / "model_config.yaml").write_bytes(CONFIG)
    (tmp_path / "model_weights.ckpt").write_bytes(WEIGHTS)
    found = {sha256_of_model(tmp_path)}
    assert NemoArchive(tmp_path).sha256 in found
    (tmp_path / "model_weights.ckpt").write_bytes(WEIGHTS[:-1] + b"?")
    found.add(sha256_of_model(tmp_path))
    (tmp_path / "model_weights.ckpt").rename(tmp_path / "other.ckpt")
    found.add(sha256_of_model(tmp_path))
    assert len(found) == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "no.nemo") in refusal(NemoArchive, tmp_path / "no.nemo")


def test_a_truncated_archive_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole, cut = nemo_file(tmp_path).read_bytes(), tmp_path / "cut.nemo"
    # Two headers, one block of config, the weights; then zeros to the end.
    end = 3 * 512 + -(-len(WEIGHTS) // 512) * 512
    assert any(whole[:end]) and not any(whole[end:])
    for size in sorted(
        {*range(0, end, 97), *range(0, end + 1, 512), *range(1, end, 512), end - 1, end + 511}
    ):
        cut.write_bytes(whole[:size])
        assert str(cut) in refusal(NemoArchive, cut), f"cut at {size}"
    cut.write_bytes(whole[: end + 512])
    assert NemoArchive(cut).config.target == STOCK_CHAR


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_a_truncated_compressed_archive_is_refused(tmp_path: Path, mode: str) -> None:
    whole, cut = nemo_file(tmp_path, mode=mode).read_bytes(), tmp_path / "cut.nemo"
    for size in range(0, len(whole) * 9 // 10, 61):
        cut.write_bytes(whole[:size])
        assert str(cut) in refusal(NemoArchive, cut), f"cut at {size}"


def test_a_cut_in_the_weights_is_called_a_cut(tmp_path: Path) -> None:
    path = nemo_file(tmp_path)
    path.write_bytes(path.read_bytes()[: 3 * 512 + 1500])
    assert "truncated" in refusal(NemoArchive, path)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\0" * 5000, b"PK\x03\x04" + WEIGHTS, gzip.compress(b"hello"), WEIGHTS],
    ids=["empty", "text", "zeros", "zip", "gzip of text", "random"],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.nemo"
    path.write_bytes(content)
    assert str(path) in refusal(NemoArchive, path)


def test_a_lightning_checkpoint_is_sent_to_export(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "run.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert "run.ckpt is no .nemo file; make one of a run's .ckpt with `nemo-tutornet export`" in refusal(
        NemoArchive, tmp_path / "run.ckpt"
    )


def test_an_archive_without_a_config_is_refused(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "m.nemo", ("./model_weights.ckpt", WEIGHTS), ("./other/model_config.yaml", CONFIG)
    )
    assert "holds no model_config.yaml" in refusal(NemoArchive, path)


@pytest.mark.parametrize(
    "kind, link",
    [
        (tarfile.DIRTYPE, ""),
        (tarfile.FIFOTYPE, ""),
        (tarfile.SYMTYPE, "nowhere"),
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "no"),
    ],
)
def test_a_config_that_is_no_file_is_refused(tmp_path: Path, kind: bytes, link: str) -> None:
    path = write_tar(
        tmp_path / "m.nemo", ("./model_config.yaml", kind, link), ("./model_weights.ckpt", WEIGHTS)
    )
    assert str(path) in refusal(NemoArchive, path)


@pytest.mark.parametrize(
    "config",
    [
        b"\xff\xfe\x00",  # not UTF-8
        b"a: [1\n",
        b"a: b: c\n",
        b"a: \x00\n",
        b"a: 1\na: 2\n",
        b"- a\n- b\n",
        b"3\n",
        b"target: ${bad\n",
        b"a: !!python/name:os.system\n",
    ],
)
@pytest.mark.parametrize("unpacked", [False, True])
def test_a_config_that_is_no_mapping_is_refused(tmp_path: Path, config: bytes, unpacked: bool) -> None:
    path = nemo_file(tmp_path, config)
    if unpacked:
        path = tmp_path / "folder"
        path.mkdir()
        (path / "model_config.yaml").write_bytes(config)
    assert str(path) in refusal(NemoArchive, path)


def test_a_config_runs_nothing(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    path = nemo_file(tmp_path, f"a: !!python/object/apply:os.system ['touch {proof}']\n".encode())
    refusal(NemoArchive, path)
    assert not proof.exists()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_a_damaged_archive_never_raises_anything_else(tmp_path: Path, mode: str) -> None:
    whole, damaged, chance = (
        nemo_file(tmp_path, mode=mode).read_bytes(),
        tmp_path / "d.nemo",
        random.Random(1),
    )
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(chance.choice([1, 8, 64])):
            content[chance.randrange(min(len(content), 2000))] = chance.randrange(256)
        damaged.write_bytes(content)
        try:
            assert isinstance(NemoArchive(damaged).config, DictConfig)
        except TutorError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 10


# --- ctc_class


@pytest.mark.parametrize(
    "target, stock",
    [
        (STOCK_CHAR, STOCK_CHAR),
        (STOCK_BPE, STOCK_BPE),
        ("nemo.collections.asr.models.EncDecCTCModel", STOCK_CHAR),
        ("nemo.collections.asr.models.EncDecCTCModelBPE", STOCK_BPE),
    ],
)
def test_the_stock_class_is_known_by_both_its_names(target: str, stock: str) -> None:
    assert ctc_class(OmegaConf.create({"target": target}), Path("t.nemo"), "a teacher") == stock


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target": None},
        {"target": "nemo.collections.asr.models.EncDecRNNTBPEModel"},
        {"target": "nemo.collections.asr.models.hybrid_rnnt_ctc_bpe_models.EncDecHybridRNNTCTCBPEModel"},
        {"target": "nemo.collections.tts.models.EncDecCTCModel"},
        {"target": "evil.nemo.collections.asr.models.EncDecCTCModel"},
        {"target": "EncDecCTCModel"},
        {"target": "nemo.collections.asr.models.encdecctcmodel"},
        {"target": ["nemo.collections.asr.models.EncDecCTCModel"]},
        {"target": "${nowhere}"},
    ],
)
def test_any_other_class_is_refused(config: Any) -> None:
    message = refusal(ctc_class, OmegaConf.create(config), Path("some/t.nemo"), "a teacher")
    assert "some/t.nemo" in message and "a teacher must be a NeMo CTC recogniser" in message
    target = config.get("target")
    if isinstance(target, str) and "$" not in target:
        assert target in message


KINDS = "CTCModel CTCModelBPE HybridRNNTCTCModel HybridRNNTCTCBPEModel RNNTModel RNNTBPEModel"


@pytest.mark.parametrize("name", [f"EncDec{kind}" for kind in KINDS.split()])
def test_every_recogniser_with_frames_can_teach(name: str) -> None:
    check_teacher(OmegaConf.create({"target": f"nemo.collections.asr.models.{name}"}), Path("t.nemo"))


@pytest.mark.parametrize(
    "target", ["nemo.collections.asr.models.EncDecTransfModelBPE", "evil.EncDecRNNTModel", "${nowhere}", None]
)
def test_no_other_class_can_teach(target: Any) -> None:
    message = refusal(check_teacher, OmegaConf.create({"target": target}), Path("some/t.nemo"))
    assert "some/t.nemo" in message and "a teacher must be a NeMo recogniser" in message


# --- stock_config


def student_config() -> DictConfig:
    config = {
        "target": "nemo.collections.asr.models.EncDecCTCModel",
        "sample_rate": 16000,
        "tutor": {"teacher": {"model_path": "/home/me/t.nemo"}},
        "train_ds": {
            "manifest_filepath": "/home/me/a.jsonl",
            "sample_rate": "${sample_rate}",
            "batch_size": 8,
        },
        "validation_ds": {"manifest_filepath": ["/home/me/b.jsonl", "/home/me/c.jsonl"], "shuffle": False},
        "test_ds": {
            "manifest_filepath": "???",
            "tarred_audio_filepaths": "/home/me/a.tar",
            "input_cfg": "/home/me/i.yaml",
            "shar_path": "/home/me/shar",
            "cuts_path": "/home/me/cuts.jsonl",
        },
        "encoder": {"feat_in": 64, "jasper": [{"filters": 256}]},
        "optim": {"name": "novograd", "lr": 0.01},
        "decoding": {
            "strategy": "greedy",
            "beam": {"kenlm_path": "/home/me/lm.bin", "flashlight_cfg": {"lexicon_path": "/home/me/l"}},
        },
    }
    return OmegaConf.create(config)


def test_a_students_config_leaves_without_the_tutor_and_without_paths() -> None:
    stock = stock_config(student_config())
    assert "tutor" not in stock
    assert stock.target == STOCK_CHAR
    assert "/home/me" not in OmegaConf.to_yaml(stock)
    assert stock.train_ds == {"manifest_filepath": None, "sample_rate": 16000, "batch_size": 8}
    assert stock.validation_ds == {"manifest_filepath": None, "shuffle": False}
    assert set(stock.test_ds.values()) == {None}
    assert stock.decoding == {
        "strategy": "greedy",
        "beam": {"kenlm_path": None, "flashlight_cfg": {"lexicon_path": None}},
    }
    assert stock.encoder == student_config().encoder and stock.optim == student_config().optim


def test_nemos_own_decoding_names_no_file() -> None:
    config, decoding = student_config(), OmegaConf.to_container(OmegaConf.structured(CTCDecodingConfig()))
    assert isinstance(decoding, dict)
    for section in (decoding["greedy"], decoding["beam"]):
        section.update(ngram_lm_model="/home/me/lm.arpa")
        section["boosting_tree"].update(model_path="/home/me/b.nemo", key_phrases_file="/home/me/phrases.txt")
    decoding["beam"].update(
        kenlm_path="/home/me/lm.bin",
        flashlight_cfg={"lexicon_path": "/home/me/l", "boost_path": "/home/me/b"},
    )
    decoding["wfst"].update(arpa_lm_path="/home/me/lm.arpa", wfst_lm_path="/home/me/lm.fst")
    config.decoding = decoding
    stock = stock_config(config)
    assert "/home/me" not in OmegaConf.to_yaml(stock)
    assert stock.decoding.beam.beam_size == decoding["beam"]["beam_size"]


def test_no_tokenizer_names_its_folder() -> None:
    config = student_config()
    config.tokenizer = {"dir": "/home/me/a", "type": "BPE", "model_path": "nemo:a_tokenizer.model"}
    assert stock_config(config).tokenizer == {
        "dir": "",
        "type": "bpe",
        "model_path": "nemo:a_tokenizer.model",
    }
    config.tokenizer = {
        "type": "agg",
        "langs": {"en": {"dir": "/home/me/a", "type": "bpe"}, "de": {"dir": "", "type": "WPE"}},
    }
    assert stock_config(config).tokenizer == {
        "type": "agg",
        "langs": {"en": {"dir": "", "type": "bpe"}, "de": {"dir": "", "type": "wpe"}},
    }


def test_paths_of_augmentation_leave_too() -> None:
    config = student_config()
    config.train_ds.augmentor = {
        "noise": {"manifest_path": "/home/me/noise.jsonl", "prob": 0.5},
        "rir_noise_aug": {
            "rir_manifest_path": "/home/me/r.jsonl",
            "noise_manifest_paths": ["/home/me/n.jsonl"],
            "noise_tar_filepaths": ["/home/me/n.tar"],
            "bg_noise_manifest_paths": ["home/me/b.jsonl"],
        },
    }
    config.train_ds.update(
        use_lhotse=True, noise_path="/home/me/musan.jsonl", rir_path="/home/me/rirs", noise_mix_prob=0.3
    )
    stock = stock_config(config)
    assert "home/me" not in OmegaConf.to_yaml(stock)
    assert stock.train_ds.noise_mix_prob == 0.3 and stock.train_ds.augmentor.noise.prob == 0.5


@pytest.mark.parametrize("read_only, struct", [(False, False), (True, True)])
def test_the_config_of_the_model_in_training_is_not_changed(read_only: bool, struct: bool) -> None:
    config = student_config()
    OmegaConf.set_readonly(config, read_only)
    OmegaConf.set_struct(config, struct)
    stock = stock_config(config)
    assert config == student_config()
    assert config.train_ds.manifest_filepath == "/home/me/a.jsonl"
    stock.encoder.jasper[0].filters = 1
    assert config.encoder.jasper[0].filters == 256


def test_interpolations_that_point_out_of_the_model_are_resolved() -> None:
    whole = OmegaConf.create(
        {
            "rate": 8000,
            "model": {"sample_rate": "${rate}", "train_ds": {"sample_rate": "${model.sample_rate}"}},
        }
    )
    stock = stock_config(whole.model)
    assert OmegaConf.to_container(stock, resolve=False)["train_ds"] == {"sample_rate": 8000}


def test_sections_may_be_absent_or_null() -> None:
    stock = stock_config(OmegaConf.create({"target": STOCK_CHAR, "train_ds": None}))
    assert stock == {"target": STOCK_CHAR, "train_ds": None}
    assert stock_config(
        OmegaConf.create({"target": STOCK_CHAR, "decoder": {"vocabulary": ["a"]}})
    ).labels == ["a"]
    # As change_vocabulary leaves it.
    changed = {"target": STOCK_CHAR, "labels": ["a"], "decoder": {"vocabulary": ["a", "é"]}}
    assert stock_config(OmegaConf.create(changed)).labels == ["a", "é"]
    subword = stock_config(OmegaConf.create({"target": STOCK_BPE, "validation_ds": None}))
    assert subword == {"target": STOCK_BPE, "validation_ds": {"manifest_filepath": None}}
