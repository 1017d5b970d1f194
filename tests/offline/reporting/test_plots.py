"""What figures share."""

from __future__ import annotations

import base64

from emovllm_offline.reporting import plots


def test_emotions_keep_their_colour_and_differ_in_shape_too():
    assert len({plots.colour(i) for i in range(8)}) == len({plots.marker(i) for i in range(8)}) == 8
    assert plots.colour(8) == plots.colour(0)
    assert [plots.marker(i) for i in range(8)] == list(plots.MARKERS)
    assert len({(plots.colour(i), plots.marker(i)) for i in range(64)}) == 64


def test_font_sizes_are_legible():
    assert min(value for name, value in plots.STYLE.items() if isinstance(value, int) and "size" in name) >= 9


def test_a_figure_is_the_same_file_each_time_and_fits_into_a_page():
    def draw() -> bytes:
        with plots.figure(1.0) as figure:
            figure.subplots().plot([0, 1], [1, 0])
        return plots.png(figure)

    image = draw()
    assert image.startswith(b"\x89PNG")
    assert draw() == image
    kind, data = plots.data_uri(image).split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == image


def test_small_multiples_have_as_many_axes_as_there_are_panels():
    with plots.figure(2.0) as figure:
        axes = plots.panels(figure, 4, xlabel="layer", ylabel="score")
        assert len(axes) == len(figure.axes) == 4
        # Of two rows, three and one: below each column, left of each row.
        assert [ax.get_xlabel() for ax in axes] == ["", "layer", "layer", "layer"]
        assert [ax.get_ylabel() for ax in axes] == ["score", "", "", "score"]
