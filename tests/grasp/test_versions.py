"""A version changes when its meaning changes, and only then."""

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
    for place in (0, 2_500_000, 4_999_999):  # the whole file counts, not only its edges
        content = bytearray(b"0" * 5_000_000)
        content[place] = ord("1")
        (folder / "weights").write_bytes(content)
        assert model_revision(folder) != before
    (folder / "weights").write_bytes(b"0" * 5_000_000)
    assert model_revision(folder) == before
    (folder / "weights").rename(folder / "renamed")
    assert model_revision(folder) != before


def test_a_model_that_changes_in_the_middle_has_another_version(settings):
    (settings.encoder / "weights").write_bytes(b"0" * 5_000_000)
    before = Versions(settings).encoder
    assert Versions(settings).encoder == before
    (settings.encoder / "weights").write_bytes(b"0" * 2_500_000 + b"1" + b"0" * 2_499_999)
    assert Versions(settings).encoder != before


@pytest.mark.parametrize("changed", [{"llm_parameters": '{"temperature": 1}'}, {"llm_parameters": "{}"}])
def test_the_parameters_of_a_request_are_part_of_the_prompts_version(settings_with, changed):
    served = {"llm_url": "http://localhost:8000/v1", "llm_model": "m"}
    before = Versions(settings_with(**served)).prompt("item")
    assert Versions(settings_with(**served, **changed)).prompt("item") != before
    respelt = {"llm_parameters": '{"temperature":0,"seed":0}', "llm_tokens_parameter": "max_completion_tokens"}
    assert Versions(settings_with(**served, **respelt)).prompt("item") == before


def test_an_empty_model_folder_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="make setup"):
        model_revision(tmp_path / "nowhere")


@pytest.mark.parametrize("changed", [{"user_history_holdout": 1}, {"hidden_attributes": ("asin",)}])
def test_settings_that_change_descriptions_change_every_later_version(settings, settings_with, changed):
    before, after = Versions(settings), Versions(settings_with(**changed))
    assert before.embedding != after.embedding
    assert before.feature != after.feature


def test_how_neighbours_are_averaged_changes_features_but_not_embeddings(settings, settings_with):
    before, after = Versions(settings), Versions(settings_with(num_neighbours=20))
    assert before.embedding == after.embedding
    assert before.feature != after.feature


def test_a_budget_changes_no_version(settings, settings_with):
    assert Versions(settings).feature == Versions(settings_with(llm_budget=0)).feature


def test_a_server_needs_no_folder_and_its_model_is_named_by_name_and_revision(settings_with, tmp_path):
    served = {"llm_url": "http://localhost:8000/v1", "llm": str(tmp_path / "nowhere")}
    names = [
        Versions(settings_with(**served, llm_model=model, llm_revision=revision)).llm
        for model, revision in [("Qwen/Qwen2.5-7B", ""), ("Qwen/Qwen2.5-7B", "2"), ("Qwen.Qwen2.5-7B", "")]
    ]
    assert all(name.startswith("qwen_qwen2_5_7b-") for name in names)
    assert len(set(names)) == 3


def test_the_address_of_a_model_changes_no_version_but_its_output_format_does(settings_with):
    served = {"llm_url": "http://localhost:8000/v1", "llm_model": "m"}
    here = Versions(settings_with(**served))
    there = Versions(settings_with(**served | {"llm_url": "http://elsewhere/v1"}))
    structured = Versions(settings_with(**served, llm_structured=True))
    assert (here.embedding, here.prompt("item")) == (there.embedding, there.prompt("item"))
    assert here.prompt("item") != structured.prompt("item")


def test_collection_names_are_valid_in_milvus(settings):
    assert collection("item", Versions(settings).embedding).replace("_", "").isalnum()


def test_moments_have_a_collection_of_their_own(settings):
    version = Versions(settings).embedding
    assert collection("moments", version) == f"moments_{version}"
    assert collection("moments", version) not in {collection(entity, version) for entity in ("item", "user")}


@pytest.mark.parametrize(
    ("changed", "is_same"), [({"moment_text_share": 0.5}, False), ({"moments": False}, False), ({}, True)]
)
def test_how_moments_vote_is_part_of_the_features_version(settings_with, changed, is_same):
    before = Versions(settings_with(moment_exact_up_to=5))
    after = Versions(settings_with(**changed))
    assert (before.feature == after.feature) is is_same
    assert before.embedding == after.embedding


def test_settings_of_moments_that_are_off_change_nothing(settings_with):
    off, other = settings_with(moments=False), settings_with(moments=False, moment_days=5)
    assert Versions(off).feature == Versions(other).feature
