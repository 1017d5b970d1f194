"""Pages made from templates."""

from __future__ import annotations

import jinja2
import pytest

from emovllm_offline.reporting.page import render
from emovllm_offline.reporting.tables import Table


def test_texts_are_shown_and_tables_are_part_of_the_page():
    page = render(
        "circuit.j2",
        title="<script>",
        size="1 & 2",
        emotions=Table(["a"], [["b"]]),
        notes=["<b>"],
        sections=[],
        provenance=Table(["c"], [["<d>"]]),
    )
    assert page.startswith("<!doctype html>")
    assert "<h1>&lt;script&gt;</h1>" in page
    assert "<p>1 &amp; 2</p>" in page
    assert '<p class="note">&lt;b&gt;</p>' in page
    assert "<tr><td>b</td></tr>" in page
    assert "<tr><td>&lt;d&gt;</td></tr>" in page


def test_what_a_template_needs_must_be_given():
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render("circuit.j2")
