"""Which of two releases answers a user while an experiment runs: always the same one, known without any store.

`experiment.json` lies beside `current.json` and is replaced as a whole (`serving/rollout/experiment.py`).
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
    """A share of the users is answered by another release than the one in force."""

    name: str
    release_id: str
    share: float  # 0 loads the release, so that it can be asked for by name, and shows it to nobody

    def __post_init__(self) -> None:
        if not self.name or not self.release_id:
            raise ValueError("an experiment has a name and a release")
        if not 0 <= self.share <= 1:
            raise ValueError(f"the share of an experiment lies between 0 and 1, not at {self.share}")

    def bucket(self, user_id: str) -> Bucket:
        """The same for a user as long as the experiment runs; a larger share only moves users into the candidate.

        The name is part of the hash, so that two experiments divide the users in unrelated ways.
        """
        number = int.from_bytes(hashlib.sha256(f"{self.name}\0{user_id}".encode()).digest()[:8], "big")
        return "candidate" if number < self.share * 2**64 else "control"


def read_experiment(releases: Path) -> Experiment | None:
    """The running experiment, None without one; raises `ValueError` naming a file that is none."""
    file = releases / EXPERIMENT_FILE
    try:
        return Experiment(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no experiment: {error}") from error
