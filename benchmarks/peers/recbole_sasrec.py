"""RecBole's SASRec as the benchmark asks for it. Runs in RecBole's own environment.

    python recbole_sasrec.py REQUEST

RecBole makes a training example of every prefix of a sequence. Its loss has one negative (BPR) or all items (CE); here
it has all items, its default. The library's own trainer trains; its loader is wrapped so that it can be stopped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import Data, Request, Training, full_scores, load_data, read_request
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataloader import TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_logger

NAME = "sequences"
BATCH_SIZE = 2048  # prefixes, RecBole's default
USERS_AT_ONCE = 256


class Bounded:
    """A loader that starts again at its end, until the training is over."""

    def __init__(self, loader: TrainDataLoader, training: Training) -> None:
        self._loader, self._training = loader, training

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Interaction]:
        self._training.start()
        while True:
            for prefixes in self._loader:
                yield prefixes  # when the trainer asks for the next one, it has finished this one
                if not self._training.step(len(prefixes)):
                    return


def write_interactions(data: Data, folder: Path) -> None:
    """RecBole's file format. An item's position in its sequence is its time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{NAME}.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, items in enumerate(data.sequences):
            file.writelines(f"{user}\t{item}\t{place}\n" for place, item in enumerate(items))


def configure(request: Request, folder: Path) -> Config:
    settings: dict[str, Any] = {
        "data_path": str(folder),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": request.max_length,
        "n_layers": request.num_blocks,
        "n_heads": request.num_heads,
        "hidden_size": request.width,
        "inner_size": request.width,
        "hidden_dropout_prob": request.dropout,
        "attn_dropout_prob": request.dropout,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "train_batch_size": BATCH_SIZE,
        "learning_rate": request.learning_rate,
        "use_gpu": False,
        "reproducibility": False,
        "state": "ERROR",
        "checkpoint_dir": str(folder / "saved"),
    }
    return Config(model="SASRec", dataset=NAME, config_dict=settings)


def export(model: SASRec, data: Data, dataset: Any, max_length: int) -> np.ndarray:
    """Scores (E, N); sequences are padded on the right, as RecBole has them."""
    code_N = np.zeros(data.num_items + 1, np.int64)
    tokens = dataset.field2id_token["item_id"][1:]  # the first is padding
    items = tokens.astype(np.int64)
    code_N[items] = np.arange(1, len(tokens) + 1)
    model.eval()
    parts = []
    for start in range(0, len(data.asked_users), USERS_AT_ONCE):
        asked = [data.sequences[user][-max_length:] for user in data.asked_users[start : start + USERS_AT_ONCE]]
        items_ET = torch.zeros(len(asked), max_length, dtype=torch.long)
        for row, sequence in enumerate(asked):
            items_ET[row, : len(sequence)] = torch.from_numpy(code_N[sequence])
        lengths = torch.tensor([len(sequence) for sequence in asked])
        with torch.inference_mode():
            scores = model.full_sort_predict(Interaction({"item_id_list": items_ET, "item_length": lengths}))
        parts.append(scores[:, 1:].numpy())
    model.train()
    rows = np.arange(len(data.asked_users))
    return full_scores(np.concatenate(parts), rows, items, (len(rows), data.num_items))


def main() -> None:
    request = read_request()
    if request.num_negatives is not None:
        raise SystemExit("RecBole's SASRec has no sampled softmax: ask for all items")
    torch.set_num_threads(request.num_threads)
    torch.manual_seed(request.seed)
    data, folder = load_data(Path(request.data)), Path(request.data).parent
    write_interactions(data, folder / NAME)
    config = configure(request, folder)
    init_logger(config)
    dataset = create_dataset(config)
    dataset._change_feat_format()  # cuts the prefixes; `build` would also hold some of them out
    loader = TrainDataLoader(config, dataset, None, shuffle=True)
    model = SASRec(config, dataset)
    trainer = Trainer(config, model)
    training = Training(request, lambda: export(model, data, dataset, request.max_length))
    trainer._train_epoch(Bounded(loader, training), 0)


if __name__ == "__main__":
    main()
