"""Fit a ranker on the training set of a day.

    python -m training.train --day 1998-04-22 --cutoff 1998-02-28 --recipe sasrec_grasp

Reads:   <home>/training/<day>/training_set
Writes:  <home>/training/<day>/<model name>/, and candidate.json beside it, which names the model just trained

The artefact is complete or absent; the same training set, recipe and seed give the same weights and thus the same
name, and are not trained twice.
"""
# ruff: noqa: N803 - names carry the shape suffixes of training/model.py; V is every valid step of a batch

import copy
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grasp.files import write_json
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from grasp.versions import Versions, digest, feature_service, file_sha256
from training import dataset
from training.dataset import TrainingSet
from training.evaluate import metrics, pad, questions, rank_events, ranker_scorer
from training.recipes import DEFAULT, RECIPES, TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from training.model import Metadata, Ranker

CANDIDATE_FILE = "candidate.json"
SAY_EVERY = 5  # epochs
CODE = ("dataset", "evaluate", "model", "recipes", "train")

Progress = Callable[[int, dict[str, float]], None]  # epoch from 1, its loss and validation metrics


@dataclass(frozen=True)
class Fitted:
    """A ranker with the weights of its best epoch."""

    ranker: "Ranker"
    epoch: int
    num_epochs: int
    metrics: dict[str, float]  # on the validation targets


def pieces_of(
    training_set: TrainingSet, shortest: int, longest: int, random: np.random.Generator
) -> list[tuple[int, np.ndarray]]:
    """Each user's training items in pieces of `shortest` to `longest` items, cut elsewhere in every epoch.

    Lengths are log-uniform: short pieces are cheap and give an epoch more steps, long ones teach every position.
    Neighbouring pieces share one item: the last target of one is the first input of the next.
    """
    result = []
    for user, (sequence, splits) in enumerate(zip(training_set.sequences, training_set.splits, strict=True)):
        items = sequence[splits == "train"]
        end = len(items)
        while end > 1:
            size = int(np.exp(random.uniform(np.log(shortest), np.log(longest + 1))))
            result.append((user, items[max(0, end - size) : end]))
            end -= size - 1
    return result


