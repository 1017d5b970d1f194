"""One table in the terminal, in Markdown and on a page."""

from __future__ import annotations

import pytest

from emovllm_offline.reporting.tables import Table

TABLE = Table(["what", "value"], [["a|b", "1.5"], ["<i>", "-5 (0.5)*"], ["[bold]", "two"]], title="Of [red]")


def test_markdown_keeps_bars_inside_their_cells():
    assert TABLE.markdown() == "| what | value |\n|---|---:|\n| a\\|b | 1.5 |\n| <i> | -5 (0.5)* |\n| [bold] | two |\n"


def test_a_page_shows_text_as_it_is_and_sets_numbers_to_the_right():
    assert TABLE.__html__() == (
        "<table>\n<tr><th>what</th><th>value</th></tr>\n"
        '<tr><td>a|b</td><td class="number">1.5</td></tr>\n'
        '<tr><td>&lt;i&gt;</td><td class="number">-5 (0.5)*</td></tr>\n'
        "<tr><td>[bold]</td><td>two</td></tr>\n</table>"
    )


def test_the_terminal_shows_every_text_whole_and_takes_no_bracket_for_a_colour(capsys):
    Table(["what", "value"], [["[bold]", "x" * 150]], title="Of [red]").print()
    printed = capsys.readouterr().out
    assert "Of [red]" in printed
    assert "[bold]" in printed
    assert "x" * 150 in printed


def test_rows_below_a_line_are_part_of_the_table(capsys):
    table = Table(["what", "value"], [["a", "1"]], foot=[["all", "2"]])
    assert [line.split("|")[1].strip() for line in table.markdown().splitlines()[2:]] == ["a", "all"]
    assert "all" in table.__html__()
    table.print()
    assert capsys.readouterr().out.count("├") == 1


def test_a_row_that_does_not_fit_the_head_is_refused():
    with pytest.raises(ValueError, match="a row of 1 cells in a table of 2 columns"):
        Table(["what", "value"], [["a"]])
