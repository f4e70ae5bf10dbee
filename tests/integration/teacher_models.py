# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Small teachers that are no plain CTC models: a hybrid with a CTC head beside its transducer, a transducer
alone, and an attention model (Canary).

And one of every kind in the support matrix (`save_kind`), made to say something short without being trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import soundfile
import torch
from omegaconf import OmegaConf

from nemo_tutornet.data.dataloader import TrainingBatch
from nemo_tutornet.teachers.targets import TargetRequest
from tests.conftest import LABELS, SAMPLE_RATE, student_config, teacher_config
from tests.integration.models import matrix
from tests.integration.students import of_kind, write_tokenizer


def transducer_config(corpus: Path, labels: list[str] = LABELS) -> dict[str, Any]:
    """The Conformer of `teacher_config` with a prediction network and a joint."""
    config = teacher_config(corpus, labels)
    config.pop("decoder")
    return {
        **config,
        "model_defaults": {"enc_hidden": 24, "pred_hidden": 8, "joint_hidden": 8},
        "decoder": {
            "_target_": "nemo.collections.asr.modules.RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "prednet": {"pred_hidden": 8, "pred_rnn_layers": 1, "t_max": None, "dropout": 0.0},
        },
        "joint": {
            "_target_": "nemo.collections.asr.modules.RNNTJoint",
            "log_softmax": None,
            "preserve_memory": False,
            "fuse_loss_wer": False,
            "jointnet": {"joint_hidden": 8, "activation": "relu", "dropout": 0.0},
        },
        "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 3}},
        "loss": {"loss_name": "default"},
    }


def hybrid_config(corpus: Path, labels: list[str] = LABELS) -> dict[str, Any]:
    """That with a CTC head."""
    head = {**teacher_config(corpus, labels)["decoder"], "feat_in": 24}
    return {
        **transducer_config(corpus, labels),
        "aux_ctc": {
            "ctc_loss_weight": 0.3,
            "use_cer": False,
            "ctc_reduction": "mean_batch",
            "decoder": head,
            "decoding": {"strategy": "greedy"},
        },
    }


# Canary's special tokens, and two languages.
SPECIAL = [
    *("<|nospeech|>", "<pad>", "<|endoftext|>", "<|startoftranscript|>", "<|pnc|>", "<|nopnc|>"),
    *("<|en|>", "<|de|>", "<|transcribe|>", "<|translate|>", "<|startofcontext|>", "<|emo:undefined|>"),
    *("<|itn|>", "<|noitn|>", "<|notimestamp|>", "<|nodiarize|>"),
]
TEXT = "aa c\nbb d\nab cd\nabc d\n" * 20
CANARY = "nemo.collections.common.tokenizers.canary_tokenizer"


def canary_config(corpus: Path, tokenizer: Path, unified: bool = False) -> dict[str, Any]:
    """The Conformer of `teacher_config` with an attention decoder.

    Args:
        corpus: as for `teacher_config`.
        tokenizer: folder of the tokenizer of its text.
        unified: one tokenizer with the special tokens, as Canary-1b-v2 has, and not one for them and one for
            each language.
    """
    width, special = 16, tokenizer.parent / f"{tokenizer.name} special"
    config = teacher_config(corpus)
    del config["decoder"], config["labels"]
    if unified:
        sections = {"dir": str(write_special_tokenizer(special, TEXT)), "type": "bpe"}
    else:
        folders = {"spl_tokens": write_special_tokenizer(special), "en": tokenizer, "de": tokenizer}
        langs = {name: {"dir": str(folder), "type": "bpe"} for name, folder in folders.items()}
        sections = {"dir": None, "type": "agg", "langs": langs}
    custom = f"{CANARY}.{'CanaryBPETokenizer' if unified else 'CanaryTokenizer'}"
    return {
        **config,
        "prompt_format": "canary",
        "model_defaults": {"asr_enc_hidden": 24, "lm_enc_hidden": width, "lm_dec_hidden": width},
        "tokenizer": {**sections, "custom_tokenizer": {"_target_": custom, "tokenizers": None}},
        "transf_encoder": {
            "_target_": "nemo.collections.asr.modules.transformer.transformer_encoders.TransformerEncoder",
            "num_layers": 1,
            "hidden_size": width,
            "inner_size": 2 * width,
            "num_attention_heads": 2,
        },
        "transf_decoder": {
            "_target_": "nemo.collections.asr.modules.transformer.get_nemo_transformer",
            "model_name": None,
            "pretrained": False,
            "encoder": None,
            "pre_ln_final_layer_norm": True,
            "config_dict": {
                "max_sequence_length": 9,  # of which the prompt takes 5
                "num_token_types": 0,
                "hidden_size": width,
                "inner_size": 2 * width,
                "num_layers": 1,
                "num_attention_heads": 2,
                "pre_ln": True,
                "vocab_size": None,
            },
        },
        "head": {
            "_target_": "nemo.collections.asr.parts.submodules.token_classifier.TokenClassifier",
            "num_layers": 1,
            "activation": "relu",
            "log_softmax": True,
            "hidden_size": width,
            "num_classes": None,
        },
        "decoding": {"strategy": "beam", "beam": {"beam_size": 1}},
        "loss": {
            "_target_": "nemo.collections.common.losses.smoothed_cross_entropy.SmoothedCrossEntropyLoss",
            "label_smoothing": 0.0,
        },
    }