def batches(
    pieces: list[tuple[int, np.ndarray]], batch_size: int, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Users (B,) and items (B, T): pieces of like length together, so that little is padding, in random order."""
    order = random.permutation(len(pieces))
    order = order[np.argsort([len(pieces[place][1]) for place in order], kind="stable")]
    for start in random.permutation(np.arange(0, len(order), batch_size)):
        chosen = [pieces[place] for place in order[start : start + batch_size]]
        yield np.array([user for user, _ in chosen]), pad([items for _, items in chosen])


def mask_items(items_BT: "Tensor", share: float) -> "Tensor":
    """BERT4Rec's question: which items are hidden. Every other sequence hides its last one, as inference does."""
    import torch

    hidden_BT = (torch.rand(items_BT.shape) < share) & (items_BT != 0)
    only_last_B = (torch.rand(len(items_BT)) < 0.5) | ~hidden_BT.any(1)
    hidden_BT[only_last_B] = False
    hidden_BT[only_last_B, -1] = True
    return hidden_BT


class Loss:
    """The loss of a recipe over states and their next items, averaged over the steps.

    cross_entropy    over all items
    sampled_softmax  over the next item and uniform negatives shared by the batch
    bce              one negative per step (SASRec)
    gbce             shared negatives, positive probability to the power of beta (gSASRec, arXiv 2308.07192)
    """

    def __init__(self, config: TrainConfig, training_set: TrainingSet) -> None:
        import torch

        self.config, self.training_set = config, training_set
        self.num_items = len(training_set.item_ids)
        user = np.repeat(np.arange(len(training_set.user_ids)), [len(items) for items in training_set.sequences])
        items, splits = np.concatenate(training_set.sequences), np.concatenate(training_set.splits)
        # Every (user, item) of the training split as one sorted number: no negative is drawn from a user's own items.
        known = (user * (self.num_items + 1) + items)[splits == "train"]
        self.known = torch.from_numpy(np.unique(known))

    def __call__(self, ranker: "Ranker", state_VD: "Tensor", target_V: "Tensor", user_V: "Tensor") -> "Tensor":
        import torch
        from torch.nn import functional as F

        if self.config.loss == "cross_entropy":
            return F.cross_entropy(state_VD @ ranker.candidates()[1:].T, target_V - 1)
        positive_V = (state_VD * ranker.candidates(target_V)).sum(-1)
        if self.config.loss == "bce":
            negative_VK = torch.randint(1, self.num_items + 1, (len(target_V), 1))
            score_VK = (state_VD * ranker.candidates(negative_VK[:, 0])).sum(-1, keepdim=True)
        else:
            negative_VK = torch.randint(1, self.num_items + 1, (1, self.config.num_negatives))
            score_VK = state_VD @ ranker.candidates(negative_VK[0]).T
        if self.config.loss == "sampled_softmax":
            score_VK = score_VK.masked_fill(negative_VK == target_V[:, None], torch.finfo(score_VK.dtype).min)
            return (torch.logsumexp(torch.cat([positive_V[:, None], score_VK], 1), 1) - positive_V).mean()
        is_fair_VK = ~self._is_known(user_V[:, None] * (self.num_items + 1) + negative_VK)
        negative_V = (F.logsigmoid(-score_VK) * is_fair_VK).sum(1)
        return -(self._beta() * F.logsigmoid(positive_V) + negative_V).mean()

    def _is_known(self, key_VK: "Tensor") -> "Tensor":
        import torch

        place_VK = torch.searchsorted(self.known, key_VK).clamp(max=len(self.known) - 1)
        return self.known[place_VK] == key_VK

    def _beta(self) -> float:
        if self.config.loss == "bce":
            return 1.0
        rate = self.config.num_negatives / (self.num_items - 1)
        return rate * (self.config.calibration * (1 - 1 / rate) + 1 / rate)


@contextmanager
def repeatable(seed: int) -> Iterator[np.random.Generator]:
    """Within it the same seed gives the same weights; afterwards torch may choose its algorithms again."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    try:
        yield np.random.default_rng(seed)
    finally:
        torch.use_deterministic_algorithms(before)


def fit(training_set: TrainingSet, config: TrainConfig, seed: int, progress: Progress) -> Fitted:
    """Fit until the validation NDCG@10 has not risen for `patience` epochs; keeps the best epoch's weights."""
    import torch

    with repeatable(seed) as random:
        ranker = new_ranker(training_set, config)
        optimiser = torch.optim.Adam(ranker.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        loss = Loss(config, training_set)
        epoch, best_epoch, best, weights = 0, 0, {"ndcg@10": -1.0}, ranker.state_dict()
        while epoch < config.max_epochs and epoch - best_epoch < config.patience:
            epoch += 1
            mean_loss = _train_epoch(ranker, loss, optimiser, random)
            found = validate(ranker, training_set)
            progress(epoch, {"loss": mean_loss, **found})
            if found["ndcg@10"] > best["ndcg@10"]:
                best_epoch, best, weights = epoch, found, copy.deepcopy(ranker.state_dict())
    ranker.load_state_dict(weights)
    return Fitted(ranker.eval(), best_epoch, epoch, best)


def new_ranker(training_set: TrainingSet, config: TrainConfig) -> "Ranker":
    """An unfitted ranker with the set's items attached."""
    import torch

    from training.model import Ranker, RankerConfig

    sizes = {"num_items": len(training_set.item_ids), "semantic_size": training_set.item_semantic.shape[1]}
    switches: dict[str, Any] = dict(config.ranker)
    ranker = Ranker(RankerConfig(backbone=config.backbone, enhancer=config.enhancer, **sizes, **switches))
    ranker.attach_items(torch.from_numpy(training_set.item_semantic), torch.from_numpy(training_set.item_neighbour))
    if config.enhancer == "grasp":
        ranker.item_adapter.start_from(torch.from_numpy(training_set.item_semantic))
        ranker.user_adapter.start_from(torch.from_numpy(training_set.user_semantic))
    return ranker


def _train_epoch(ranker: "Ranker", loss: Loss, optimiser: Any, random: np.random.Generator) -> float:
    """One pass over the training targets; returns the mean loss. Raises `ValueError` when it is not finite."""
    import torch

    from training.model import MASK

    ranker.train()
    config, training_set = loss.config, loss.training_set
    total, num_steps = 0.0, 0
    pieces = pieces_of(training_set, config.shortest_piece, ranker.config.max_length + 1, random)
    for users, items in batches(pieces, config.batch_size, random):
        items_BT = torch.from_numpy(items)
        if config.backbone == "bert4rec":
            valid_BT, target_BT = mask_items(items_BT, config.mask_share), items_BT
            items_BT = items_BT.masked_fill(valid_BT, MASK)
        else:
            items_BT, target_BT = items_BT[:, :-1], items_BT[:, 1:]
            valid_BT = items_BT != 0
        semantic, near = (
            torch.from_numpy(vectors[users]) for vectors in (training_set.user_semantic, training_set.user_neighbour)
        )
        state_VD = ranker(items_BT, semantic, near)[valid_BT]
        user_V = torch.from_numpy(users)[:, None].expand_as(items_BT)[valid_BT]
        batch_loss = loss(ranker, state_VD, target_BT[valid_BT], user_V)
        optimiser.zero_grad()
        batch_loss.backward()
        optimiser.step()
        total, num_steps = total + batch_loss.item() * len(state_VD), num_steps + len(state_VD)
    if not np.isfinite(total):
        raise ValueError(f"the loss of recipe {config.name} is not finite: lower its learning rate")
    return total / max(num_steps, 1)


def validate(ranker: "Ranker", training_set: TrainingSet) -> dict[str, float]:
    """Mean of every metric over the validation targets, by full ranking with the history left out."""
    events = questions(training_set, "validation")
    if not events:
        raise ValueError("the training set has no validation target: no user has three interactions before the cutoff")
    found = metrics(rank_events(ranker_scorer(ranker, training_set.item_ids, training_set), events))
    return {name: float(values.mean()) for name, values in found.items()}


def inputs_fingerprint(training_set_folder: Path, recipe: TrainConfig, seed: int, cutoff: str) -> str:
    """sha256 over everything the weights depend on."""
    code = {name: file_sha256(Path(__file__).parent / f"{name}.py") for name in CODE}
    data = {name: file_sha256(training_set_folder / f"{name}.parquet") for name in dataset.SCHEMAS}
    return digest([code, data, asdict(recipe), seed, cutoff])


def save(fitted: Fitted, training_set: TrainingSet, target: Path, metadata: "Metadata") -> Path:
    """Write the artefact below `target`, complete or not at all; equal weights and config give an equal name.

    For example `sasrec-grasp-1998-02-28-1a2b3c4d`.
    """
    from training.model import WEIGHTS_FILE, save_ranker

    config = fitted.ranker.config
    with tempfile.TemporaryDirectory(dir=target) as made:
        staging = Path(made) / "model"
        save_ranker(staging, fitted.ranker, training_set.item_ids, metadata)
        content = digest([file_sha256(staging / WEIGHTS_FILE), asdict(config)])
        name = f"{config.backbone}-{config.enhancer}-{metadata.cutoff}-{content[:8]}"
        save_ranker(staging, fitted.ranker, training_set.item_ids, replace(metadata, name=name))
        shutil.rmtree(target / name, ignore_errors=True)
        return staging.rename(target / name)


def progress_lines(config: TrainConfig) -> Progress:
    """A bar for a person at a terminal, a line every few epochs for a log."""
    from tqdm import tqdm

    bar = tqdm(total=config.max_epochs, desc=config.name, unit="epoch", disable=None, leave=False)

    def show(epoch: int, found: dict[str, float]) -> None:
        text = f"loss {found['loss']:.3f}, validation NDCG@10 {found['ndcg@10']:.4f}, HR@10 {found['hr@10']:.4f}"
        bar.update()
        bar.set_postfix_str(text)
        if epoch % SAY_EVERY == 0:
            say(f"{config.name} epoch {epoch}: {text}")

    return show


def train(settings: Settings, day: str, cutoff: str, config: TrainConfig, seed: int) -> Path:
    """Fit, save and track one model; returns its folder."""
    import mlflow
    import torch

    from training.model import Metadata

    torch.set_num_threads(settings.num_threads)
    training_set = dataset.load(dataset.folder(settings, day))
    feature_version = Versions(settings).feature
    mlflow.set_tracking_uri(settings.mlflow_uri)
    if mlflow.get_experiment_by_name("ranker") is None:
        mlflow.create_experiment("ranker", artifact_location=(settings.home / "mlartifacts").as_uri())
    mlflow.set_experiment("ranker")
    with mlflow.start_run(run_name=f"{config.name}-{cutoff}-{seed}"):
        mlflow.log_params({**asdict(config), "seed": seed, "day": day, "cutoff": cutoff, "features": feature_version})
        show = progress_lines(config)

        def progress(epoch: int, found: dict[str, float]) -> None:
            show(epoch, found)
            mlflow.log_metrics({name.replace("@", "_at_"): value for name, value in found.items()}, epoch)

        fitted = fit(training_set, config, seed, progress)
        metadata = Metadata(
            name="",
            feature_service=feature_service(feature_version),
            feature_version=feature_version,
            recipe=config.name,
            day=day,
            cutoff=cutoff,
            seed=seed,
            metrics=fitted.metrics,
        )
        folder = save(fitted, training_set, settings.home / "training" / day, metadata)
        mlflow.set_tags({"model": folder.name, "best_epoch": fitted.epoch})
    say(f"{folder.name}: best of {fitted.num_epochs} epochs was {fitted.epoch}")
    return folder


def main(arguments_given: Any = None) -> None:
    parser = dataset.arguments(__doc__)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default=DEFAULT)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments_given)
    started = time.monotonic()
    try:
        settings = Settings.load()
        dataset.check_days(given.day, given.cutoff)
        dataset.require(dataset.folder(settings, given.day), given.cutoff)
        config, folder = RECIPES[given.recipe](), settings.home / "training" / given.day
        inputs = inputs_fingerprint(dataset.folder(settings, given.day), config, given.seed, given.cutoff)
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
    main()
