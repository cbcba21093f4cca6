"""The notebooks run as they are on a fresh checkpoint, hold no logic and keep no outputs."""

import ast
import base64
import io
import pathlib

import nbclient
import nbformat
import pytest
import tiny
from PIL import Image

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "colabs"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LOGIC = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.If, ast.Try, ast.With)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
    return tiny.workdir(tmp_path_factory.mktemp("run"))


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_without_outputs_and_logic(path):
    for cell in code_cells(path):
        assert not cell.outputs and cell.execution_count is None
        assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, LOGIC)]


def test_quickstart_runs_and_shows_pictures(checkpoint, monkeypatch):
    monkeypatch.setenv("BIG_MM_CHECKPOINT", str(checkpoint))
    notebook = nbformat.read(FOLDER / "quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [cell.outputs[-1].data for cell in cells[1:]]
    for data in shown[:3]:
        image = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
        assert min(image.size) > 300 and len(set(image.convert("L").tobytes())) > 50
    decoded = ast.literal_eval(shown[3]["text/plain"])
    assert decoded.keys() == {"sampled", "again", "prefix", "guided"}
    assert decoded["sampled"] != decoded["again"]
    assert all(caption.startswith("a") for caption in decoded["prefix"])
