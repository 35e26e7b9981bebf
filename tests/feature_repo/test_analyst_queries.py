"""Every question of docs/analysts.md has an answer on a lake with two days."""

import contextlib
import io
import re
import subprocess
import sys

import pytest

from feature_repo.materialise import materialise
from feature_repo.sql import connect
from grasp import tables
from grasp.feature_store import FEAST_FILE_VARIABLE, write_release_store
from grasp.settings import ROOT
from grasp.versions import Versions

DAY, NEXT = "1998-03-01", "1998-03-02"
PAGE = (ROOT / "docs" / "analysts.md").read_text()
SECTIONS = dict(re.findall(r"^## (\d+)\. .*?\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_the_page_answers_eleven_questions():
    assert [*SECTIONS] == [str(number) for number in range(1, 12)]
    assert all(blocks(text, "sql") for text in SECTIONS.values())


@pytest.mark.parametrize("section", SECTIONS)
def test_its_sql_returns_rows(two_days, section):
    for query in blocks(SECTIONS[section], "sql"):
        assert connect(two_days.settings).sql(query).fetchall()


@pytest.mark.parametrize(
    ("form", "shown"),
    [((), ("popularity_group", "num items", "│ $ ")), (("FORMAT=csv",), ("popularity_group,source,num items,$,",))],
)
def test_make_takes_a_block_as_it_is_printed(two_days, environment, form, shown):
    """Its lines, quotes and apostrophes reach DuckDB; double quotes and an escaped dollar sign do as well."""
    (printed,) = blocks(SECTIONS["3"], "sql")
    query = printed.replace("AS num_items", 'AS "num items", \'$$\' AS "$$"')
    command = ["make", "-C", str(ROOT), "-o", ".venv/.installed", f"PYTHON={sys.executable}", "sql", f"QUERY={query}"]
    result = subprocess.run([*command, *form], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(text in result.stdout for text in shown), result.stdout


def test_the_first_counts_every_fallback_with_its_reason(two_days):
    (query,) = blocks(SECTIONS["1"], "sql")
    rows = set(connect(two_days.settings).sql(query).fetchall())
    assert rows == {
        ("item", "facts", "budget", 3),
        ("item", "llm", None, 1),
        ("user", "facts", "budget", 2),
        ("user", "llm", None, 1),
    }


def test_the_second_names_users_with_another_nearest_neighbour(two_days):
    (query,) = blocks(SECTIONS["2"], "sql")
    rows = connect(two_days.settings).sql(query).fetchall()
    assert ("u1", "u3", "u2", 0, True) in rows


def test_the_sixth_asks_feast_as_of_a_past_moment(small_lake, monkeypatch):
    """Two days are online one after the other; the page asks for the end of the last one, which is released."""
    for day in (DAY, NEXT):
        small_lake.write_features(day, users=["1", "2", "3"])
        materialise(small_lake.settings, Versions(small_lake.settings).feature, day)
    small_lake.publish(NEXT)
    monkeypatch.setenv(FEAST_FILE_VARIABLE, str(write_release_store(small_lake.settings)))
    (program,) = blocks(SECTIONS["6"], "python")
    said, names = io.StringIO(), {}
    with contextlib.redirect_stdout(said):
        exec(compile(program, "docs/analysts.md", "exec"), names)  # noqa: S102 - the page's own code
    answer = names["answer"].set_index("user_id")
    assert answer.loc["1", "description"] == f"1 on {NEXT}"
    assert list(answer.loc["3", "sequence"]) == ["i1", "i2"]
    (service,) = names["store"].list_feature_services()
    earlier = names["asked"].assign(event_timestamp=lambda asked: asked.event_timestamp - names["pd"].Timedelta("1h"))
    before = names["store"].get_historical_features(entity_df=earlier, features=service).to_df()
    assert set(before["description"]) == {f"{user} on {DAY}" for user in "123"}


def test_the_seventh_has_a_line_for_each_day_and_kind(two_days):
    (query,) = blocks(SECTIONS["7"], "sql")
    found = connect(two_days.settings).sql(query).fetchall()
    assert [(str(row[0]), row[1], row[6], row[7], row[9]) for row in found] == [
        (day, entity, 2, 1, '{"too short":1}')
        for day, entity in ((NEXT, "item"), (NEXT, "user"), (DAY, "item"), (DAY, "user"))
    ]


def test_the_eighth_adds_up_the_days_for_each_length_of_history(two_days):
    ranges = {"asked_by_history": [("20-49", 4), ("5-9", 8)], "failed_by_history": [("5-9", 3)]}
    two_days.change(tables.GENERATION_METRICS, NEXT, 0, **ranges)
    (query,) = blocks(SECTIONS["8"], "sql")
    found = connect(two_days.settings).sql(query).fetchall()
    assert [row[2:] for row in found if row[0] == "user"] == [("1-4", 2, 50.0), ("5-9", 8, 37.5), ("20-49", 4, 0.0)]


def test_the_ninth_counts_an_answer_once_and_gives_its_interval(two_days):
    """Wilson's interval of 4 of 10 is 16.8 to 68.7 percent, of 0 of 10 it is 0 to 27.8; a click elsewhere is none."""
    (query,) = blocks(SECTIONS["9"], "sql")
    assert connect(two_days.settings).sql(query).fetchall() == [
        ("new-model", "candidate", 1, 10, 4, 40.0, 16.8, 68.7),
        ("new-model", "control", 1, 10, 0, 0.0, 0.0, 27.8),
    ]


def takers(one, seven, thirty):
    return {"takers_1d": one, "takers_3d": seven, "takers_7d": seven, "takers_14d": thirty, "takers_30d": thirty}


def test_the_tenth_compares_the_last_week_with_the_days_before_and_leaves_out_items_with_few_takers(two_days):
    """Beside i1 and i2, i3 and i4 have three takers in the last week; i3 has none before, i4 one."""
    two_days.change(tables.ITEM_FEATURES, NEXT, 0, popularity=90, **takers(one=2, seven=6, thirty=51))
    two_days.change(tables.ITEM_FEATURES, NEXT, 1, popularity=90, **takers(one=2, seven=2, thirty=2))
    (query,) = blocks(SECTIONS["10"], "sql")
    found = connect(two_days.settings).sql(query).fetchall()
    assert [row[:6] for row in found] == [
        ("i3", "Film i3", 3, 0, 9.9, 3),
        ("i4", "Film i4", 3, 1, 4.9, 4),
        ("i1", "Film i1", 6, 45, 0.4, 90),
    ]


def test_the_eleventh_compares_ranks_of_items_that_rise(two_days):
    """Every answer shows i1 first and i2 second. i2 falls, and i3 and i4 rise but were never shown."""
    two_days.change(tables.ITEM_FEATURES, NEXT, 0, popularity=3, **takers(one=1, seven=3, thirty=3))
    two_days.change(tables.ITEM_FEATURES, NEXT, 1, popularity=90, **takers(one=1, seven=6, thirty=51))
    (query,) = blocks(SECTIONS["11"], "sql")
    assert connect(two_days.settings).sql(query).fetchall() == [
        ("i1", "Film i1", 3, 0, 10, 100.0, 1.0, 1, 3, 2),
        ("i3", "Film i3", 3, 0, 0, 0.0, None, None, 3, None),
        ("i4", "Film i4", 3, 1, 0, 0.0, None, None, 2, None),
    ]
