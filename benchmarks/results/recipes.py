# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""What is compared: recipes, as overrides of the example script. Equal epochs for all; RKD takes its share of
them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# The share of all epochs that RKD takes, unless a recipe says otherwise.
RKD_SHARE = 0.25


def with_views(arguments: list[str]) -> list[str]:
    """Adds student consistency to a run's overrides, with the paper's weight (CR-CTC, arXiv 2410.05101)."""
    alone = {"model.tutor=null": "model.tutor.teacher=null"}
    return [*(alone.get(one, one) for one in arguments), "model.tutor.consistency.weight=0.2"]


@dataclass(frozen=True)
class Recipe:
    """One way to train a student.

    Attributes:
        title: for tables.
        stages: (name, weights) one after the other; the first of several is RKD's share long. None trains
            without a teacher.
        overrides: further ones.
        teacher: `char` or `bpe`: the labels of the teacher that it is for.
        student: one of `students.student_of`.
        labelled: False trains on the corpus without its transcripts.
        baseline: the recipe that its gain is measured against.
        rkd_share: the share of all epochs that the first of several stages takes.
        restart: the second stage is a training of its own, with a learning rate schedule of its own, that
            begins from the first's `.nemo`; it has no teacher.
        restart_overrides: of that second training.
        adapter: the teacher has an adapter for the student (`nemo-tutornet adapt`).
        reduction: of RKD. Recipes of published results have the mean over frames, which was the only one
        then.
    """

    title: str
    stages: tuple[tuple[str, dict[str, float]], ...] | None
    overrides: tuple[str, ...] = ()
    teacher: str = "char"
    student: str = "quartznet_small"
    labelled: bool = True
    baseline: str = "ctc"
    rkd_share: float = RKD_SHARE
    restart: bool = False
    restart_overrides: tuple[str, ...] = ()
    adapter: bool = False
    reduction: str = "frame_mean"

    @property
    def alone(self) -> bool:
        """No teacher has a part in the training."""
        return self.stages is None

    @property
    def needs_teacher(self) -> bool:
        """A teacher's file is wanted, be it only for its tokenizer."""
        return not self.alone or any("{teacher}" in override for override in self.overrides)

    def arguments(self, teacher: str, cache: str | None = None, adapter: str | None = None) -> list[str]:
        """Overrides of the example script for a run with that teacher's file and adapter, or with its cache.

        With `restart` they are of the first of the two trainings.
        """
        if self.stages is None:
            return ["model.tutor=null", *self.overrides]
        stages = []
        for i, (name, weights) in enumerate(self.stages[:1] if self.restart else self.stages):
            length = "" if i == len(self.stages) - 1 else f"share:{self.rkd_share},"
            stages.append(
                f"{{name:{name},{length}weights:{{"
                + ",".join(f"{loss}:{w}" for loss, w in weights.items())
                + "}}"
            )
        source = [f"model.tutor.teacher.{'model_path' if cache is None else 'cache'}={cache or teacher}"]
        source += [] if adapter is None else [f"model.tutor.teacher.adapter={adapter}"]
        source += [f"model.tutor.rkd.reduction={self.reduction}"]
        return [*source, f"model.tutor.stages=[{','.join(stages)}]", *self.overrides]


RKD = ("rkd", {"rkd": 1.0})
CTC = ("ctc", {"ctc": 1.0})
KEPT = ("ctc", {"ctc": 1.0, "rkd": 5.0})
SKD = ("skd", {"ctc": 1.0, "skd": 0.25})
PSEUDO = ("pseudo", {"ctc": 0.5, "pseudo": 0.5})
L2, KL, GUIDED = (f"model.tutor.skd.divergence={name}" for name in ("l2", "kl", "guided_ctc"))
WEAK = ("skd", {"ctc": 1.0, "skd": 0.05})
STRONG = ("skd", {"ctc": 1.0, "skd": 1.0})
SYMMETRIC = "model.tutor.skd.frames=symmetric"
INTER = "++model.tutor.skd.intermediate_layers=[encoder.encoder.1,encoder.encoder.3]"
SHIFT = "++model.tutor.skd.match_window=4"
POOL, OCCURRENCES = (f"model.tutor.skd.alignment={name}" for name in ("pool_student", "occurrences"))
UNIFORM, ENERGY = (f"model.tutor.rkd.frame_weighting={name}" for name in ("uniform", "energy"))
COLD = "model.tutor.rkd.warm_start_decoder=false"
# The copy needs the teacher's file also where its targets come from a cache.
INIT = ("model.tutor.init=teacher", "model.tutor.teacher.model_path={teacher}")
COPY = ("model.tutor.init={source:teacher,fit:false}", INIT[1])


