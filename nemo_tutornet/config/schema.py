# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The keys of the `tutor:` section and their defaults. They are defined here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Dict, List, Optional

from omegaconf import MISSING

PRECISIONS = ("auto", "fp32", "bf16")
FRAME_WEIGHTINGS = ("auto", "nonblank", "energy", "uniform")
DIVERGENCES = ("l2", "kl", "guided_ctc")
FRAME_SELECTIONS = ("all", "nonblank", "symmetric")
STAGE_UNITS = ("epochs", "steps", "share")


@dataclass
class TeacherConfig:
    """Where the teacher comes from and how it runs.

    Attributes:
        model_path: a `.nemo` file, or the name of a pretrained NeMo model. It may be null where `cache` is
            set.
        sha256: refuse any other file when set.
        precision: `auto` is bf16 where the GPU has it and fp32 elsewhere.
        cache: folder that `nemo-tutornet cache` wrote; then no teacher is loaded.
        weight: of its posteriors, where there are several teachers.
    """

    model_path: Optional[str] = None
    sha256: Optional[str] = None
    precision: str = "auto"
    cache: Optional[str] = None
    weight: float = 1.0


@dataclass
class RKDConfig:
    """Representation-level distillation: which layers meet, and how frames are weighted.

    Attributes:
        hint_layer: module path in the teacher; null is the encoder's output.
        guided_layer: module path in the student; null is the encoder's output.
        frame_weighting: `auto`, `nonblank`, `energy` or `uniform`.
        warm_start_decoder: compose the student's decoder from the teacher's at the end of RKD (ours).
    """

    hint_layer: Optional[str] = None
    guided_layer: Optional[str] = None
    frame_weighting: str = "auto"
    warm_start_decoder: bool = True


@dataclass
class SKDConfig:
    """Softmax-level distillation: the divergence between posteriors, and the frames that count.

    Attributes:
        divergence: `l2` (the paper), `kl` or `guided_ctc`.
        temperature: softens both posteriors; only `kl` has one.
        frames: `all` (the paper), `nonblank` or `symmetric`.
        frames_around: for `symmetric`, the frames kept on each side of a non-blank one.
        match_window: compare a teacher frame with the student's most similar one at most so many frames away
            (`losses.match_frames`).
        intermediate_layers: module paths in the student that get a head of their own, with CTC and SKD
            (Inter-KD, arXiv 2211.15075).
        intermediate_weight: of the heads' losses, averaged over the heads, relative to those of the student's
        output.
    """

    divergence: str = "l2"
    temperature: float = 1.0
    frames: str = "all"
    frames_around: int = 4
    match_window: int = 0
    intermediate_layers: List[str] = field(default_factory=list)
    intermediate_weight: float = 1.0


@dataclass
class PseudoLabelsConfig:
    """Sequence-level targets (the loss `pseudo`): which of the teacher's hypotheses count.

    Attributes:
        min_confidence: drop a hypothesis of which the teacher is less sure, 0 to 1; not for transducers.
        max_wer: where there is a transcript, drop a hypothesis whose word error rate against it is higher;
        null keeps all.
    """

    min_confidence: float = 0.0
    max_wer: Optional[float] = None


@dataclass
class StageConfig:
    """One stage of the schedule.

    Attributes:
        name: shown in the log.
        weights: loss name to weight; a loss that is not named is not computed.
        share: length as a share of the whole training, above 0 and below 1.
        epochs: length in epochs of the training data.
        steps: length in optimizer steps. A stage without a length runs to the end.
    """

    name: str = MISSING
    weights: Dict[str, float] = MISSING
    share: Optional[float] = None
    epochs: Optional[int] = None
    steps: Optional[int] = None


def _default_stages() -> List[StageConfig]:
    # The first is the paper's. Its second, {ctc: 1.0, skd: 0.25}, did harm in long trainings
    # (docs/choices.md).
    return [
        StageConfig(name="rkd", weights={"rkd": 1.0}, share=0.25),
        StageConfig(name="ctc", weights={"ctc": 1.0, "rkd": 5.0}),
    ]


@dataclass
class TutorConfig:
    """The whole `tutor:` section.

    Attributes:
        teacher: RKD and pseudo-labels come from this one.
        other_teachers: their posteriors are averaged with its own for SKD (Hinton et al., arXiv 1503.02531).
        pool_frames: let a student have longer frames than its teacher; those under one frame are pooled
        (ours).
    """

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    other_teachers: List[TeacherConfig] = field(default_factory=list)
    rkd: RKDConfig = field(default_factory=RKDConfig)
    skd: SKDConfig = field(default_factory=SKDConfig)
    pseudo_labels: PseudoLabelsConfig = field(default_factory=PseudoLabelsConfig)
    pool_frames: bool = False
    stages: List[StageConfig] = field(default_factory=_default_stages)

    def uses(self, loss: str) -> bool:
        """True when any stage gives `loss` a positive weight."""
        return any(stage.weights.get(loss, 0.0) > 0 for stage in self.stages)

    def unused(self) -> List[str]:
        """Settings that were changed for a loss that no stage uses, a sentence for each section."""
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
        return warnings
