"""A model folder is checked before loading. Batching and the shared prefix do not change answers."""

import json
import struct

import pytest

from spark_jobs.generation.prompts import ITEM, item_input, prompt_messages
from spark_jobs.models.account import Account, Prices, Purse, Reply, SpendingLimits
from spark_jobs.models.language_model import ModelFolderError, TransformersModel, check_model_folder, load_model


def prompts(*titles):
    facts = [item_input({"title": title, "attributes": {"genres": "Comedy, Drama"}}, ()) for title in titles]
    return [prompt_messages(ITEM, each) for each in facts]


def in_order(generations):
    return [generation for _, generation in sorted(generations, key=lambda placed: placed[0])]


def make_folder(folder, weights):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def safetensors(num_bytes):
    header = json.dumps({"weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(num_bytes)


def test_complete_weights_are_accepted(tmp_path):
    check_model_folder(make_folder(tmp_path / "model", safetensors(16)))


@pytest.mark.parametrize("weights", [safetensors(7), b"", b"no weights at all"])
def test_a_corrupt_weight_file_names_folder_and_setting(tmp_path, weights):
    folder = make_folder(tmp_path / "model", weights)
    with pytest.raises(ModelFolderError, match=f"GRASP_LLM: {folder} holds no usable language model"):
        load_model(folder, 8, 1)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_missing_file_names_folder_and_setting(tmp_path, missing):
    folder = make_folder(tmp_path / "model", safetensors(16))
    (folder / missing).unlink()
    with pytest.raises(ModelFolderError, match=f"GRASP_LLM: {folder}"):
        check_model_folder(folder)


def test_a_missing_folder_names_folder_and_setting(tmp_path):
    with pytest.raises(ModelFolderError, match=f"GRASP_LLM: {tmp_path / 'nowhere'}"):
        check_model_folder(tmp_path / "nowhere")


def test_a_file_that_only_looks_like_gguf_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"HTML, not a model")
    with pytest.raises(ModelFolderError, match=r"model\.gguf is not a GGUF file"):
        check_model_folder(tmp_path)


def test_two_gguf_files_are_refused(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelFolderError, match=r"several GGUF files \(a\.gguf, b\.gguf\)"):
        check_model_folder(tmp_path)


@pytest.mark.models
def test_batches_and_the_shared_prefix_change_no_answer(model_folders):
    asked = prompts("Heat", "The Lay of the Land", "One Flew Over the Cuckoo's Nest", "187", "Four Rooms")
    shared = TransformersModel(model_folders[0], max_new_tokens=24, batch_size=3)
    plain = TransformersModel(model_folders[0], max_new_tokens=24, batch_size=1, reuse_prefix=False)
    answers, alone = in_order(shared.generate(asked)), in_order(plain.generate(asked))
    assert [answer.text for answer in answers] == [answer.text for answer in alone]
    assert [answer.num_input_tokens for answer in answers] == [answer.num_input_tokens for answer in alone]
    assert all(0 < answer.num_output_tokens <= 24 and answer.seconds > 0 for answer in answers)
    assert "Heat" in answers[0].text
    [(_, again)] = shared.generate(asked[:1])
    assert again.text == answers[0].text  # the prefix cache is not used up
    assert list(shared.generate([])) == []


@pytest.mark.models
def test_a_batch_is_yielded_before_the_next_one_starts(model_folders):
    model = TransformersModel(model_folders[0], max_new_tokens=8, batch_size=1)
    generations = model.generate(prompts("Heat", "The Lay of the Land"))
    place, first = next(generations)
    assert (place, first.num_attempts, first.error) == (0, 1, None)
    generations.close()  # nobody waits for the second


@pytest.mark.models
def test_a_process_loads_a_model_once(model_folders):
    assert load_model(model_folders[0], 24, 3) is load_model(model_folders[0], 24, 3)


@pytest.mark.models
def test_a_cap_on_tokens_is_counted_by_the_tokenizer(model_folders, tmp_path):
    model = TransformersModel(model_folders[0], max_new_tokens=8, batch_size=2)
    [(_, first)] = model.generate(prompts("Heat"))
    limit = 3 * first.num_input_tokens + 3 * 8 + 100  # three of them fit
    model.limit(Account(SpendingLimits(num_tokens=limit), Prices(), tmp_path))
    answers = in_order(model.generate(prompts("Heat", "Jaws", "Alien", "Fargo", "Scream")))
    assert [answer.error for answer in answers] == [None, None, None, "out_of_budget", "out_of_budget"]
    assert sum(answer.num_input_tokens + answer.num_output_tokens for answer in answers) <= limit


@pytest.mark.models
def test_within_a_cap_the_first_prompts_come_first_and_one_batch_at_a_time_is_reserved(model_folders, tmp_path):
    model = TransformersModel(model_folders[0], max_new_tokens=8, batch_size=2)
    account = Account(SpendingLimits(num_calls=5), Prices(), tmp_path)
    model.limit(account)
    generations = model.generate(prompts("One Flew Over the Cuckoo's Nest", "The Lay of the Land", "Heat", "Jaws"))

    assert {next(generations)[0], next(generations)[0]} == {0, 1}
    another_worker, the_rest = Purse(account), account.usage(0, 0, num_calls=3)
    assert another_worker.reserve(the_rest) is Reply.GRANTED
    another_worker.settle(the_rest, the_rest)
    assert [answer.error for _, answer in generations] == ["out_of_budget"] * 2


class ModelWithoutMemory(TransformersModel):
    """Has no memory for a batch."""

    def _generate_batch(self, batch, shared):
        raise MemoryError


@pytest.mark.models
def test_what_a_failed_batch_reserved_is_free_again(model_folders, tmp_path):
    model = ModelWithoutMemory(model_folders[0], max_new_tokens=8, batch_size=2)
    account = Account(SpendingLimits(num_calls=1), Prices(), tmp_path)
    model.limit(account)
    with pytest.raises(MemoryError):
        list(model.generate(prompts("Heat")))
    assert account.purse().reserve(account.usage(100, 8)) is Reply.GRANTED
