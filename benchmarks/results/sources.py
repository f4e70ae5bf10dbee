# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Where a student's targets come from: teachers, their adapters and caches. What is missing is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import typer
from corpora import Corpus
from filelock import FileLock, Timeout
from processes import Training, make
from recipes import RECIPES
from runs import Run, read_rows
from students import Student, student_of
from subwords import write_tokenizer

from nemo_tutornet.commands.hydra_config import hydra_value
from nemo_tutornet.utils.files import sha256_of

SPEED = "speed:{prob:0.8,sr:16000,resample_type:scipy,min_speed_rate:0.85,max_speed_rate:1.15,num_rates:7}"
# A teacher that is trained here gets every utterance at many speeds and noise levels: the corpora are small
# for a Conformer.
TEACHER_AUGMENTATION = (
    f"+model.train_ds.augmentor={{{SPEED},white_noise:{{prob:0.5,min_level:-80,max_level:-50}}}}"
)
STUDENT_AUGMENTATION = f"+model.train_ds.augmentor={{{SPEED}}}"
TEACHER_EPOCHS = 90
# Of an adapter, whatever the size of its training set, as in the committed lines.
ADAPTER_EPOCHS = ("--epochs", "40")


@dataclass(frozen=True)
class Teacher:
    """A teacher.

    Attributes:
        name: a word for it, in lines and tables.
        where: its file, or the name of a pretrained NeMo model; None where it is trained here.
        kind: `char` or `bpe`, for one that is trained here.
        epochs: of its training here.
        share: of the corpus that it is trained on here.
    """

    name: str
    where: str | None = None
    kind: str = "char"
    epochs: int = TEACHER_EPOCHS
    share: float = 1.0

    @property
    def sha256(self) -> str | None:
        """Checksum of its file; None for the name of a pretrained model."""
        return sha256_of(Path(self.where)) if self.where is not None and Path(self.where).is_file() else None

    @property
    def stem(self) -> str:
        """A word for it in names of files."""
        return Path(self.where).stem if self.where is not None and self.sha256 else self.name


def trained_here(kind: str, epochs: int, share: float) -> Teacher:
    """A teacher of a kind that is trained here, for so many epochs on a share of the corpus."""
    word = kind if epochs == TEACHER_EPOCHS else f"{kind}_{epochs}_epochs"
    return Teacher(word if share == 1 else f"{word}_{100 * share:g}", None, kind, epochs, share)


def given(text: str) -> Teacher:
    """A teacher from `NAME=FILE`, or from a file or the name of a pretrained model alone.

    Raises:
        ValueError: there is no such file.
    """
    name, equals, where = text.partition("=")
    where = where if equals else name
    path = Path(where)
    if path.is_file():
        return Teacher(name if equals else path.stem, str(path.resolve()))
    if path.suffix or "/" in where or not where:
        raise ValueError(f"there is no file {where}.")
    return Teacher(name, where)


class Need(NamedTuple):
    """What a run wants of a teacher.

    Attributes:
        teacher: its name in the run.
        kind: `char` or `bpe`, which tells the labels of what is cached.
        student: the student that its adapter is for; empty where none is wanted.
    """

    teacher: str
    kind: str
    student: str


def need_of(run: Run, teacher: str) -> Need | None:
    """What a run wants of a teacher, by the teacher's name; None where it wants nothing."""
    recipe = RECIPES[run.recipe]
    if not recipe.needs_teacher:
        return None
    # Students of one config have the same frames and labels, and so one adapter, unless an override changes
    # the frames.
    base = student_of(run.student)
    name = base.config if base.folder == "conf/small" else f"conf/{base.config}"
    name = run.student if base.has_other_frames else name
    return Need(teacher, recipe.teacher, name if recipe.adapter else "")


@dataclass(frozen=True)
class Source:
    """Where a student's targets come from: a teacher's file or name, its adapter, and its cache, if any."""

    teacher: str
    adapter: Path | None = None
    cache: Path | None = None


