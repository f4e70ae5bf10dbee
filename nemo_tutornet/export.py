# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""The student that leaves: a fresh instance of NeMo's own class with NeMo's keys, and nothing of the tutor."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_tutornet.borrowed import TOKENIZER_FILES
from nemo_tutornet.checkpoints import (
    STOCK_BPE,
    alone,
    ctc_class,
    load_lightning_checkpoint,
    quiet_nemo,
    read_nemo_config,
    staged_in,
    stock_config,
    untouched_app_state,
)
from nemo_tutornet.errors import TutorError
from nemo_tutornet.summary import Verification, is_summary, summary_path, write_summary
from nemo_tutornet.teacher import restore_ctc
from nemo_tutornet.tokenizers import forget_machine

if TYPE_CHECKING:
    from nemo_tutornet.onnx_export import OnnxFile

# An interpolation that calls a resolver (`${oc.env:HOME}`), its name perhaps another interpolation; one of a key has no colon.
_RESOLVER = re.compile(r"\$\{.*:", re.DOTALL)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the `.nemo` file.
        target: its class.
        parameters: number of them.
        labels: labels without the blank.
        onnx: the graphs, in the order asked for.
        verification: what was checked; None without `verify`.
        summary: its file; None without `verify`.
    """

    path: Path
    target: str
    parameters: int
    labels: int
    onnx: List[OnnxFile]
    verification: Optional[Verification] = None
    summary: Optional[Path] = None


def export_student(
    source: Union[str, Path, Any],
    destination: Union[str, Path],
    *,
    onnx: Union[str, Path, None] = None,
    precisions: Sequence[str] = ("fp32",),
    sherpa: bool = False,
    verify: bool = False,
    signing_key: Union[str, Path, None] = None,
) -> Exported:
    """Writes a stock `.nemo` from a student, finished or interrupted, and optionally its ONNX graphs and the proof of both.

    The source is only read, and torch's random numbers go on as if nothing had been exported. The state is loaded strictly into
    a fresh instance of NeMo's own class, so a key too many or too few is an error and not a surprise on the customer's side;
    graphs are made from yet another instance, because NeMo's exporter changes the model that it is given. All files appear
    together at the end, or none does.

    Args:
        source: a `.ckpt` that training wrote, a `.nemo`, or a model (in a distributed run, on rank zero).
        destination: the `.nemo` to write; an older file there is replaced when the new one is complete.
        onnx: the ONNX file to write beside it; with other precisions than `fp32` their names go before the suffix.
        precisions: of `fp32`, `fp16` (weights and activations) and `int8` (dynamic quantization).
        sherpa: write the graph and the tokens for sherpa-onnx too.
        verify: prove the files (`verify_student`) before they take their names, and write a summary: `student.json`
            beside `student.nemo`.
        signing_key: PEM file of an Ed25519 private key that signs the summary.

    Raises:
        TutorError: unreadable source, not a CTC recogniser, a config that would take something of this machine along, a state
            that does not fit NeMo's class, a failed check, or no place to write; what stood at the destination stays as it was.
    """
    destination = Path(destination)
    graph = None if onnx is None else Path(onnx)
    _check_names(destination, graph, precisions, sherpa, verify, signing_key)
    file = Path(source) if isinstance(source, (str, Path)) else None
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(source)))
            stack.enter_context(alone())  # the other ranks go on with the training
            # NeMo takes a subword model's tokenizer out of the file that it was restored from, so a copy must last as long.
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model.nemo"
            model = _from_model(source, copy) if file is None else _from_file(file)
            model.cfg = stock_config(model.cfg)
            stages = stack.enter_context(staged_in(*(_folder(path) for path in (destination, graph) if path is not None)))
            student = stages[_folder(destination)] / destination.name
            with quiet_nemo():
                model.save_to(str(student))
            forget_machine(student)
            graphs: List[OnnxFile] = []
            if graph is not None:
                from nemo_tutornet.onnx_export import write_onnx

                graphs = write_onnx(student, stages[_folder(graph)] / graph.name, precisions, sherpa, called=file or destination)
            verification = None
            if verify:
                verification = _verified(student, graphs, model, file, None if signing_key is None else Path(signing_key))
    except OSError as error:
        raise TutorError(f"{destination} cannot be written ({error.strerror or error}); nothing was changed there.") from None
    return Exported(
        path=destination,
        target=str(model.cfg.target),
        parameters=sum(p.numel() for p in model.parameters()),
        labels=len(model.decoder.vocabulary),
        onnx=[replace(written, path=graph.with_name(written.path.name)) for written in graphs] if graph is not None else [],
        verification=verification,
        summary=summary_path(destination) if verify else None,
    )


def _folder(path: Path) -> Path:
    return path.expanduser().parent.resolve()  # a link is replaced, and not what it points to


def _cuda_devices(source: Any) -> List[int]:
    parameters = source.parameters() if isinstance(source, torch.nn.Module) else ()
    return sorted({parameter.get_device() for parameter in parameters if parameter.is_cuda})


def _check_names(
    destination: Path, graph: Optional[Path], precisions: Sequence[str], sherpa: bool, verify: bool, signing_key: Any
) -> None:
    """Mistakes that show before anything is read."""
    if destination.suffix != ".nemo":
        raise TutorError(f"{destination} must end in .nemo; that is what NeMo and Riva expect.")
    if graph is not None and graph.suffix != ".onnx":
        raise TutorError(f"{graph} must end in .onnx; that is what ONNX Runtime and its clients expect.")
    for path in (destination, graph):
        if path is not None and path.is_dir():
            raise TutorError(f"{path} is a folder; give the name of a file to write.")
    if graph is None and (sherpa or tuple(precisions) != ("fp32",)):
        raise TutorError("other precisions and the graph for sherpa-onnx are ONNX files; say where with --onnx OUT.onnx.")
    if signing_key is not None and not verify:
        raise TutorError("what is signed is the summary that verifying writes; add --verify.")
    if verify and summary_path(destination).exists() and not is_summary(summary_path(destination)):
        raise TutorError(
            f"{summary_path(destination)} is no summary of a student, and would be replaced by one; give {destination.name} "
            f"another name or place."
        )


def _verified(
    student: Path, graphs: Sequence[OnnxFile], model: Any, source: Optional[Path], signing_key: Optional[Path]
) -> Verification:
    from nemo_tutornet.verify import verify_student

    verification = verify_student(student, [graph.path for graph in graphs], reference=model)
    if not verification.passed:
        raise TutorError(f"{student.name} failed its verification and was not written: {verification.failures}")
    others = [path for folder in {g.path.parent for g in graphs} for path in sorted(folder.iterdir()) if path != student]
    write_summary(summary_path(student), verification, others, source, signing_key)
    return verification


def _from_model(source: Any, copy: Path) -> Any:
    if not hasattr(source, "save_to"):
        raise TutorError(f"a {type(source).__name__} cannot be exported; give a .ckpt, a .nemo or a NeMo CTC model.")
    with quiet_nemo():
        source.save_to(str(copy))
    return _from_nemo(copy)


def _from_file(source: Path) -> Any:
    return _from_ckpt(source) if source.suffix == ".ckpt" else _from_nemo(source)


def _from_nemo(source: Path) -> Any:
    config = _resolved(read_nemo_config(source), source)
    if "model" in config:
        raise TutorError(
            f"{source} has a section `model` in its config, which NeMo would restore instead of the rest; take another."
        )
    if ctc_class(config, source, "a student") == STOCK_BPE:
        for key, path in _outside("tokenizer", config.get("tokenizer")):
            raise TutorError(
                f"{source} has {path} for {key}, a file of this machine and none of its own, which NeMo would pack into the "
                f"student; if it is yours, restore the model and save it with NeMo, so that it holds the file, and export that."
            )
    return restore_ctc(source)


def _resolved(config: DictConfig, source: Path) -> DictConfig:
    """A config with its interpolations resolved, as NeMo writes it; one that would read this machine's environment is refused."""
    for key, text in _texts(OmegaConf.to_container(config, resolve=False)):
        if _RESOLVER.search(text):
            raise TutorError(
                f"{source} has {text!r} for {key} in its config, which would be computed on this machine and written into the "
                f"student; if that is wanted, restore the model and save it with NeMo, which writes the value, and export that."
            )
    try:
        resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise TutorError(f"{source} has a config that cannot be resolved: {str(error).splitlines()[0]}.") from None
    assert isinstance(resolved, DictConfig)
    return resolved


