"""Every notebook runs top to bottom, each in a process of its own."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    command = [Path(sys.executable).parent / "nbdev_test", "--path", path, "--n_workers", "1", "--do_print"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ, "MPLBACKEND": "agg", "TMPDIR": str(tmp_path)})
    assert done.returncode == 0 and "Success" in done.stdout, done.stdout + done.stderr
