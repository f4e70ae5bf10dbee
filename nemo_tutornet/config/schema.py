# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Keys of the `tutor:` section and their defaults. They are defined in this module only."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Dict, List, Optional

from omegaconf import MISSING

PRECISIONS = ("auto", "fp32", "bf16")
FRAME_WEIGHTINGS = ("auto", "nonblank", "energy", "uniform")
DIVERGENCES = ("l2", "kl", "guided_ctc")
FRAME_SELECTIONS = ("all", "nonblank", "symmetric")
SKD_ALIGNMENTS = ("frames", "pool_student", "occurrences")
RKD_REDUCTIONS = ("time_sum", "frame_mean")
STAGE_UNITS = ("epochs", "steps", "share")
INIT_SOURCES = ("teacher",)
_EARLIER_WEIGHT = 5.0  # of RKD beside CTC, for `frame_mean`


@dataclass
class TeacherConfig:
    """Source and precision of a teacher.

    Attributes:
        model_path: a `.nemo` file, or the name of a pretrained NeMo model. This or `cache` must be set.
        sha256: checksum of the file; if set, a file with another checksum is rejected.
        precision: `auto`, `fp32` or `bf16`. `auto` is bf16 if the GPU supports it, and fp32 otherwise.
        cache: folder that `nemo-tutornet cache` wrote. If set, no teacher is loaded.
        adapter: file that `nemo-tutornet adapt` wrote. If set, labels, frames and posteriors of this teacher
            are the adapter's (ours).
        weight: weight of its posteriors in the average of several teachers; above 0.
        prompt: options of an attention model's prompt, e.g. `{source_lang: de, target_lang: de}`. A slot
            without an option has the checkpoint's default.
    """

    model_path: Optional[str] = None
    sha256: Optional[str] = None
    precision: str = "auto"
    cache: Optional[str] = None
    adapter: Optional[str] = None
    weight: float = 1.0
    prompt: Optional[Dict[str, str]] = None


@dataclass
class LayerPairConfig:
    """One more pair of layers for RKD.

    Attributes:
        hint_layer: module path in the teacher.
        guided_layer: module path in the student.
    """

    hint_layer: str = MISSING
    guided_layer: str = MISSING


@dataclass
class RKDConfig:
    """Representation-level distillation: the matched layers and the frame weighting.

    Attributes:
        hint_layer: module path in the teacher, e.g. `encoder.layers.8`; null is the encoder's output, or with
            an adapter the adapter's hidden vectors.
        guided_layer: module path in the student, e.g. `encoder.encoder.5`; null is the encoder's output.
        pairs: further pairs of layers, each with a projection of its own. RKD is the mean over all pairs.
        frame_weighting: `auto`, `nonblank`, `energy` or `uniform`. `auto` is `nonblank` for the Conformer
            family (`uniform` if the teacher has no posteriors), and `energy` otherwise.
        warm_start_decoder: compute the student's decoder from the teacher's decoder at the end of RKD (ours).
        reduction: `time_sum` sums over the seconds of an utterance and averages over the batch, as CTC and
            SKD do, so that a weight fits utterances of every length. `frame_mean` averages over all frames;
            a weight of 1 with it is about 0.37 with `time_sum` for utterances of 2.7 s. Null is `time_sum`,
            but `frame_mean` for a resumed run of version 0.2.0 or older.
    """

    hint_layer: Optional[str] = None
    guided_layer: Optional[str] = None
    pairs: List[LayerPairConfig] = field(default_factory=list)
    frame_weighting: str = "auto"
    warm_start_decoder: bool = True
    reduction: Optional[str] = None