def _texts(node: Any, key: str = "") -> Iterator[Tuple[str, str]]:
    if isinstance(node, str):
        yield key, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for child, value in children:
        yield from _texts(value, f"{key}.{child}".lstrip("."))


def _outside(key: str, section: Any) -> Iterator[Tuple[str, str]]:
    """Files outside the archive that NeMo would take for a tokenizer's: it looks for a path on the machine before the archive."""
    if not isinstance(section, DictConfig):
        return
    kind, langs = str(section.get("type")).lower(), section.get("langs")
    if kind == "agg":
        for name in langs if isinstance(langs, DictConfig) else ():
            yield from _outside(f"{key}.langs.{name!s}", langs[name])
        return
    for name in ("vocab_path",) if kind == "wpe" else TOKENIZER_FILES:
        # Where the file is not named, a stale folder is looked into.
        folder = str(section.get("dir") or "")
        path: str = str(section[name] or "") if name in section else os.path.join(folder, TOKENIZER_FILES[name])
        if os.path.exists(path) or (path.startswith("nemo:") and "/" in path):
            yield f"{key}.{name}", path


def _from_ckpt(source: Path) -> Any:
    checkpoint = load_lightning_checkpoint(source)
    hyper_parameters = checkpoint["hyper_parameters"]
    config = hyper_parameters.get("cfg") if isinstance(hyper_parameters, (Mapping, DictConfig)) else None
    if config is None:
        raise TutorError(f"{source} is not a checkpoint of a NeMo model: its hyper_parameters have no cfg.")
    config = OmegaConf.create(config) if isinstance(config, (dict, DictConfig)) else None
    if not isinstance(config, DictConfig):
        raise TutorError(f"{source} is not a checkpoint of a NeMo model: its cfg is not a mapping.")
    config = _resolved(config, source)
    target = ctc_class(config, source, "a student")
    return _fresh(config, target, checkpoint["state_dict"], source)


def _fresh(config: DictConfig, target: str, state: Dict[str, Any], source: Path) -> Any:
    from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE

    config.target = target
    model_class = EncDecCTCModelBPE if target == STOCK_BPE else EncDecCTCModel
    folder = OmegaConf.select(config, "tokenizer.dir")
    data = {name: config.pop(name) for name in ("train_ds", "validation_ds", "test_ds") if name in config}
    try:
        with untouched_app_state(), quiet_nemo():
            model = model_class(cfg=config)
        model.load_state_dict(state)
    except Exception as error:  # a missing tokenizer, a key too many, whatever the config makes NeMo raise
        if target == STOCK_BPE and folder and not Path(folder).is_dir():
            raise TutorError(
                f"{source} names its tokenizer in {folder}, which is not here; export the run's .nemo, which holds it, or copy "
                f"that folder here."
            ) from error
        detail = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise TutorError(f"{source} does not fit NeMo's {model_class.__name__}: {detail}") from error
    # The dataset sections were only taken out so that NeMo does not open the data here.
    OmegaConf.set_struct(model.cfg, False)
    for name, section in data.items():
        model.cfg[name] = section
    return model.eval()
