"""The quality gate stops a day and names the reasons, logs warnings, and shows both in a report."""

import re
import shutil
import subprocess
import sys
from datetime import timedelta
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.measured_table import measure_vectors, measure_weights
from feature_repo.quality import QualityError, check_day, check_training_set, main
from grasp import stages, tables
from grasp.days import end_of, start_of

DAY, NEXT = "1998-03-01", "1998-03-02"
CUTOFF = end_of(DAY)


@pytest.mark.parametrize(
    ("vector", "expected"),
    [
        ([3.0, 4.0], (5.0, True, 2)),
        ([1.0, float("nan")], (1.0, False, 2)),
        ([], (0.0, False, 0)),
        (None, (0.0, False, 0)),
    ],
)
def test_a_vector_is_measured(vector, expected):
    first = [1.0, 0.0]
    norms, are_finite, dimensions = measure_vectors(pa.array([first, vector, first], pa.list_(pa.float32())))
    assert (norms[1], are_finite[1], dimensions[1]) == expected
    assert (norms[2], are_finite[2], dimensions[2]) == (1.0, True, 2)
    assert np.allclose(norms[0], 1)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.5, 0.25], (0.75, True)),
        ([0.5, 0.0], (0.5, False)),
        ([0.5, float("nan")], (0.5, False)),
        ([0.5, float("inf")], (0.5, False)),
        ([], (0.0, True)),
        (None, (0.0, True)),
    ],
)
def test_weights_are_measured(weights, expected):
    sums, are_positive = measure_weights(pa.array([[1.0], weights, [1.0]], pa.list_(pa.float32())))
    assert (sums[1], are_positive[1]) == expected
    assert (sums.tolist()[::2], are_positive.tolist()[::2]) == ([1.0, 1.0], [True, True])


def test_a_complete_day_passes_without_a_warning(two_days, capsys):
    assert check_day(two_days.settings, NEXT) == []
    said = capsys.readouterr().out
    assert "0 failed, 0 warnings" in said
    assert str(two_days.settings.data_docs) in said


@pytest.fixture
def only(monkeypatch):
    """`only("user_features")`: the daily check reads these tables alone, in a fraction of the time."""

    def narrow(*names):
        from feature_repo import expectations

        every = expectations.daily_suites

        def some(*given):
            suites = every(*given)
            return {name: suites[name] for name in names}

        monkeypatch.setattr(expectations, "daily_suites", some)

    return narrow


def failures(check, settings):
    """`table.column` of every critical expectation that fails, and the whole message."""
    with pytest.raises(QualityError) as error:
        check(settings, NEXT)
    return {f"{finding.table}.{finding.column}" for finding in error.value.failed}, str(error.value)


def test_wrong_values_stop_the_day_by_name(two_days):
    change = partial(two_days.change, day=NEXT)
    change(tables.INTERACTIONS, number=0, event_time=start_of(DAY))
    change(tables.INTERACTIONS, number=1, item_id="stranger")
    change(tables.USER_DESCRIPTION, number=0, user_id="stranger")
    change(tables.ITEM_DESCRIPTION, number=1, description="")
    change(tables.ITEM_DESCRIPTION, number=2, source="guess")
    change(tables.USER_EMBEDDING, number=1, semantic_embedding=[1.0, 1.0, 0.0, 0.0])
    change(tables.ITEM_EMBEDDING, number=1, semantic_embedding=[1.0, 0.0])
    change(tables.ITEM_EMBEDDING, number=2, description_hash="older")
    change(tables.ITEM_FEATURES, number=0, neighbour_similarities=[0.5])
    change(tables.ITEM_FEATURES, number=1, neighbour_embedding=[float("nan"), 0.0, 0.0, 0.0])
    change(tables.ITEM_FEATURES, number=2, popularity=-1)
    change(tables.ITEM_FEATURES, number=3, embedding_version="older_encoder")
    change(tables.USER_FEATURES, number=0, sequence=["i1"] * 101, sequence_times=[0] * 101)
    change(tables.USER_FEATURES, number=1, sequence=[], sequence_times=[], event_timestamp=end_of(DAY))
    change(tables.USER_FEATURES, number=2, is_tail=2, sequence_times=[0])

    failed, message = failures(check_day, two_days.settings)

    assert failed == {
        "interactions.event_time",
        "interactions.item_id_is_known",
        "user_description.user_id_num_missing",
        "user_description.user_id_is_known",
        "item_description.description",
        "item_description.source",
        "user_embedding.semantic_embedding_norm",
        "item_embedding.semantic_embedding_dimension",
        "item_embedding.is_of_description",
        "item_features.neighbour_ids_length,neighbour_similarities_length",
        "item_features.neighbour_embedding_is_finite",
        "item_features.popularity",
        "item_features.popularity,takers_30d",
        "item_features.embedding_version",
        "user_features.sequence_length",
        "user_features.sequence_length,sequence_times_length",
        "user_features.seconds_from_end_of_day",
        "user_features.is_tail",
    }
    assert message.startswith("1998-03-02 does not pass the daily quality gate")
    is_tail = (
        "user_features.is_tail: is_tail is 0 or 1 (expect_column_values_to_be_in_set, observed 1 rows such as [2])"
    )
    assert is_tail in message


