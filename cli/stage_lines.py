"""The progress of a run in one line a stage, for people who watch it for the first time."""

import re
import time
from collections.abc import Callable

from cli.dag_run import STAGE_SKIPPED, STAGE_TOOK
from grasp.progress import MARK, say

SHOW_EVERY = 15.0  # seconds without a line, then a stage that takes long shows how far it is

_PLACE = re.compile(r"^[\w ]+(?: \d{4}-\d{2}-\d{2})?: ")  # who said it; the line names the stage already
_SAYS_NO_RESULT = re.compile(r"(done|passed|online) in [\d.]+ s$|: warning: |: report ")


class StageLines:
    """Shows each stage with its seconds and the last thing it said. Failures are shown as they are said."""

    def __init__(self, dag: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._dag, self._clock = dag, clock
        self._shown_at, self._latest = clock(), ""

    def __call__(self, line: str) -> None:
        text = line.removeprefix(MARK).strip()
        if took := STAGE_TOOK.search(text):
            self._show(f"{took[1]:<22} {float(took[3]):4.0f} s  {_PLACE.sub('', self._latest)}".rstrip())
            self._latest = ""
        elif skipped := STAGE_SKIPPED.search(text):
            self._show(f"{skipped[1]:<22} unchanged, skipped")
        elif "failed: " in text or text.startswith(f"{self._dag} "):
            self._show(text)
        elif not _SAYS_NO_RESULT.search(text):
            self._latest = text
            if self._clock() - self._shown_at >= SHOW_EVERY:
                self._show(f"  ... {text}")

    def _show(self, text: str) -> None:
        say(text)
        self._shown_at = self._clock()
