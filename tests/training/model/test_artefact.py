import json
from pathlib import Path

import pytest
import torch

from training.model import artefact
from training.model.artefact import ArtefactFormatError, RankerMetadata, load_ranker, save_ranker
from training.model.ranker import Ranker

METADATA = RankerMetadata(
    "sasrec-grasp-x", "ranker_v1", "v1", "sasrec_grasp", "1998-04-22", "1998-02-28", 0, {"ndcg@10": 0.1}
)
ITEMS_BT = torch.tensor([[0, 3, 1, 7, 2], [5, 4, 9, 12, 6]])
USERS_BS = torch.randn(2, 10, generator=torch.Generator().manual_seed(1))


def save(folder: Path, ranker: Ranker) -> Path:
    save_ranker(folder, ranker, [f"item {i}" for i in range(12)], METADATA)
    return folder


def test_what_is_saved_is_loaded(make_ranker, item_vectors, tmp_path):
    ranker = make_ranker()
    loaded = load_ranker(save(tmp_path / "model", ranker))
    loaded.ranker.attach_items(*item_vectors(12))

    assert loaded.config == ranker.config
    assert loaded.metadata == METADATA
    assert loaded.vocabulary[11] == "item 11"
    assert torch.equal(loaded.ranker(ITEMS_BT, USERS_BS, USERS_BS), ranker(ITEMS_BT, USERS_BS, USERS_BS))
    assert torch.equal(loaded.ranker.candidate_vectors(), ranker.candidate_vectors())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocabulary.json"])
def test_a_changed_or_missing_file_is_named(make_ranker, tmp_path, name):
    file = save(tmp_path, make_ranker()) / name
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=f"{name} does not match its checksum"):
        load_ranker(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        load_ranker(tmp_path)


def test_weights_of_another_shape_are_refused_though_their_checksum_fits(make_ranker, tmp_path):
    save(tmp_path / "a", make_ranker())
    save(tmp_path / "b", make_ranker(width=16))
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    checksums = [json.loads((tmp_path / name / "checksums.json").read_text()) for name in "ab"]
    mixed = checksums[0] | {"model.safetensors": checksums[1]["model.safetensors"]}
    (tmp_path / "a" / "checksums.json").write_text(json.dumps(mixed))

    with pytest.raises(ValueError, match=r"model\.safetensors does not fit config\.json"):
        load_ranker(tmp_path / "a")


def test_a_folder_without_checksums_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"checksums\.json cannot be read"):
        load_ranker(tmp_path)


def test_a_vocabulary_of_another_length_is_refused(make_ranker, tmp_path):
    with pytest.raises(ValueError, match="holds 2 distinct items, the config says 12"):
        save_ranker(tmp_path, make_ranker(), ["a", "b"], METADATA)


@pytest.mark.parametrize("version", [1, 4, 6])
def test_an_artefact_of_another_version_is_told_from_a_corrupt_one(make_ranker, tmp_path, monkeypatch, version):
    monkeypatch.setattr(artefact, "FORMAT", version)
    save(tmp_path, make_ranker())
    monkeypatch.undo()

    with pytest.raises(
        ArtefactFormatError, match=rf"config\.json has format {version}, this version reads 5: run `grasp retrain`"
    ):
        load_ranker(tmp_path)
