"""Cleaned text is always one line of visible text."""

import pytest

from spark_jobs.validation.clean_text import clean_text, fold, visible_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Toy Story", "Toy Story"),
        ("  Toy\t\n Story\r\n", "Toy Story"),
        ("To\x00y\x07 St\u200bo\u202ery\ufeff", "Toy Story"),
        ("Se\u0301same", "Sésame"),
        ("<b>Toy</b><br/>Story", "Toy Story"),
        ("Toy<script>alert('x')</script> Story<!-- hidden -->", "Toy Story"),
        ("Salt &amp; Pepper", "Salt & Pepper"),
        ("&lt;b&gt;Toy&lt;/b&gt; Story", "Toy Story"),
        ("&amp;lt;b&amp;gt;Toy", "Toy"),
        ("<\u200bb>Toy", "Toy"),
        ("I <3 you, 1 < 2 > 0, AT&T", "I <3 you, 1 < 2 > 0, AT&T"),
        ("\u2028\u00a0\x0c", ""),
        ("Toy \ud800Story", "Toy Story"),
    ],
)
def test_only_visible_text_on_one_line_remains(text, expected):
    assert clean_text(text) == expected


def test_a_long_text_is_cut():
    assert clean_text("ab " * 400, max_chars=10) == "ab ab ab a"
    assert len(clean_text("x" * 10_000)) == 500


@pytest.mark.parametrize(
    "text",
    ["&amp;amp;amp;lt;b&gt;", "<<b>b>", "a\u200b\u0301", "\u0958" * 300, "&#38;#38;lt;", "<b" * 300 + ">" * 300],
)
def test_cleaning_twice_changes_nothing(text):
    once = clean_text(text, max_chars=50)
    assert clean_text(once, max_chars=50) == once


@pytest.mark.parametrize("text", [chr(code) for code in range(128)] + ["&lt;", "A\tB", "a  b ", "Str&szlig;e"])
def test_the_fast_path_for_plain_text_gives_the_same_result(text, monkeypatch):
    shortly = clean_text(text), visible_text(text), fold(text)

    monkeypatch.setattr("spark_jobs.validation.clean_text._is_plain", lambda _: False)

    assert shortly == (clean_text(text), visible_text(text), fold(f"{text}\u00df").removesuffix("ss"))
