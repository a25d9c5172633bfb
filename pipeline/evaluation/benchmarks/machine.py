"""What a result was measured on."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

# Instruction sets that decide how fast a matrix product can be, as Linux names them.
_FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "i8mm")
_PACKAGES = ("two-stage-rag", "numpy", "openvino", "qdrant-client", "qdrant-edge-py", "sentence-transformers", "torch")


def describe() -> dict[str, Any]:
    """CPU, memory, load and versions of this machine and environment."""
    cpu = cpu_facts(_read(Path("/proc/cpuinfo")))
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "cpu": cpu["model"] or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction_sets": cpu["flags"],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "versions": versions,
    }


def cpu_facts(cpuinfo: str) -> dict[str, Any]:
    """Model name and the interesting instruction sets out of Linux's ``/proc/cpuinfo``."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {"model": fields.get("model name", ""), "flags": [flag for flag in _FLAGS if flag in flags]}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
