"""How much a teacher costs: what is remembered costs nothing."""

from __future__ import annotations

from edgekd.distill.cached_teacher import CachedTeacher
from edgekd.distill.file_teacher import LogitsFile
from edgekd.distill.teachers import EnsembleTeacher, StandardizedTeacher, Teacher


def passes_per_sample(teacher: Teacher) -> int:
    """How often a sample goes through a teacher when this one is asked: 0 for answers from a cache or a file."""
    if isinstance(teacher, (CachedTeacher, LogitsFile)):
        return 0
    if isinstance(teacher, StandardizedTeacher):
        return passes_per_sample(teacher.teacher)
    if isinstance(teacher, EnsembleTeacher):
        return sum(map(passes_per_sample, teacher.teachers))
    return 1
