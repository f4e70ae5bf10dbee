# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""States of the random generators that a training draws from, so that a resumed run draws the same numbers.

A training draws from the global generators of torch (CPU and GPU), Python and NumPy, and from generators that
single objects own: NeMo's SpecAugment and SpecCutout have one each, which NeMo seeds from the clock.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

OwnGenerator = random.Random | np.random.RandomState | np.random.Generator | torch.Generator


def own_generators(modules: Iterable[nn.Module]) -> list[OwnGenerator]:
    """Returns the generators that are attributes of modules, in the modules' order, each once.

    Args:
        modules: as of `model.modules()`.
    """
    found: dict[int, OwnGenerator] = {}
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, OwnGenerator):
                found.setdefault(id(value), value)
    return list(found.values())


def seed_generators(generators: Sequence[OwnGenerator], seed: int, rank: int) -> None:
    """Seeds generators, so that two runs with one seed draw the same numbers.

    Args:
        generators: as `own_generators` returns them; each gets a seed of its own.
        seed: of the run.
        rank: of the process; each draws other numbers.
    """
    for i, generator in enumerate(generators):
        digest = hashlib.sha256(f"{seed} {rank} {i}".encode()).digest()
        number = int.from_bytes(digest[:4], "big")
        if isinstance(generator, torch.Generator):
            generator.manual_seed(number)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = type(generator.bit_generator)(number).state
        else:
            generator.seed(number)


def random_states(generators: Sequence[OwnGenerator]) -> dict[str, Any]:
    """Returns the states of the global generators and of others.

    Args:
        generators: those that objects own.

    Returns:
        Plain containers, numbers and tensors, which `torch.load(weights_only=True)` reads.
    """
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": _plain(random.getstate()),
        "numpy": _plain(np.random.get_state(legacy=False)),
        "own": [_plain(_state(generator)) for generator in generators],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any], generators: Sequence[OwnGenerator]) -> None:
    """Sets the generators to what `random_states` returned.

    Args:
        states: the states. Those of a GPU are left out where there is none, and those of `generators` where
            the model has others now.
        generators: those that objects own.
    """
    torch.set_rng_state(states["torch"].cpu())
    random.setstate(_from_plain(states["python"]))
    np.random.set_state(_from_plain(states["numpy"]))
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu())
    if len(states["own"]) != len(generators):
        return
    for generator, state in zip(generators, states["own"], strict=True):
        _set_state(generator, _from_plain(state))


def _state(generator: OwnGenerator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state(legacy=False)


def _set_state(generator: OwnGenerator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state.cpu())
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


# An array of NumPy and a tuple of 600 numbers become tensors, whose first dimension says which they were.
def _plain(state: Any) -> Any:
    """Returns a state in which arrays and tuples are marked dicts, without classes of NumPy."""
    if isinstance(state, np.ndarray):
        return {"array": torch.from_numpy(state.astype(np.int64)), "type": str(state.dtype)}
    if isinstance(state, tuple):
        if len(state) > 100:
            return {"numbers": torch.tensor(state, dtype=torch.int64)}
        return {"tuple": [_plain(value) for value in state]}
    if isinstance(state, dict):
        return {"dict": [[key, _plain(value)] for key, value in state.items()]}
    return state.item() if isinstance(state, np.generic) else state


def _from_plain(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    if "array" in state:
        return state["array"].numpy().astype(state["type"])
    if "numbers" in state:
        return tuple(state["numbers"].tolist())
    if "tuple" in state:
        return tuple(_from_plain(value) for value in state["tuple"])
    return {key: _from_plain(value) for key, value in state["dict"]}
