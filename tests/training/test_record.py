"""What a run says about itself, where a figure is no number."""

from __future__ import annotations

from pathlib import Path

from qvl.training.record import EvaluationFile


def test_a_held_out_loss_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    judged = EvaluationFile(tmp_path, 0, writes=True)
    found = [judged.write(step, loss) for step, loss in ((2, 3.0), (4, float("nan")), (6, 2.5), (8, float("nan")))]
    assert found == [True, False, True, False]
    assert (judged.best_step, judged.best_loss) == (6, 2.5)


def test_a_held_out_loss_that_is_no_number_is_not_the_best_after_a_resume(tmp_path: Path) -> None:
    lines = ('{"step": 2, "loss": NaN}', '{"step": 4, "loss": 3.0}', '{"step": 6, "loss": -Infinity}')
    (tmp_path / "eval.jsonl").write_text("".join(f"{line}\n" for line in lines))
    judged = EvaluationFile(tmp_path, 8, writes=True)
    assert (judged.best_step, judged.best_loss) == (4, 3.0)
    assert len((tmp_path / "eval.jsonl").read_text().splitlines()) == 3
