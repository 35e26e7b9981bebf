"""The moments that a release carries, with the state of its model after what was taken before each.

    moments/moments.parquet   rows of `moments` of the last days, oldest first
    moments/states.npy        their states, float16, in the same order

States follow from the other files of the release, up to rounding. So that publishing the same content again changes
nothing, they are taken over from an earlier release with the same items, model and moments.

Shape suffixes:  M moments, oldest first  H items of a history, newest first, 0 for none  B batch
                 T items, oldest first, zeros before them  D width of a state  S semantic size
"""

# ruff: noqa: N803 - the shape suffixes above

import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from grasp import partitions, tables
from grasp.days import plus_days
from grasp.manifest import release_folder
from grasp.moments import HISTORY_LENGTH, MAX_STATES, unit_states
from grasp.progress import say
from grasp.settings import Settings
from grasp.versions import file_sha256
from serving.ranking.items import ItemSide, load_items
from serving.ranking.moments import MOMENTS_FOLDER, ROWS_FILE, STATES_FILE, item_numbers
from serving.releases.in_force import releases_on_disk
from training.model.artefact import load_ranker
from training.model.ranker import Ranker

BATCH_SIZE, SAY_EVERY = 1024, 102_400  # moments
_IN_ORDER = [(name, "ascending") for name in ("event_time", "user_id", "row_number")]


def carry_moments(settings: Settings, day: str, feature_version: str, staging: Path) -> None:
    """Write the moments of the last days, up to `day`, and their states into a staged release.

    A moment without an item that the release has is left out: it has no state. Of more than `MAX_STATES` the earliest
    are left out. Raises `ValueError` naming a day that cannot be read.
    """
    loaded = load_ranker(staging / "model")
    items = load_items(staging / "items", feature_version, loaded.vocabulary)
    rows = _latest(settings, day)
    history_MH = histories_of(rows["history_item_ids"], items) if rows else np.zeros((0, HISTORY_LENGTH), np.int64)
    is_known_M = history_MH.any(axis=1)
    if rows is None or not is_known_M.any():
        say("release: it has no moments, so the stored votes count")
        return
    folder, num, started = staging / MOMENTS_FOLDER, np.count_nonzero(is_known_M), time.perf_counter()
    folder.mkdir(parents=True)
    pq.write_table(rows.filter(pa.array(is_known_M)), folder / ROWS_FILE)
    known = _states_of_same_content(settings.releases, staging)
    if known:
        shutil.copyfile(known, folder / STATES_FILE)
        say(f"release: {num:,} moments vote, their states are those of {known.parents[1].name}")
        return
    loaded.ranker.attach_items(torch.from_numpy(items.semantic_NS), torch.from_numpy(items.neighbour_NS))
    np.save(folder / STATES_FILE, states_of(loaded.ranker, history_MH[is_known_M]))
    say(f"release: {num:,} moments vote, their states took {time.perf_counter() - started:.1f} s")


def _latest(settings: Settings, day: str) -> pa.Table | None:
    """The latest moments of the window, oldest first; None without any day of them."""
    first = plus_days(day, 1 - settings.moment_days)
    known = [each for each in partitions.days(settings.lake, tables.MOMENTS, None, until=day) if each >= first]
    parts: list[pa.Table] = []
    for each in reversed(known):
        if sum(map(len, parts)) < MAX_STATES:
            parts += _read(partitions.partition_path(settings.lake, tables.MOMENTS, None, each))
    if not parts:
        return None
    rows = pa.concat_tables(parts).sort_by(_IN_ORDER)
    return rows.slice(max(0, len(rows) - MAX_STATES))


def _read(partition: Path) -> list[pa.Table]:
    columns = list(tables.MOMENTS.column_names)
    try:
        files = sorted(partition.glob(partitions.FINISHED_FILES))
        parts = [pq.ParquetFile(file).read(columns=columns) for file in files]
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{partition} cannot be read as moments: {error}") from error
    missing = {name for part in parts for name in columns if name not in part.column_names}
    if missing:
        raise ValueError(f"{partition} lacks the columns {', '.join(sorted(missing))}")
    return parts


def histories_of(item_ids: pa.ChunkedArray, items: ItemSide) -> np.ndarray:
    """Lists of item ids, newest first, as (M, H): rows of the items, counted from 1; 0 for one that is not there."""
    lists = item_ids.combine_chunks()
    length_M = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    moment = np.repeat(np.arange(len(length_M)), length_M)
    place = np.arange(len(moment)) - np.repeat(np.cumsum(length_M) - length_M, length_M)
    is_read = place < HISTORY_LENGTH
    history_MH = np.zeros((len(length_M), HISTORY_LENGTH), np.int64)
    history_MH[moment[is_read], place[is_read]] = item_numbers(lists.flatten(), items)[is_read]
    return history_MH


@torch.inference_mode()
def states_of(ranker: Ranker, history_MH: np.ndarray) -> np.ndarray:
    """The ranker's state after each history, with no user's vectors: (M, D), float16, length 1."""
    states = []
    for start in range(0, len(history_MH), BATCH_SIZE):
        items_BT = torch.from_numpy(_oldest_first(history_MH[start : start + BATCH_SIZE]))
        nobody_BS = torch.zeros(len(items_BT), ranker.config.semantic_size)
        state_BD = ranker.last_state(items_BT, nobody_BS, nobody_BS)
        states.append(unit_states(state_BD.numpy()).astype(np.float16))
        if start and start % SAY_EVERY == 0:
            say(f"release: states of {start:,} of {len(history_MH):,} moments")
    return np.concatenate(states)


def _oldest_first(history_BH: np.ndarray) -> np.ndarray:
    """The items of each history without gaps, oldest first, on the right, (B, T)."""
    items_BT = history_BH[:, ::-1]
    order_BT = np.argsort(items_BT > 0, axis=1, kind="stable")
    longest = int((items_BT > 0).sum(axis=1).max(initial=1))
    return np.take_along_axis(items_BT, order_BT, axis=1)[:, -longest:]


def _states_of_same_content(releases: Path, staging: Path) -> Path | None:
    """The intact states of a release on disk whose items, model and moments are those of the staged one."""
    folders = (MOMENTS_FOLDER, "model", "items")  # moments first: they mostly differ, so that no more is read
    names = [f"{folder}/{file.name}" for folder in folders for file in sorted((staging / folder).iterdir())]
    for before in releases_on_disk(releases):
        checksums = {name: each for name, each in before.checksums.items() if name.split("/")[0] in folders}
        checksum = checksums.pop(f"{MOMENTS_FOLDER}/{STATES_FILE}", None)
        if set(checksums) == set(names) and all(checksums[name] == file_sha256(staging / name) for name in names):
            file = release_folder(releases, before) / MOMENTS_FOLDER / STATES_FILE
            if file.is_file() and file_sha256(file) == checksum:
                return file
    return None