CHAR: dict[str, Recipe] = {
    "ctc": Recipe("CTC only", None),
    "skd_l2": Recipe("CTC + SKD l2", (SKD,), (L2,)),
    "skd_kl": Recipe("CTC + SKD kl", (SKD,), (KL,)),
    "rkd_cold_skd_l2": Recipe("RKD without decoder warm start, then CTC + SKD l2", (RKD, SKD), (L2, COLD)),
    "rkd_skd_l2": Recipe("RKD, then CTC + SKD l2 (the paper's)", (RKD, SKD), (L2,)),
    "rkd_skd_kl": Recipe("RKD, then CTC + SKD kl", (RKD, SKD), (KL,)),
    "rkd_ctc": Recipe("RKD, then CTC only", (RKD, CTC)),
    "rkd_kept_ctc": Recipe("RKD, then CTC + RKD", (RKD, KEPT)),
    "rkd_skd_kl_low": Recipe("RKD, then CTC + SKD kl, weight 0.05", (RKD, WEAK), (KL,)),
    "skd_kl_1": Recipe("CTC + SKD kl, weight 1", (STRONG,), (KL,)),
    "skd_kl_1_shift": Recipe("CTC + SKD kl on matched frames (80 ms), weight 1", (STRONG,), (KL, SHIFT)),
    "skd_kl_1_pool": Recipe("CTC + SKD kl on pooled frames of the student, weight 1", (STRONG,), (KL, POOL)),
    "skd_kl_1_occurrences": Recipe("CTC + SKD kl on occurrences, weight 1", (STRONG,), (KL, OCCURRENCES)),
    "rkd_skd_kl_1": Recipe("RKD, then CTC + SKD kl, weight 1", (RKD, STRONG), (KL,)),
    "rkd_skd_kl_symmetric": Recipe("RKD, then CTC + SKD kl on symmetric frames", (RKD, SKD), (KL, SYMMETRIC)),
    "rkd_skd_kl_shift": Recipe("RKD, then CTC + SKD kl on matched frames (80 ms)", (RKD, SKD), (KL, SHIFT)),
    "rkd_skd_kl_1_shift": Recipe(
        "RKD, then CTC + SKD kl on matched frames (80 ms), weight 1", (RKD, STRONG), (KL, SHIFT)
    ),
    "rkd_skd_kl_inter": Recipe("RKD, then CTC + SKD kl, Inter-KD", (RKD, SKD), (KL, INTER)),
}

# The same for utterances of every length, and the weights of before at AN4's 2.7 s.
RKD_TIME = ("rkd", {"rkd": 0.37})
KEPT_TIME = ("ctc", {"ctc": 1.0, "rkd": 1.85})

