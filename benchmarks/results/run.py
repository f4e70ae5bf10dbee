# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains students by recipe and seed with the example script, and evaluates each: one JSON line a run.

    python benchmarks/results/run.py MANIFESTS OUTPUT --recipe ctc --recipe rkd_skd_kl --seed 1 --seed 2
    --jobs 2

MANIFESTS holds CORPUS_train.jsonl and CORPUS_valid.jsonl. What is in OUTPUT/CORPUS/runs.jsonl is not run
again, an interrupted run resumes, and a teacher that is not given is trained first; a second command waits
for it. `table.py` reads the lines; the test set is its business.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import typer
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from recipes import CONF, RECIPES, STUDENTS, with_views
from runs import Run, read_lines, read_rows, run_of
from subwords import write_tokenizer

from nemo_tutornet.commands.hydra_config import hydra_value
from nemo_tutornet.errors import TutorError
from nemo_tutornet.nemo_io.run_checkpoints import parse_average
from nemo_tutornet.teachers.adapter import Adapter
from nemo_tutornet.utils.files import atomic_write, sha256_of

ROOT = Path(__file__).resolve().parents[2]
SPEED = "speed:{prob:0.8,sr:16000,resample_type:scipy,min_speed_rate:0.85,max_speed_rate:1.15,num_rates:7}"
# A teacher that is trained here hears every utterance at many speeds and noise levels: the corpora are small
# for a Conformer.
TEACHER_AUGMENTATION = (
    f"+model.train_ds.augmentor={{{SPEED},white_noise:{{prob:0.5,min_level:-80,max_level:-50}}}}"
)
STUDENT_AUGMENTATION = f"+model.train_ds.augmentor={{{SPEED}}}"
TEACHER_EPOCHS = 90
RKD_ALONE = "[{name:rkd,weights:{rkd:1.0}}]"


KEPT_CHECKPOINTS = "exp_manager.checkpoint_callback_params.save_top_k"


def kept_for(average: str) -> int:
    """How many checkpoints a training must keep for an average: all for the last ones, or the best ones."""
    kind, count = parse_average(average)
    return count if kind == "best" else -1


def trained_here(kind: str, epochs: int, share: float) -> str:
    """A word for a teacher of a kind that is trained here, for so many epochs on a share of the corpus."""
    word = kind if epochs == TEACHER_EPOCHS else f"{kind}_{epochs}_epochs"
    return word if share == 1 else f"{word}_{100 * share:g}"


def rates_of(adapter: Path) -> dict[str, Any]:
    """An adapter's word error rate, its teacher's, and its file's checksum, for the lines."""
    info = Adapter.load(adapter).info
    return {"wer": info.wer, "teacher_wer": info.teacher_wer, "sha256": sha256_of(adapter)}


def hydra_values(paths: Path | Sequence[Path]) -> str:
    """One manifest or several, as Hydra's command line writes them."""
    return hydra_value(paths) if isinstance(paths, Path) else f"[{','.join(map(hydra_value, paths))}]"


@dataclass(frozen=True)
class Source:
    """Where a student's targets come from: a teacher's file, its adapter, and its cache, if any."""

    teacher: Path
    adapter: Path | None = None
    cache: Path | None = None


def source_of(run: Run) -> tuple[str, str | None]:
    """The kind of a run's teacher, and the config of the students that its adapter is for."""
    recipe = RECIPES[run.recipe]
    return recipe.teacher, STUDENTS.get(run.student, (run.student, ()))[0] if recipe.adapter else None