def test_wrong_times_and_votes_stop_the_day_by_name(two_days, only):
    only("item_features", "user_features")
    items, users = (partial(two_days.change, table, NEXT) for table in (tables.ITEM_FEATURES, tables.USER_FEATURES))
    items(0, takers_1d=-1)
    items(1, takers_3d=5)
    items(2, first_seen_day="1998-03-03")
    items(3, first_seen_day="soon")
    users(0, gap_days=-1, neighbour_item_ids=["i1", "i2"], neighbour_item_weights=[0.0])
    users(1, neighbour_item_ids=["i1"] * 201, neighbour_item_weights=[0.001] * 201)
    users(2, neighbour_item_weights=[0.9, 0.2])

    failed, message = failures(check_day, two_days.settings)

    assert failed == {
        "item_features.takers_1d",
        "item_features.takers_7d,takers_3d",
        "item_features.days_since_first_seen",
        "user_features.gap_days",
        "user_features.neighbour_item_ids_length",
        "user_features.neighbour_item_ids_length,neighbour_item_weights_length",
        "user_features.neighbour_item_weights_are_positive",
        "user_features.neighbour_item_weights_sum",
    }
    for rule in ("no item was first seen after the day", "`days_since_first_seen` is never null"):
        assert f"item_features.days_since_first_seen: {rule}" in message
    assert "takers_3d counts nobody whom takers_7d does not count" in message


def test_missing_rows_and_columns_stop_the_day_by_name(two_days):
    two_days.write_day(NEXT, users=["u1"])
    two_days.write(tables.INTERACTIONS, NEXT, [])
    two_days.write(tables.ITEM_FEATURES, NEXT, two_days.rows(tables.ITEM_FEATURES, NEXT)[:3] * 2)
    wrong = pa.table({"item_id": ["i1", "i2", "i3", "i4"], "semantic_embedding": ["a", "b", "c", "d"]})
    pq.write_table(wrong, two_days.folder(tables.ITEM_EMBEDDING, NEXT) / "part-00000.parquet")

    failed, message = failures(check_day, two_days.settings)

    assert {
        "interactions.",
        "user_features.share_of_previous_day",
        "item_features.item_id",
        "item_features.item_id_num_missing",
        "item_embedding.schema",
        "item_embedding.computed_at",
    } <= failed
    assert "item_embedding.schema: columns and types are those of grasp/tables.py" in message
    assert 'The column "computed_at" in BatchData does not exist' in message


REQUIRED = {
    tables.INTERACTIONS: {"item_id", "event_time", "row_number"},
    tables.GENERATION_METRICS: {"num_entities", "num_answers", "num_calls", "cost", "computed_at"},
    tables.ITEM_DESCRIPTION: {"source", "prompt_version", "model_revision", "input_hash"},
    tables.USER_EMBEDDING: {"semantic_embedding", "description_hash", "computed_at"},
    tables.ITEM_FEATURES: {"popularity", "takers_1d", "takers_30d", "first_seen_day"},
    tables.USER_FEATURES: {
        *("event_timestamp", "sequence", "sequence_times", "num_interactions", "is_tail", "semantic_embedding"),
        *("neighbour_embedding", "neighbour_ids", "neighbour_similarities", "description", "source"),
        *("prompt_version", "model_revision", "embedding_version", "feature_version", "computed_at"),
        *("gap_days", "neighbour_item_ids", "neighbour_item_weights"),
    },
}


