# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The demo: corpus, teacher, undistilled student, distilled student, export, check, table, report.

Each training runs the project's example script in a process of its own. Its command can also be typed by
hand, and is written to a file beside the log. A second run of the demo resumes where the first one stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from nemo_tutornet import __version__
from nemo_tutornet.commands.hydra_config import hydra_value, project_folder
from nemo_tutornet.errors import TutorError
from nemo_tutornet.utils.files import (
    atomic_write,
    defer_signals,
    expand_user,
    make_output_folder,
    sha256_of,
    user_cache,
)
from nemo_tutornet.utils.locks import locked_folder

SPLITS = ("train", "valid", "test")
TEACHER_EPOCHS, STUDENT_EPOCHS = 25, 10
COMPARED_UTTERANCES = 50  # of which the report compares the spikes
_EPOCH = re.compile(r"Epoch (\d+), global step \d+")
_WER = re.compile(r"'val_wer' reached ([\d.]+)")


@dataclass(frozen=True)
class Run:
    """One training of the demo.

    Attributes:
        name: name of the training.
        folder: folder of its output.
        config: name of a config in `conf/small`.
        epochs: length in epochs.
        overrides: Hydra's overrides of the config.
    """

    name: str
    folder: Path
    config: str
    epochs: int
    overrides: list[str]

    @property
    def trained(self) -> Path:
        """Path of the `.nemo` file that the training writes."""
        return self.folder / self.name / "checkpoints" / f"{self.name}.nemo"


def run_demo(corpus: str, output: Path, epochs: int | None, teacher_epochs: int | None, seed: int) -> None:
    """Runs the steps of the demo that are not done yet, and prints the table.

    Args:
        corpus: `embedded`, or a folder with the manifests `train.jsonl`, `valid.jsonl` and `test.jsonl`.
        output: folder that the demo writes to. The teacher is written to the user's cache folder instead, if
            that folder can be written to.
        epochs: epochs of each student's training; None for the default.
        teacher_epochs: epochs of the teacher's training; None for the default.
        seed: seed of every training.

    Raises:
        TutorError: the corpus or `output` cannot be used, or a training failed. The message of a failed
            training names its log.
    """
    console = Console(stderr=True)
    output = expand_user(output).resolve()
    student_epochs = epochs or STUDENT_EPOCHS
    make_output_folder(output)
    cache = _cache(output, console)
    folder = _corpus(corpus, output, console)
    # Treat SIGTERM like Ctrl-C: it ends the trainings in progress, which would keep running otherwise.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        runs = (
            output
            / "runs"
            / f"{student_epochs}-epochs-seed-{seed}-{_key(folder, 'quartznet_small', student_epochs, seed)}"
        )
        undistilled = Run("undistilled", runs, "quartznet_small", student_epochs, ["model.tutor=null"])
        teacher = _teacher(folder, teacher_epochs or TEACHER_EPOCHS, undistilled, seed, cache, console)
        overrides = [f"model.tutor.teacher.model_path={hydra_value(teacher)}"]
        # The name of the teacher's folder is the key of its training, so another teacher gets another folder.
        distilled = Run(
            "distilled", runs / f"teacher-{teacher.parent.name}", "quartznet_small", student_epochs, overrides
        )
        students = _train([undistilled, distilled], folder, seed, console)
    except KeyboardInterrupt:
        console.print("[bold]Interrupted.[/bold] Run the same command again: it resumes from the last epoch.")
        sys.exit(130)
    _finish(folder, output, teacher, students, console)


def _finish(folder: Path, output: Path, teacher: Path, students: list[Path], console: Console) -> None:
    from nemo_tutornet.commands.tables import evaluation_table
    from nemo_tutornet.evaluation.evaluate import evaluate
    from nemo_tutornet.export.student import export_student

    exported = [output / f"{name}.nemo" for name in ("undistilled", "distilled")]
    export_student(students[0], exported[0])
    with console.status("exporting the student and verifying it in a process without this package"):
        result = export_student(students[1], exported[1], verify=True)
    assert result.verification is not None
    console.print(
        f"exported student: passed {len(result.verification.checks)} checks, listed in {result.summary}",
        soft_wrap=True,
        markup=False,
    )
    with console.status("evaluating on the test set"):
        results = evaluate([teacher, *exported], folder / "test.jsonl")
    names = ["teacher", "undistilled", "distilled"]
    evaluation_table(results, names)
    _, undistilled, distilled = results
    if undistilled.wer > 0:
        change = 100 * (distilled.wer / undistilled.wer - 1)
        print(f"Distillation changed the student's WER by {change:+.0f} % (relative).")
    with atomic_write(output / "report.json") as temporary:
        temporary.write_text(
            json.dumps([result.as_dict() for result in results], indent=2) + "\n", encoding="utf-8"
        )
    print(f"Student: {exported[1]}\nFigures: {output / 'report.json'}\nCommands and logs: {output / 'runs'}")
    _report(folder, output, teacher, students)


