"""A version changes with its meaning, and only then."""

import pytest

from grasp.versions import Versions, collection, digest, model_revision


def test_the_digest_ignores_the_order_of_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_model_is_named_by_its_content(tmp_path):
    folder = tmp_path / "All-MiniLM"
    folder.mkdir()
    (folder / "weights").write_bytes(b"0" * 5_000_000)
    before = model_revision(folder)
    assert before.startswith("all_minilm-")
    assert model_revision(folder) == before
    (folder / "weights").write_bytes(b"0" * 4_999_999 + b"1")
    assert model_revision(folder) != before


def test_an_empty_model_folder_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="make setup"):
        model_revision(tmp_path / "nowhere")


@pytest.mark.parametrize("changed", [{"user_history_holdout": 1}, {"hidden_attributes": ("asin",)}])
def test_what_descriptions_are_is_part_of_every_later_version(settings, settings_with, changed):
    before, after = Versions(settings), Versions(settings_with(**changed))
    assert before.embedding != after.embedding
    assert before.feature != after.feature


def test_how_neighbours_are_averaged_changes_features_but_not_embeddings(settings, settings_with):
    before, after = Versions(settings), Versions(settings_with(num_neighbours=20))
    assert before.embedding == after.embedding
    assert before.feature != after.feature


def test_a_budget_changes_no_version(settings, settings_with):
    assert Versions(settings).feature == Versions(settings_with(llm_budget=0)).feature


def test_collection_names_suit_milvus(settings):
    assert collection("item", Versions(settings).embedding).replace("_", "").isalnum()
