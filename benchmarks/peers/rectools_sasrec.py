"""RecTools' SASRec as the benchmark asks for it. Runs in RecTools' own environment.

    python rectools_sasrec.py REQUEST

With a number of negatives it has a sampled softmax, with negatives for every position; without, its default, a softmax
over all items.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from protocol import Data, Request, Training, full_scores, load_data, read_request
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

BATCH_SIZE = 128  # sequences, RecTools' default
USERS_AT_ONCE = 256


class Watch(Callback):
    """Tells the clock about every step."""

    def __init__(self, training: Training) -> None:
        self._training = training

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:  # noqa: ARG002 - the library names them
        self._training.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        if not self._training.step(int((batch["y"] != 0).sum())):
            trainer.should_stop = True


def as_dataset(data: Data) -> Dataset:
    """An item's position in its sequence is its time."""
    lengths = [len(items) for items in data.sequences]
    places = np.concatenate([np.arange(length) for length in lengths])
    return Dataset.construct(
        pd.DataFrame(
            {
                Columns.User: np.repeat(np.arange(len(lengths)), lengths),
                Columns.Item: np.concatenate(data.sequences),
                Columns.Weight: 1.0,
                Columns.Datetime: pd.to_datetime(places, unit="s"),
            }
        )
    )


def export(model: SASRecModel, data: Data, dataset: Dataset) -> np.ndarray:
    """Scores (E, N), by the library's own embeddings of users and items for recommendations."""
    preparator = model.data_preparator
    asked = preparator.transform_dataset_u2i(dataset, data.asked_users)
    loader = preparator.get_dataloader_recommend(asked, USERS_AT_ONCE)
    users_ED, items_ND = model.lightning_model._get_user_item_embeddings(loader, "cpu")
    model.lightning_model.train()
    known = preparator.get_known_items_sorted_internal_ids()
    scores = (users_ED @ items_ND[known].T).numpy()
    place = {user: row for row, user in enumerate(data.asked_users)}
    rows = np.array([place[user] for user in asked.user_id_map.external_ids])
    items = preparator.get_known_item_ids().astype(np.int64)
    return full_scores(scores, rows, items, (len(data.asked_users), data.num_items))


def new_model(request: Request, watch: Watch) -> SASRecModel:
    model = SASRecModel(
        n_blocks=request.num_blocks,
        n_heads=request.num_heads,
        n_factors=request.width,
        dropout_rate=request.dropout,
        session_max_len=request.max_length,
        loss="softmax" if request.num_negatives is None else "sampled_softmax",
        n_negatives=request.num_negatives or 1,
        lr=request.learning_rate,
        batch_size=BATCH_SIZE,
    )
    model._trainer = Trainer(  # the documented way to replace the default trainer
        accelerator="cpu",
        devices=1,
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[watch],
    )
    return model


def main() -> None:
    warnings.filterwarnings("ignore")
    request = read_request()
    torch.set_num_threads(request.num_threads)
    torch.manual_seed(request.seed)
    data = load_data(Path(request.data))
    dataset = as_dataset(data)
    training = Training(request, lambda: export(model, data, dataset))
    model = new_model(request, Watch(training))
    model.fit(dataset)


if __name__ == "__main__":
    main()