def _report(folder: Path, output: Path, teacher: Path, students: list[Path]) -> None:
    """Writes the report of the distilled student's run, and prints its path."""
    from nemo_tutornet.commands.write_report import write_report
    from nemo_tutornet.report.request import ReportRequest
    from nemo_tutornet.utils.progress import report_parts

    undistilled, distilled = students
    request = ReportRequest(
        run=distilled.parent.parent,  # with its logs
        manifest=folder / "test.jsonl",
        baseline=undistilled,
        teacher=teacher,
        output=output / "report",
        spike_utterances=COMPARED_UTTERANCES,
    )
    with report_parts("utterances") as progress:
        _, page = write_report(request, progress)
    print(f"Report: {page}")


def _corpus(corpus: str, output: Path, console: Console) -> Path:
    from nemo_tutornet.data.manifest import read_manifest
    from nemo_tutornet.data.manifest_checks import check_manifests

    if corpus == "embedded":
        from nemo_tutornet.commands.demo_corpus import corpus_is_complete, write_corpus

        folder = output / "corpus"
        if not corpus_is_complete(folder):
            with _progress(console) as progress:
                task = progress.add_task("corpus (espeak-ng)", total=None, note="")
                write_corpus(
                    folder, progress=lambda done, total: progress.update(task, completed=done, total=total)
                )
    else:
        folder = expand_user(corpus).resolve()
        if not folder.is_dir():
            raise TutorError(
                f"--corpus is {corpus!r}, which is no folder; give 'embedded' or a folder with train.jsonl, "
                f"valid.jsonl and test.jsonl."
            )
    model = OmegaConf.load(_config("quartznet_small")).model
    model.train_ds.manifest_filepath, model.validation_ds.manifest_filepath = (
        str(folder / f"{split}.jsonl") for split in SPLITS[:2]
    )
    for warning in check_manifests(model):
        console.print(warning, soft_wrap=True, markup=False, highlight=False)
    for split in SPLITS:
        rows = read_manifest(folder / f"{split}.jsonl", shortest=0.02)
        if not any((row.text or "").strip() for row in rows):
            raise TutorError(
                f"{folder / split}.jsonl has no transcripts; the demo trains and measures with a text in "
                "each row."
            )
        console.print(
            f"{split}: {len(rows)} utterances, {sum(row.duration for row in rows) / 60:.1f} minutes"
        )
    return folder


def _cache(output: Path, console: Console) -> Path:
    """Chooses the folder that keeps teachers for the next demo.

    It is in the user's cache folder, or in the output folder when the cache folder cannot be written to.
    """
    try:
        cache = user_cache() / "demo"
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
        return cache
    except (OSError, TutorError) as error:
        console.print(
            f"no cache can be kept ({error}); the teacher goes to {output / 'teachers'}",
            markup=False,
            soft_wrap=True,
        )
        return output / "teachers"


def _teacher(folder: Path, epochs: int, beside: Run, seed: int, cache: Path, console: Console) -> Path:
    """Returns the teacher's file, and trains the teacher first if the file does not exist.

    The run `beside` does not need the teacher, so it is trained at the same time. A demo with another output
    folder may be training the same teacher, and is waited for.
    """
    kept = cache / _key(folder, "conformer_ctc_small", epochs, seed) / "teacher.nemo"
    waiting = f"teacher: another demo trains it in {kept.parent}; waiting for its end"
    with locked_folder(kept.parent, partial(console.print, waiting, markup=False, soft_wrap=True)):
        if kept.is_file():
            console.print(f"teacher: reused from {kept}")
            return kept
        trained, _ = _train(
            [Run("teacher", kept.parent, "conformer_ctc_small", epochs, []), beside], folder, seed, console
        )
        with atomic_write(kept) as temporary:
            shutil.copyfile(trained, temporary)
    return kept


