"""Blocking work in threads, for asynchronous programs.

Queries and ingests have threads of their own: those of asyncio are shared with all else that the program does, and a
query would wait there behind ingests that take minutes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import Literal, TypeVar, get_args

from pipeline import deadline
from pipeline.forking import begin_anew

T = TypeVar("T")
Kind = Literal["query", "ingest"]

_pools: dict[Kind, ThreadPoolExecutor] = {}


def _make_pools() -> None:
    """Their threads start as they are needed, up to Python's own bound, and stay behind at a fork."""
    _pools.update({kind: ThreadPoolExecutor(thread_name_prefix=f"pipeline-{kind}") for kind in get_args(Kind)})


_make_pools()
begin_anew(_make_pools)


async def in_thread(kind: Kind, work: Callable[[], T]) -> T:
    """What ``work`` gives. Where this is cancelled, work that has not begun never does; else its end is not awaited."""
    return await asyncio.wrap_future(_pools[kind].submit(copy_context().run, work))


async def until_cancelled(kind: Kind, work: Callable[[], T]) -> T:
    """As :func:`in_thread`, but where this is cancelled ``work`` is given up, see :func:`pipeline.deadline.check`.

    It is awaited until it has ended, so that nothing goes on behind the program's back, and an error that it ends with
    comes out. Who does not want to wait for that either cancels once more.
    """
    given_up = threading.Event()

    def wanted() -> T:
        with deadline.unless(given_up):
            return work()

    submitted = _pools[kind].submit(copy_context().run, wanted)
    answer = asyncio.wrap_future(submitted)
    try:
        return await asyncio.shield(answer)
    except asyncio.CancelledError:
        given_up.set()
        if not submitted.cancel():  # it has begun
            with suppress(deadline.GivenUpError):
                await answer
        raise
    finally:  # also where the coroutine is closed
        given_up.set()
