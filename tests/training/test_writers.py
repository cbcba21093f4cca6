"""metrics.jsonl has each step once, whatever happens; the progress line."""

import math

import pytest
from etils import epath

from big_mm.training import writers


def lines(folder):
    return [(line["step"], line.get("a"), line.get("b")) for line in writers.read_metrics(folder)]


def writer(folder, step=0):
    return writers.MetricsWriter(epath.Path(folder), step)


def test_a_step_has_one_line_whatever_is_added_to_it(tmp_path):
    out = writer(tmp_path)
    out.add(1, {"a": 1.0})
    out.add(2, {"a": 2.0})
    assert lines(tmp_path) == [(1, 1.0, None)], "the current step is not written yet"
    out.flush()
    out.add(2, {"b": 5.0})
    out.flush()
    assert lines(tmp_path) == [(1, 1.0, None), (2, 2.0, 5.0)]
    out.add(3, {"a": 3.0})
    out.close()
    assert lines(tmp_path) == [(1, 1.0, None), (2, 2.0, 5.0), (3, 3.0, None)]


def test_continuing_cuts_later_lines_and_half_lines(tmp_path):
    out = writer(tmp_path)
    for step in range(1, 6):
        out.add(step, {"a": float(step)})
    out.close()
    with (tmp_path / writers.METRICS).open("a") as file:
        file.write('{"step": 6, "a"')
    out = writer(tmp_path, step=3)
    assert lines(tmp_path) == [(1, 1.0, None), (2, 2.0, None), (3, 3.0, None)]
    assert out.names() == ("a",)
    out.add(3, {"b": 9.0})
    out.add(4, {"a": 4.5})
    out.close()
    assert lines(tmp_path)[2:] == [(3, 3.0, 9.0), (4, 4.5, None)]


def test_continuing_between_lines(tmp_path):
    out = writer(tmp_path)
    for step in (10, 20, 30):
        out.add(step, {"a": 0.0})
    out.close()
    out = writer(tmp_path, step=25)
    out.add(30, {"a": 1.0})
    out.close()
    assert lines(tmp_path) == [(10, 0.0, None), (20, 0.0, None), (30, 1.0, None)]


def test_values_that_json_cannot_name_are_left_out(tmp_path):
    out = writer(tmp_path)
    out.add(1, {"a": math.nan, "b": 1.0})
    out.close()
    assert lines(tmp_path) == [(1, None, 1.0)]


def test_throughput_leaves_out_pauses(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(writers.time, "perf_counter", lambda: now[0])
    clock = writers.Throughput(batch_size=10)
    assert clock.measure(1) is None, "compilation is not measured"
    now[0] += 2.0
    with clock.pause():
        now[0] += 100.0
    assert clock.measure(5) == pytest.approx(4 * 10 / 2.0)


def test_progress_without_a_terminal_is_plain_lines(capsys):
    line = writers.ProgressLine(1000, "step")
    line.update(0, "compiling")
    line.update(3, "loss 1.0")
    line.close()
    assert capsys.readouterr().err == "step 0/1,000  compiling\nstep 3/1,000  loss 1.0\n"


def test_terms_stand_beside_chance():
    text = writers.describe(
        {"loss": 3.0, "loss/contrastive": 2.0, "loss/mine": 1.0}, {"baseline/contrastive": 4.0}
    )
    assert text == "contrastive 2.000 (chance 4.00)  mine 1.000"


def test_durations():
    assert [writers.duration(s) for s in (7.0, 67.0, 3723.0)] == ["7s", "1m 07s", "1h 02m"]
