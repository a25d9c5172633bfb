"""Lines that do not end in blanks. Rich fills lines up to the width of the terminal, also where they go into a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment


class Trimming(RenderHook):
    """For :meth:`rich.console.Console.push_render_hook`."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Trimmed(one) for one in renderables]


class _Trimmed:
    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        return _trimmed(console.render(self._renderable, options))


def _trimmed(segments: Iterable[Segment]) -> Iterator[Segment]:
    blanks: list[Segment] = []  # which count only if something follows on the line
    for segment in segments:
        if segment.control:
            yield segment
            continue
        for part in re.split(r"(\n)", segment.text):
            solid = part.rstrip(" ")
            if solid == "\n":
                blanks.clear()
            if solid:
                yield from blanks
                blanks.clear()
                yield Segment(solid, segment.style)
            if solid != part:
                blanks.append(Segment(part[len(solid) :], segment.style))
    yield from blanks