def test_a_required_value_that_is_missing_stops_the_day(two_days):
    """What may be null is said by grasp/tables.py: a description's `fallback_reason` and `activity`."""
    for table, columns in REQUIRED.items():
        two_days.change(table, NEXT, 0, **dict.fromkeys(columns))
    failed, message = failures(check_day, two_days.settings)
    measured = {"semantic_embedding": "is_finite", "neighbour_embedding": "is_finite"}
    lists = {"sequence", "sequence_times", "neighbour_ids", "neighbour_similarities"}
    lists |= {"neighbour_item_ids", "neighbour_item_weights"}
    measured |= dict.fromkeys(lists, "length")
    assert {
        f"{table.name}.{name}_{measured[name]}" if name in measured else f"{table.name}.{name}"
        for table, columns in REQUIRED.items()
        for name in columns
    } <= failed
    assert "user_features.is_tail: `is_tail` is never null" in message


def test_the_tables_say_what_may_be_null():
    assert set(tables.ITEM_DESCRIPTION.column_names) - set(tables.ITEM_DESCRIPTION.required) == {
        "fallback_reason",
        "activity",
    }
    assert tables.USER_FEATURES.required == tables.USER_FEATURES.column_names


def page_of(settings, day, kind="daily"):
    return (settings.data_docs / f"{day}-{kind}.html").read_text()


