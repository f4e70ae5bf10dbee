# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Small untrained students for the check of the check, with the project's own environment.

    python make_students.py models FOLDER           a character and a BPE QuartzNet, as training leaves them, in FOLDER
    python make_students.py retarget STUDENT CLASS  the same file with another class in its config, beside it

`models` initialises `conf/small/quartznet_small.yaml` afresh. `retarget` makes what a careless export makes: a student whose
config names a class that Riva does not have.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

CONF = Path(__file__).resolve().parents[2] / "conf" / "small" / "quartznet_small.yaml"
TEXT = ("the quick brown fox jumps over the lazy dog", "sphinx of black quartz judge my vow", "pack my box with five dozen jugs")
PIECES = 48


def models(folder: Path) -> None:
    """Writes `char.nemo` and `bpe.nemo`."""
    import torch
    from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE
    from omegaconf import OmegaConf, open_dict

    char = OmegaConf.load(CONF).model
    for section in ("train_ds", "validation_ds", "test_ds", "tutor"):
        char.pop(section)
    bpe = char.copy()
    with open_dict(bpe):
        bpe.pop("labels")
        bpe.tokenizer = {"dir": str(tokenizer(folder / "tokenizer")), "type": "bpe"}
        bpe.decoder.update(num_classes=-1, vocabulary=[])
    torch.manual_seed(0)
    EncDecCTCModel(char).save_to(str(folder / "char.nemo"))
    EncDecCTCModelBPE(bpe).save_to(str(folder / "bpe.nemo"))


def tokenizer(folder: Path) -> Path:
    """A SentencePiece tokenizer as NeMo wants it, trained through memory: a file's path would stay in the model for good."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    trained = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 5), model_writer=trained, vocab_size=PIECES, model_type="bpe", minloglevel=2
    )
    pieces = SentencePieceProcessor(model_proto=trained.getvalue())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    (folder / "vocab.txt").write_text("".join(f"{pieces.id_to_piece(i)}\n" for i in range(PIECES)), encoding="utf-8")
    return folder


def retarget(student: Path, target: str) -> None:
    """Writes `CLASS.nemo` beside the student: the same archive, another `target`."""
    with tarfile.open(student) as source, tarfile.open(student.with_name(f"{target}.nemo"), "w") as copy:
        for member in source.getmembers():
            stream = source.extractfile(member)
            content = stream.read() if stream is not None else b""
            if member.name.endswith("model_config.yaml"):
                kept = [line for line in content.decode().splitlines() if not line.startswith("target:")]
                content = "\n".join([*kept, f"target: {target}", ""]).encode()
                member.size = len(content)
            copy.addfile(member, io.BytesIO(content) if stream is not None else None)


if __name__ == "__main__":
    if sys.argv[1] == "models":
        models(Path(sys.argv[2]))
    else:
        retarget(Path(sys.argv[2]), sys.argv[3])
