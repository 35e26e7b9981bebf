"""A run is shown in one line a stage; long stages show where they are, failures what was said."""

import pytest

from cli.stage_lines import SHOW_EVERY, StageLines


@pytest.fixture
def run(capsys):
    """`run((0, "[grasp] ..."), ...)`: what is shown of lines that come at these seconds."""

    def run(*lines: tuple[float, str]) -> list[str]:
        seconds = [0.0]
        show = StageLines("daily_refresh", lambda: seconds[0])
        for seconds[0], line in lines:
            show(line)
        return capsys.readouterr().out.splitlines()

    return run


def test_a_stage_is_one_line_with_its_seconds_and_what_came_of_it(run):
    shown = run(
        (1, "[grasp] ingest: 82,000 interactions from the beginning to 1998-02-28, 160 days changed"),
        (2, "[grasp] ingest: 1,682 items and 751 users known by the end of 1998-02-28"),
        (3, "[grasp] ingest 1998-02-28: done in 12 s"),
        (3, "[grasp] stage ingest 1998-02-28 took 14.4 s"),
        (4, "[grasp] describe_items 1998-02-28: inputs unchanged, skipped"),
        (5, "[grasp] item_description 1998-02-28: 80 descriptions (43 budget, 37 loop)"),
        (6, "[grasp] stage describe_items 1998-02-28 took 5.0 s"),
        (7, "[grasp] stage is_quiet 1998-02-28 took 1.0 s"),
    )
    assert shown == [
        "[grasp] ingest                   14 s  1,682 items and 751 users known by the end of 1998-02-28",
        "[grasp] describe_items         unchanged, skipped",
        "[grasp] describe_items            5 s  80 descriptions (43 budget, 37 loop)",
        "[grasp] is_quiet                  1 s",
    ]


def test_what_recent_moments_came_to_is_one_line(run):
    shown = run(
        (1, "[grasp] moments 1998-02-28: 9,114 of 30 days, 30 days changed"),
        (2, "[grasp] user_neighbour_items 1998-02-28: 246 users asked 9,114 moments, 240 got votes"),
        (3, "[grasp] find_moments 1998-02-28: done in 11 s"),
        (3, "[grasp] stage find_moments 1998-02-28 took 12.0 s"),
    )
    assert shown == ["[grasp] find_moments             12 s  246 users asked 9,114 moments, 240 got votes"]


def test_what_the_report_says_at_length_is_left_to_the_report(run):
    shown = run(
        (1, "[grasp] quality 1998-02-28: warning: generation_metrics: at most three texts in four are refused"),
        (99, "[grasp] quality 1998-02-28: 60 expectations, 0 failed, 1 warnings"),
        (99, "[grasp] quality 1998-02-28: report /home/data_docs/index.html"),
        (99, "[grasp] quality 1998-02-28: passed in 9.5 s"),
        (99, "[grasp] stage check_quality 1998-02-28 took 9.9 s"),
    )
    assert shown == [
        "[grasp]   ... quality 1998-02-28: 60 expectations, 0 failed, 1 warnings",
        "[grasp] check_quality            10 s  60 expectations, 0 failed, 1 warnings",
    ]


def test_a_long_stage_shows_where_it_is_but_not_more_often_than_every_15_seconds(run):
    lines = [(seconds, f"[grasp] sasrec_grasp epoch {seconds}: loss 1.0") for seconds in range(1, 61)]
    shown = run(*lines)
    assert [line.split("epoch ")[1].split(":")[0] for line in shown] == ["15", "30", "45", "60"]
    assert SHOW_EVERY == 15


def test_a_model_that_writes_shows_how_far_it_is(run):
    answers = "[grasp] item_generation: 12 answers to 37 requests in 20 s"
    assert run((20, answers)) == ["[grasp]   ... item_generation: 12 answers to 37 requests in 20 s"]


def test_failures_and_the_words_of_the_run_itself_are_shown_at_once(run):
    failed = "[grasp] describe_items 1998-02-28: failed: no model"
    back_fill = "[grasp] daily_refresh 1998-02-28: 1272 h old by the clock: a back-fill, nothing published"
    assert run((1, failed), (2, back_fill)) == [failed, back_fill]
