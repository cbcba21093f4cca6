"""The command line of the planner."""

import json

import pytest

from big_mm import plan
from big_mm.planning import compiler
from tests.planning.test_analytic import fitting

CONFIG = """
from tests.planning.test_analytic import config

def get_config(arg=""):
    return config()
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "small.py").write_text(CONFIG)
    return str(tmp_path / "small.py")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--topology is needed"),
        (["--topology", "v5e:3x3"], "v5e:3x3 is no slice of v5e"),
        (["--topology", "v5e:2x4", "--price", "much"], "--price much"),
        (["--topology", "v5e:2x4", "--sweep", "width"], "--sweep width: there are mesh"),
        (["--topology", "v5e:2x4", "--config.batch_size=6"], "batch_size=6 is not divisible"),
        (["--config.optimiser.learning_rate=1"], "did you mean 'optimizer'"),
        (["--analytic", "--read-data"], "absent"),
    ],
)
def test_bad_input_is_one_line(source, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(compiler, "require", lambda slices: None)
    assert plan.main(["--config", source, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_analytic_needs_no_compiler(source, capsys, monkeypatch):
    monkeypatch.setattr(compiler, "devices", None)
    slices = ["--topology", "v5e:2x4"]
    assert plan.main(["--config", source, "--analytic", *slices, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["topology"] == "v5e:2x4" and found["memory_bytes"]["parameters"]
    assert {"image/blocks", "decoder", "losses"} <= {row["module"] for row in found["modules"]}
    assert plan.main(["--config", source, "--analytic"]) == 0
    assert "contrastive_pooler" in capsys.readouterr().out


def test_ctrl_c_keeps_what_is_done(source, tmp_path, capsys, monkeypatch):
    def interrupted(*arguments):
        yield fitting(1.0, 10)
        raise KeyboardInterrupt

    left = []
    monkeypatch.setattr(plan, "compiled", interrupted)
    monkeypatch.setattr(plan.os, "_exit", left.append)
    file = tmp_path / "plans.json"
    plan.main(["--config", source, "--topology", "v5e:4x4", "--json", str(file)])
    assert left == [130] and len(json.loads(file.read_text())) == 1
    assert "choose v5e:4x4" in capsys.readouterr().out


@pytest.mark.parametrize(
    "topology",
    [
        pytest.param("v5e:2x2", marks=pytest.mark.tpu_compiler),
        pytest.param("h100:1x4", marks=pytest.mark.cuda_compiler),
    ],
)
def test_plans(source, topology, tmp_path, capsys):
    """What the table and the JSON say of the real update of a small model."""
    arguments = ["--config", source, "--topology", topology, "--sweep", "microbatch"]
    model = "--config.objective.model."
    small = ["--config.mesh.fsdp=4", "--config.batch_size=4", f"{model}image.blocks.depth=2"]
    file, programs = tmp_path / "plans.json", tmp_path / "programs"
    more = ["--json", str(file), "--price", "1.5", "--hlo", str(programs)]
    assert plan.main([*arguments, *small, *more]) == 0
    out = capsys.readouterr().out
    (found,) = json.loads(file.read_text())
    assert found["settings"] == {"accumulate": 1}
    assert found["topology"] == topology and found["fits"]
    assert found["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    assert 0 < found["memory"]["parameters"] < found["peak_hbm_bytes"]
    assert found["step_seconds_bound"] == max(found["seconds"].values())
    assert 0 < found["mfu_bound"] <= 1 and found["dollars_per_million"] > 0
    assert found["collective_bytes"] == sum(c["bytes"] for c in found["collectives"].values())
    assert any(kind.startswith("all-gather@4") for kind in found["collectives"])
    assert found["model_flops"] < found["flops"] < 1.5 * found["model_flops"]  # remat=full
    assert "ENTRY" in (programs / "1.txt").read_text()
    assert f"choose {topology} 1x4x1" in out and "Nothing was executed" in out


@pytest.mark.tpu_compiler
def test_what_cannot_be_laid_out_is_a_plan_that_does_not_fit(source, capsys):
    arguments = ["--topology", "v5e:2x2", "--topology", "v5e:2x4", "--config.batch_size=1"]
    assert plan.main(["--config", source, *arguments, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [p["fits"] for p in found] == [False, False]
    assert all("batch_size=1 is not divisible" in p["refusal"] for p in found)