class Sources:
    """Makes what students need of their teachers, in a corpus' folder.

    Args:
        corpus: what teachers and adapters are trained on.
        teachers: by their names in runs.
        environment: of trainings.
    """

    def __init__(self, corpus: Corpus, teachers: Sequence[Teacher], environment: dict[str, str]) -> None:
        self.corpus, self.folder, self.environment = corpus, corpus.folder, environment
        self.teachers = {teacher.name: teacher for teacher in teachers}

    def prepare(
        self, needs: Sequence[Need], cached: bool, student_train: Sequence[Path], perturbed: bool = False
    ) -> dict[Need, Source]:
        """Trains teachers and adapters, and makes caches, unless another command is at it: then it waits.

        Args:
            needs: what the runs want.
            cached: make caches.
            student_train: the students' training set, which adapters are trained on.
            perturbed: the caches hold every speed of the students' perturbation.
        """
        lock = FileLock(self.folder / ".teachers.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            typer.echo("waiting for another command that is at a teacher or its cache")
            lock.acquire()
        try:
            return {need: self._source(need, cached, student_train, perturbed) for need in needs}
        finally:
            lock.release()

    def _source(self, need: Need, cached: bool, student_train: Sequence[Path], perturbed: bool) -> Source:
        teacher = self.teacher(need.teacher)
        stem = self.teachers[need.teacher].stem if self.teachers[need.teacher].where else Path(teacher).stem
        if not need.student:
            cache = self.cache(need, teacher, stem, perturbed) if cached else None
            return Source(teacher, None, cache)
        adapter = self.adapter(need, teacher, stem, student_train)
        cache = adapter.with_suffix(".work") / "train"  # the encoder's output, which `adapt` kept
        if cached and perturbed:  # `adapt` kept it at one speed
            cache = self.cache(need, teacher, adapter.stem, perturbed, adapter)
        return Source(teacher, adapter, cache if cached else None)

    def teacher(self, name: str) -> str:
        """The file or name of a teacher, which is trained on the corpus if it was not given."""
        teacher = self.teachers[name]
        if teacher.where is not None:
            return teacher.where
        typer.echo(f"training the {teacher.kind} teacher, {teacher.epochs} epochs")
        student, overrides = Student("conf/small", "conformer_ctc_small"), [TEACHER_AUGMENTATION]
        if teacher.kind == "bpe":
            student = Student("conf/small", "conformer_ctc_bpe_small")
            overrides += self.tokenizer()
        training = Training(
            self.folder,
            f"teacher_{teacher.name}",
            student,
            self.corpus.train_sets(teacher.share),
            self.corpus.valid[0],
            teacher.epochs,
            1,
            overrides,
        )
        return str(training.run(self.environment))

    def tokenizer(self) -> list[str]:
        """Overrides for subwords of the corpus' own transcripts."""
        texts = [row.get("text") or "" for manifest in self.corpus.train for row in read_rows(manifest)]
        folder = write_tokenizer(self.folder / "tokenizer", texts)
        return [f"model.tokenizer={{dir:{hydra_value(folder)},type:bpe}}"]

    def adapter(self, need: Need, teacher: str, stem: str, train: Sequence[Path]) -> Path:
        """An adapter of a teacher for the students of a config, trained on their own training set, unless its
        file is there.
        """
        parts = [one.stem.removeprefix(f"{self.corpus.name}_train") for one in train]
        # The corpus' own manifests have no part in the name, whatever they are called.
        part = "_".join(one for one, path in zip(parts, train, strict=True) if path not in self.corpus.train)
        part = f"_{part}" if part and not part.startswith("_") else part
        path = self.folder / f"adapter_{stem}_{need.student.replace('/', '-')}{part}.safetensors"
        if not path.exists():
            typer.echo(f"training an adapter of {stem} for {need.student}")
            student = student_of(need.student)
            overrides = [*ADAPTER_EPOCHS, *(self.tokenizer() if student.has_subwords else [])]
            self._make("adapt", path, student, teacher, train, overrides, "the adapter was not made")
        return path

    def cache(
        self, need: Need, teacher: str, stem: str, perturbed: bool, adapter: Path | None = None
    ) -> Path:
        """A teacher's targets for everything that is used, for all recipes; a finished cache is only checked.

        Args:
            need: of the runs.
            teacher: its file or name.
            stem: of its file or of its adapter's.
            perturbed: at every speed of the students' perturbation.
            adapter: its adapter.
        """
        beside = "".join(f"_{manifest.stem}" for manifest in self.corpus.untranscribed)
        folder = self.folder / f"cache_{need.kind}_{stem}{beside}{'_speeds' if perturbed else ''}"
        stages = "[{name:rkd,epochs:1,weights:{rkd:1.0}},{name:all,weights:{skd:1.0,pseudo:1.0}}]"
        # The student of the subwords' recipes reads the teacher's tokenizer, the other one only its text.
        config = need.student or ("quartznet_bpe_small" if need.kind == "bpe" else "quartznet_small")
        overrides = [f"model.tutor.stages={stages}"]
        overrides += [STUDENT_AUGMENTATION] if perturbed else []
        student = student_of(config)
        if adapter is not None:  # for the student's labels, be they subwords of its own
            overrides += [f"model.tutor.teacher.adapter={hydra_value(adapter)}"]
            overrides += self.tokenizer() if student.has_subwords else []
        train = self.corpus.train_sets(beside=True)
        self._make("cache", folder, student, teacher, train, overrides, "the cache was not made")
        return folder

    def _make(
        self,
        command: str,
        output: Path,
        student: Student,
        teacher: str,
        train: Sequence[Path],
        overrides: Sequence[str],
        failure: str,
    ) -> None:
        manifests = [*train, *self.corpus.further]
        make(command, output, student, teacher, manifests, self.corpus.valid[0], overrides, failure)
