# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""Selects the teacher's blocks that a student with fewer blocks of equal shape is initialised from (ours).

A block is given by its geometry: the shape of each of its tensors by name, and the stride and the dilation of
its convolutions under names of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nemo_tutornet.errors import TutorError

Geometry = Mapping[str, tuple[int, ...]]


def select_blocks(student: Sequence[Geometry], teacher: Sequence[Geometry], unit: str = "block") -> list[int]:
    """Selects a teacher's block of equal geometry for each of the student's blocks, in the same order.

    The student's first block is the teacher's first, its last the teacher's last. Where consecutive blocks of
    the student have equal geometry, theirs are spread evenly over those of the teacher, as DistilWhisper does
    (arXiv 2311.00430). A block that has no such neighbour is the first that fits, because the later blocks of
    a group only repeat it.

    Args:
        student: geometry of the student's blocks, in order.
        teacher: geometry of the teacher's blocks, in order.
        unit: what a block is called in messages.

    Returns:
        Index of the teacher's block for each of the student's, increasing.

    Raises:
        TutorError: there is no such selection; the message names the first tensor that differs.

    Example:
        >>> a, b = {"weight": (2, 1)}, {"weight": (2, 2)}
        >>> select_blocks([a, b, b], [a, b, b, b, b])
        [0, 1, 4]
        >>> select_blocks([a, b, a], [a, b, b, b, a])
        [0, 1, 4]
    """
    count = len(teacher)
    if not student or len(student) > count:
        raise TutorError(
            f"the student has {len(student)} {unit}s and the teacher {count}, but a student is initialised "
            "from a teacher with as many or more."
        )
    allowed = [_allowed(i, student, teacher) for i in range(len(student))]
    earliest = _greedy(allowed)
    if len(earliest) < len(student):
        raise TutorError(f"{_misfit(len(earliest), earliest, student, teacher, unit)}.")
    latest = [count - 1 - j for j in _greedy([[count - 1 - j for j in row[::-1]] for row in allowed[::-1]])][
        ::-1
    ]
    return _nearest(allowed, _targets(student, earliest, latest), count)


def check_blocks(
    layers: Sequence[int], student: Sequence[Geometry], teacher: Sequence[Geometry], unit: str = "block"
) -> None:
    """Checks a selection that a user gives.

    Args:
        layers: index of the teacher's block for each of the student's.
        student: geometry of the student's blocks, in order.
        teacher: geometry of the teacher's blocks, in order.
        unit: what a block is called in messages.

    Raises:
        TutorError: the number of indices is wrong, a block does not exist, or its geometry differs; then the
            message names the first tensor that differs.
    """
    if len(layers) != len(student):
        raise TutorError(f"{len(layers)} {unit}s are named, but the student has {len(student)}.")
    for i, j in enumerate(layers):
        if not 0 <= j < len(teacher):
            raise TutorError(f"the teacher has no {unit} {j}, its last is {len(teacher) - 1}.")
        difference = first_difference(student[i], teacher[j])
        if difference is not None:
            raise TutorError(f"the teacher's {unit} {j} does not fit the student's {unit} {i}: {difference}.")


def first_difference(student: Geometry, teacher: Geometry) -> str | None:
    """Describes the first tensor whose shape differs.

    Args:
        student: geometry of a part of the student.
        teacher: geometry of a part of the teacher.

    Returns:
        The tensor's name with both shapes; None if all are equal.

    Example:
        >>> first_difference({"weight": (2, 1)}, {"weight": (2, 3)})
        'weight is [2, 1] in the student and [2, 3] in the teacher'
    """
    for name in (*student, *teacher):
        if student.get(name) != teacher.get(name):
            mine, theirs = (
                list(geometry[name]) if name in geometry else "missing" for geometry in (student, teacher)
            )
            return f"{name} is {mine} in the student and {theirs} in the teacher"
    return None


def _allowed(i: int, student: Sequence[Geometry], teacher: Sequence[Geometry]) -> list[int]:
    """Lists the teacher's blocks that fit one of the student's: the last for its last, the first for its
    first.
    """
    last = len(teacher) - 1
    candidates = [last] if i == len(student) - 1 else [0] if i == 0 else range(last + 1)
    return [j for j in candidates if student[i] == teacher[j]]


def _greedy(allowed: Sequence[Sequence[int]]) -> list[int]:
    """Takes the lowest increasing index in each row, up to the first row without one."""
    taken: list[int] = []
    for row in allowed:
        j = next((j for j in row if not taken or j > taken[-1]), None)
        if j is None:
            break
        taken.append(j)
    return taken


def _targets(student: Sequence[Geometry], earliest: Sequence[int], latest: Sequence[int]) -> list[float]:
    """Returns the position in the teacher that each of the student's blocks should be near."""
    targets: list[float] = []
    while len(targets) < len(student):
        start = end = len(targets)
        while end + 1 < len(student) and student[end + 1] == student[start]:
            end += 1
        first, length = earliest[start], end - start
        step = (latest[end] - first) / length if length else 0.0
        targets += [first + k * step for k in range(length + 1)]
    return targets


def _nearest(allowed: Sequence[Sequence[int]], targets: Sequence[float], count: int) -> list[int]:
    """Finds the increasing selection with the smallest sum of squared distances to the targets.

    Of selections with equal sums it takes the one with the lower indices.
    """
    best: dict[int, tuple[float, list[int]]] = {-1: (0.0, [])}
    for row, target in zip(allowed, targets, strict=True):
        following: dict[int, tuple[float, list[int]]] = {}
        for j in row:
            before = min((entry for k, entry in best.items() if k < j), default=None)
            if before is not None:
                following[j] = (before[0] + (j - target) ** 2, [*before[1], j])
        best = following
    return min(best.values())[1]


def _misfit(
    i: int, earliest: Sequence[int], student: Sequence[Geometry], teacher: Sequence[Geometry], unit: str
) -> str:
    """Describes why the student's block `i`, the first without a partner, has none."""
    start, last = (earliest[-1] + 1 if earliest else 0), len(teacher) - 1
    if i in (0, len(student) - 1):
        j = 0 if i < len(student) - 1 else last
        difference = first_difference(student[i], teacher[j])
        if difference is not None:
            which = "first" if i == 0 and len(student) > 1 else "last"
            return f"the {which} {unit}s differ: {difference}"
        return f"no {unit} of the teacher is left for the student's {unit} {i}"
    if start > last:
        return f"no {unit} of the teacher is left for the student's {unit} {i}"
    names = {j: set(student[i].items()) ^ set(teacher[j].items()) for j in range(start, last + 1)}
    nearest = min(names, key=lambda j: len(names[j]))
    return (
        f"no {unit} of the teacher from {start} on fits the student's {unit} {i}; in the nearest, {nearest}, "
        f"{first_difference(student[i], teacher[nearest])}"
    )
