"""Decide whether the candidate, the model just trained, may be served.

    python -m training.promote --day 1998-04-22 --cutoff 1998-02-28

Reads:   the training set and the candidate of <home>/training/<day>, the model of the release in force
Writes:  evaluation.json, evaluation.md and decision.json beside the candidate's folder

All models are evaluated on the same test events. The candidate is promoted only if its NDCG@10 beats popularity, what
was taken in the last days, and the model in force beyond noise: the 95 % interval of the paired difference, with users
resampled, lies above 0. A refusal is a result, not an error.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grasp.environment import prepare
from grasp.files import write_json
from grasp.manifest import NoReleaseError, manifest_in_force, release_folder
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from training.command import arguments, check_days
from training.data.training_set import TrainingSet, load_training_set, require_training_set, training_set_folder
from training.evaluation.baselines import distinct_user_popularity, popular_lately
from training.evaluation.fresh_features import FreshFeatures, MomentWindow
from training.evaluation.metrics import Interval, bootstrap_interval, event_groups, event_metrics
from training.evaluation.ranking import Event, evaluation_events, rank_events, ranker_scorer
from training.model.artefact import ArtefactFormatError, LoadedRanker, load_ranker
from training.train import CANDIDATE_FILE

DECISION_FILE = "decision.json"
METRIC = "ndcg@10"
POPULARITY, POPULAR_LATELY = "popularity", "popular lately"


@dataclass(frozen=True)
class Decision:
    """The result of an evaluation. `model` is the folder of a promoted candidate and None for a refused one."""

    model: str | None
    promoted: bool
    reason: str


def decide(folder: Path, against: dict[str, Interval], remark: str = "") -> Decision:
    """Promote a candidate that beats every rival beyond noise. `against` holds the paired difference to each rival."""
    compared = [
        f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f}) on {rival}"
        for rival, difference in against.items()
    ]
    # A difference over no events is NaN, and every comparison with NaN is false: the candidate is refused.
    promoted = all(difference.low > 0 for difference in against.values())
    verdict = "beats its rivals beyond noise" if promoted else "does not beat its rivals beyond noise"
    reason = "; ".join([f"{METRIC.upper()} {verdict}: {', '.join(compared)}", *([remark] if remark else [])])
    return Decision(str(folder) if promoted else None, promoted, reason)


def rival_in_force(settings: Settings, candidate: LoadedRanker) -> tuple[LoadedRanker | None, str]:
    """The model in force, or None; with the reason if there is one that cannot be compared."""
    try:
        manifest = manifest_in_force(settings.releases)
    except NoReleaseError:
        return None, ""
    if manifest.model is None or manifest.model == candidate.metadata.name:
        return None, ""
    try:
        rival = load_ranker(release_folder(settings.releases, manifest) / "model")
    except ArtefactFormatError as error:
        return None, f"{manifest.model} in force cannot be compared: {error}"
    if rival.metadata.feature_version != candidate.metadata.feature_version:
        return None, f"{manifest.model} in force reads features of another version and cannot be compared"
    return rival, ""


def evaluate_models(
    training_set: TrainingSet, events: Sequence[Event], rankers: Sequence[LoadedRanker], window: MomentWindow
) -> dict[str, dict[str, np.ndarray]]:
    """Every metric of every event, for what is popular, ever and lately, and each ranker: {name: {metric: (E,)}}.

    Rankers read fresh features as of the day before each event.
    """
    features = FreshFeatures(training_set, "test", window)
    scorers = {
        POPULARITY: distinct_user_popularity(training_set),
        POPULAR_LATELY: popular_lately(training_set, features),
        **{
            each.metadata.name: ranker_scorer(each.ranker, each.vocabulary, training_set, fresh=features)
            for each in rankers
        },
    }
    return {name: event_metrics(rank_events(score, events).filtered) for name, score in scorers.items()}


def summarise(
    training_set: TrainingSet, events: Sequence[Event], metrics: dict[str, dict[str, np.ndarray]]
) -> dict[str, Any]:
    """The evaluation as JSON: counts, and every metric of every group with its interval."""
    users = np.array([event.user for event in events])
    chosen = {name: rows for name, rows in event_groups(training_set, events).items() if rows.any()}
    return {
        "num_events": len(events),
        "num_users": len(np.unique(users)),
        "num_unknown_items": sum(event.target == 0 for event in events),
        "num_events_by_group": {name: int(rows.sum()) for name, rows in chosen.items()},
        "metrics": {
            model: {
                group: {
                    metric: asdict(bootstrap_interval(values[rows], users[rows]))
                    for metric, values in by_metric.items()
                }
                for group, rows in chosen.items()
            }
            for model, by_metric in metrics.items()
        },
    }


def evaluation_markdown(summary: dict[str, Any], reason: str) -> str:
    """The evaluation as a page: NDCG@10 and HR@10 by model and group, then the decision."""
    lines = [
        f"{summary['num_events']:,} test events of {summary['num_users']:,} users, "
        f"{summary['num_unknown_items']:,} with items unknown at the cutoff (misses). Full ranking without history; "
        "95 % intervals by user.",
        "",
        "| model | group | events | NDCG@10 | 95 % | HR@10 |",
        "|---|---|---|---|---|---|",
    ]
    for model, by_group in summary["metrics"].items():
        for group, by_metric in by_group.items():
            ndcg, hr = by_metric[METRIC], by_metric["hr@10"]
            lines.append(
                f"| {model} | {group} | {summary['num_events_by_group'][group]:,} | {ndcg['mean']:.4f} "
                f"| {ndcg['low']:.4f} to {ndcg['high']:.4f} | {hr['mean']:.4f} |"
            )
    return "\n".join([*lines, "", reason, ""])


def promote(settings: Settings, day: str, cutoff: str) -> Decision:
    """Evaluate the candidate of the day and write the reports. A candidate in force keeps its earlier decision."""
    home = settings.home / "training" / day
    if not (home / CANDIDATE_FILE).is_file():
        raise FileNotFoundError(f"no candidate in {home}: run python -m training.train --day {day} --cutoff {cutoff}")
    folder = home / json.loads((home / CANDIDATE_FILE).read_text())["model"]
    require_training_set(training_set_folder(settings, day), cutoff)
    training_set, candidate = load_training_set(training_set_folder(settings, day)), load_ranker(folder)
    if candidate.metadata.cutoff != cutoff:
        raise ValueError(f"{folder} was trained with the cutoff {candidate.metadata.cutoff}, not {cutoff}")
    decided = _earlier_decision(settings, home, folder)
    if decided:
        say(f"promote {day}: {candidate.metadata.name} is in force already")
        return decided
    events = evaluation_events(training_set, "test")
    if not events:
        for report in ("evaluation.json", "evaluation.md"):
            (home / report).unlink(missing_ok=True)  # left by an earlier run
        return Decision(None, False, f"no test events: no known user came back between {cutoff} and {day}")
    rival, remark = rival_in_force(settings, candidate)
    rankers = [candidate, *([rival] if rival else [])]
    metrics = evaluate_models(training_set, events, rankers, MomentWindow.of(settings))
    users = np.array([event.user for event in events])
    own = metrics[candidate.metadata.name][METRIC]
    against = {
        name: bootstrap_interval(own - metrics[name][METRIC], users)
        for name in metrics
        if name != candidate.metadata.name
    }
    decision = decide(folder, against, remark)
    summary = summarise(training_set, events, metrics)
    summary |= {"day": day, "cutoff": cutoff, "candidate": candidate.metadata.name, "decision": asdict(decision)}
    summary["differences"] = {name: asdict(each) for name, each in against.items()}
    write_json(home / "evaluation.json", summary)
    (home / "evaluation.md").write_text(evaluation_markdown(summary, decision.reason))
    for line in evaluation_markdown(summary, "").splitlines():
        if line:
            say(line)
    return decision


def _earlier_decision(settings: Settings, home: Path, folder: Path) -> Decision | None:
    """The decision that put this candidate in force. A second evaluation would compare the candidate with itself."""
    file = home / DECISION_FILE
    try:
        in_force = manifest_in_force(settings.releases).model
    except NoReleaseError:
        return None
    if in_force != folder.name or not file.is_file():
        return None
    decision = Decision(**json.loads(file.read_text()))
    return decision if decision.model == str(folder) else None


def main(arguments_given: Any = None) -> None:
    given = arguments(__doc__).parse_args(arguments_given)
    started = time.monotonic()
    try:
        settings = Settings.load()
        check_days(given.day, given.cutoff)
        decision = promote(settings, given.day, given.cutoff)
    except (SettingsError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    write_json(settings.home / "training" / given.day / DECISION_FILE, asdict(decision))
    verdict = "promoted" if decision.promoted else "refused"
    say(f"promote {given.day}: {verdict}: {decision.reason}")
    say(f"promote {given.day}: done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    prepare()
    main()
