import pytest

from lightning_minillm.reports import plots
from lightning_minillm.reports.plots import plot_bars, plot_curves, read_curve
from lightning_minillm.reports.summary import summarise


@pytest.fixture
def run(tmp_path):
    """A run that was resumed after step 2: the second file counts from there."""
    for version, rows in enumerate([["1,5.0,", "2,4.0,10", "3,9.0,"], ["3,3.0,20", "4,2.0,"]]):
        folder = tmp_path / f"metrics/version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("\n".join(["step,train/loss,val/rougeL", *rows]) + "\n")
    return tmp_path


def test_resumed_runs_make_one_curve(run):
    assert read_curve(run, "train/loss") == [(1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0)]
    assert read_curve(run, "val/rougeL") == [(2, 10.0), (3, 20.0)]
    assert read_curve(run, "no such metric") == []
    assert read_curve(run / "nowhere", "train/loss") == []


def test_plots_are_png_files(run, tmp_path):
    plot_curves(
        {"val/rougeL": {"a": read_curve(run, "val/rougeL"), "b": []}, "empty": {"a": []}},
        tmp_path / "c.png",
        ["a", "b"],
    )
    plot_bars({"a": {"rougeL": summarise([1.0, 2.0])}, "b": {"loss": summarise([1.0])}}, tmp_path / "b.png")
    for name in ("c.png", "b.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_makes_no_file(tmp_path):
    plot_curves({"val/rougeL": {"a": []}}, tmp_path / "c.png", ["a"])
    plot_bars({"a": {}}, tmp_path / "b.png")
    assert not list(tmp_path.iterdir())


def test_a_model_has_one_colour_in_every_panel(run, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, file: figures.append(figure))
    curve = read_curve(run, "val/rougeL")
    plot_curves({"val/rougeL": {"a": curve, "b": curve}, "val/reverse_kl": {"b": curve}}, tmp_path, ["a", "b"])
    both, alone = figures[0].axes
    assert both.get_xlabel() == plots.STEPS
    assert both.lines[1].get_color() == alone.lines[0].get_color() != both.lines[0].get_color()
