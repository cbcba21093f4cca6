import importlib
import json
import pathlib
import sys

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_table(monkeypatch, tmp_path):
    """What would take too long is compiled only, tiles take less, differences are found."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = importlib.import_module("contrastive_memory")
    monkeypatch.setattr(benchmark, "MATMUL", 64)
    out = tmp_path / "out.json"
    options = "--loss softmax --batch 256 262144 --seconds 9 --dim 4 --tile 8 --rounds 1"
    monkeypatch.setattr(sys, "argv", ["", *options.split(), "--out", str(out)])
    benchmark.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["seconds"] is None for row in rows] == [row["batch"] != 256 for row in rows]
    for batch in (256, 262144):
        memory = [row["memory_bytes"] for row in rows if row["batch"] == batch]
        assert len(memory) == 3 and memory == sorted(memory, reverse=True)
    assert benchmark.disagreeing(rows) == []
    rows[0]["value"] *= 1.001
    assert len(benchmark.disagreeing(rows)) == 1
