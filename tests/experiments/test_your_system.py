"""The worked example of docs/your_system.md works, and is as short as the page says."""

import pathlib
import re
import sys

import pytest

import experiments
from big_mm import spec

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "your_system.md").read_text()
FILES = dict(re.findall(r"^`(\S+\.py)`\n\n```python\n(.*?)^```$", PAGE, re.M | re.S))


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The page's files; `experiments` is found here too."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(
        experiments, "__path__", [*experiments.__path__, str(tmp_path / "experiments")]
    )
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("experiments.vse")]:
        del sys.modules[name]


def test_the_page_holds_its_promise():
    lines = [line for text in FILES.values() for line in text.splitlines() if line.strip()]
    assert len(FILES) == 3
    assert len(lines) < 60


def test_the_example_builds_and_passes_its_test(written, in_world):
    file = str(written / "experiments" / "vse" / "config.py")
    assert spec.variants(file) == ("hardest", "all")
    for arm in spec.variants(file):
        run = spec.build(spec.load_config(f"{file}:{arm}"))
        assert run.objective.losses["margin"].hardest == (arm == "hardest")
    test = FILES["tests/experiments/test_vse.py"]
    names: dict = {}
    exec(compile(test, "test_vse.py", "exec"), names)
    (check,) = [value for name, value in names.items() if name.startswith("test_")]
    check()
