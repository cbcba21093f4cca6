import importlib
import json
import pathlib
import sys

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"


def run(monkeypatch, tmp_path, *options):
    monkeypatch.syspath_prepend(BENCHMARKS)
    out = tmp_path / "out.json"
    argv = ["", "--dim", "4", "--tile", "8", "--rounds", "1", "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", argv)
    benchmark = importlib.import_module("contrastive_memory")
    monkeypatch.setattr(benchmark, "MATMUL", 64)
    benchmark.main()
    return benchmark, json.loads(out.read_text())


def test_what_is_too_long_is_compiled_only_and_tiles_take_less(monkeypatch, tmp_path):
    options = ("--loss", "softmax", "--batch", "256", str(2**18), "--seconds", "9")
    benchmark, facts = run(monkeypatch, tmp_path, *options)
    rows = {(row["batch"], row["implementation"]): row for row in facts["rows"]}
    for (batch, _), row in rows.items():
        assert (row["seconds"] is None) == (batch != 256)
    for batch in (256, 2**18):
        memory = [rows[batch, way]["memory_bytes"] for way in ("whole", "gather", "ring")]
        assert memory[0] > memory[1] > memory[2]
    assert benchmark.disagreeing(facts["rows"]) == []


def test_a_wrong_implementation_is_found(monkeypatch, tmp_path):
    benchmark, facts = run(monkeypatch, tmp_path, "--loss", "sigmoid", "--batch", "16")
    facts["rows"][-1]["value"] *= 1.001
    assert len(benchmark.disagreeing(facts["rows"])) == 1
