"""How results look: what they hold is text, whatever it holds."""

import pytest

from hubsae.tables import Marked, Table, number, plain

HOSTILE = '<script>alert("x")</script>\u202egnp\x1b[31m\n'


def test_markup_and_control_characters_come_out_as_text():
    table = Table(HOSTILE, (HOSTILE,), [(HOSTILE,), (Marked((HOSTILE, "b"), (1.0, 0.0)),)], HOSTILE)
    assert "<script" not in table.html()
    assert "&lt;script&gt;" in table.html()
    for text in (table.html(), str(table.rows[1][0]), plain(HOSTILE)):
        assert not {"\u202e", "\x1b", "\r"} & set(text)
    assert "⏎" in str(table)


def test_marks_stand_around_runs_of_firing_tokens():
    assert str(Marked(("a", " b", " c", "d"), (0.0, 1.0, 2.0, 0.0))) == "a« b c»d"
    html = Marked(("a", "b"), (0.0, 2.0)).html()
    assert html.startswith("a<span")
    assert 'title="2"' in html


def test_columns_line_up_and_numbers_stand_right():
    lines = str(Table("t", ("name", "value"), [("a", 1.5), ("longer", 22.25)])).splitlines()
    assert lines == ["t", "name    value", "a         1.5", "longer   22.2"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.12345, "0.123"), (1234.5, "1234"), (1e-7, "1.00e-07"), (float("nan"), "-")]
)
def test_numbers_have_few_digits(value, text):
    assert number(value) == text
