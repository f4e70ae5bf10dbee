# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes a subword teacher with long frames from a pretrained QuartzNet, Jasper or Citrinet.

    python benchmarks/results/subword_teacher.py quartznet15x5.nemo subwords.nemo --train few.jsonl --valid
    valid.jsonl

The pretrained encoder stays as it is. One more block multiplies its frames by `--stride`, and a decoder
writes subword pieces. Both are trained with CTC on the transcripts; the epoch with the lowest word error rate
on the validation set is kept. The result is a stock NeMo model.

Legend: `D` width of the pretrained encoder, `T` its frames.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import torch
import typer
from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE
from omegaconf import open_dict
from subwords import write_tokenizer
from torch import Tensor
from torch.nn import functional as F

from nemo_tutornet.data.audio_samples import read_samples
from nemo_tutornet.data.manifest import read_manifest
from nemo_tutornet.evaluation.error_rates import count_errors, sum_errors
from nemo_tutornet.functional.greedy import greedy_path

WIDTH, KERNEL, DROPOUT = 256, 5, 0.4
BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 16, 2e-3, 2e-2

Example = tuple[Tensor, str]


@torch.no_grad()
def encoded(model: Any, manifest: Path) -> list[Example]:
    """The output of the pretrained encoder `[D, T]` of each utterance, and its transcript."""
    examples = []
    for row in read_manifest(manifest):
        samples = torch.from_numpy(read_samples(row, model.preprocessor._sample_rate))[None]
        features, length = model.preprocessor(input_signal=samples, length=torch.tensor([samples.shape[1]]))
        hidden, length = model.encoder(audio_signal=features, length=length)
        examples.append((hidden[0, :, : int(length)], row.text or ""))
    return examples


def with_block(model: Any, stride: int, tokenizer: Path) -> Any:
    """A subword model with the pretrained encoder and one more block."""
    cfg = model.cfg.copy()
    block = {"filters": WIDTH, "repeat": 1, "kernel": [KERNEL], "stride": [stride], "dilation": [1]}
    block.update(dropout=DROPOUT, residual=False, separable=False)
    with open_dict(cfg):
        for name in ("train_ds", "validation_ds", "test_ds", "optim", "labels"):
            cfg.pop(name, None)
        cfg.encoder.jasper = [*cfg.encoder.jasper, block]
        cfg.decoder.update(feat_in=WIDTH, num_classes=-1, vocabulary=[])
        cfg.tokenizer = {"dir": str(tokenizer), "type": "bpe"}
        cfg.target = "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE"
    larger = EncDecCTCModelBPE(cfg=cfg)
    larger.encoder.load_state_dict(model.encoder.state_dict(), strict=False)
    return larger


def main(
    teacher: Path = typer.Argument(..., help="A pretrained character model."),
    output: Path = typer.Argument(..., help="The subword model to write."),
    train: Path = typer.Option(..., help="Manifest with transcripts."),
    valid: Path = typer.Option(..., help="Manifest that the epoch is selected on."),
    stride: int = typer.Option(4, help="Frames of the pretrained encoder in one of the new one."),
    epochs: int = typer.Option(60),
    seed: int = typer.Option(0),
) -> None:
    """Trains the block and the decoder, and writes the best epoch."""
    torch.manual_seed(seed)
    order = random.Random(seed)
    source = EncDecCTCModel.restore_from(str(teacher), map_location="cpu").eval()
    examples, held_out = encoded(source, train), encoded(source, valid)
    with tempfile.TemporaryDirectory() as folder:
        tokens = write_tokenizer(Path(folder), [text for _, text in examples])
        model = with_block(source, stride, tokens)
        block, decoder, tokenizer = model.encoder.encoder[-1], model.decoder, model.tokenizer
        parameters = [*block.parameters(), *decoder.parameters()]
        optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, (0.9, 0.98), weight_decay=WEIGHT_DECAY)
        steps = epochs * -(-len(examples) // BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.1)

        def log_probs(batch: list[Example]) -> tuple[Tensor, Tensor]:
            lengths = torch.tensor([hidden.shape[1] for hidden, _ in batch])
            padded = torch.zeros(len(batch), batch[0][0].shape[0], int(lengths.max()))
            for row, (hidden, _) in zip(padded, batch, strict=True):
                row[:, : hidden.shape[1]] = hidden
            hidden, lengths = block(([F.dropout(padded, DROPOUT, block.training)], lengths))
            return decoder(encoder_output=hidden[-1]), lengths

        best, kept = float("inf"), model.state_dict()
        for epoch in range(epochs):
            block.train()
            decoder.train()
            order.shuffle(examples)
            for i in range(0, len(examples), BATCH_SIZE):
                batch = examples[i : i + BATCH_SIZE]
                written, lengths = log_probs(batch)
                labels = [torch.tensor(tokenizer.text_to_ids(text)) for _, text in batch]
                sizes = torch.tensor([len(label) for label in labels])
                loss = F.ctc_loss(
                    written.transpose(0, 1),
                    torch.cat(labels),
                    lengths,
                    sizes,
                    blank=written.shape[2] - 1,
                    reduction="none",
                    zero_infinity=True,
                ).mean()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 5.0)
                optimizer.step()
                schedule.step()
            block.eval()
            decoder.eval()
            errors = []
            with torch.no_grad():
                for example in held_out:
                    path = greedy_path(log_probs([example])[0][0])
                    errors.append(count_errors(example[1], tokenizer.ids_to_text(path)))
            wer = sum_errors(errors).rate
            typer.echo(f"epoch {epoch + 1} of {epochs}: {100 * wer:.2f} % on validation")
            if wer < best:
                best, kept = wer, {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(kept)
        model.eval().save_to(str(output))
    typer.echo(f"{output}: {100 * best:.2f} % on validation")


if __name__ == "__main__":
    typer.run(main)
