"""docs/performance.md says what the arithmetic gives today, and the error stays in its range."""

from published_figures import PAGE, rows, summary, table


def test_the_page_has_todays_table():
    text = PAGE.read_text(encoding="utf-8")
    assert table() in text
    middle, low, high = summary()
    assert f"median {middle:.2f}, from {low:.2f} to {high:.2f}" in text


def test_training_and_sync_published_alone_are_close():
    alone = [r for r in rows() if r.work.endswith((": training", ": weight sync"))]
    assert len(alone) == 6
    assert all(0.85 <= r.ratio <= 1.15 for r in alone), [r.line() for r in alone]
