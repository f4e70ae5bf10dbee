# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The stock configs have NeMo's architecture, front end and optimizer; the others differ where they say
so.
"""

import pytest
import torch
from nemo.core import Serialization
from nemo.utils.exp_manager import ExpManagerConfig
from omegaconf import OmegaConf

from tests.integration.conf.confs import (
    CONFIGS,
    STUDENTS,
    SUBWORD,
    SUBWORD_ONLY,
    composed,
    flat,
    overrides_of,
)

pytestmark = pytest.mark.integration

PIECES = 128  # the subword models' parameters are counted with so many
CONFORMERS = [name for name in STUDENTS if "conformer" in name]
PARAMETERS = {
    "citrinet_256": 9_621_293,
    "citrinet_256_bpe": 9_685_393,
    "conformer_ctc_bpe_small": 12_995_441,
    "conformer_ctc_small": 12_977_741,
    "conformer_ctc_tiny": 2_089_085,
    "fastconformer_ctc_small_bpe": 12_623_073,
    "fastconformer_ctc_streaming_bpe": 12_668_129,
    "fastconformer_ctc_tiny_bpe": 1_927_233,
    "jasper_10x5dr": 332_632_349,
    "jasper_10x5dr_bpe": 332_734_849,
    "jasper_mini": 8_188_893,
    "jasper_mini_bpe": 8_291_393,
    "quartznet_15x5": 18_924_381,
    "quartznet_15x5_bpe": 19_026_881,
    "quartznet_5x5": 6_713_181,
    "quartznet_5x5_bpe": 6_815_681,
    "small/conformer_ctc_bpe_small": 1_219_777,
    "small/conformer_ctc_small": 1_210_077,
    "small/conformer_ctc_tiny": 461_821,
    "small/fastconformer_ctc_streaming_bpe": 467_457,
    "small/fastconformer_ctc_tiny_bpe": 463_361,
    "small/jasper_small": 647_357,
    "small/quartznet_1m": 1_048_413,
    "small/quartznet_bpe_small": 305_537,
    "small/quartznet_small": 279_837,
}

# NeMo's examples/asr/conf/{quartznet/quartznet_15x5,jasper/jasper_10x5dr,citrinet/citrinet_384}.yaml, the
# last with the filters that its header allows; for 5x5 NeMo 0.9's quartznet5x5.yaml; for Jasper Mini
# OpenSeq2Seq's jasper-Mini-for-Jetson.py: (blocks of this kind, filters, kernel, repeat, stride, dilation,
# residual, dropout)
QUARTZNET_5X5 = [
    (1, 256, 33, 1, 2, 1, False, 0.0),
    (1, 256, 33, 5, 1, 1, True, 0.0),
    (1, 256, 39, 5, 1, 1, True, 0.0),
    (1, 512, 51, 5, 1, 1, True, 0.0),
    (1, 512, 63, 5, 1, 1, True, 0.0),
    (1, 512, 75, 5, 1, 1, True, 0.0),
    (1, 512, 87, 1, 1, 2, False, 0.0),
    (1, 1024, 1, 1, 1, 1, False, 0.0),
]
QUARTZNET_15X5 = [
    (1, 256, 33, 1, 2, 1, False, 0.0),
    (3, 256, 33, 5, 1, 1, True, 0.0),
    (3, 256, 39, 5, 1, 1, True, 0.0),
    (3, 512, 51, 5, 1, 1, True, 0.0),
    (3, 512, 63, 5, 1, 1, True, 0.0),
    (3, 512, 75, 5, 1, 1, True, 0.0),
    (1, 512, 87, 1, 1, 2, False, 0.0),
    (1, 1024, 1, 1, 1, 1, False, 0.0),
]
JASPER_10X5DR = [
    (1, 256, 11, 1, 2, 1, False, 0.2),
    (2, 256, 11, 5, 1, 1, True, 0.2),
    (2, 384, 13, 5, 1, 1, True, 0.2),
    (2, 512, 17, 5, 1, 1, True, 0.2),
    (2, 640, 21, 5, 1, 1, True, 0.3),
    (2, 768, 25, 5, 1, 1, True, 0.3),
    (1, 896, 29, 1, 1, 2, False, 0.4),
    (1, 1024, 1, 1, 1, 1, False, 0.4),
]
JASPER_MINI = [
    (1, 256, 11, 1, 2, 1, False, 0.0),
    (2, 256, 11, 3, 1, 1, True, 0.0),
    (2, 256, 13, 3, 1, 1, True, 0.0),
    (2, 512, 17, 3, 1, 1, True, 0.0),
    (2, 512, 21, 3, 1, 1, True, 0.0),
    (2, 512, 25, 3, 1, 1, True, 0.0),
    (1, 512, 29, 1, 1, 2, False, 0.0),
    (1, 1024, 1, 1, 1, 1, False, 0.0),
]
CITRINET_256 = [
    (1, 256, 5, 1, 1, 1, False, 0.0),
    (1, 256, 11, 5, 2, 1, True, 0.0),
    *((1, 256, kernel, 5, 1, 1, True, 0.0) for kernel in (13, 15, 17, 19, 21)),
    (1, 256, 13, 5, 2, 1, True, 0.0),
    *((1, 256, kernel, 5, 1, 1, True, 0.0) for kernel in (15, 17, 19, 21, 23, 25)),
    (1, 256, 25, 5, 2, 1, True, 0.0),
    *((1, 256, kernel, 5, 1, 1, True, 0.0) for kernel in (27, 29, 31, 33, 35, 37, 39)),
    (1, 640, 41, 1, 1, 1, False, 0.0),
]
BLOCKS = {
    "quartznet_5x5": QUARTZNET_5X5,
    "quartznet_15x5": QUARTZNET_15X5,
    "jasper_10x5dr": JASPER_10X5DR,
    "jasper_mini": JASPER_MINI,
    "citrinet_256_bpe": CITRINET_256,
}


@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_has_the_deployable_front_end(name):
    """Nothing but the features changes, and a key of the command line still has the last word."""
    stock, same, deployable = (
        OmegaConf.to_container(composed(name, *overrides).model, resolve=True)
        for overrides in ([], ["front_end=stock"], ["front_end=deployable"])
    )
    assert same == stock
    front_end = deployable["preprocessor"]
    assert (front_end["features"], front_end["window_size"], front_end["n_fft"]) == (80, 0.025, 512)
    assert deployable["encoder"]["feat_in"] == 80
    short = name.rpartition("/")[2]
    assert (stock["preprocessor"]["features"] == 64) == short.startswith(("quartznet", "jasper"))
    deployable["preprocessor"] = {
        **front_end,
        **{key: stock["preprocessor"][key] for key in ("features", "window_size")},
    }
    deployable["encoder"]["feat_in"] = stock["encoder"]["feat_in"]
    assert deployable == stock
    assert (
        composed(name, "front_end=deployable", "model.preprocessor.features=128").model.encoder.feat_in == 128
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_count(name):
    model = OmegaConf.to_container(composed(name).model, resolve=True, throw_on_missing=False)
    vocabulary = model.get("labels") or [f"piece {i}" for i in range(PIECES)]
    # NeMo's Conformer cannot be built without memory; Jasper should not take its 1.3 GB to be counted.
    with torch.device("meta" if "jasper" in model["encoder"] else "cpu"):
        encoder = Serialization.from_config_dict(OmegaConf.create(model["encoder"]))
        width = model["decoder"]["feat_in"] or encoder._feat_out
        head = {
            **model["decoder"],
            "feat_in": width,
            "num_classes": len(vocabulary),
            "vocabulary": vocabulary,
        }
        decoder = Serialization.from_config_dict(OmegaConf.create(head))
    assert sum(p.numel() for module in (encoder, decoder) for p in module.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_blocks_are_nemos(name):
    expected = [block[1:] for block in BLOCKS[name] for _ in range(block[0])]
    blocks = OmegaConf.to_container(composed(name).model.encoder.jasper, resolve=True)
    found = [
        (b["filters"], *b["kernel"], b["repeat"], *b["stride"], *b["dilation"], b["residual"], b["dropout"])
        for b in blocks
    ]
    assert found == expected
    # QuartzNet: all but the last block separable. Jasper 10x5 DR: none, and dense where residual. The others:
    # all.
    last = len(blocks) - 1
    separable = {"quartznet_5x5": last, "quartznet_15x5": last, "jasper_10x5dr": 0}.get(name, last + 1)
    assert [b.get("separable", False) for b in blocks] == [True] * separable + [False] * (
        last + 1 - separable
    )
    assert [b.get("residual_dense", False) for b in blocks] == [
        b["residual"] and name == "jasper_10x5dr" for b in blocks
    ]
    citrinet = name == "citrinet_256_bpe"
    assert all(
        (b.get("se", False), b.get("se_context_size")) == ((True, -1) if citrinet else (False, None))
        for b in blocks
    )
    longer = [citrinet and b["stride"] == [2] for b in blocks]
    assert [b.get("stride_last", False) for b in blocks] == longer
    assert [b.get("residual_mode", "add") for b in blocks] == [
        "stride_add" if strided else "add" for strided in longer
    ]


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_front_end_and_optimizer_are_nemos(name):
    model = OmegaConf.to_container(composed(name).model, resolve=True, throw_on_missing=False)
    citrinet = name == "citrinet_256_bpe"
    assert model["preprocessor"] == {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "normalize": "per_feature",
        "window_size": 0.025 if citrinet else 0.02,
        "sample_rate": 16000,
        "window_stride": 0.01,
        "window": "hann",
        "features": 80 if citrinet else 64,
        "n_fft": 512,
        "frame_splicing": 1,
        "dither": 1e-5,
        **({"pad_to": 16} if citrinet else {}),
    }
    masks = {"freq_masks": 2, "time_masks": 2, "freq_width": 27, "time_width": 0.05}
    cutout = {"rect_freq": 50, "rect_masks": 5, "rect_time": 120}
    assert {key: value for key, value in model["spec_augment"].items() if key != "_target_"} == (
        masks if citrinet else cutout
    )
    encoder = model["encoder"]
    assert (encoder["feat_in"], encoder["activation"], encoder["conv_mask"]) == (
        80 if citrinet else 64,
        "relu",
        True,
    )
    assert model["decoder"]["feat_in"] == encoder["jasper"][-1]["filters"]
    optim, recipe = (
        model["optim"],
        (0.05, [0.8, 0.25], 1000, 1e-5) if citrinet else (0.01, [0.8, 0.5], None, 0.0),
    )
    assert (optim["lr"], optim["betas"], optim["sched"]["warmup_steps"], optim["sched"]["min_lr"]) == recipe
    assert (optim["name"], optim["weight_decay"], optim["sched"]["name"]) == (
        "novograd",
        0.001,
        "CosineAnnealing",
    )


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - set(SUBWORD)))
def test_characters(name):
    model = composed(name).model
    assert list(model.labels) == list(" abcdefghijklmnopqrstuvwxyz'") == list(model.decoder.vocabulary)
    assert all(model[part].labels == model.labels for part in ("train_ds", "validation_ds", "test_ds"))
    assert model.decoder.num_classes == (28 if name in STUDENTS else -1)


@pytest.mark.parametrize("name", [name for name in SUBWORD if name not in SUBWORD_ONLY])
def test_a_subword_config_is_the_character_one_but_for_its_labels(name):
    pair = (name, name.replace("_bpe", ""))
    subword, character = (
        flat(OmegaConf.to_container(composed(each), throw_on_missing=False)) for each in pair
    )
    data = [f"model.{part}_ds" for part in ("train", "validation", "test")]
    own = {f"{part}.use_start_end_token": False for part in data}
    own |= {"model.decoder.vocabulary": [], "model.decoder.num_classes": -1}
    own |= (
        {"model.tokenizer": "teacher"}
        if name in STUDENTS
        else {"model.tokenizer.dir": "???", "model.tokenizer.type": "bpe"}
    )
    if name == "citrinet_256_bpe":
        # Letters need frames of 40 ms: the third stride of two is left out. Those of 80 ms are longer than a
        # Conformer's.
        own |= {"model.tutor.pool_frames": True, "model.encoder.jasper.14.stride.0": 2}
        own |= {
            "model.encoder.jasper.14.stride_last": True,
            "model.encoder.jasper.14.residual_mode": "stride_add",
        }
    different = {
        key: value for key, value in subword.items() if key not in character or character[key] != value
    }
    assert different.pop("name") and different == {
        key: value for key, value in own.items() if character.get(key) != value
    }
    gone = {key for key in character if key not in subword}
    assert gone == {f"{part}.labels" for part in data} | {f"model.labels.{i}" for i in range(28)}


def test_conformer_is_nemos_small():
    encoder = composed("conformer_ctc_small").model.encoder
    assert (encoder.d_model, encoder.n_layers, encoder.n_heads, encoder.conv_kernel_size) == (176, 16, 4, 31)
    assert encoder.subsampling_factor == 4


def test_fastconformer_is_nemos_small():
    """NeMo's examples/asr/conf/fastconformer/fast-conformer_ctc_bpe.yaml with the row "Small" of its table;
    fewer time masks, as it advises for smaller models; CTC's reduction is that of the other configs.
    """
    model = composed("fastconformer_ctc_small_bpe").model
    encoder = OmegaConf.to_container(model.encoder, resolve=True)
    sizes = ("n_layers", "d_model", "n_heads", "ff_expansion_factor", "conv_kernel_size", "conv_norm_type")
    assert [encoder[key] for key in sizes] == [16, 176, 4, 4, 9, "batch_norm"]
    subsampling = ("subsampling", "subsampling_factor", "subsampling_conv_channels", "causal_downsampling")
    assert [encoder[key] for key in subsampling] == ["dw_striding", 8, 256, False]
    attention = ("self_attention_model", "att_context_size", "att_context_style", "xscaling", "untie_biases")
    assert [encoder[key] for key in attention] == ["rel_pos", [-1, -1], "regular", True, True]
    dropout = ("dropout", "dropout_pre_encoder", "dropout_emb", "dropout_att")
    assert [encoder[key] for key in dropout] == [0.1, 0.1, 0.0, 0.1]
    optim = model.optim
    assert (optim.name, optim.lr, optim.betas, optim.weight_decay) == ("adamw", 1e-3, [0.9, 0.98], 0.0)
    assert (optim.sched.name, optim.sched.warmup_steps, optim.sched.min_lr) == (
        "CosineAnnealing",
        15000,
        1e-4,
    )


def test_a_streaming_student_is_nemos_cache_aware_one():
    """NeMo's examples/asr/conf/fastconformer/cache_aware_streaming/fastconformer_ctc_bpe_streaming.yaml
    differs from its fast-conformer_ctc_bpe.yaml in these keys.
    """
    for streaming, whole, context in (
        ("fastconformer_ctc_streaming_bpe", "fastconformer_ctc_small_bpe", [70, 13]),
        ("small/fastconformer_ctc_streaming_bpe", "small/fastconformer_ctc_tiny_bpe", [28, 6]),
    ):
        mine, theirs = (
            OmegaConf.to_container(composed(each).model, resolve=True, throw_on_missing=False)
            for each in (streaming, whole)
        )
        expected = {
            "causal_downsampling": True,
            "att_context_size": context,
            "att_context_style": "chunked_limited",
            "conv_norm_type": "layer_norm",
            "conv_context_size": "causal",
        }
        assert mine["encoder"] == {**theirs["encoder"], **expected}
        assert mine["preprocessor"] == {**theirs["preprocessor"], "normalize": "NA"}
        assert {key for key in mine if mine[key] != theirs[key]} == {"encoder", "preprocessor"}


def test_a_smaller_conformer_student_differs_in_its_size_and_optimizer():
    for name, larger in (
        ("fastconformer_ctc_tiny_bpe", "fastconformer_ctc_small_bpe"),
        ("conformer_ctc_tiny", "conformer_ctc_small"),
    ):
        mine, theirs = (
            OmegaConf.to_container(composed(each).model, resolve=True, throw_on_missing=False)
            for each in (name, larger)
        )
        sizes = {"n_layers", "d_model", "subsampling_conv_channels"}
        encoder = {key for key, value in mine["encoder"].items() if theirs["encoder"][key] != value}
        assert encoder <= sizes and list(mine["encoder"]) == list(theirs["encoder"])
        assert mine["preprocessor"] == theirs["preprocessor"]
        assert mine["spec_augment"] == theirs["spec_augment"]


# With the dropout and weight decay of the results.
REGULARISED = {"small/jasper_small", "small/quartznet_1m"}


@pytest.mark.parametrize(
    "name", [name for name in STUDENTS if "jasper_10x5dr" not in name and name not in CONFORMERS]
)  # that one's dropout is NeMo's
def test_one_key_is_the_dropout_of_every_block_but_the_first(name):
    def dropouts(*overrides):
        return [block.dropout for block in composed(name, *overrides).model.encoder.jasper]

    assert set(dropouts()) == ({0.0, 0.1} if name in REGULARISED else {0.0})
    first, *others = dropouts("model.dropout=0.2")
    assert first == 0.0 and others and set(others) == {0.2}


@pytest.mark.parametrize("name", CONFORMERS)
def test_one_key_is_the_dropout_of_a_conformer(name):
    for overrides, dropout in (([], 0.1), (["model.dropout=0.2"], 0.2)):
        encoder = composed(name, *overrides).model.encoder
        assert (encoder.dropout, encoder.dropout_pre_encoder, encoder.dropout_att) == (dropout,) * 3
        assert encoder.dropout_emb == 0.0


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_and_biases_can_be_switched_on(name):
    chosen = {"name": "student", "project": "speech"}
    overrides = overrides_of({"create_wandb_logger": True, "wandb_logger_kwargs": chosen}, "exp_manager")
    section = OmegaConf.to_container(composed(name, *overrides), resolve=True, throw_on_missing=False)[
        "exp_manager"
    ]
    accepted = OmegaConf.merge(OmegaConf.structured(ExpManagerConfig), section)
    assert accepted.create_wandb_logger and accepted.wandb_logger_kwargs == chosen
    assert not composed(name).exp_manager.create_wandb_logger