@dataclass
class SKDConfig:
    """Softmax-level distillation: the divergence between posteriors, and the frames it is computed on.

    Attributes:
        divergence: `l2` (the paper), `kl` or `guided_ctc`.
        temperature: temperature that softens both posteriors; for `kl` only.
        frames: `all` (the paper), `nonblank` or `symmetric`.
        frames_around: number of frames kept on each side of a non-blank frame; for `symmetric` only.
        match_window: compare each teacher frame with the most similar student frame that is at most this many
            frames away (`functional.frame_weighting.match_frames`).
        alignment: how frames of different lengths are compared (ours). `frames` repeats or pools the
            teacher's frames. `pool_student` pools the student's frames to the teacher's. `occurrences`
            compares the spans around the labels of the teacher's best path, for `kl`.
        intermediate_layers: module paths in the student. Each layer gets its own head, trained with CTC and
            SKD (Inter-KD, arXiv 2211.15075).
        intermediate_weight: weight of the heads' losses, averaged over the heads, relative to the losses of
            the student's output; above 0.
    """

    divergence: str = "l2"
    temperature: float = 1.0
    frames: str = "all"
    frames_around: int = 4
    match_window: int = 0
    alignment: str = "frames"
    intermediate_layers: List[str] = field(default_factory=list)
    intermediate_weight: float = 1.0


@dataclass
class ConsistencyConfig:
    """Consistency of the student on two augmented views of each batch (CR-CTC, arXiv 2410.05101).

    It works with a teacher, whose targets serve both views, and without one (`teacher: null`). It counts in
    the stages that train the decoder. A step takes about twice as long there.

    Attributes:
        weight: weight of the symmetric KL divergence between the posteriors of both views, for CTC with
            weight 1; the paper has 0.2. 0 turns it off.
        time_masks: factor on the number of SpecAugment's time masks (`model.spec_augment.time_masks`) in both
            views; the paper's is 2.5. At least 1.
        warmup: optimizer steps in which the weight grows from 0, counted from the beginning of the first
            stage with consistency.
    """

    weight: float = 0.0
    time_masks: float = 2.5
    warmup: int = 0


@dataclass
class MixupConfig:
    """Mixtures of two waveforms of a batch, for RKD and SKD with a live teacher (mixup, arXiv 1710.09412).

    Teacher and student are given `w x_1 + (1 - w) x_2`. Such a row has no transcript, so CTC leaves it out.

    Attributes:
        share: share of the rows that are mixed, from 0 to below 1. 0 turns it off.
        alpha: `w` is drawn from Beta(alpha, alpha); 1 is the uniform distribution, and small values leave one
            of the two nearly alone.
    """

    share: float = 0.0
    alpha: float = 1.0


@dataclass
class PseudoLabelsConfig:
    """Sequence-level targets (the loss `pseudo`): the selection of the teacher's hypotheses.

    Attributes:
        min_confidence: drop a hypothesis with a lower confidence, 0 to 1; not for teachers
            without a CTC head.
        max_wer: drop a hypothesis with a higher word error rate against the transcript, if there is one. Null
            keeps all hypotheses.
    """

    min_confidence: float = 0.0
    max_wer: Optional[float] = None


@dataclass
class InitConfig:
    """Initial weights of the student (ours; the selection of layers is that of arXiv 2311.00430).

    `init: teacher` is short for `init: {source: teacher}`. The weights are copied once, when a new training
    starts; a run that is resumed keeps its own.

    With RKD, the projection starts as the identity where the hint layer and the guided layer are copies of
    each other. So the decoder that `rkd.warm_start_decoder` composes equals the copied one at first, and
    after an RKD stage it fits the encoder that RKD has trained. As without `init`, only a decoder that no
    stage has trained is composed. Without `warm_start_decoder` a copied decoder stays as it was copied.

    Attributes:
        source: `teacher` copies the weights of the teacher's encoder, and of its decoder where the labels and
            shapes are equal. Null leaves the student's random weights.
        layers: index of the teacher's block (QuartzNet, Jasper, Citrinet) or layer (the Conformer family) for
            each of the student's, in order. Null selects them: first and last are kept, the others are spread
            evenly.
        fit: fits the last pointwise convolutions of each block by least squares, on 200 utterances of the
            training set, so that its output is that of the last of the teacher's blocks that it stands for.
            It needs a QuartzNet, Jasper or Citrinet; the layers of a Conformer are copied alone.
    """

    source: Optional[str] = None
    layers: Optional[List[int]] = None
    fit: bool = True


