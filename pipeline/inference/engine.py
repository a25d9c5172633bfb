"""Token sequences through one OpenVINO model on the CPU: sorted by length, in batches of a token budget.

What makes it fast, each measured on 100 pairs of about 165 tokens with a 6-layer model: batches sorted by length and
cut by tokens waste little on padding; one stream a core needs no synchronisation between cores; int8 weights with
activations quantised beforehand or as they come use the CPU's integer dot products; what stays floating runs in
bfloat16.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from heapq import heapreplace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from pipeline import deadline
from pipeline.forking import begin_anew, keep_for_good
from pipeline.inference.combining import Combiner
from pipeline.inference.fair_queue import FairQueue
from pipeline.inference.shared import Shared

if TYPE_CHECKING:
    import openvino

log = logging.getLogger(__name__)

# Padded tokens in one batch: enough to fill a core's matrix units, few enough to stay in its cache. Which of these it
# is depends on what leaves no core waiting for another at the end.
TOKEN_BUDGETS = range(256, 1025, 128)
# Lengths are padded up to a multiple of this, so that shapes repeat and their kernels are found again.
LENGTH_STEP = 8
# What a batch takes besides its tokens, in tokens.
_EACH_BATCH = 32
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
# Activations are quantised in groups of this many values, unless a model says otherwise: smaller is more exact, larger
# is faster.
ACTIVATION_GROUP = 128
# Most sequences that calls of several threads are joined to, as the candidates of two queries. On a CPU longer batches
# gain nothing, and everyone in one waits for its end.
TOGETHER = 128

# Token ids of a sequence, and where its second part begins.
_Item = tuple[tuple[int, ...], int]


# All engines of the process, shared or not.
_engines: WeakSet[Engine] = WeakSet()


def _keep_in_child() -> None:
    """After a fork the parent's engines are never destroyed in the child, not even when it exits.

    OpenVINO would wait for their threads, which only the parent has.
    """
    for engine in _engines:
        keep_for_good(engine)


begin_anew(_keep_in_child)  # before those that forget engines: they are called in this order

_shared: Shared[tuple[Path, bool], Engine] = Shared()


@dataclass(frozen=True, slots=True)
class Trunk:
    """The lower layers of a model, which another model has already."""

    model: Path
    node: str
    """Name of the operation whose output is the upper layers' input ``hidden``."""
    whole: bool = False
    """Whether that model is computed to its end, too: its own output comes second."""


def shared_engine(
    model: Path,
    cache_dir: Path | None = None,
    pad_id: int = 0,
    *,
    exact: bool = False,
    group: int = ACTIVATION_GROUP,
    trunk: Trunk | None = None,
) -> Engine:
    """The process's one engine for a model file, whatever the number of its users; kept in the first one's cache."""
    return _shared.get(
        (model.resolve(), trunk is not None and trunk.whole),
        lambda: Engine(model, cache_dir, pad_id, exact=exact, group=group, trunk=trunk),
    )


