"""The running experiment, and which of its two releases answers a user. A hash decides, so no store is needed.

`experiment.json` is next to `current.json` and is replaced as a whole (`serving/rollout/experiment.py`).
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EXPERIMENT_FILE = "experiment.json"
Bucket = Literal["control", "candidate"]


@dataclass(frozen=True)
class Experiment:
    """A share of the users is answered by the challenger, another release than the one in force."""

    name: str
    release_id: str  # of the challenger
    share: float  # of the users; at 0 requests can name the release, but it is shown to nobody

    def __post_init__(self) -> None:
        if not self.name or not self.release_id:
            raise ValueError("an experiment has a name and a release")
        if not 0 <= self.share <= 1:
            raise ValueError(f"the share of an experiment must be between 0 and 1, not {self.share}")

    def bucket(self, user_id: str) -> Bucket:
        """A user keeps the same bucket during the experiment; a larger share only adds users to `candidate`.

        The name is part of the hash, so that two experiments divide the users independently.
        """
        number = int.from_bytes(hashlib.sha256(f"{self.name}\0{user_id}".encode()).digest()[:8], "big")
        return "candidate" if number < self.share * 2**64 else "control"


def read_experiment(releases: Path) -> Experiment | None:
    """The running experiment, or None. Raises `ValueError` naming a file that is not valid."""
    file = releases / EXPERIMENT_FILE
    try:
        return Experiment(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not an experiment: {error}") from error
