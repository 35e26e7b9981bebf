"""The machine and the commit at which a figure was measured. Never the host's name: reports are public."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from grasp.settings import ROOT

REPORTS = "docs/benchmarks"  # a new report is not a code change


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, versions of Python and torch."""
    return {
        "processor": processor(),
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, or its architecture where the system does not tell the name."""
    if sys.platform == "linux" and cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.machine()


def describe(found: Mapping[str, Any]) -> str:
    """A machine in one line."""
    return (
        f"{found['processor']}, {found['num_cores']} cores, {found['memory_gib']:g} GiB, "
        f"Python {found['python']}, torch {found['torch']}"
    )


def commit(root: Path = ROOT) -> str:
    """Short hash of the commit, with `-dirty` when a tracked file outside the reports was changed.

    `unknown` without git, as in an unpacked archive.
    """
    try:
        short = _git(root, "rev-parse", "--short", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", f":(exclude){REPORTS}")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
    return f"{short}-dirty" if changed else short


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
