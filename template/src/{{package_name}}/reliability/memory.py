"""Keeps the process small, and its pauses short."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_MMAP_THRESHOLD_BYTES = 131_072
_NEW_OBJECTS_PER_COLLECTION = 10_000


def return_memory_to_system() -> None:
    """Make the C library give freed memory back, as far as it can be told to (glibc).

    By default it keeps an arena per thread, and large blocks in its heap: after hostile or merely large requests a
    server stays as big as its worst moment.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)


def free_what_can_be_freed() -> None:
    """Collect all garbage and make the C library give back what it keeps (glibc). Takes up to a second."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def freeze_startup_objects() -> None:
    """Take everything that start-up created out of the garbage collector's sight.

    It lives as long as the process; looking at it again and again is what makes the slowest calls slow. What remains
    is little, so that it is looked at less often.
    """
    gc.freeze()  # without a collection first: it would find next to nothing, and slow the start by a tenth
    gc.set_threshold(_NEW_OBJECTS_PER_COLLECTION)