def write_special_tokenizer(folder: Path, text: str = "") -> Path:
    """A SentencePiece model of Canary's special tokens, and of the pieces of a text.

    Args:
        folder: the folder to write.
        text: the text.
    """
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(text or "\n".join(SPECIAL), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=len(SPECIAL) + (11 if text else 2),
        model_type="bpe" if text else "unigram",
        user_defined_symbols=SPECIAL,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    lines = (folder / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    pieces = [line.split("\t")[0] for line in lines]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    return folder


def _forget_last_restore() -> None:
    """Where another model was restored before, NeMo takes a new attention model for a part of its file."""
    from nemo.utils.app_state import AppState

    AppState().model_restore_path = None


def save_attention(corpus: Path, path: Path, kind: str = "canary", **changes: Any) -> Path:
    """Writes a freshly initialised attention model that says something short, in the letters of the tests.

    Args:
        corpus: folder with `train0.wav` and more, on which it speaks.
        path: the `.nemo` to write; its tokenizers are written beside it.
        kind: `canary` or `unified canary` (see `canary_config`).
        changes: of the config.
    """
    from nemo.collections.asr.models import EncDecMultiTaskModel

    _forget_last_restore()
    torch.manual_seed(0)
    tokenizer = write_tokenizer(path.parent / f"{path.stem} tokenizer")
    config = canary_config(corpus, tokenizer, unified=kind.startswith("unified"))
    model = EncDecMultiTaskModel(OmegaConf.create({**config, **changes}))
    waves = [torch.tensor(soundfile.read(corpus / f"train{i}.wav", dtype="float32")[0]) for i in range(4)]
    signals = (
        torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
        torch.tensor([len(wave) for wave in waves]),
    )
    with torch.no_grad():
        model.train()(input_signal=signals[0], input_signal_length=signals[1])
    _make_it_speak(model.eval(), signals)
    model.save_to(str(path))
    return path


def save(kind: str, corpus: Path, path: Path, labels: list[str] = LABELS) -> Path:
    """Writes a freshly initialised `hybrid` or `transducer`, with BatchNorm statistics that are not the
    initial ones.
    """
    from nemo.collections.asr.models import EncDecHybridRNNTCTCModel, EncDecRNNTModel

    torch.manual_seed(0)
    model_class, config = {
        "hybrid": (EncDecHybridRNNTCTCModel, hybrid_config),
        "transducer": (EncDecRNNTModel, transducer_config),
    }[kind]
    model = model_class(OmegaConf.create(config(corpus, labels)))
    with torch.no_grad():
        signal = torch.randn(4, SAMPLE_RATE)
        model.train()(
            input_signal=signal, input_signal_length=torch.tensor([SAMPLE_RATE] * 3 + [SAMPLE_RATE // 2])
        )
    model.eval().save_to(str(path))
    return path


# --- One of every kind in the support matrix

_FAST = {"subsampling": "dw_striding", "subsampling_factor": 8, "conv_kernel_size": 9}
# What the tests' transcripts are made of: a teacher that says nothing else is understood by students of every
# vocabulary.
_SPOKEN = set("abcd")
# Few: NeMo's configs hold them several times, and OmegaConf takes its time.
FEW_LABELS = [" ", *"abcde"]


def save_kind(
    kind: matrix.Teacher, corpus: Path, path: Path, tokenizer: Path, signals: tuple[Any, Any]
) -> Path:
    """Writes a freshly initialised teacher that says one to four letters on some utterances.

    Args:
        kind: which.
        corpus: as for `teacher_config`.
        path: the `.nemo` to write.
        tokenizer: folder of a subword teacher's tokenizer.
        signals: waveforms `[B, N]` and their lengths `[B]`.
    """
    from nemo.collections.asr import models

    _forget_last_restore()
    torch.manual_seed(0)
    model = getattr(models, matrix.CLASSES[kind.head, kind.units])(
        OmegaConf.create(_config(kind, corpus, tokenizer))
    )
    with torch.no_grad():
        model.train()(input_signal=signals[0], input_signal_length=signals[1])
    _make_it_speak(model.eval(), signals)
    model.save_to(str(path))
    return path


def _config(kind: matrix.Teacher, corpus: Path, tokenizer: Path) -> dict[str, Any]:
    if kind.encoder in ("QuartzNet", "Citrinet"):
        config = of_kind(kind.encoder.lower(), student_config(corpus, None))
        config = {
            name: config[name] for name in ("sample_rate", "preprocessor", "encoder", "decoder", "optim")
        }
        config["labels"] = config["decoder"]["vocabulary"] = FEW_LABELS
        config["decoder"]["num_classes"] = len(FEW_LABELS)
    else:
        config = {
            "CTC": teacher_config,
            "hybrid": hybrid_config,
            "transducer": transducer_config,
            "attention": lambda corpus, _: canary_config(corpus, tokenizer),
        }[kind.head](corpus, FEW_LABELS)
    if kind.durations:
        durations = [0, 1, 2]
        config["model_defaults"].update(tdt_durations=durations, num_tdt_durations=len(durations))
        config["joint"]["num_extra_outputs"] = len(durations)
        config["decoding"].update(model_type="tdt", durations=durations)
        config["loss"] = {
            "loss_name": "tdt",
            "tdt_kwargs": {"durations": durations, "sigma": 0.02, "omega": 0.1},
        }
    if kind.encoder == "FastConformer":
        config["encoder"].update(_FAST)
    if kind.units == "subwords":
        config.pop("labels")
        config["tokenizer"] = {"dir": str(tokenizer), "type": "bpe"}
        head = config.get("aux_ctc", config)["decoder"]
        if "num_classes" in head:
            head.update(num_classes=-1, vocabulary=[])
    return config


@torch.no_grad()
def _make_it_speak(model: Any, signals: tuple[Any, Any]) -> None:
    """Silences every label but a few letters, and favours the blank or the end just so much that what is
    heard is short.
    """
    from nemo_tutornet import LiveTeacher

    teacher = LiveTeacher(model)
    stop = -1  # the blank
    if hasattr(model, "transf_decoder"):
        head, labels = model.log_softmax.mlp.layer0, list(model.tokenizer.vocab)
        # Untrained, it hardly hears the audio.
        model.encoder_decoder_proj.weight *= 10
        for layer in model.transf_decoder.decoder.layers:
            attention = layer.second_sub_layer
            attention.key_net.weight *= 5
            attention.query_net.weight *= 5
            attention.out_projection.weight *= 30
        labels += [""] * (head.out_features - len(labels))
        stop = model.tokenizer.eos_id
    elif teacher.head is None:
        head, labels = model.joint.joint_net[-1], list(model.joint.vocabulary)
        model.joint.enc.weight *= 10  # untrained, it says the same on every frame
        stop = len(labels)  # a TDT's durations stand behind the blank
    else:
        head, labels = teacher.head.decoder_layers[0], teacher.labels
    for row, label in enumerate(labels):
        letters = set(label.removeprefix("▁"))
        if not letters or not letters <= _SPOKEN:
            head.bias[row] = -10.0
    various = hasattr(model, "transf_decoder")
    chatty, silent = -8.0, 16.0
    for _ in range(30):
        head.bias[stop] = (chatty + silent) / 2
        heard = teacher.targets(TrainingBatch(*signals), TargetRequest(hypotheses=True)).hypotheses
        longest = max(len(one.text.strip()) for one in heard)
        # An attention model would say one text on everything.
        if 1 <= longest <= 10 and (not various or len({one.text for one in heard}) > 1):
            return
        bias = float(head.bias[stop])
        chatty, silent = (chatty, bias) if longest == 0 else (bias, silent)
    raise AssertionError(f"this {type(model).__name__} cannot be made to speak: {heard}")
