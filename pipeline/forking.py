"""What a forked process must not use of its parent, and what it begins anew."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from pipeline.errors import ForkedError


def begin_anew(forget: Callable[[], None]) -> None:
    """Has ``forget`` called in every child that this process forks, first of all, in the order of these calls.

    There it replaces locks that a thread of the parent may hold, which the child does not have, and what they guard.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)


def keep_for_good(inherited: object) -> None:
    """Never destroys it in this process, not even when that exits: it would do to the parent's what is the parent's to
    do."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


def check_process(pid: int, what: str) -> None:
    """Whether this is the process ``pid``, which has made ``what``.

    Raises:
        ForkedError: it is a child of that; says what to do.
    """
    if pid != os.getpid():
        raise ForkedError(
            f"{what} was loaded before the process was forked; make the pipeline in each worker, after the fork, or "
            "start the workers with 'spawn'"
        )
