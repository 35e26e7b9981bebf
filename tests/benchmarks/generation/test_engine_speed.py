"""Both engines get the same prompts, in the order in which the jobs of the refresh ask."""

import json

import pytest

from benchmarks.generation import engine_speed
from spark_jobs.generation.prompts import ITEM, USER, messages
from spark_jobs.models.language_model import Generation

ITEMS = [("h", "Heat", ["Drama"]), ("f", "Fargo", ["Comedy", "Drama"]), ("j", "Jaws", ["Thriller"])]
EVENTS = [("1", "h", 10), ("1", "f", 20), ("2", "j", 5)]


@pytest.fixture
def folder(tmp_path):
    items = [json.dumps({"item_id": key, "title": title, "genres": genres}) for key, title, genres in ITEMS]
    (tmp_path / "items.jsonl").write_text("\n".join(items))
    rows = ["user_id\titem_id\ttimestamp", *("\t".join(map(str, event)) for event in EVENTS)]
    (tmp_path / "interactions.tsv").write_text("\n".join(rows))
    return tmp_path


def test_items_come_before_users_with_the_facts_of_the_refresh(folder):
    found = engine_speed.prompts(folder, 4)

    assert [subject for subject, _ in found] == [ITEM, ITEM, USER, USER]
    assert [facts["title"] for _, facts in found[:2]] == ["Heat", "Fargo"]
    assert [facts["recent"] for _, facts in found[2:]] == [["Fargo", "Heat"], ["Jaws"]]
    assert found[2][1]["favourites"] == ["Drama", "Comedy"]


class Model:
    """Answers with the last line of a prompt, in no order, and notes what it was asked at a time."""

    def __init__(self):
        self.calls = []

    def generate(self, prompts):
        self.calls.append({prompt[0]["content"] for prompt in prompts})
        for place in reversed(range(len(prompts))):
            yield place, Generation(prompts[place][-1]["content"], 9, 1, 0.1)


def test_one_kind_of_prompt_is_asked_for_at_a_time_and_answers_stay_in_order(folder):
    model, asked = Model(), [messages(*each) for each in engine_speed.prompts(folder, 4)]

    answers = engine_speed.in_turn(model, asked)

    assert [answer.text for answer in answers] == [prompt[-1]["content"] for prompt in asked]
    assert [len(systems) for systems in model.calls] == [1, 1]
