"""Markup escapes by itself, and numbers keep the digits that their interval supports."""

import pytest

from alignment.statistics.bootstrap import Interval
from flows.report.markup import Html, join, model_text, tag
from flows.report.wording import bounds_of, moment, number, readable, signed, value_of

EVIL = "<b onclick='x'>&\"</b>"


def test_plain_text_is_escaped_and_markup_is_not():
    assert tag("p", EVIL) == "<p>&lt;b onclick=&#x27;x&#x27;&gt;&amp;&quot;&lt;/b&gt;</p>"
    assert tag("p", tag("b", "x"), None, "&") == "<p><b>x</b>&amp;</p>"
    assert join(["<", Html("<br>")], separator="&") == "&lt;&amp;<br>"


def test_attributes_are_escaped_and_named_as_in_html():
    assert tag("p", title=EVIL).startswith('<p title="&lt;b onclick=&#x27;')
    assert tag("p", class_="a", data_label="n") == '<p class="a" data-label="n"></p>'
    assert tag("p", title=None, hidden=True) == "<p hidden></p>"


def test_texts_are_isolated_and_cut_when_endless():
    shown = model_text("word " * 2000, language="ar")
    assert shown.startswith('<div class="text" dir="auto" lang="ar">')
    assert "6,000 more characters" in shown
    assert len(shown) < 5000


def test_new_lines_and_joined_emoji_stay():
    assert "a\n\tb 👩\u200d🔬" in model_text("a\n\tb 👩\u200d🔬")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (1234.5, "1,234"),
        (45.67, "45.7"),
        (0.1234, "0.123"),
        (-0.5, "−0.500"),
        (4e-5, "4.0e−05"),
        (9.999, "10.00"),
    ],
)
def test_numbers_have_about_three_digits(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("interval", "shown"),
    [
        ((0.0934, 0.0331, 0.1512), ("0.093", "+0.093", "0.033 to 0.151")),
        ((-9.234, -9.79, -8.6), ("−9.23", "−9.23", "−9.79 to −8.60")),
        ((412.3, 371.0, 450.0), ("412", "+412", "371 to 450")),
        ((1.0, 1.0, 1.0), ("1.000", "+1.000", "1.000 to 1.000")),
    ],
)
def test_intervals_keep_the_digits_that_their_width_supports(interval, shown):
    value, low, high = interval
    made = Interval(value=value, low=low, high=high, n=10, clusters=5)
    assert (value_of(made), signed(made), bounds_of(made)) == shown


def test_names_and_times_are_for_people():
    assert readable("kl_under_budget") == "KL under budget"
    assert moment("2025-01-01T12:09:30+02:00") == "2025-01-01 10:09 UTC"
    assert moment("yesterday") == "yesterday"