@dataclass
class LogConfig:
    """What is logged after each validation besides NeMo's metrics, where the trainer has a logger (ours).

    The student is not run for it. The teacher runs once in a training, over the utterances of `agreement`.

    Attributes:
        agreement: number of validation utterances on which the student is compared with its teacher; 0
            compares none, and then the teacher never runs on validation. Skipped with a cached teacher and
            with other labels.
        posteriors: draw the posteriors of the first validation utterance (TensorBoard and Weights & Biases;
            needs matplotlib).
    """

    agreement: int = 8
    posteriors: bool = True


@dataclass
class StageConfig:
    """One stage of the schedule.

    Attributes:
        name: name of the stage in the log.
        weights: weight of each loss by its name: `ctc`, `rkd`, `skd`, `pseudo`. A loss without a weight is
            not computed.
        share: length as a share of the whole training, above 0 and below 1.
        epochs: length in epochs of the training data.
        steps: length in optimizer steps. A stage without a length runs to the end of the training.
    """

    name: str = MISSING
    weights: Dict[str, float] = MISSING
    share: Optional[float] = None
    epochs: Optional[int] = None
    steps: Optional[int] = None


def _default_stages() -> List[StageConfig]:
    # The first stage is the paper's. The paper's second stage, {ctc: 1.0, skd: 0.25}, did harm in long
    # trainings (docs/guides/stages.md). Weights of RKD are for `time_sum`. They were chosen for the frame
    # mean (1 and 5) on AN4, whose utterances have a mean of 2.7 s: 1 / 2.7 and 5 / 2.7.
    return [
        StageConfig(name="rkd", weights={"rkd": 0.37}, share=0.25),
        StageConfig(name="ctc", weights={"ctc": 1.0, "rkd": 1.85}),
    ]


