"""Serving refuses a release with a damaged, missing or mismatching part, and names the part."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from grasp.manifest import Manifest, release_folder
from grasp.settings import Settings
from grasp.versions import Versions, file_sha256
from serving.ranking.release_ranker import load_release_ranker
from serving.releases.publication import choose_model, publish

DAY = "1998-03-01"
ITEMS = "items/part-0.parquet"


@pytest.fixture
def released(settings: Settings, write_day: Callable[..., None], make_model: Callable[..., Path]) -> Manifest:
    write_day(settings)
    return publish(settings, DAY, choose_model(settings, make_model(settings), None))


def test_a_file_with_another_checksum_is_refused(settings, released):
    file = release_folder(settings.releases, released) / ITEMS
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content + b" ")

    with pytest.raises(ValueError, match=r"part-0\.parquet does not match its checksum"):
        load_release_ranker(release_folder(settings.releases, released), released)


def test_a_missing_file_is_refused(settings, released):
    (release_folder(settings.releases, released) / "model" / "vocabulary.json").unlink()

    with pytest.raises(ValueError, match=r"vocabulary\.json is missing: the release is incomplete"):
        load_release_ranker(release_folder(settings.releases, released), released)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"feature_service": "ranker_other"}, r"the model has feature_service .*, the release ranker_other"),
        ({"model": "another"}, "the model has name tiny-ranker, the release another"),
        ({"feature_version": "v0_other"}, "v0_other"),
    ],
)
def test_a_manifest_that_does_not_match_its_model_is_refused(settings, released, changed, message):
    place = release_folder(settings.releases, released)

    with pytest.raises(ValueError, match=message):
        load_release_ranker(place, replace(released, **changed))


def test_vectors_of_another_width_than_the_models_are_refused(settings, released, write_day):
    """The checksum is right, as after a publication by hand."""
    place = release_folder(settings.releases, released)
    (place / ITEMS).unlink()
    write_day(settings, DAY, size=5)
    lake = settings.lake / "item_features" / f"version={Versions(settings).feature}" / f"day={DAY}"
    pq.write_table(pq.ParquetFile(lake / "part-0.parquet").read(), place / ITEMS)
    manifest = replace(released, checksums=released.checksums | {ITEMS: file_sha256(place / ITEMS)})

    with pytest.raises(ValueError, match="columns"):
        load_release_ranker(place, manifest)
