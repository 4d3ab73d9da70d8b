"""What is drawn are the points of the curve, each at its place."""

import math
import struct
import zlib

import pytest

from softprompt.analysis.chart import HEIGHT, MARGIN, WIDTH, figure_of, panels, png_bytes, text_chart
from softprompt.analysis.curve import Curve, Point

STEEP = Curve(
    source="",
    train=(Point(10, 1.0, 100), Point(20, 0.1, 300), Point(100, 0.01, 900)),
    held_out=(Point(0, 10.0, 0), Point(50, 0.05, 500), Point(100, 0.02, 900)),
    without_prompt=0.5,
    initial_prompt=10.0,
)
FLAT = Curve(source="", train=(Point(1, 2.0), Point(2, 4.0)), without_prompt=3.0)


def area(chart):
    """The rows of the chart's area, without the axis on their left."""
    rows = chart.splitlines()[1 : 1 + HEIGHT]
    assert all(row[MARGIN] == "|" for row in rows)
    return [row[MARGIN + 1 :].ljust(WIDTH) for row in rows]


def test_panels_hold_the_series():
    steps, tokens = panels(STEEP)
    assert (steps.x_label, tokens.x_label) == ("steps", "supervised tokens seen")
    assert steps.lines == {
        "train": [(10, 1.0), (20, 0.1), (100, 0.01)],
        "held-out": [(0, 10.0), (50, 0.05), (100, 0.02)],
    }
    assert tokens.lines == {
        "train": [(100, 1.0), (300, 0.1), (900, 0.01)],
        "held-out": [(0, 10.0), (500, 0.05), (900, 0.02)],
    }
    assert steps.baselines == tokens.baselines == {"no prompt": 0.5, "initial prompt": 10.0}
    assert steps.log and tokens.log


def test_no_panel_of_tokens_that_are_not_known():
    (panel,) = panels(FLAT)
    assert panel.x_label == "steps" and [*panel.lines] == ["train"] and panel.baselines == {"no prompt": 3.0}
    assert not panel.log


@pytest.mark.parametrize(("losses", "log"), [((1.0, 10.0), False), ((1.0, 10.1), True), ((0.0, 10.0), False)])
def test_log_scale_above_a_ratio_of_ten(losses, log):
    curve = Curve(source="", train=tuple(Point(step, loss) for step, loss in enumerate(losses)))
    assert [panel.log for panel in panels(curve)] == [log]


@pytest.mark.parametrize("curve", [STEEP, FLAT], ids=["steep", "flat"])
def test_marks_stand_where_the_points_are(curve):
    losses = [point.loss for point in curve.train + curve.held_out] + [curve.without_prompt]
    steep = max(losses) / min(losses) > 10
    scale = math.log if steep else lambda loss: loss
    high, low = scale(max(losses)), scale(min(losses))
    last = max(point.step for point in curve.train + curve.held_out)

    def place(step, loss):
        return round((high - scale(loss)) / (high - low) * (HEIGHT - 1)), round(step / last * (WIDTH - 1))

    expected = {(place(0, curve.without_prompt)[0], column): "-" for column in range(WIDTH)}
    expected |= {place(point.step, point.loss): "." for point in curve.train}
    expected |= {place(point.step, point.loss): "o" for point in curve.held_out}
    rows = area(text_chart(curve))
    found = {(row, column): mark for row, text in enumerate(rows) for column, mark in enumerate(text) if mark.strip()}
    assert found == expected and {".", "-"} <= set(found.values())


def test_axes_and_legend_are_labelled():
    lines = text_chart(STEEP).splitlines()
    assert lines[0].strip() == "loss (log scale)"
    labels = [float(line[:MARGIN]) for line in lines[1 : 1 + HEIGHT] if line[:MARGIN].strip()]
    assert labels == pytest.approx([10.0, 1.0, 0.1, 0.01], rel=0.01)  # labels have three digits
    assert lines[-2].split() == ["0", "50", "100", "steps"]
    assert lines[-2].index("50") == MARGIN + 1 + round((WIDTH - 1) / 2)
    assert lines[-1].split("   ")[-3:] == ["- no prompt", ". train", "o held-out"]
    assert max(map(len, lines)) <= 100
    assert "held-out" not in text_chart(FLAT) and "log" not in text_chart(FLAT)


@pytest.mark.parametrize(
    "curve",
    [
        Curve(source="", held_out=(Point(0, 0.7),)),
        Curve(source="", train=(Point(3, 1.0), Point(9, 1.0)), without_prompt=1.0),
        Curve(source="", train=(Point(1, 0.0),)),
    ],
    ids=["one point", "level", "zero"],
)
def test_losses_that_are_all_the_same_stand_in_the_middle(curve):
    rows = area(text_chart(curve))
    assert [row for row, text in enumerate(rows) if text.strip()] == [HEIGHT // 2]
    assert png_bytes(curve)


def test_the_figure_draws_the_panels():
    figure = figure_of(STEEP)
    drawn = panels(STEEP)
    assert len(figure.axes) == len(drawn) == 2
    for axes, panel in zip(figure.axes, drawn, strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert [*lines] == ["train", "held-out", "no prompt", "initial prompt"]
        for name, points in panel.lines.items():
            assert [*zip(*lines[name].get_data(), strict=True)] == points
        for name, loss in panel.baselines.items():
            assert set(lines[name].get_ydata()) == {loss}
        assert axes.get_xlabel() == panel.x_label and axes.get_yscale() == "log"
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [*lines]
    assert figure_of(FLAT).axes[0].get_yscale() == "linear"


def test_the_png_is_whole():
    content = png_bytes(STEEP)
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    kinds, place = [], 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        body = content[place + 4 : place + 8 + length]
        (checksum,) = struct.unpack(">I", content[place + 8 + length : place + 12 + length])
        assert checksum == zlib.crc32(body)
        kinds.append(body[:4])
        place += 12 + length
    assert kinds[0] == b"IHDR" and b"IDAT" in kinds and kinds[-1] == b"IEND"
