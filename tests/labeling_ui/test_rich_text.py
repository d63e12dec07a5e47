"""Markdown as a tree of plain nodes."""

import pytest

from labeling_ui.rich_text import MAX_RENDERED_CHARACTERS, rich_text


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("**右側（E席側）**に", [["strong", ["右側（E席側）"]], "に"]),
        ("これは**「重要」**である", ["これは", ["strong", ["「重要」"]], "である"]),
        ("因为*“瑞利散射”*的作用", ["因为", ["em", ["“瑞利散射”"]], "的作用"]),
        ("見る **太字** です", ["見る ", ["strong", ["太字"]], " です"]),
        ("3 * 4 * 5 = 六十", ["3 * 4 * 5 = 六十"]),
        ("数 * 量 * 个", ["数 * 量 * 个"]),
        ("a*b*c", ["a", ["em", ["b"]], "c"]),
        ("a*(b)*c", ["a*(b)*c"]),
    ],
)
def test_emphasis_beside_cjk_characters(text, tree):
    assert rich_text(text) == [["p", tree]]


def test_what_is_not_rendered_is_one_plain_paragraph():
    long = "*a* " * MAX_RENDERED_CHARACTERS
    assert rich_text(long) == [["p", [long]]]


def test_links_and_images_are_words():
    assert rich_text("[a](http://b.c) ![d](http://e.f)") == [
        ["p", [["span", ["a", " (http://b.c)"], "link"], " ", "[image: d (http://e.f)]"]]
    ]


def test_formulas_are_mathml_and_prices_are_text():
    assert rich_text("$x^2$")[0][1][0][0] == "math"
    assert rich_text("It costs $5 or $6.") == [["p", ["It costs $5 or $6."]]]
