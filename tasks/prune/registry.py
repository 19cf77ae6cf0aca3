"""The criteria, allocators, repairs and schedules that a run config may name; imports none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resprout.tasks.core.methods import Registry

if TYPE_CHECKING:
    from resprout.tasks.prune.interfaces import Allocator, Criterion, Repair, Schedule

CRITERIA: Registry[type[Criterion]] = Registry("criterion", "resprout.tasks.prune.criteria")
ALLOCATORS: Registry[type[Allocator]] = Registry("allocator", "resprout.tasks.prune.allocators")
REPAIRS: Registry[type[Repair]] = Registry("repair", "resprout.tasks.prune.repairs")
SCHEDULES: Registry[type[Schedule]] = Registry("schedule", "resprout.tasks.prune.schedules")
