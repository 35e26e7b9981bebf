"""A view's rows in the online store: written in batches from a day's files, and read back by id.

Keys and values have Feast's form, and Feast's online store writes and reads them. `FeatureStore.materialize` is not
used: it loads the whole day and sorts it for the latest row of each key, but a partition has only one row per key.
Here one batch is in memory at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from grasp.tables import Table

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

DEFAULT_BATCH = 1000  # rows, if the configuration sets no online_write_batch_size
READ_BATCH = 500  # ids per read
EVENT_TIMESTAMP = "event_timestamp"
_UTC = pa.timestamp("us", "UTC")


def read_keys(folder: Path, table: Table) -> dict[str, datetime]:
    """Id and event timestamp of every row of a partition, sorted by id."""
    rows = pq.read_table(folder, columns=[table.key[0], EVENT_TIMESTAMP], partitioning=None)
    moments = rows[EVENT_TIMESTAMP].cast(_UTC).to_pylist()
    return dict(sorted(zip(rows[table.key[0]].to_pylist(), moments, strict=True)))


def write_rows(store: "FeatureStore", table: Table, folder: Path, say_done: Callable[[int], None]) -> None:
    """Overwrite the online rows with every row of a partition; calls `say_done` with the count after each batch."""
    view = store.get_feature_view(table.name)
    size = store.config.materialization_config.online_write_batch_size or DEFAULT_BATCH
    num_done = 0
    for batch in _batches(folder, size):
        store.provider.online_write_batch(store.config, view, _rows(view, table, batch), None)
        num_done += batch.num_rows
        say_done(num_done)


def clear_rows(store: "FeatureStore", table: Table, ids: Sequence[str], moment: datetime) -> None:
    """Overwrite rows with nulls as of `moment`. They then read like rows that never existed."""
    from feast.protos.feast.types.Value_pb2 import Value

    view = store.get_feature_view(table.name)
    nothing = {field.name: Value() for field in view.features}
    for batch in _slices(ids):
        rows = [(_entity_key(table, each), nothing, moment, None) for each in batch]
        store.provider.online_write_batch(store.config, view, rows, None)


def read_versions(store: "FeatureStore", table: Table, ids: Sequence[str]) -> dict[str, tuple[str, int] | None]:
    """Feature version and event timestamp (whole seconds) of each id's online row; None if there is none.

    A cleared row has the version "".
    """
    view = store.get_feature_view(table.name)
    online: dict[str, tuple[str, int] | None] = {}
    for batch in _slices(ids):
        keys = [_entity_key(table, each) for each in batch]
        answers = store.provider.online_read(store.config, view, keys, ["feature_version"])
        for each, (moment, values) in zip(batch, answers, strict=True):
            # For an unknown key, Feast's Redis store answers with the first second of 1970.
            seconds = int(moment.timestamp()) if moment else 0
            version = values["feature_version"].string_val if values and "feature_version" in values else ""
            online[each] = (version, seconds) if seconds else None
    return online


def _slices(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + READ_BATCH] for start in range(0, len(ids), READ_BATCH))


def _batches(folder: Path, size: int) -> Iterator[pa.RecordBatch]:
    for file in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(file) as parquet:
            yield from parquet.iter_batches(size)


def _entity_key(table: Table, entity_id: str) -> Any:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    return EntityKey(join_keys=[table.key[0]], entity_values=[Value(string_val=entity_id)])


def _rows(view: "FeatureView", table: Table, batch: pa.RecordBatch) -> list[tuple[Any, dict[str, Any], datetime, None]]:
    """A batch in the form of Feast's online stores: key, values by feature, event timestamp, no creation time."""
    from feast.type_map import python_values_to_proto_values

    columns = {
        field.name: python_values_to_proto_values(_values(batch.column(field.name)), field.dtype.to_value_type())
        for field in view.features
    }
    keys = [_entity_key(table, each) for each in batch.column(table.key[0]).to_pylist()]
    moments = batch.column(EVENT_TIMESTAMP).cast(_UTC).to_pylist()
    values = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [(key, row, moment, None) for key, row, moment in zip(keys, values, moments, strict=True)]


def _values(column: pa.Array) -> list[Any]:
    """Python values of a column. Lists of floats go through NumPy, many times faster than Arrow's `to_pylist`."""
    if pa.types.is_timestamp(column.type):
        return column.cast(_UTC).to_pylist()
    if not pa.types.is_list(column.type) or not pa.types.is_floating(column.type.value_type):
        return column.to_pylist()
    numbers = column.flatten().to_numpy(zero_copy_only=False).tolist()
    lengths = pc.list_value_length(column).to_pylist()
    ends = accumulate(length or 0 for length in lengths)
    return [None if length is None else numbers[end - length : end] for length, end in zip(lengths, ends, strict=True)]