RECIPES: dict[str, Recipe] = {
    **CHAR,
    "rkd_time_kept_ctc": Recipe(
        "RKD, then CTC + RKD, summed over time", (RKD_TIME, KEPT_TIME), reduction="time_sum"
    ),
    "adapted_rkd_time_kept_ctc": Recipe(
        "with an adapter: RKD, then CTC + RKD, summed over time",
        (RKD_TIME, KEPT_TIME),
        adapter=True,
        reduction="time_sum",
    ),
    "rkd_tenth_ctc": Recipe("RKD for a tenth of the epochs, then CTC only", (RKD, CTC), rkd_share=0.1),
    "rkd_half_ctc": Recipe("RKD for half of the epochs, then CTC only", (RKD, CTC), rkd_share=0.5),
    "rkd_restart_ctc": Recipe(
        "RKD, then CTC only, each with a learning rate schedule of its own", (RKD, CTC), restart=True
    ),
    "rkd_restart_low_ctc": Recipe(
        "RKD, then CTC only, each with a learning rate schedule of its own, the second a quarter as high",
        (RKD, CTC),
        restart=True,
        restart_overrides=("model.optim.lr=1e-3",),
    ),
    "rkd_uniform_ctc": Recipe("RKD with uniform frame weights, then CTC only", (RKD, CTC), (UNIFORM,)),
    "rkd_energy_ctc": Recipe("RKD with energy frame weights, then CTC only", (RKD, CTC), (ENERGY,)),
    "rkd_cold_ctc": Recipe("RKD without decoder warm start, then CTC only", (RKD, CTC), (COLD,)),
    "ctc_rkd": Recipe("CTC + RKD from the first epoch", (("ctc", {"ctc": 1.0, "rkd": 5.0}),)),
    "init_skd_kl": Recipe("starts with the teacher's layers: CTC + SKD kl, weight 1", (STRONG,), (KL, *INIT)),
    "init_copy_skd_kl": Recipe(
        "starts with the teacher's layers, not fitted: CTC + SKD kl, weight 1", (STRONG,), (KL, *COPY)
    ),
    "init_ctc": Recipe("starts with the teacher's layers: CTC only", (CTC,), INIT),
    "skd_guided": Recipe("CTC + SKD guided_ctc", (SKD,), (GUIDED,)),
    "skd_kl_symmetric": Recipe("CTC + SKD kl on symmetric frames", (SKD,), (KL, SYMMETRIC)),
    "skd_kl_inter": Recipe("CTC + SKD kl, Inter-KD", (SKD,), (KL, INTER)),
    "pseudo": Recipe("CTC + pseudo-labels", (PSEUDO,)),
    "rkd_pseudo": Recipe("RKD, then CTC + pseudo-labels", (RKD, PSEUDO)),
    "rkd": Recipe("RKD only, no transcript at all", (RKD,), labelled=False),
    "rkd_uniform": Recipe(
        "RKD only with uniform frame weights, no transcript at all", (RKD,), (UNIFORM,), labelled=False
    ),
    "rkd_energy": Recipe(
        "RKD only with energy frame weights, no transcript at all", (RKD,), (ENERGY,), labelled=False
    ),
    "label_free": Recipe(
        "RKD, then SKD kl, no transcript at all", (RKD, ("skd", {"skd": 1.0})), (KL,), labelled=False
    ),
    "label_free_pseudo": Recipe(
        "RKD, then pseudo-labels + RKD, no transcript at all",
        (RKD_TIME, ("pseudo", {"pseudo": 1.0, "rkd": 1.85})),
        labelled=False,
        reduction="time_sum",
    ),
    "bpe_ctc": Recipe(
        "subwords: CTC only",
        None,
        ("model.tokenizer={teacher}",),
        "bpe",
        "quartznet_bpe_small",
        baseline="bpe_ctc",
    ),
    **{
        f"bpe_{name}": replace(
            recipe,
            title=f"subwords: {recipe.title}",
            teacher="bpe",
            student="quartznet_bpe_small",
            baseline="bpe_ctc",
        )
        for name, recipe in CHAR.items()
        if name != "ctc"
    },
    "bpe_init_skd_kl": Recipe(
        "subwords: starts with the teacher's layers: CTC + SKD kl, weight 1",
        (STRONG,),
        (KL, *INIT),
        "bpe",
        "quartznet_bpe_small",
        baseline="bpe_ctc",
    ),
    "bpe_to_char_kept": Recipe(
        "characters from a subword teacher: RKD, then CTC + pseudo-labels + RKD",
        (RKD, ("pseudo", {"ctc": 0.5, "pseudo": 0.5, "rkd": 5.0})),
        (),
        "bpe",
    ),
    "bpe_to_char": Recipe(
        "characters from a subword teacher: RKD, then CTC + pseudo-labels", (RKD, PSEUDO), (), "bpe"
    ),
    "bpe_to_char_rkd": Recipe(
        "characters from a subword teacher: RKD, then CTC + RKD", (RKD, KEPT), (), "bpe"
    ),
    "bpe_to_char_adapted_kept": Recipe(
        "characters from a subword teacher with an adapter: RKD, then CTC + RKD",
        (RKD, KEPT),
        (),
        "bpe",
        adapter=True,
    ),
    "bpe_to_char_adapted_pseudo": Recipe(
        "characters from a subword teacher with an adapter: RKD, then CTC + pseudo-labels + RKD",
        (RKD, ("pseudo", {"ctc": 0.5, "pseudo": 0.5, "rkd": 5.0})),
        (),
        "bpe",
        adapter=True,
    ),
    "bpe_to_char_pseudo_alone": Recipe(
        "characters from a subword teacher: CTC + pseudo-labels, without RKD",
        (PSEUDO,),
        (),
        "bpe",
        adapter=True,
    ),
    "bpe_to_char_adapted_skd_kl": Recipe(
        "characters from a subword teacher with an adapter: RKD, then CTC + SKD kl",
        (RKD, SKD),
        (KL,),
        "bpe",
        adapter=True,
    ),
    "adapted_rkd_kept_ctc": Recipe("with an adapter: RKD, then CTC + RKD", (RKD, KEPT), adapter=True),
    "adapted_rkd_pseudo": Recipe(
        "with an adapter: RKD, then CTC + pseudo-labels + RKD",
        (RKD_TIME, ("pseudo", {"ctc": 0.5, "pseudo": 0.5, "rkd": 1.85})),
        adapter=True,
        reduction="time_sum",
    ),
    "adapted_pseudo_alone": Recipe(
        "with an adapter: CTC + pseudo-labels, without RKD", (PSEUDO,), adapter=True
    ),
    "adapted_skd_kl_1": Recipe("with an adapter: CTC + SKD kl, weight 1", (STRONG,), (KL,), adapter=True),
    "adapted_rkd_skd_kl": Recipe("with an adapter: RKD, then CTC + SKD kl", (RKD, SKD), (KL,), adapter=True),
}