def row_of(page, rule):
    """The cells of a rule's row: result, column, rule, allowed, observed."""
    (row,) = [row for row in re.findall(r"<tr>(.*?)</tr>", page) if f"<td>{rule}</td>" in row]
    return [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", row)]


def test_the_report_shows_what_failed_and_what_passed(two_days, only):
    only("user_features")
    check_day(two_days.settings, DAY)
    two_days.change(tables.USER_FEATURES, NEXT, 1, is_tail=2)
    with pytest.raises(QualityError):
        check_day(two_days.settings, NEXT)
    index = (two_days.settings.data_docs / "index.html").read_text()
    assert index.index(f"{NEXT}-daily.html") < index.index(f"{DAY}-daily.html")
    shown = row_of(page_of(two_days.settings, NEXT), "is_tail is 0 or 1")
    assert shown == ["failed", "is_tail", "is_tail is 0 or 1", "0, 1", "1 rows such as [2]"]
    assert row_of(page_of(two_days.settings, DAY), "is_tail is 0 or 1")[0] == "passed"


def test_the_report_shows_observed_values_of_rules_that_passed(two_days):
    check_day(two_days.settings, NEXT)
    page = page_of(two_days.settings, NEXT)
    assert re.search(r">share_of_previous_day<.*?<td>1</td>", page)
    assert row_of(page, "at least GRASP_MIN_DAY_INTERACTIONS interactions")[3:] == ["at least 1", "3"]
    assert row_of(page, "popularity is a count")[3:] == ["at least 0", "all 4 rows"]


def test_the_report_loads_nothing_and_treats_text_as_data(two_days, only):
    only("item_description")
    two_days.change(tables.ITEM_DESCRIPTION, NEXT, 0, source="<script>alert(1)</script>")
    with pytest.raises(QualityError):
        check_day(two_days.settings, NEXT)
    for page in two_days.settings.data_docs.glob("**/*.html"):
        text = page.read_text()
        assert not re.search(r"<script|<link|<img|@import|https?://", text)
    assert "&lt;script&gt;" in page_of(two_days.settings, NEXT)


def test_a_checkpoint_with_actions_ran_over_the_tables(two_days, only):
    import great_expectations as gx

    only("user_features")
    check_day(two_days.settings, NEXT)
    context = gx.get_context(mode="file", project_root_dir=two_days.settings.data_docs)
    checkpoint = context.checkpoints.get("daily")
    assert [definition.suite.name for definition in checkpoint.validation_definitions] == [
        "user_features",
        "user_features_summary",
    ]
    assert [action.type for action in checkpoint.actions] == ["grasp_report", "grasp_alert"]
    assert not list(two_days.settings.data_docs.glob("**/*.parquet")), "no copy of the rows stays"


def test_too_many_fallbacks_stop_the_day_only_when_a_limit_is_set(two_days, settings_with, only):
    only("item_description")
    with pytest.raises(QualityError, match=r"item_description\.fallback_share: at most GRASP_MAX_FALLBACK_SHARE"):
        check_day(settings_with(max_fallback_share=0.5), NEXT)


def test_a_warning_is_logged_and_the_day_goes_on(two_days, settings_with, capsys, only):
    only("user_description", "item_features", "user_features")
    for row in range(3):
        two_days.change(tables.USER_DESCRIPTION, NEXT, row, source="facts")
    old = settings_with(now=end_of(NEXT) + timedelta(hours=75))
    warned = {f"{warning.table}.{warning.column}" for warning in check_day(old, NEXT)}
    assert warned == {"user_description.fallback_share", "item_features.age_hours", "user_features.age_hours"}
    assert "warning: user_features.age_hours: not older than the limit" in capsys.readouterr().out


def test_dead_letters_are_warnings_by_reason_and_the_report_shows_their_shares(two_days, capsys, only):
    only("generation_metrics")
    counts = {"num_answers": 27, "num_refused": 26, "num_unanswered": 3, "num_calls": 40, "num_failed_calls": 13}
    two_days.change(tables.GENERATION_METRICS, NEXT, 0, **counts, reasons=[("loop", 21), ("url", 5), ("timeout", 3)])

    warned = {f"{finding.table}.{finding.column}" for finding in check_day(two_days.settings, NEXT)}

    assert warned == {
        "generation_metrics.refused_share",
        "generation_metrics.unanswered_share",
        "generation_metrics.failed_call_share",
        "generation_metrics.user_loop_share",
    }
    assert "user_loop_share: at most every other text fails for this one reason" in capsys.readouterr().out
    page = page_of(two_days.settings, NEXT)
    assert re.search(r">user_loop_share<.*?<td>0\.7</td>", page)
    assert re.search(r">user_url_share<.*?<td>0\.16666", page)


def test_failures_by_length_of_history_are_in_the_report(two_days, only):
    only("generation_metrics")
    counts = {"asked_by_history": [("1-4", 20), ("5-9", 40)], "failed_by_history": [("1-4", 16), ("5-9", 13)]}
    two_days.change(tables.GENERATION_METRICS, NEXT, 0, **counts)
    [warning] = check_day(two_days.settings, NEXT)
    assert (warning.column, warning.observed) == ("user_history_1-4_share", "0.8")
    assert re.search(r">user_history_5-9_share<.*?<td>0\.325</td>", page_of(two_days.settings, NEXT))


def test_few_dead_letters_and_those_of_another_model_give_no_warning(two_days, only):
    only("generation_metrics")
    table = tables.GENERATION_METRICS
    few = {"num_answers": 19, "num_refused": 19, "num_calls": 19, "reasons": [("loop", 19)]}
    two_days.change(table, NEXT, 0, **few)
    rows = two_days.rows(table, NEXT)
    other = {**few, "num_answers": 50, "num_refused": 50, "model_revision": "model-2"}
    two_days.write(table, NEXT, [*rows, rows[0] | other])
    assert check_day(two_days.settings, NEXT) == []


def test_a_day_without_generation_metrics_goes_on(two_days, only):
    only("generation_metrics")
    shutil.rmtree(two_days.folder(tables.GENERATION_METRICS, NEXT))
    [warning] = check_day(two_days.settings, NEXT)
    assert (warning.table, warning.column, warning.observed) == ("generation_metrics", "num_rows", "0")


def test_a_missing_table_says_what_to_run(small_lake):
    with pytest.raises(FileNotFoundError, match="table interactions has no partition for 1998-03-01"):
        check_day(small_lake.settings, DAY)


def write_training_set(settings, **changed):
    """Two users, two items; both users have events on either side of the cutoff."""
    vectors = {"semantic_embedding": [[1.0, 0.0], [0.0, 1.0]], "neighbour_embedding": [[0.5, 0.0], [0.0, 0.5]]}
    state = {"is_tail": [0, 1], "event_timestamp": [CUTOFF, CUTOFF], **vectors}
    events = {
        "user_id": ["u1", "u1", "u2", "u2"],
        "item_id": ["i1", "i2", "i1", "i3"],
        "event_time": [start_of(DAY), start_of(NEXT), start_of(DAY), start_of(NEXT)],
        "row_number": [1, 2, 3, 4],
        "split": ["train", "test", "validation", "test"],
    }
    users, items = {"user_id": ["u1", "u2"], **state}, {"item_id": ["i1", "i2"], **state}
    folder = settings.home / "training" / NEXT / "training_set"
    folder.mkdir(parents=True)
    for name, columns in {"users": users, "items": items, "events": events}.items():
        pq.write_table(pa.table(columns | changed.get(name, {})), folder / f"{name}.parquet")


def test_a_sound_training_set_passes(settings):
    write_training_set(settings)
    assert check_training_set(settings, NEXT) == []


def test_a_broken_training_set_is_refused(settings):
    write_training_set(
        settings,
        users={"user_id": ["u1", "u1"], "is_tail": [0, 3]},
        items={"semantic_embedding": [[1.0, 0.0], [float("inf")]]},
        events={"user_id": ["u1", "u1", "u9", "u9"], "split": ["train", "train", "validation", "later"]},
    )
    failed, _ = failures(check_training_set, settings)
    assert failed == {
        "training_users.user_id",
        "training_users.is_tail",
        "training_items.semantic_embedding_is_finite",
        "training_items.semantic_embedding_norm",
        "training_items.semantic_embedding_dimension",
        "training_events.user_id_is_known",
        "training_events.is_on_its_side",
        "training_events.split",
    }


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"users": {"event_timestamp": [end_of(NEXT)] * 2}}, "training_events.days_from_cutoff_to_day"),
        ({"items": {"event_timestamp": [CUTOFF, end_of(NEXT)]}}, "training_items.seconds_from_cutoff"),
        ({"events": {"split": ["test", "test", "validation", "test"]}}, "training_events.is_on_its_side"),
    ],
)
def test_a_leaking_training_set_is_refused(settings, changed, expected):
    write_training_set(settings, **changed)
    failed, _ = failures(check_training_set, settings)
    assert expected in failed


