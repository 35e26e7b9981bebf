"""The command that a report names, as anyone would type it, no path of a machine; and the one that writes it again."""

import argparse
import json
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from benchmarks.core.summary import SUMMARY_FILE
from grasp.progress import say
from grasp.settings import ROOT

MOVIELENS = "movielens"  # what a command is given instead of a folder


def command(parser: argparse.ArgumentParser, given: argparse.Namespace, *, left_out: Collection[str]) -> str:
    """`python -m benchmarks...` with the options of `given`, as they were parsed, but those that are `left_out`.

    Data is named as a folder below `$GRASP_DATA`, a folder of the project from there, and any other as `DIR`.
    """
    options = [
        f"--{'no-' if value is False else ''}{name.replace('_', '-')}{_shown(name, value)}"
        for name, value in vars(given).items()
        if name not in left_out and value != parser.get_default(name)
    ]
    return " ".join([parser.prog, *options])


def of_report(program: str, folder: Path) -> str:
    """The command that a report's folder was made by, as its summary has it; else what would make it again."""
    try:
        return str(json.loads((folder / SUMMARY_FILE).read_text())["command"])
    except (FileNotFoundError, ValueError, LookupError):
        return f"{program} --out{_shown('out', folder.resolve())}"


def write_again(
    module: str, write: Callable[[Path], None], reads: str, report: str, arguments: Sequence[str] | None = None
) -> None:
    """The command of a report that is made of what is in a folder, the file `reads`: the folder's name, no more."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description="report of a folder")
    parser.add_argument("folder", type=Path, help=f"folder with {reads}")
    folder = parser.parse_args(arguments).folder
    try:
        write(folder)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    say(f"report: {folder / report}")


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return ""
    if name == "data" and value != MOVIELENS:
        return f" $GRASP_DATA/{Path(value).resolve().name}"
    if isinstance(value, Path) and value.is_absolute():
        return f" {value.relative_to(ROOT) if value.is_relative_to(ROOT) else 'DIR'}"
    return f" {value}"
