"""Every notebook runs top to bottom, each in a process of its own."""
import multiprocessing
import os
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
HEAVY = ["torch", "torchaudio", "librosa", "scipy.signal", "matplotlib.pyplot", "ipywidgets", "nbdev.test"]  # imported once, by the process that the others are forked from


def find_deprecated():
    "From here on, what a cell or a module of ours uses that will stop working is an error, as pyproject.toml has it for tests."
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("error", category=category, module="timbre_palette|__main__")


def run(path, work):
    "What `nbdev_test` does with a notebook; what is printed goes to a file in the folder `work`. Exit code 1 where a cell fails."
    with open(work / "printed.txt", "wb", buffering=0) as printed:
        for stream in (1, 2):
            os.dup2(printed.fileno(), stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False, encoding="utf-8") for stream in (1, 2))
    os.environ["TMPDIR"] = tempfile.tempdir = str(work)
    os.environ["MPLBACKEND"] = "agg"
    os.chdir(ROOT / "nbs")
    import matplotlib
    from nbdev.config import get_config
    from nbdev.test import test_nb as run_cells
    matplotlib.use("agg")
    find_deprecated()
    good, _ = run_cells(path, skip_flags=get_config().tst_flags.split(), basepath=ROOT)
    sys.exit(0 if good else 1)


@pytest.fixture(scope="module")
def processes():
    "How a process is begun: forked from one that has imported what nearly all notebooks need, or anew where processes cannot fork."
    context = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(HEAVY)
    return context


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, processes, tmp_path):
    running = processes.Process(target=run, args=(path, tmp_path))
    running.start()
    running.join(600)
    if running.is_alive():
        running.kill()
        running.join()
    assert running.exitcode == 0, f"exit code {running.exitcode}\n" + (tmp_path / "printed.txt").read_text(encoding="utf-8", errors="replace")
