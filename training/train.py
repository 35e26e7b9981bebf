"""Train a ranker on the training set of a day.

    python -m training.train --day 1998-04-22 --cutoff 1998-02-28 --recipe sasrec_grasp

Reads:   <home>/training/<day>/training_set
Writes:  <home>/training/<day>/<model name>/, and candidate.json beside it with the name of that model

The model folder is either complete or absent. The same training set, recipe and seed give the same weights and the
same name, so they are not trained again.
"""

import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grasp.environment import prepare
from grasp.files import write_json
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from grasp.versions import Versions, digest, feature_service, file_sha256
from training.command import arguments, check_days
from training.data.training_set import (
    SCHEMAS,
    TrainingSet,
    load_training_set,
    require_training_set,
    training_set_folder,
)
from training.evaluation.fresh_features import DEFAULT_WINDOW, MomentWindow
from training.fitting.recipes import DEFAULT, RECIPES, TrainConfig

if TYPE_CHECKING:
    from training.fitting.fresh_calibration import FreshChoice
    from training.fitting.training_loop import FittedRanker, ProgressCallback
    from training.model.artefact import RankerMetadata

CANDIDATE_FILE = "candidate.json"
SAY_EVERY = 5  # epochs


def inputs_fingerprint(
    source: Path, recipe: TrainConfig, seed: int, cutoff: str, window: MomentWindow = DEFAULT_WINDOW
) -> str:
    """SHA-256 of everything the weights depend on."""
    here = Path(__file__).parent
    code = {str(file.relative_to(here)): file_sha256(file) for file in sorted(here.rglob("*.py"))}
    data = {name: file_sha256(source / f"{name}.parquet") for name in SCHEMAS}
    return digest([code, data, asdict(recipe), seed, cutoff, asdict(window)])


def save_model(fitted: "FittedRanker", training_set: TrainingSet, target: Path, metadata: "RankerMetadata") -> Path:
    """Write the artefact to a folder in `target`, named after weights and config, complete or not at all.

    Example of a name: `sasrec-grasp-1998-02-28-1a2b3c4d`.
    """
    from training.model.artefact import WEIGHTS_FILE, save_ranker

    config = fitted.ranker.config
    with tempfile.TemporaryDirectory(dir=target) as made:
        staging = Path(made) / "model"
        save_ranker(staging, fitted.ranker, training_set.item_ids, metadata)
        content = digest([file_sha256(staging / WEIGHTS_FILE), asdict(config)])
        name = f"{config.backbone}-{config.enhancer}-{metadata.cutoff}-{content[:8]}"
        save_ranker(staging, fitted.ranker, training_set.item_ids, replace(metadata, name=name))
        shutil.rmtree(target / name, ignore_errors=True)
        return staging.rename(target / name)


def fresh_line(choice: "FreshChoice") -> str:
    """What fresh features added on validation to the same ranker, on users that their weights were not fitted to."""
    gains = [
        f"{name} {gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
        for name, gain in choice.gains.items()
        if name != "none"
    ]
    return f"fresh features: {choice.chosen} chosen; validation NDCG@10 over the ranker without: {', '.join(gains)}"


def progress_lines(config: TrainConfig) -> "ProgressCallback":
    """A progress bar in a terminal, and a log line every few epochs."""
    from tqdm import tqdm

    bar = tqdm(total=config.max_epochs, desc=config.name, unit="epoch", disable=None, leave=False)

    def show(epoch: int, metrics: dict[str, float]) -> None:
        text = f"loss {metrics['loss']:.3f}, validation NDCG@10 {metrics['ndcg@10']:.4f}, HR@10 {metrics['hr@10']:.4f}"
        bar.update()
        bar.set_postfix_str(text)
        if epoch % SAY_EVERY == 0:
            say(f"{config.name} epoch {epoch}: {text}")

    return show


def train(settings: Settings, day: str, cutoff: str, config: TrainConfig, seed: int) -> Path:
    """Train one model, save it and log it to MLflow. Returns its folder."""
    import mlflow
    import torch

    from training.fitting.training_loop import fit
    from training.model.artefact import RankerMetadata

    torch.set_num_threads(settings.num_threads)
    training_set = load_training_set(training_set_folder(settings, day))
    feature_version = Versions(settings).feature
    mlflow.set_tracking_uri(settings.mlflow_uri.get_secret_value())
    if mlflow.get_experiment_by_name("ranker") is None:
        mlflow.create_experiment("ranker", artifact_location=(settings.home / "mlartifacts").as_uri())
    mlflow.set_experiment("ranker")
    with mlflow.start_run(run_name=f"{config.name}-{cutoff}-{seed}"):
        mlflow.log_params({**asdict(config), "seed": seed, "day": day, "cutoff": cutoff, "features": feature_version})
        show = progress_lines(config)

        def progress(epoch: int, metrics: dict[str, float]) -> None:
            show(epoch, metrics)
            mlflow.log_metrics({name.replace("@", "_at_"): value for name, value in metrics.items()}, epoch)

        fitted = fit(training_set, config, seed, progress, MomentWindow.of(settings))
        say(fresh_line(fitted.fresh))
        metadata = RankerMetadata(
            name="",
            feature_service=feature_service(feature_version),
            feature_version=feature_version,
            recipe=config.name,
            day=day,
            cutoff=cutoff,
            seed=seed,
            metrics=fitted.metrics,
            fresh=asdict(fitted.fresh),
        )
        folder = save_model(fitted, training_set, settings.home / "training" / day, metadata)
        mlflow.set_tags({"model": folder.name, "best_epoch": fitted.best_epoch})
    say(f"{folder.name}: epoch {fitted.best_epoch} of {fitted.num_epochs} was the best")
    return folder


def main(arguments_given: Any = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default=DEFAULT)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments_given)
    started = time.monotonic()
    try:
        settings = Settings.load()
        check_days(given.day, given.cutoff)
        require_training_set(training_set_folder(settings, given.day), given.cutoff)
        config, folder = RECIPES[given.recipe](), settings.home / "training" / given.day
        source, window = training_set_folder(settings, given.day), MomentWindow.of(settings)
        inputs = inputs_fingerprint(source, config, given.seed, given.cutoff, window)
        ledger_file = folder / "trained.json"
        ledger = json.loads(ledger_file.read_text()) if ledger_file.exists() else {}
        name = ledger.get(inputs)
        if name and (folder / name / "checksums.json").is_file():
            say(f"train {given.day}: {name} was trained from these inputs already")
        else:
            name = train(settings, given.day, given.cutoff, config, given.seed).name
            write_json(ledger_file, ledger | {inputs: name})
        write_json(folder / CANDIDATE_FILE, {"model": name})
    except (SettingsError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    say(f"train {given.day}: done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    prepare()
    main()
