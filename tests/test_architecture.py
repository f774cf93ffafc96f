"""The house stands as designed: layers, fresh exports, clean notebooks, a README that is the notebook's."""
import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, NOTEBOOKS = ROOT / "timbre_palette", ROOT / "nbs"

# Imports go from a layer to itself or to one above it, never down.
LAYERS = [{"audio", "synth", "filters", "loudness"}, {"effects", "anchors"}, {"losses", "metrics"}, {"checkpoint"},
          {"model", "graybox", "blackbox", "baselines"}, {"songs"}, {"data", "material"}, {"recipe"}, {"polish", "training"}, {"mastering", "streaming"}, {"player", "timbre_transfer.recorder"}, {"enhance", "blend", "colours"},
          {"evaluation", "figures", "reach", "analysis", "stability"}, {"experiments"}, {"tables"}, {"style_transfer"}, {"timbre_transfer"}, {"export", "bench", "explore", "compare", "listening", "demo", "cli", "pages", "timbre_transfer.whistling"}]
WIDGETS = {"player", "explore", "compare", "listening", "timbre_transfer.recorder", "timbre_transfer.whistling"}  # the rooms that may lean on Jupyter's packages
FORBIDDEN = {("timbre_transfer", "style_transfer")}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def room_of(parts):
    "The room of a module by the parts of its name: a sub-package is one, but for those of its modules that have a layer of their own."
    own = ".".join(parts[:2])
    return own if own in LEVEL else parts[0]


def modules():
    "Module files by their room."
    return [(room_of(path.relative_to(PACKAGE).with_suffix("").parts), path) for path in sorted(PACKAGE.rglob("*.py")) if path.stem not in ("__init__", "_modidx")]


def imported_rooms(path):
    "Rooms of the package that a module imports, relatively (as nbdev writes it) or by the full name, anywhere in it."
    package = path.relative_to(ROOT).parts[:-1]
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = [*start, *(node.module.split(".") if node.module else ())]
            names = [base] if len(base) > 1 else [[*base, name.name] for name in node.names]
        elif isinstance(node, ast.Import):
            names = [name.name.split(".") for name in node.names]
        rooms |= {room_of(parts[1:]) for parts in names if parts[0] == "timbre_palette" and len(parts) > 1}
    return rooms


def test_imports_are_seen():
    assert {"anchors", "audio", "blend", "loudness"} <= imported_rooms(PACKAGE / "enhance.py")
    assert {"enhance", "demo"} <= imported_rooms(PACKAGE / "cli.py")  # late ones too


@pytest.mark.parametrize("room, path", modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_go_one_way(room, path):
    assert room in LEVEL, f"{room} has no layer: give it one in this test"
    for other in imported_rooms(path) - {room}:
        assert LEVEL[other] <= LEVEL[room], f"{room} imports {other}, which lies below it"
        assert (room, other) not in FORBIDDEN


def test_no_import_cycles():
    graph = {room: imported_rooms(path) - {room} for room, path in modules()}
    done = set()
    while len(done) < len(graph):
        free = {room for room in graph if room not in done and graph[room] <= done}
        assert free, f"import cycle among {sorted(set(graph) - done)}"
        done |= free


@pytest.mark.parametrize("room, path", modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_modules_are_free_of_what_users_do_not_need(room, path):
    tops, body = set(), ast.parse(path.read_text(encoding="utf-8")).body
    for node in body + [inner for node in body if isinstance(node, ast.Try) for inner in node.body]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            tops |= {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else {name.name.split(".")[0] for name in node.names}
    assert not tops & {"fastcore", "nbdev", "torchaudio", "librosa", "IPython", "huggingface_hub", "av"}
    assert room in WIDGETS or not tops & {"ipywidgets", "anywidget", "traitlets"}


def notebooks():
    return sorted(path for path in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_notebook_is_tidy(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids)), "cell ids repeat"
    assert not [ident for ident in ids if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", ident)], "cell ids are readable words"
    assert path.stat().st_size <= (1 << 20 if "tutorials" in path.parts else 300 * 1024), "too big for git"
    text = path.read_text(encoding="utf-8")
    assert "widget-state" not in text and "application/vnd.jupyter.widget-view" not in text
    assert not re.search(r"(?<![\w.])/(?:tmp|home|root|work)/", text), "a path of some machine"
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["execution_count"] is None
            assert not [out for out in cell["outputs"] if out["output_type"] == "error" or out.get("name") == "stderr"]
            assert not re.search(r"^#\|\s*exports?[a-z]+\b(?<!exporti)(?<!exports)", cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"]), re.M)


def test_modules_are_what_the_notebooks_export(tmp_path):
    "A renamed notebook, a forgotten export or an edited module shows as a difference."
    for name in ("settings.ini", "README.md", "_quarto.yml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(NOTEBOOKS, tmp_path / "nbs", symlinks=True, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    subprocess.run([Path(sys.executable).parent / "nbdev_export"], cwd=tmp_path, check=True, capture_output=True)
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    assert files == {path.relative_to(tmp_path / "timbre_palette") for path in (tmp_path / "timbre_palette").rglob("*.py")}
    for file in files:
        assert (PACKAGE / file).read_text(encoding="utf-8") == (tmp_path / "timbre_palette" / file).read_text(encoding="utf-8"), f"{file}: run nbdev_export"


def test_readme_is_what_the_index_says():
    subprocess.run([sys.executable, ROOT / "scripts" / "readme.py", "--check"], check=True)


def test_links_lead_somewhere():
    for path in [ROOT / "README.md", *notebooks()]:
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(((?!https?:)[^)#\s]+)\)", text):
            if re.fullmatch(r"[\w./-]+\.(ipynb|png|mp3|md)", target):
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_named_packages_are_declared():
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    for name in "nbdev torch torchaudio librosa matplotlib ipywidgets anywidget jupyterlab notebook voila playwright pyloudnorm scipy soundfile pytest".split():
        assert re.search(rf"requirements = .*\b{name}\b", settings), name


def test_every_notebook_stands_in_the_sidebar():
    sidebar = (ROOT / "_quarto.yml").read_text(encoding="utf-8")
    assert (NOTEBOOKS / "_quarto.yml").is_symlink() and (NOTEBOOKS / "_quarto.yml").resolve() == ROOT / "_quarto.yml"
    listed = re.findall(r"[\w/]+\.ipynb", sidebar)
    assert sorted(listed) == sorted(path.relative_to(NOTEBOOKS).as_posix() for path in notebooks())
