"""Dead letters are listed by state and replayed, without Spark."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grasp import partitions, tables
from grasp.partitions import Content
from grasp.versions import Versions
from spark_jobs.commands.dead_letters import (
    PARKED,
    PAST,
    QUEUED,
    REFUSED,
    DeadLetterError,
    find_dead_letters,
    format_letters,
    main,
    replay,
    select,
)
from spark_jobs.generation.replays import replay_files, request_replay

DAY, NEXT = "1998-03-01", "1998-03-02"
LATER = datetime(2026, 1, 1, 1, tzinfo=UTC)


@pytest.fixture
def publish(settings):
    def publish(day, rows, entity="item"):
        """`rows`: fallback reason by id, None for a text of the model."""
        table = tables.ITEM_DESCRIPTION if entity == "item" else tables.USER_DESCRIPTION
        folder = partitions.partition_path(settings.lake, table, None, day)
        folder.mkdir(parents=True)
        found = [
            {f"{entity}_id": key, "source": "facts" if reason else "llm", "description": f"{key} as published"}
            | {"fallback_reason": reason}
            for key, reason in rows.items()
        ]
        schema = pa.schema([(name, pa.string()) for name in found[0]])
        pq.write_table(pa.Table.from_pylist(found, schema), folder / "part-0.parquet")
        partitions.write_content(folder, Content(len(found), f"{len(found)}:test"))

    return publish


def states(settings, entity="item"):
    return {letter.generation_key: (letter.reason, letter.state) for letter in find_dead_letters(settings, entity)}


def test_a_dead_letter_is_a_key_that_was_refused_or_never_answered(settings, item_rows):
    accepted, refused, failed = item_rows.accepted, item_rows.refused, item_rows.failed
    item_rows.pay(
        DAY,
        accepted("good"),
        refused("mended", 1),
        accepted("mended", 2, is_repair=True),
        refused("hopeless", 3),
        refused("hopeless", 4, reason="too_short", is_repair=True, output="No."),
        failed("silent", 5),
        refused("half", 6, reason="url"),
        failed("half", 7, is_repair=True),
        refused("of another model", 8, model_revision="model-2"),
    )

    assert states(settings) == {
        "hopeless": ("too_short", REFUSED),
        "silent": ("timeout", QUEUED),
        "half": ("url", REFUSED),  # its answer is what the ledger knows of it
    }
    hopeless = next(letter for letter in find_dead_letters(settings, "item") if letter.generation_key == "hopeless")
    assert (hopeless.entity_id, hopeless.day, hopeless.num_attempts) == ("of hopeless", DAY, 2)
    assert (hopeless.output, hopeless.instead) == ("No.", "nothing yet")


def test_a_later_description_tells_which_letters_are_past(settings, item_rows, publish):
    names = ("same", "changed", "written", "gone", "silent")
    item_rows.pay(DAY, *(item_rows.refused(name, item_id=name) for name in names[:4]))
    item_rows.pay(DAY, *(item_rows.failed(name, 9, item_id=name) for name in ("silent", "silent and gone")))
    publish(NEXT, {"same": "loop", "changed": "budget", "written": None, "silent": "budget"})

    assert states(settings) == {
        "same": ("loop", REFUSED),
        "changed": ("loop", PAST),
        "written": ("loop", PAST),
        "gone": ("loop", PAST),
        "silent": ("timeout", QUEUED),
        "silent and gone": ("timeout", PAST),
    }
    [same] = [letter for letter in find_dead_letters(settings, "item") if letter.entity_id == "same"]
    assert same.instead == "facts: same as published"


def test_a_day_that_failed_before_its_descriptions_lists_all_letters(settings, item_rows, publish):
    publish(DAY, {"a": None})
    item_rows.pay(NEXT, item_rows.refused("a new", item_id="a"))
    assert states(settings) == {"a new": ("loop", REFUSED)}


def test_an_earlier_letter_is_past_when_the_entity_was_asked_about_again(settings, rows_of, publish):
    users = rows_of(tables.USER_GENERATION)
    users.pay(DAY, users.refused("first", 0, user_id="u"), users.refused("of v", 0, user_id="v"))
    users.pay(NEXT, users.refused("second", 9, user_id="u"), users.accepted("better", 9, user_id="v"))
    publish(NEXT, {"u": "loop", "v": None}, "user")
    assert states(settings, "user") == {"second": ("loop", REFUSED), "first": ("loop", PAST), "of v": ("loop", PAST)}


def test_replay_requests_refused_letters_once(settings, item_rows, publish):
    names = ("a", "b", "over")
    item_rows.pay(DAY, *(item_rows.refused(name, number, item_id=name) for number, name in enumerate(names)))
    item_rows.pay(DAY, item_rows.failed("silent", 9, item_id="silent"))
    publish(DAY, {"a": "loop", "b": "loop", "over": None, "silent": "budget"})

    said = replay(settings, find_dead_letters(settings, "item"), limit=None)

    assert "items: 2 will be generated again, expected" in said
    assert "at most 37 a day (GRASP_LLM_BUDGET)" in said
    assert "1 are asked for by the next run anyway" in said
    assert "1 are about outdated facts" in said
    assert "`grasp refresh --force`" in said
    assert states(settings)["a"] == states(settings)["b"] == ("loop", QUEUED)
    assert "nothing to replay" in replay(settings, find_dead_letters(settings, "item"), limit=None)
    assert len(replay_files(item_rows.folder)) == 1


def test_a_letter_is_parked_after_equal_failures_that_its_prompt_repeats(settings, item_rows):
    failed = item_rows.failed
    item_rows.pay(DAY, *(failed("filtered", second, error="content_filter") for second in range(3)))
    item_rows.pay(DAY, *(failed("twice", second, error="cut") for second in range(2)))
    item_rows.pay(DAY, *(failed("mixed", second, error=error) for second, error in enumerate(("cut", "empty", "cut"))))
    item_rows.pay(DAY, *(failed("outage", second, error="connection") for second in range(9)))
    assert states(settings) == {
        "filtered": ("content_filter", PARKED),
        "twice": ("cut", QUEUED),
        "mixed": ("cut", QUEUED),
        "outage": ("connection", QUEUED),
    }


def test_a_parked_letter_is_listed_and_replayed(settings, settings_with, item_rows):
    item_rows.pay(DAY, *(item_rows.failed("a", second, error="cut") for second in range(3)))
    letters = find_dead_letters(settings, "item")
    assert "parked" in format_letters(letters, None, ["item"], "m")

    assert "items: 1 will be generated again" in replay(settings, letters, limit=None)
    assert states(settings) == {"a": ("cut", QUEUED)}
    asked_at = (datetime.now(UTC) - datetime(2026, 1, 1, tzinfo=UTC)).total_seconds()
    item_rows.pay(NEXT, *(item_rows.failed("a", asked_at + second, error="cut") for second in (1, 2)))
    assert states(settings) == {"a": ("cut", QUEUED)}
    assert states(settings_with(llm_park_after=2)) == {"a": ("cut", PARKED)}


def test_a_replayed_letter_that_is_refused_again_can_be_replayed_again(settings, item_rows):
    item_rows.pay(DAY, item_rows.refused("a"), item_rows.refused("b"))
    request_replay(item_rows.folder, ["a", "b"], LATER)
    after = (LATER + timedelta(minutes=1)).timestamp() - datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    item_rows.pay(NEXT, item_rows.refused("a", after, reason="url"), item_rows.accepted("b", after))
    assert states(settings) == {"a": ("url", REFUSED)}


def test_the_expected_cost_of_a_replay_uses_the_ledgers_means(settings_with, item_rows):
    item_rows.pay(DAY, *(item_rows.refused(f"{number}", 6 * number) for number in range(20)))
    settings = settings_with(llm_input_price=1000.0, llm_output_price=10_000.0)
    said = replay(settings, find_dead_letters(settings, "item"), limit=10)
    assert "items: 10 will be generated again, expected 1,000 tokens in and 200 out, cost 3.00, 1 min" in said
    assert "from the ledger's means" in said


def test_the_list_is_shortened_and_counts_the_rest(settings, item_rows, publish):
    long = "It is a film.\nIt is a film. " * 9
    item_rows.pay(DAY, item_rows.refused("k", 3, item_id="long-identifier-of-an-item", output=long))
    item_rows.pay(DAY, *(item_rows.refused(f"k{n}", reason="url", item_id=f"{n}") for n in range(3)))
    publish(DAY, {"long-identifier-of-an-item": "loop", "0": "url", "1": "url"})

    lines = format_letters(find_dead_letters(settings, "item"), 1, ["item", "user"], "m").splitlines()

    assert lines[1].split("  ")[0] == "item long-iden..."
    assert "It is a film. It is a film. It is a film..." in lines[1]
    assert lines[1].endswith("facts: long-identifier-of-an-item...")
    assert lines[2] == "... and 2 more (--limit)"
    assert lines[3] == "items: 3 (2 url, 1 loop)"
    assert lines[4] == "users: none for the model m"
    assert lines[5].startswith("1 more are about outdated facts")
    assert max(map(len, lines)) < 170


def test_terminal_escape_codes_are_not_printed(settings, item_rows):
    item_rows.pay(DAY, item_rows.refused("k", output="It is \x1b[2J\u202ea film."))

    said = format_letters(find_dead_letters(settings, "item"), 1, ["item", "user"], "m")
    assert "It is [2Ja film." in said
    assert "\x1b" not in said


def test_letters_are_selected_by_day_and_reason(settings, item_rows):
    item_rows.pay(DAY, item_rows.refused("a"), item_rows.refused("b", reason="url"))
    item_rows.pay(NEXT, item_rows.refused("c"))
    letters = find_dead_letters(settings, "item")

    assert {letter.generation_key for letter in select(letters, DAY, None)} == {"a", "b"}
    assert {letter.generation_key for letter in select(letters, None, "loop")} == {"a", "c"}
    assert select(letters, "1998-03-09", "loop") == []
    with pytest.raises(DeadLetterError, match=r"no dead letter has the reason 'lop'; there are 3 \(2 loop, 1 url\)"):
        select(letters, None, "lop")


@pytest.fixture
def run(environment, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*arguments):
        main(arguments)
        return capsys.readouterr().out

    return run


def test_an_empty_ledger_names_the_model(run, settings):
    none = f"none for the model {Versions(settings).llm}"
    assert run("list") == f"items: {none}\nusers: {none}\n"
    assert run("replay") == "nothing to replay\n"


def test_the_command_selects_entity_and_reason(run, settings, item_rows, rows_of):
    users = rows_of(tables.USER_GENERATION)
    item_rows.pay(DAY, item_rows.refused("a"), item_rows.refused("b", reason="url"))
    users.pay(DAY, users.refused("c"))

    assert "users: " not in run("list", "--entity", "item")
    assert "items: 1 will be generated again" in run("replay", "--entity", "item", "--reason", "url")
    assert states(settings) == {"a": ("loop", REFUSED), "b": ("url", QUEUED)}
    assert states(settings, "user") == {"c": ("loop", REFUSED)}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("show",), "invalid choice: 'show'"),
        (("list", "--day", "monday"), "'monday' is not a day"),
        (("list", "--limit", "0"), "0 is not above 0"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(run, capsys, arguments, complaint):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert complaint in capsys.readouterr().err


def test_the_command_needs_no_java(environment, item_rows):
    """It starts in a second, not in twenty."""
    item_rows.pay(DAY, item_rows.refused("a"))
    command = [sys.executable, "-m", "spark_jobs.commands.dead_letters", "list", "--reason", "lop"]
    result = subprocess.run(command, env=environment | {"JAVA_HOME": "/nowhere"}, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("error: no dead letter has the reason 'lop'; there are 1 (1 loop)")
