import pytest

from labeling_ui.visible_text import visible_text


@pytest.mark.parametrize(
    ("hidden", "shown"),
    [
        ("a\u202eb", "a[U+202E]b"),
        ("\x00\x1b[31m", "[U+0000][U+001B][31m"),
        ("zero\u200bwidth\ufeff", "zero[U+200B]width[U+FEFF]"),
        ("tag\U000e0041", "tag[U+E0041]"),
        ("half \ud83d", "half [U+D83D]"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
    ],
)
def test_hidden_characters_become_visible(hidden, shown):
    assert visible_text(hidden) == shown


@pytest.mark.parametrize(
    "text",
    [
        "tab\tand\nnewline",
        "<script>alert(1)</script> & **bold**",
        "👩‍👩‍👧 family",  # joined with zero-width joiners
        "می‌خواهم",  # Persian needs its zero-width non-joiner
        "naïve 中文 العربية",
        "non-breaking\u00a0space",
    ],
)
def test_everything_else_stays(text):
    assert visible_text(text) == text
