"""The moments that may vote, as NumPy, read from their parquet files without Spark.

Items are numbered by their place in the day's `item_embedding`, from 1; 0 is no item, and an item that the day does not
have. Moments are ordered by time, user and row number, so that every process counts the same votes.

Shape suffixes:  Q asking moments  M voting moments  H items of a history  S semantic size  N items  P proposed moments
"""

# ruff: noqa: N803, N815 - the shape suffixes above

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from grasp import partitions, tables
from grasp.days import plus_days
from grasp.moments import HISTORY_LENGTH, Contexts, Moments, VoteRule, Votes, centred, contexts
from grasp.settings import Settings
from grasp.versions import digest
from spark_jobs.storage.lake import Lake
from spark_jobs.vectors.embedding_table import read_embeddings

ASKING_COLUMNS = ("user_id", "history_item_ids")
VOTES_SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "neighbour_item_ids": pa.list_(pa.string()),
        "neighbour_item_weights": pa.list_(pa.float32()),
    }
)
_IN_ORDER = [("event_time", "ascending"), ("user_id", "ascending"), ("row_number", "ascending")]


@dataclass(frozen=True)
class MomentFiles:
    """Where the voting moments and the items' vectors lie. It is sent to the workers."""

    days: tuple[Path, ...]  # partitions of `moments`
    embedding: Path  # a day of `item_embedding`
    content: str  # of both: a worker that is used again reads what changed

    @classmethod
    def of(cls, days: Sequence[Path], embedding: Path) -> "MomentFiles":
        contents = [partitions.read_content(each) for each in (*days, embedding)]
        return cls(tuple(days), embedding, digest([each.hash if each else None for each in contents]))

    def read(self) -> pa.Table:
        """All rows of the moments, oldest first."""
        parts = [ds.dataset(day, format="parquet").to_table(list(tables.MOMENTS.column_names)) for day in self.days]
        rows = pa.concat_tables([part for part in parts if part.num_rows] or parts[:1])
        return rows.sort_by(_IN_ORDER)


@dataclass(frozen=True, eq=False)
class VotingMoments:
    """The moments with the ids that belong to their numbers."""

    moments: Moments
    centred_NS: np.ndarray  # row 0 is no item
    item_ids: pa.Array  # of item 1 on
    user_ids: pa.Array  # of user 0 on

    def contexts(self, histories: pa.ChunkedArray) -> Contexts:
        """Of lists of item ids, newest first."""
        return contexts(history_numbers(histories, self.item_ids), self.centred_NS)

    def user_numbers(self, user_ids: pa.ChunkedArray) -> np.ndarray:
        """The number of each user; -1 for one without a voting moment."""
        return _places(user_ids, self.user_ids)

    def votes(self, asking: pa.Table, rule: VoteRule, proposed_QP: np.ndarray | None = None) -> pa.RecordBatch:
        """Rows of `user_neighbour_items`, one for each row of `asking`, which has `ASKING_COLUMNS`.

        With `proposed_QP` only the moments at these places are compared, else all.
        """
        of_asking, user_Q = self.contexts(asking["history_item_ids"]), self.user_numbers(asking["user_id"])
        if proposed_QP is None:
            found = self.moments.votes(of_asking, user_Q, rule)
        else:
            found = self.moments.votes_of_proposed(of_asking, user_Q, proposed_QP, rule)
        return self._rows(asking["user_id"], list(found))

    def _rows(self, user_ids: pa.ChunkedArray, found: Sequence[Votes]) -> pa.RecordBatch:
        offsets = pa.array(np.cumsum([0, *(len(votes.items) for votes in found)]), pa.int32())
        items = np.concatenate([np.zeros(0, np.int64), *(votes.items for votes in found)]) - 1
        weights = np.concatenate([np.zeros(0, np.float32), *(votes.weights for votes in found)])
        voted = pa.ListArray.from_arrays(offsets, self.item_ids.take(pa.array(items)))
        shares = pa.ListArray.from_arrays(offsets, pa.array(weights))
        return pa.RecordBatch.from_arrays([user_ids.combine_chunks(), voted, shares], schema=VOTES_SCHEMA)


def history_numbers(histories: pa.ChunkedArray, item_ids: pa.Array) -> np.ndarray:
    """Lists of item ids as numbers, int64 [num_lists, HISTORY_LENGTH]; 0 for none and for an unknown item."""
    lists = histories.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    numbers = _places(lists.flatten(), item_ids) + 1
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(numbers)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    result_QH = np.zeros((len(lengths), HISTORY_LENGTH), np.int64)
    result_QH[row, place] = numbers
    return result_QH


def _places(ids: pa.Array | pa.ChunkedArray, known: pa.Array) -> np.ndarray:
    """The place of each id among the known ones, int64; -1 for an unknown one."""
    found = pc.fill_null(pc.index_in(ids, value_set=known), -1)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)


@lru_cache(maxsize=1)
def load_moments(files: MomentFiles) -> VotingMoments:
    """The voting moments, built once per process and content of the files."""
    rows = files.read()
    embeddings = read_embeddings(files.embedding, tables.ITEM_EMBEDDING)
    item_ids, centred_NS = pa.array(embeddings.ids, pa.string()), centred(embeddings.vectors)
    users = rows["user_id"].combine_chunks().dictionary_encode()
    moments = Moments(
        contexts(history_numbers(rows["history_item_ids"], item_ids), centred_NS),
        users.indices.to_numpy(zero_copy_only=False).astype(np.int64),
        _places(rows["item_id"], item_ids) + 1,
    )
    return VotingMoments(moments, centred_NS, item_ids, users.dictionary)


def vote_in_blocks(batches: Iterator[pa.RecordBatch], files: MomentFiles, rule: VoteRule) -> Iterator[pa.RecordBatch]:
    """Runs in a Spark worker: the votes for rows of `ASKING_COLUMNS` and `block`.

    Blocks are counted one by one and in order, because the last digits of a similarity depend on what is computed
    together: so votes do not depend on how Spark cut its rows into partitions and batches.
    """
    asked = list(batches)
    if not asked:
        return
    asking = pa.Table.from_batches(asked).sort_by([("block", "ascending"), ("user_id", "ascending")])
    for block in pc.unique(asking["block"]):
        yield load_moments(files).votes(asking.filter(pc.equal(asking["block"], block)), rule)


def first_day_of_window(settings: Settings, day: str) -> str:
    """The first day whose moments vote on `day`."""
    return plus_days(day, 1 - settings.moment_days)


def files_of_window(lake: Lake, day: str) -> MomentFiles:
    """The moments that vote on the day; raises `MissingPartitionError` if the day has no item embedding."""
    first = first_day_of_window(lake.settings, day)
    days = [lake.partition(tables.MOMENTS, each) for each in lake.days(tables.MOMENTS, until=day) if each >= first]
    embedding = partitions.require_partition(lake.root, tables.ITEM_EMBEDDING, lake.versions.embedding, day)
    return MomentFiles.of(days, embedding)
