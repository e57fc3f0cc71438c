from pathlib import Path

import pytest
from matplotlib.image import imread

from training.common.files import write_atomic
from training.run import curves
from training.run.curves import draw_curves, smooth


def test_the_mean_of_the_same_is_the_same_from_the_first_point_on() -> None:
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2, 2, 2])


def test_the_smoothed_curve_spans_a_twentieth_of_the_points() -> None:
    assert smooth([0.0, 1.0] * 10) == pytest.approx([0.0, 1.0] * 10)
    # Two points of 40: the previous mean weighs 1/3, and the bias is 1 - (1/3)**count.
    assert smooth([0.0, 1.0] + [2.0] * 38)[:3] == pytest.approx([0, (2 / 3) / (8 / 9), (14 / 9) / (26 / 27)])


def test_a_picture_is_drawn_with_and_without_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "write_atomic", write_atomic)  # in place of what tests/conftest.py sets
    path = tmp_path / "loss.png"
    draw_curves([{"step": 1, "eval_loss": 3.0}], path)
    assert not path.exists()
    training = [{"step": i, "loss": 3 / i, "learning_rate": 1e-5 * i} for i in range(1, 9)]
    draw_curves(training, path)
    plain = imread(path)
    draw_curves([*training, {"step": 4, "eval_loss": 2.0}, {"step": 8, "eval_loss": 1.0}], path)
    both = imread(path)
    assert plain.shape == both.shape == (750, 1200, 4)
    assert (plain != both).any()

    def is_red(picture) -> bool:
        return bool(((picture[..., 0] > 0.7) & (picture[..., 1] < 0.3) & (picture[..., 2] < 0.3)).any())

    assert is_red(both)
    assert not is_red(plain)
    assert list(tmp_path.iterdir()) == [path]
