"""A release is named by the content of its manifest."""

import dataclasses
import json

import pytest

from grasp.manifest import CURRENT_FILE, Manifest, NoReleaseError, manifest_in_force
from grasp.versions import digest

MANIFEST = Manifest("1998-03-01", "v1_a", "minilm_b", {"item": "item_embedding_b"}, "ranker_v1_a", None)


def test_the_time_of_publication_is_not_part_of_the_release_id():
    assert dataclasses.replace(MANIFEST, published_at="now").release_id == MANIFEST.release_id
    assert dataclasses.replace(MANIFEST, model="sasrec").release_id != MANIFEST.release_id


def test_a_release_without_votes_has_the_id_it_had_before_there_were_votes():
    content = dataclasses.asdict(MANIFEST)
    del content["published_at"], content["vote_rule"]

    assert MANIFEST.release_id == f"{MANIFEST.day}-{digest(content)[:10]}"
    assert dataclasses.replace(MANIFEST, vote_rule={"min_voters": 3}).release_id != MANIFEST.release_id


def test_without_a_release_the_error_says_how_to_get_one(tmp_path):
    with pytest.raises(NoReleaseError, match="make demo"):
        manifest_in_force(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b'{"day": "1998-03-01"',
        b"\xff",
        b"[1]",
        json.dumps(dataclasses.asdict(MANIFEST) | {"day": "1998-03-41"}).encode(),
        json.dumps(dataclasses.asdict(MANIFEST) | {"day": 7}).encode(),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, content):
    (tmp_path / CURRENT_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"current\.json is not a release manifest"):
        manifest_in_force(tmp_path)