@dataclass
class TutorConfig:
    """The whole `tutor:` section.

    Attributes:
        teacher: the teacher. RKD and pseudo-labels use this teacher only. Null trains without a teacher, with
            `consistency` beside CTC.
        other_teachers: more teachers for SKD, with the keys of `teacher`. Their posteriors are averaged
            (Hinton et al., arXiv 1503.02531).
        rkd: settings of representation-level distillation.
        skd: settings of softmax-level distillation.
        pseudo_labels: settings of sequence-level targets.
        consistency: settings of student consistency.
        mixup: settings of mixed waveforms.
        pool_frames: allow a student with longer frames than its teacher. The teacher frames within one
            student frame are pooled (ours).
        init: initial weights of the student.
        log: what is logged after each validation.
        max_nonfinite_share: share of an epoch's batches that may have a loss or gradient that is NaN or
            infinite, from 0 to below 1. Such a batch is named, skipped and counted. With 0 the training stops
            at the first.
        max_damaged_share: share of the training set's utterances whose audio may be damaged, from 0 to below
            1. Each is named and replaced by another utterance; Lhotse's batches become smaller. With more
            damaged utterances the training stops.
        manifest_weights: a weight above 0 for each manifest of `model.train_ds.manifest_filepath`, which sets
            the share of each epoch's utterances from this manifest, e.g. `[1, 1]` for half and half. The
            length of an epoch does not change. Null reads each utterance once per epoch. Not for tars and
            Lhotse; for Lhotse, set the weights in `input_cfg`.
        stages: stages of the schedule, in order.
    """

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    other_teachers: List[TeacherConfig] = field(default_factory=list)
    rkd: RKDConfig = field(default_factory=RKDConfig)
    skd: SKDConfig = field(default_factory=SKDConfig)
    pseudo_labels: PseudoLabelsConfig = field(default_factory=PseudoLabelsConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    mixup: MixupConfig = field(default_factory=MixupConfig)
    pool_frames: bool = False
    init: InitConfig = field(default_factory=InitConfig)
    log: LogConfig = field(default_factory=LogConfig)
    max_nonfinite_share: float = 0.0
    max_damaged_share: float = 0.01
    manifest_weights: Optional[List[float]] = None
    stages: List[StageConfig] = field(default_factory=_default_stages)

    # Not a key: `parse_tutor` sets it for `teacher: null`.
    without_teacher = False

    def uses(self, loss: str) -> bool:
        """Tells whether any stage gives a loss a positive weight.

        Args:
            loss: name of the loss.

        Returns:
            True if one does.
        """
        return any(stage.weights.get(loss, 0.0) > 0 for stage in self.stages)

    def reduction_warning(self) -> List[str]:
        """Warns of a weight of RKD that may have been chosen for the mean over frames of earlier versions.

        Returns:
            A sentence where a stage of the config's own weighs RKD against another loss, and `rkd.reduction`
            is not set, or the weight is the earlier default; else nothing.
        """
        balanced = [
            stage.weights
            for stage in self.stages
            if stage.weights.get("rkd", 0.0) > 0 and sum(weight > 0 for weight in stage.weights.values()) > 1
        ]
        if not balanced or self.rkd.reduction == "frame_mean" or self.stages == _default_stages():
            return []
        if self.rkd.reduction is not None:
            if not any(weights["rkd"] == _EARLIER_WEIGHT for weights in balanced):
                return []
            return [
                f"model.tutor.stages has {_EARLIER_WEIGHT:g} for rkd, which was the default for the mean "
                "over frames of earlier versions; with model.tutor.rkd.reduction=time_sum it is 1.85, and "
                "rkd.reduction=frame_mean keeps the meaning of before."
            ]
        return [
            "model.tutor.rkd.reduction is not set, so a weight of rkd counts for each second of an utterance "
            "(time_sum); one of an earlier version, which was for the mean over frames, keeps its meaning "
            "with "
            "model.tutor.rkd.reduction=frame_mean."
        ]

    def unused(self) -> List[str]:
        """Lists the changed settings that have no effect, because no stage uses their loss or another setting
        turns them off.

        Returns:
            One sentence for each section or key.
        """
        warnings = []
        for name, loss in (("rkd", "rkd"), ("skd", "skd"), ("pseudo_labels", "pseudo")):
            section = getattr(self, name)
            changed = [
                f.name
                for f in fields(section)
                if getattr(section, f.name) != getattr(type(section)(), f.name)
            ]
            if changed and not self.uses(loss):
                warnings.append(
                    f"model.tutor.{name} changes {', '.join(changed)}, but no stage gives {loss} a weight: "
                    "no effect."
                )
        skd, skd_is_used = self.skd, self.uses("skd")
        if skd_is_used and skd.frames != "symmetric" and skd.frames_around != SKDConfig.frames_around:
            warnings.append("model.tutor.skd changes frames_around, but frames is not symmetric: no effect.")
        weighted = skd.intermediate_weight != SKDConfig.intermediate_weight
        if skd_is_used and weighted and not skd.intermediate_layers:
            warnings.append(
                "model.tutor.skd changes intermediate_weight, but intermediate_layers is empty: no effect."
            )
        consistency = self.consistency
        if consistency.weight <= 0 and consistency != ConsistencyConfig(weight=consistency.weight):
            warnings.append("model.tutor.consistency changes settings, but its weight is 0: no effect.")
        elif consistency.weight > 0 and not any(map(self.uses, ("ctc", "skd", "pseudo"))):
            warnings.append(
                "model.tutor.consistency has a weight, but no stage trains the decoder (ctc, skd, pseudo): "
                "no "
                "effect."
            )
        if self.mixup.share <= 0 and self.mixup != MixupConfig(share=self.mixup.share):
            warnings.append("model.tutor.mixup changes settings, but its share is 0: no effect.")
        elif self.mixup.share > 0 and not (self.uses("rkd") or self.uses("skd")):
            warnings.append("model.tutor.mixup has a share, but no stage uses rkd or skd: no effect.")
        return warnings
