"""The line a person reads while a training goes on."""

from minimind.metrics import Metrics

LINE = {"epoch": 1, "loss": 2.0, "lr": 1e-3, "grad_norm": 0.5, "tokens_per_s": 1234.0}


def test_the_time_left_is_told_from_the_second_step_of_an_attempt_on(tmp_path, capsys):
    with Metrics(
        tmp_path / "metrics.jsonl", log_interval=1, total_steps=2002, steps_per_epoch=2002, epochs=1
    ) as metrics:
        metrics.log({**LINE, "step": 1, "time": 100.0})
        metrics.log({**LINE, "step": 2, "time": 101.5})
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("1,234 tokens/s") and second.endswith("1,234 tokens/s left 3,000 s")