class Engine:
    """A compiled model with inputs ``input_ids`` and ``attention_mask``. Thread-safe.

    It has one output row a sequence (:meth:`run`), or one a token (:meth:`token_rows`). A third input, if the model has
    one, is ``token_type_ids``: 0 for the first part of a sequence and 1 for the second. ``exact`` computes in float32
    whatever the CPU could do faster; else activations are quantised in groups of ``group`` values where weights are in
    int8. With ``trunk`` the model file has the upper layers alone.
    """

    def __init__(
        self,
        model: Path,
        cache_dir: Path | None = None,
        pad_id: int = 0,
        *,
        exact: bool = False,
        group: int = ACTIVATION_GROUP,
        trunk: Trunk | None = None,
    ) -> None:
        self._pid = os.getpid()
        compiled = _compile(model, cache_dir, exact=exact, group=group, trunk=trunk)
        self.exact = exact
        self._pad_id = pad_id
        self._typed = len(compiled.inputs) == 3
        self._streams = int(compiled.get_property("NUM_STREAMS"))
        # Half as many again as streams are one call's at most: while it collects one, the next already runs, and who
        # comes meanwhile stands behind few. The rest is there for them at once.
        self._at_once = self._streams + max(1, self._streams // 2)
        self._requests: FairQueue[openvino.InferRequest] = FairQueue(
            compiled.create_infer_request() for _ in range(2 * self._streams)
        )
        self._by_token = [len(port.partial_shape) == 3 for port in compiled.outputs]
        self._width = int(compiled.output(0).partial_shape[-1].get_length())
        self._together: Combiner[_Item, NDArray[np.float32]] = Combiner(self._rows, TOGETHER)
        _engines.add(self)

    def run(self, sequences: Sequence[Sequence[int]], second: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Output rows of shape (len(sequences), width), in input order.

        ``second`` says for each sequence where its second part begins, 0 for none. Equal sequences are computed once.
        The order of the sequences does not change a row.
        """
        self._check_process()
        return self._stacked(self._rows(_items(sequences, second)))

    def run_together(
        self, sequences: Sequence[Sequence[int]], second: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """As :meth:`run`, and in one with the calls that other threads make meanwhile."""
        self._check_process()
        return self._stacked(self._together.run(_items(sequences, second)))

    def token_rows(self, sequences: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """For each sequence rows of shape (its length, width); in one with the calls that other threads make."""
        self._check_process()
        return self._together.run(_items(sequences, None))

    def both_rows(self, sequences: Sequence[Sequence[int]]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """With a trunk that is computed to its end: of each sequence :meth:`token_rows`, and that model's own row."""
        self._check_process()
        return [(rows, own) for rows, own in self._outputs(_items(sequences, None))]

    def _check_process(self) -> None:
        if self._pid != os.getpid():  # its threads are the parent's: nobody would ever answer here
            raise RuntimeError(
                "this model was loaded before the process was forked; make the pipeline in each worker, after the "
                "fork, or start the workers with 'spawn'"
            )

    def _stacked(self, rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.stack(rows) if rows else np.empty((0, self._width), dtype=np.float32)

    def _rows(self, items: Sequence[_Item]) -> list[NDArray[np.float32]]:
        return [first for first, *_ in self._outputs(items)]

    def _outputs(self, items: Sequence[_Item]) -> list[tuple[NDArray[np.float32], ...]]:
        """What each output of the model has for each item."""
        # Sorted, because in bfloat16 a row depends a little on which batch it is in.
        distinct = sorted(set(items), key=lambda item: (-len(item[0]), item))
        places = {item: place for place, item in enumerate(distinct)}
        found = self._run(distinct)
        return [found[places[item]] for item in items]

    def _run(self, items: Sequence[_Item]) -> list[tuple[NDArray[np.float32], ...]]:
        """Outputs of sequences sorted from the longest to the shortest."""
        found: list[tuple[NDArray[np.float32], ...]] = []
        running: deque[tuple[Any, slice, Any]] = deque()

        def collect() -> None:
            request, rows, _ = running.popleft()
            try:
                request.wait()
                columns = []
                for place, by_token in enumerate(self._by_token):
                    data = request.get_output_tensor(place).data
                    if by_token:
                        columns.append(
                            [row[: len(ids)].copy() for row, (ids, _) in zip(data, items[rows], strict=True)]
                        )
                    else:
                        columns.append(list(data.copy()))
                found.extend(zip(*columns, strict=True))
            finally:
                self._requests.put(request)

        try:
            lengths = [len(ids) for ids, _ in items]
            for rows in batches(lengths, budget(lengths, self._streams)):
                deadline.check()
                inputs = self._inputs(items[rows])  # first: if it fails, no request is held
                request = None
                while running and (len(running) == self._at_once or (request := self._requests.get_spare()) is None):
                    collect()  # what it gives back is for who waits, as a query does beside an ingest
                if request is None:
                    request = self._requests.get()
                running.append((request, rows, inputs))  # inputs are shared with the request: keep them alive
                request.start_async(inputs, share_inputs=True)
            while running:
                collect()
        finally:
            while running:  # one has failed: the others come back, whatever becomes of them, and its error is raised
                with suppress(RuntimeError):
                    collect()
        return found

    def _inputs(self, items: Sequence[_Item]) -> dict[int, NDArray[np.int64]]:
        shape = (len(items), padded(max(len(ids) for ids, _ in items)))
        ids, mask = np.full(shape, self._pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        types = np.zeros(shape, dtype=np.int64)
        for row, (sequence, second) in enumerate(items):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
            types[row, second or len(sequence) : len(sequence)] = 1
        return {0: ids, 1: mask, 2: types} if self._typed else {0: ids, 1: mask}


def _items(sequences: Sequence[Sequence[int]], second: Sequence[int] | None) -> list[_Item]:
    return [(tuple(ids), place) for ids, place in zip(sequences, second or [0] * len(sequences), strict=True)]


def budget(lengths: Sequence[int], streams: int) -> int:
    """That of :data:`TOKEN_BUDGETS` with which the last of the cores is done first."""

    def done(tokens: int) -> int:
        ends = [0] * streams
        for rows in batches(lengths, tokens):
            size = (rows.stop - rows.start) * padded(lengths[rows.start])
            heapreplace(ends, ends[0] + size + _EACH_BATCH)
        return max(ends)

    return min(TOKEN_BUDGETS, key=done)


def batches(lengths: Sequence[int], tokens: int) -> Iterator[slice]:
    """Batches of sequences sorted from the longest to the shortest, each of at most ``tokens`` with padding, or one.

    Longest first: the last batches are the short ones, so that no core waits long for another at the end.
    """
    start = 0
    while start < len(lengths):
        end = min(len(lengths), start + max(1, tokens // max(1, padded(lengths[start]))))
        yield slice(start, end)
        start = end


def padded(length: int) -> int:
    """The length that a sequence is padded to if it is the longest of its batch."""
    return -(-length // LENGTH_STEP) * LENGTH_STEP


@cache
def has_bf16() -> bool:
    """Whether the CPU computes in bfloat16, which the engine then does where it is not to be exact."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@cache
def gains_by_scales() -> bool:
    """Whether the CPU is faster with activations that are scaled beforehand: an x86 with AVX-512.

    With AVX2 alone the engine's int8 products of such activations take a third longer than those in floating point.
    """
    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    names = [*simd.get("baseline", []), *simd.get("found", [])]
    return any(name == "X86_V4" or name.startswith("AVX512") for name in names)


def _compile(
    model: Path, cache_dir: Path | None, *, exact: bool, group: int, trunk: Trunk | None
) -> openvino.CompiledModel:
    import openvino

    core = openvino.Core()
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if has_bf16() and not exact else "f32",
        "NUM_STREAMS": str(_cores()),
        "INFERENCE_NUM_THREADS": str(_cores()),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0" if exact else str(group),
    }
    if cache_dir is not None:
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            options["CACHE_DIR"] = str(cache_dir)
        except OSError as error:
            log.warning("compiled models are not kept for the next process: %s", error)
    if trunk is None and gains_by_scales():
        return core.compile_model(str(model), "CPU", options)  # a file: its compiled form is found without reading it
    graph = core.read_model(str(model)) if trunk is None else _joined(core, model, trunk)
    if not gains_by_scales():
        _without_scales(graph)
    return core.compile_model(graph, "CPU", options)


def _without_scales(graph: openvino.Model) -> None:
    """Leaves activations that are scaled beforehand (:mod:`pipeline.inference.activations`) unrounded, in place."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize":
            node.output(0).replace(node.input_value(0))
    graph.validate_nodes_and_infer_types()


def _joined(core: openvino.Core, model: Path, trunk: Trunk) -> openvino.Model:
    """The upper layers on their trunk; what the trunk's own model does above that is left out unless it is wanted."""
    import openvino

    lower, upper = core.read_model(str(trunk.model)), core.read_model(str(model))
    inputs = {port.get_any_name(): port for port in lower.inputs}
    (top,) = (node.output(0) for node in lower.get_ordered_ops() if node.get_friendly_name() == trunk.node)
    for port in upper.inputs:
        name = port.get_any_name()
        for target in port.get_target_inputs():
            target.replace_source_output(top if name == "hidden" else inputs[name])
    results = upper.get_results() + (lower.get_results() if trunk.whole else [])
    return openvino.Model(results, lower.get_parameters(), "joined")


def _cores() -> int:
    """Cores that this process may use: containers and ``taskset`` allow fewer than the machine has."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(allowed, _quota(_CPU_MAX, allowed)))


def _quota(cpu_max: Path, unlimited: int) -> int:
    """CPUs that the control group grants, rounded up (Linux cgroup v2: "quota period" in microseconds, or "max")."""
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or no limit
        return unlimited