def test_a_training_set_that_was_never_built_says_how(settings):
    with pytest.raises(FileNotFoundError, match=r"users\.parquet is missing: run `grasp retrain --day"):
        check_training_set(settings, NEXT)


@pytest.fixture
def run_command(environment, monkeypatch):
    """The command in this process, on the temporary home."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return main


def test_the_command_fails_with_the_expectation_and_leaves_no_stamp(two_days, run_command, only):
    only("user_features")
    two_days.change(tables.USER_FEATURES, NEXT, 1, is_tail=2)
    with pytest.raises(SystemExit, match=r"user_features\.is_tail: is_tail is 0 or 1"):
        run_command(["--day", NEXT])
    assert not stages.is_current(two_days.settings, "check_quality", NEXT)


def test_the_command_stamps_a_day_that_passed(two_days, run_command, only):
    only("user_features")
    run_command(["--day", NEXT])
    assert stages.is_current(two_days.settings, "check_quality", NEXT)


def test_a_wrong_setting_ends_the_command_before_great_expectations_is_imported(environment):
    command = [sys.executable, "-X", "importtime", "-m", "feature_repo.quality", "--day", DAY]
    wrong = environment | {"GRASP_MAX_FALLBACK_SHARE": "2"}
    result = subprocess.run(command, env=wrong, capture_output=True, text=True)
    assert result.returncode == 1
    assert "error: GRASP_MAX_FALLBACK_SHARE" in result.stderr
    assert " great_expectations" not in result.stderr