class Runner:
    """Runs of one corpus in one folder.

    Args:
        manifests: folder of the corpus' manifests.
        output: where everything goes.
        corpus: its name.
        teachers: files of teachers that are there already, by kind.
        threads: of each training.
        further: manifests of what is heard before the corpus alone.
    """

    def __init__(
        self,
        manifests: Path,
        output: Path,
        corpus: str,
        teachers: dict[str, Path],
        threads: int | None,
        further: Sequence[Path] = (),
    ) -> None:
        self.output = output / corpus
        self.output.mkdir(parents=True, exist_ok=True)
        self.corpus, self.threads = corpus, threads
        self.train, self.valid = manifests / f"{corpus}_train.jsonl", manifests / f"{corpus}_valid.jsonl"
        self.teachers, self.further = dict(teachers), list(further)
        self.data = [sha256_of(manifest) for manifest in (self.train, self.valid)]
        self.heard_before = {manifest.stem: sha256_of(manifest) for manifest in self.further}
        self._lock = threading.Lock()

    def script(
        self,
        folder: Path,
        name: str,
        config: str,
        train: Path | list[Path],
        epochs: int,
        seed: int,
        overrides: list[str],
    ) -> Path:
        """One training with the example script, unless its checkpoint is there; returns the checkpoint."""
        result = folder / name / "checkpoints" / f"{name}.nemo"
        if result.exists():
            return result
        folder.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key != "NEMO_EXPM_VERSION"}
        if self.threads:
            environment.update(OMP_NUM_THREADS=str(self.threads), MKL_NUM_THREADS=str(self.threads))
        command = [
            sys.executable,
            "examples/speech_to_text_ctc_tutornet.py",
            "--config-path=../conf/small",
            f"--config-name={config}",
            f"model.train_ds.manifest_filepath={hydra_values(train)}",
            f"model.validation_ds.manifest_filepath={hydra_value(self.valid)}",
            f"exp_manager.exp_dir={hydra_value(folder)}",
            f"exp_manager.name={name}",
            "trainer.enable_progress_bar=false",
            f"trainer.max_epochs={epochs}",
            f"seed={seed}",
            *overrides,
        ]
        with open(folder / f"{name}.log", "a", encoding="utf-8") as log:
            code = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            ).returncode
        if code or not result.exists():
            raise RuntimeError(f"training {name} failed with exit code {code}; see {folder / name}.log.")
        return result

    def teacher(self, kind: str, epochs: int, share: float = 1.0) -> Path:
        """The teacher of a kind, trained on the corpus, or on a share of it, if it was not given."""
        if kind not in self.teachers:
            typer.echo(f"training the {kind} teacher, {epochs} epochs")
            config, overrides = "conformer_ctc_small", [TEACHER_AUGMENTATION]
            if kind == "bpe":
                config = "conformer_ctc_bpe_small"
                texts = [row.get("text") or "" for row in read_rows(self.train)]
                overrides.append(
                    f"model.tokenizer.dir={hydra_value(write_tokenizer(self.output / 'tokenizer', texts))}"
                )
            name = f"teacher_{trained_here(kind, epochs, share)}"
            self.teachers[kind] = self.script(
                self.output, name, config, self.train_set(share, True), epochs, 1, overrides
            )
        return self.teachers[kind]

    def adapter(self, teacher: Path, config: str, train: Path) -> Path:
        """An adapter of a teacher for the students of a config, trained on their own training set, unless its
        file is there.
        """
        part = train.stem.removeprefix(f"{self.corpus}_train")
        path = self.output / f"adapter_{teacher.stem}_{config}{part}.safetensors"
        if not path.exists():
            typer.echo(f"training an adapter of {teacher.stem} for {config}")
            self._command("adapt", path, config, teacher, [], "the adapter was not made", train)
        return path

    def cache(
        self,
        kind: str,
        teacher: Path,
        perturbed: bool,
        config: str | None = None,
        adapter: Path | None = None,
    ) -> Path:
        """What a teacher says of the training set, for all recipes; a finished one is only checked.

        Args:
            kind: of the teacher.
            teacher: its file.
            perturbed: at every speed of the students' perturbation.
            config: of the students that its adapter is for.
            adapter: its adapter.
        """
        source = teacher if adapter is None else adapter
        folder = self.output / f"cache_{kind}_{source.stem}{'_speeds' if perturbed else ''}"
        stages = "[{name:rkd,epochs:1,weights:{rkd:1.0}},{name:all,weights:{skd:1.0,pseudo:1.0}}]"
        # The student of the subwords' recipes reads the teacher's tokenizer, the other one only its text.
        student = config or ("quartznet_bpe_small" if kind == "bpe" else "quartznet_small")
        overrides = [f"model.tutor.stages={stages}"]
        overrides += [STUDENT_AUGMENTATION] if perturbed else []
        overrides += [] if adapter is None else [f"model.tutor.teacher.adapter={hydra_value(adapter)}"]
        self._command("cache", folder, student, teacher, overrides, "the cache was not made")
        return folder

    def _command(
        self,
        name: str,
        output: Path,
        config: str,
        teacher: Path,
        overrides: list[str],
        failure: str,
        train: Path | None = None,
    ) -> None:
        """Runs a command of `nemo-tutornet` that takes the training script's arguments."""
        command = [
            sys.executable,
            "-m",
            "nemo_tutornet",
            name,
            "--output",
            str(output),
            "--config-path",
            str(ROOT / "conf" / "small"),
            "--config-name",
            config,
            f"model.train_ds.manifest_filepath={hydra_values([train or self.train, *self.further])}",
            f"model.validation_ds.manifest_filepath={hydra_value(self.valid)}",
            f"model.tutor.teacher.model_path={hydra_value(teacher)}",
            *overrides,
        ]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise RuntimeError(f"{failure}: {said[-1] if said else f'exit code {done.returncode}'}")

    def prepare(
        self,
        sources: Sequence[tuple[str, str | None]],
        epochs: int,
        share: float,
        cached: bool,
        student_train: Path,
        perturbed: bool = False,
    ) -> dict[tuple[str, str | None], Source]:
        """Trains the teachers and adapters, and makes their caches, unless another command is at it: then it
        waits.

        Args:
            sources: kinds of teachers, each with the config of the students that its adapter is for.
            epochs: of a teacher that is trained here.
            share: of the corpus that it is trained on.
            cached: make caches.
            student_train: the students' training set, which adapters are trained on.
            perturbed: the caches hold every speed of the students' perturbation.
        """
        lock = FileLock(self.output / ".teachers.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            typer.echo("waiting for another command that is at a teacher or its cache")
            lock.acquire()
        try:
            made = {}
            for kind, config in sources:
                teacher = self.teacher(kind, epochs, share)
                adapter = cache = None
                if config is not None:
                    adapter = self.adapter(teacher, config, student_train)
                    cache = adapter.with_suffix(".work") / "train"  # the encoder's output, which `adapt` kept
                    if cached and perturbed:  # `adapt` kept it at one speed
                        cache = self.cache(kind, teacher, perturbed, config, adapter)
                elif cached:
                    cache = self.cache(kind, teacher, perturbed)
                made[kind, config] = Source(teacher, adapter, cache)
            return made
        finally:
            lock.release()

    def check_data(self, lines: list[dict[str, Any]]) -> None:
        """Refuses a folder whose runs had other manifests."""
        if any(line.get("data_sha256", self.data) != self.data for line in lines):
            raise RuntimeError(f"{self.output} has runs of other manifests; give another OUTPUT.")
        for name, digest in self.heard_before.items():
            if any(line.get("further_sha256", {}).get(name, digest) != digest for line in lines):
                raise RuntimeError(
                    f"{self.output} has runs with another manifest {name}; give another OUTPUT."
                )

    def check_teachers(self, lines: list[dict[str, Any]], wanted: list[Run]) -> None:
        """Refuses a folder whose runs had another teacher of the same name."""
        files = {run.teacher: self.teachers.get(RECIPES[run.recipe].teacher) for run in wanted}
        digests = {
            name: sha256_of(file) for name, file in files.items() if file is not None and name != "none"
        }
        for line in lines:
            name = line["teacher"]
            if name in digests and line.get("teacher_sha256") not in (None, digests[name]):
                raise RuntimeError(
                    f"{self.output} has runs with another teacher of the name {name}; give this one's file "
                    "another name, "
                    f"or another OUTPUT."
                )

    def student(self, run: Run, source: Source | None) -> None:
        """Trains and evaluates one student, and adds its line."""
        recipe = RECIPES[run.recipe]
        teacher, adapter = (None, None) if source is None else (source.teacher, source.adapter)
        cache = source.cache if source is not None and run.cached else None
        start = time.monotonic()
        named = "" if teacher is None else hydra_value(teacher)
        quoted = [None if path is None else hydra_value(path) for path in (cache, adapter)]
        arguments = recipe.arguments(named, *quoted)
        config, sizes = STUDENTS.get(run.student, (run.student, ()))
        sizes += (STUDENT_AUGMENTATION,) if run.perturbed else ()
        arguments = [one.replace("{teacher}", named) for one in (*sizes, *arguments, *run.changes)]
        train = self.train_set(run.share, recipe.labelled, run.untranscribed)
        folder, epochs = self.output / run.folder, run.epochs - run.epochs_before
        if run.views:
            arguments = with_views(arguments)
        if run.further:
            begun = self.before(run, folder, config, train, arguments)
            arguments = [*arguments, f"+init_from_nemo_model={hydra_value(begun)}"]
        if recipe.restart:
            first = max(1, round(epochs * recipe.rkd_share))
            begun = self.script(folder, f"{run.recipe}_first", config, train, first, run.seed, arguments)
            arguments = [
                *sizes,
                "model.tutor=null",
                f"+init_from_nemo_model={hydra_value(begun)}",
                *recipe.restart_overrides,
                *run.changes,
            ]
            epochs -= first
        if run.average:
            arguments = [*arguments, f"{KEPT_CHECKPOINTS}={kept_for(run.average)}"]
        model = self.script(folder, run.recipe, config, train, epochs, run.seed, arguments)
        plain = model
        if run.average:
            model = self.averaged(plain, run.average, train)
        minutes = (time.monotonic() - start) / 60
        with self._lock:
            line = {
                "corpus": self.corpus,
                **run.as_dict(),
                "teacher_file": str(teacher or ""),
                "teacher_sha256": sha256_of(teacher) if teacher else None,
                **({"adapter": rates_of(adapter)} if adapter else {}),
                "data_sha256": self.data,
                "further_sha256": self.heard_before,
                "minutes": round(minutes, 1),
                "model": str(model),
                "overrides": arguments,
                "valid": self.evaluate(model),
                **({"valid_of_last": self.evaluate(plain)} if run.average else {}),
            }
            with open(self.output / "runs.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        typer.echo(f"{run}: {100 * line['valid']['wer']:.2f} % on validation ({minutes:.1f} min)")

    def before(self, run: Run, folder: Path, config: str, train: Path, arguments: list[str]) -> Path:
        """The training on the corpus and what is heard beside it, whose student is the beginning of the
        other.

        With a teacher it is RKD alone, which reads no transcript; without one it is CTC, on everybody's
        transcripts.
        """
        batch_size = OmegaConf.load(CONF / "small" / f"{config}.yaml").model.train_ds.batch_size
        steps = run.epochs_before * ceil(len(read_rows(train)) / batch_size)
        alone = [] if RECIPES[run.recipe].alone else [f"model.tutor.stages={RKD_ALONE}"]
        arguments = [*arguments, *alone, f"trainer.max_steps={steps}"]
        return self.script(
            folder, f"{run.recipe}_before", config, [train, *self.further], -1, run.seed, arguments
        )

    def averaged(self, model: Path, which: str, train: Path) -> Path:
        """The mean of checkpoints of the run that wrote a model, with statistics of its training set."""
        from nemo_tutornet import export_student

        average = model.with_name(f"{model.stem}_{which}.nemo")
        if not average.exists():
            export_student(model.parent, average, average=which, statistics=train)
        return average

    def evaluate(self, model: Path) -> dict[str, Any]:
        """The command line's evaluation on the validation set."""
        from nemo_tutornet.evaluation.evaluate import evaluate

        return evaluate([model], self.valid)[0].as_dict()

    def train_set(self, share: float, labelled: bool, untranscribed: float = 0.0) -> Path:
        """The training manifest, or a share of its utterances (drawn once: the smaller is part of the
        larger), or no transcripts.

        `untranscribed` is a share that is there, too, without transcripts. It is taken from the other end, so
        that a teacher of a share has not heard it. Audio paths are made absolute where the file stands
        elsewhere.
        """
        if share == 1.0 and labelled:
            return self.train
        rows = read_rows(self.train)
        random.Random(0).shuffle(rows)
        begin, end = round(share * len(rows)), len(rows) - round(untranscribed * len(rows))
        for place, row in enumerate(rows):
            row["audio_filepath"] = str((self.train.parent / row["audio_filepath"]).resolve())
            if not labelled or place >= begin:
                row.pop("text", None)
        rows = rows[:begin] + rows[max(begin, end) :]
        about = "" if labelled else "_without_text"
        about += f"_{100 * untranscribed:g}_untranscribed" if untranscribed else ""
        path = self.output / f"{self.corpus}_train_{100 * share:g}{about}.jsonl"
        with atomic_write(path) as temporary:  # another run may be reading it
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path


def main(
    manifests: Path = typer.Argument(..., help="Folder of CORPUS_train.jsonl and CORPUS_valid.jsonl."),
    output: Path = typer.Argument(..., help="Where runs and results go."),
    corpus: str = typer.Option("an4"),
    recipe: list[str] = typer.Option(list(RECIPES), help="May be given several times; all without it."),
    student: str | None = typer.Option(
        None, help=f"Instead of the recipe's: a config in conf/small, or {', '.join(STUDENTS)}."
    ),
    seed: list[int] = typer.Option([1, 2, 3], help="May be given several times."),
    epochs: int = typer.Option(30, help="Of each student."),
    share: float = typer.Option(
        1.0, min=0.01, max=1.0, help="Of the training utterances that the students hear."
    ),
    change: list[str] = typer.Option(
        [], help="One more override of the script, for every recipe; may be given several times."
    ),
    teacher_epochs: int = typer.Option(TEACHER_EPOCHS, help="Of a teacher that is trained here."),
    teacher_share: float = typer.Option(
        1.0, min=0.01, max=1.0, help="Of the training utterances that it is trained on."
    ),
    char_teacher: Path | None = typer.Option(None, help="A character teacher that is there already."),
    bpe_teacher: Path | None = typer.Option(None, help="A subword teacher that is there already."),
    cached: bool = typer.Option(
        False, "--cached", help="Run each teacher once over the training set, and train from its cache."
    ),
    perturbed: bool = typer.Option(
        False, "--perturbed", help="Speed perturbation, for the student and its teacher, live or cached."
    ),
    untranscribed: float = typer.Option(
        0.0,
        min=0.0,
        max=0.99,
        help="Of the training utterances, heard beside --share, but without their transcripts.",
    ),
    further: list[Path] = typer.Option(
        [],
        help="A manifest that is heard with the corpus' in a training before; by a teacher's student without "
        "its transcripts.",
    ),
    further_share: float = typer.Option(
        0.25, min=0.01, max=0.9, help="Of all steps, which that training takes."
    ),
    views: bool = typer.Option(
        False,
        "--views",
        help="Student consistency on two views of each batch, with a teacher or without one.",
    ),
    average: str = typer.Option(
        "", help="Evaluate the mean of checkpoints, e.g. best-5 or last-5, on both sides of a comparison."
    ),
    jobs: int = typer.Option(
        1, help="Students trained side by side, one thread each where there are several."
    ),
) -> None:
    """Trains what is missing, seed by seed, and adds one line a run to OUTPUT/CORPUS/runs.jsonl."""
    try:
        kept_for(average) if average else None
    except TutorError as error:
        raise typer.BadParameter(str(error)) from None
    if share + untranscribed > 1:
        raise typer.BadParameter(
            f"--share {share:g} and --untranscribed {untranscribed:g} are more than there is."
        )
    for name in recipe:
        if name not in RECIPES:
            raise typer.BadParameter(f"there is no recipe {name}; there are {', '.join(RECIPES)}.")
    if student is not None and student not in STUDENTS and not (CONF / "small" / f"{student}.yaml").is_file():
        raise typer.BadParameter(
            f"there is no student {student}: no such file in conf/small, and none of {', '.join(STUDENTS)}."
        )
    if further and not 0 < round(further_share * epochs) < epochs:
        raise typer.BadParameter(
            f"--further-share {further_share:g} of {epochs} epochs leaves one of the two trainings none."
        )
    restarts = [name for name in recipe if RECIPES[name].restart]
    if further and restarts:
        raise typer.BadParameter(
            f"{restarts[0]} begins from another training already: leave it or --further out."
        )
    given = {kind: path.resolve() for kind, path in (("char", char_teacher), ("bpe", bpe_teacher)) if path}
    for path in (
        *given.values(),
        *further,
        *(manifests / f"{corpus}_{part}.jsonl" for part in ("train", "valid")),
    ):
        if not path.is_file():
            raise typer.BadParameter(f"there is no file {path}.")
    heard_before = [path.resolve() for path in further]
    runner = Runner(
        manifests.resolve(), output.resolve(), corpus, given, 1 if jobs > 1 else None, heard_before
    )
    lines = read_lines(runner.output)
    done = {run_of(line) for line in lines}
    wanted = []
    for one in seed:
        for name in recipe:
            found = RECIPES[name]
            here = trained_here(found.teacher, teacher_epochs, teacher_share)
            # A run without a teacher is the same with whichever was named.
            source = "none" if found.alone else given[found.teacher].stem if found.teacher in given else here
            config = student or found.student
            from_cache = cached and not found.alone
            before = (tuple(path.stem for path in further), further_share if further else 0.0)
            wanted.append(
                Run(
                    name,
                    config,
                    source,
                    epochs,
                    one,
                    share,
                    from_cache,
                    perturbed,
                    tuple(change),
                    untranscribed,
                    *before,
                    average,
                    views,
                )
            )
    missing = [run for run in wanted if run not in done]
    needed = {source_of(run) for run in missing if RECIPES[run.recipe].needs_teacher}
    try:
        runner.check_data(lines)
        sources = runner.prepare(
            sorted(needed, key=lambda source: (source[0], source[1] or "")),
            teacher_epochs,
            teacher_share,
            cached,
            runner.train_set(share, True, untranscribed),
            perturbed,
        )
        runner.check_teachers(lines, wanted)
        with ThreadPoolExecutor(jobs) as pool:
            try:
                waiting = []
                for run in missing:
                    given_by = sources[source_of(run)] if RECIPES[run.recipe].needs_teacher else None
                    waiting.append(pool.submit(runner.student, run, given_by))
                for finished in as_completed(waiting):
                    finished.result()
            except RuntimeError:
                pool.shutdown(cancel_futures=True)
                raise
    except RuntimeError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