def _train(planned: list[Run], folder: Path, seed: int, console: Console) -> list[Path]:
    """Trains all runs at the same time, one process of the example script each, and waits for them.

    Args:
        planned: the runs; a finished one is reused.
        folder: folder of the manifests.
        seed: seed of every training.
        console: output for messages and progress bars.

    Returns:
        The `.nemo` files of the runs, in their order.

    Raises:
        TutorError: a training failed.
    """
    processes: dict[str, subprocess.Popen] = {}
    readers: list[threading.Thread] = []
    with _progress(console) as progress:
        try:
            for run in planned:
                if (run.folder / f"{run.name}.done").is_file() and run.trained.is_file():
                    console.print(f"{run.name}: reused from {run.trained}")
                    continue
                with defer_signals():  # a signal between start and assignment would leave the process running
                    processes[run.name] = _start(run, folder, seed)
                task = progress.add_task(run.name, total=run.epochs, note="starting")
                arguments = (processes[run.name], run.folder / f"{run.name}.log", progress, task)
                readers.append(threading.Thread(target=_follow, args=arguments, daemon=True))
                readers[-1].start()
            for process in processes.values():
                process.wait()
        except BaseException:
            for process in processes.values():
                process.terminate()
            raise
        finally:
            for process in processes.values():
                process.wait()
            for reader in readers:
                reader.join()
    for run in planned:
        if not run.trained.is_file() or (run.name in processes and processes[run.name].returncode != 0):
            raise TutorError(f"training {run.name!r} failed; its log is {run.folder / f'{run.name}.log'}.")
        (run.folder / f"{run.name}.done").touch()
    return [run.trained for run in planned]


def _start(run: Run, folder: Path, seed: int) -> subprocess.Popen:
    script = project_folder("examples") / "speech_to_text_ctc_tutornet.py"
    command = [
        sys.executable,
        str(script),
        f"--config-path={project_folder('conf') / 'small'}",
        f"--config-name={run.config}",
        f"model.train_ds.manifest_filepath={hydra_value(folder / 'train.jsonl')}",
        f"model.validation_ds.manifest_filepath={hydra_value(folder / 'valid.jsonl')}",
        f"trainer.max_epochs={run.epochs}",
        "trainer.enable_progress_bar=false",
        f"seed={seed}",
        f"exp_manager.exp_dir={hydra_value(run.folder)}",
        f"exp_manager.name={run.name}",
        *run.overrides,
    ]
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / f"{run.name}.command").write_text(shlex.join(command) + "\n", encoding="utf-8")
    # NeMo sets NEMO_EXPM_VERSION for its own workers. If a training inherited it, it would write to a folder
    # with the date of another run.
    environment = {name: value for name, value in os.environ.items() if name != "NEMO_EXPM_VERSION"}
    # Models this small train faster on one thread than on two, so two of them train at the same time instead.
    environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **environment, "PYTHONUNBUFFERED": "1"}
    # In a session of its own, a training does not get Ctrl-C from the terminal. Only this process ends it,
    # and only once.
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=run.folder,
        env=environment,
        start_new_session=True,
    )


def _follow(process: subprocess.Popen, log: Path, progress: Progress, task: TaskID) -> None:
    """Copies the output of a training to its log, and shows its epochs in the progress bar."""
    best = float("inf")
    assert process.stdout is not None
    with log.open("a", encoding="utf-8") as file:
        for line in process.stdout:
            file.write(line)
            epoch, wer = _EPOCH.search(line), _WER.search(line)
            best = min(best, float(wer.group(1))) if wer else best
            if epoch:
                progress.update(task, completed=int(epoch.group(1)) + 1, note=f"valid WER {100 * best:.1f} %")


def _key(folder: Path, config: str, epochs: int, seed: int) -> str:
    """Computes the key of a training: a hash of corpus, config, length, seed and version of the package."""
    parts = [sha256_of(path) for path in (*(folder / f"{split}.jsonl" for split in SPLITS), _config(config))]
    return hashlib.sha256(" ".join([*parts, str(epochs), str(seed), __version__]).encode()).hexdigest()[:16]


def _config(name: str) -> Path:
    return project_folder("conf") / "small" / f"{name}.yaml"


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<20}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )
