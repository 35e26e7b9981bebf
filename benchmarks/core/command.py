"""What the benchmarks' commands share: options, errors, and the command line as a report names it."""

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from grasp.settings import ROOT, Settings

MOVIELENS = "movielens"  # given instead of a folder
NOT_NAMED = frozenset({"cache", "only"})  # options that change no figure


def new_parser(
    module: str, description: str | None, kinds: Sequence[str] = (), *, has_data: bool = False
) -> argparse.ArgumentParser:
    """Options that benchmarks share; `kinds` are the kinds of measurements among which `--only` chooses."""
    result = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if has_data:
        result.add_argument("--data", required=True, help=f"folder of the data contract, or `{MOVIELENS}`")
    result.add_argument("--out", type=Path, required=True, help="folder of the report and its measurements")
    result.add_argument("--cache", type=Path, help="vectors of texts (default: benchmarks below GRASP_HOME)")
    if kinds:
        help_text = f"some of {','.join(kinds)}; the others can be measured later"
        result.add_argument("--only", type=one_of(kinds), default=tuple(kinds), help=help_text)
    return result


def one_of(kinds: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Reads kinds of measurements separated by commas; an unknown kind is named."""

    def chosen(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := sorted(set(names) - set(kinds)):
            raise argparse.ArgumentTypeError(f"no measurement {', '.join(unknown)}; there are {', '.join(kinds)}")
        return names

    return chosen


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, not_named: Collection[str] = NOT_NAMED
) -> argparse.Namespace:
    """The parsed options, and `command`: the command line that a report names."""
    given = parser.parse_args(arguments)
    given.command = command_line(parser, given, not_named)
    return given


def run(given: argparse.Namespace, measure: Callable[[argparse.Namespace, Settings], object]) -> None:
    """Measure with the settings of the environment. An error the user can fix ends the process with one line."""
    try:
        settings = Settings.load()
        given.cache = given.cache or settings.home / "benchmarks"
        measure(given, settings)
    except (FileNotFoundError, TimeoutError, ValueError) as error:
        sys.exit(f"error: {error}")


def command_line(parser: argparse.ArgumentParser, given: argparse.Namespace, not_named: Collection[str]) -> str:
    """`python -m benchmarks...` with all options that differ from their defaults.

    It holds no path of this machine: data is a folder below `$GRASP_DATA`, other folders are named from the project's
    root or as `DIR`.
    """
    options = [
        f"--{'no-' if value is False else ''}{name.replace('_', '-')}{_shown(name, value)}"
        for name, value in vars(given).items()
        if name not in not_named and value != parser.get_default(name)
    ]
    return " ".join([parser.prog, *options])


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return ""
    if name == "data" and value != MOVIELENS:
        return f" $GRASP_DATA/{Path(value).resolve().name}"
    if isinstance(value, Path):
        return f" {folder_name(value)}"
    return f" {value}"


def folder_name(folder: Path) -> str:
    """A folder as it is given in the project's root, or `DIR` when it is somewhere else."""
    if not folder.is_absolute():
        return str(folder)
    return str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else "DIR"
