"""Branch coverage of the package, by all tests and all notebooks: `python scripts/measure_coverage.py [--work FOLDER] [-o FILE.json] [--least 90]`.

Tests run as ever, with every process that they start counted too. Notebooks run with the modules' own functions in place of the cells that define them, since those cells are the same code in another file.
Prints a table of modules, and ends with 1 where a test fails or the whole is under `--least` percent. Needs coverage (7.10 or newer); takes about twice as long as the tests.
"""
import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "nbs" / "results" / "data" / "coverage.json"
FULL_DISK = "tests/test_training.py::test_a_disk_that_fills_up_leaves_the_previous_checkpoint"  # in which counts could not be written either
CONFIG = """[run]
branch = True
source = timbre_palette
parallel = True
concurrency = multiprocessing,thread
patch = subprocess,_exit
data_file = {folder}/counts
disable_warnings = no-data-collected,module-not-measured,module-not-imported
[report]
include = {root}/timbre_palette/*
exclude_also =
    ^if __name__ == .__main__.:
"""


def with_module(path):
    "A notebook in which its module stands for the cells that define it, or None where it defines none."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    name = next((line.split()[-1] for source in sources for line in source.splitlines() if line.startswith("#| default_exp")), None)
    taken = f"import importlib\nglobals().update({{name: value for name, value in vars(importlib.import_module('timbre_palette.{name}')).items() if not name.startswith('__')}})"
    if name is None:
        return None
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and "".join(cell["source"]).startswith("#| export"):
            cell["source"], taken = taken, ""
    return notebook


def run_notebook(path, work):
    "Run a notebook's examples; exit code 1 where a cell fails."
    work.mkdir()
    with open(work / "printed.txt", "wb", buffering=0) as printed:
        for stream in (1, 2):
            os.dup2(printed.fileno(), stream)
    os.environ["TMPDIR"] = tempfile.tempdir = str(work)
    os.chdir(ROOT / "nbs")
    notebook = with_module(path)
    if notebook:
        path = work / path.name
        path.write_text(json.dumps(notebook), encoding="utf-8")
    from nbdev.config import get_config
    from nbdev.test import test_nb
    good, _ = test_nb(path, skip_flags=get_config().tst_flags.split(), basepath=ROOT)
    sys.exit(0 if good else 1)


def run_notebooks(folder):
    "Run all notebooks, two at a time; those that failed."
    from tqdm import tqdm
    paths = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    context, failed, running = multiprocessing.get_context("spawn"), [], []
    with tqdm(total=len(paths), disable=None) as bar:
        while paths or running:
            while paths and len(running) < 2:
                path = paths.pop(0)
                running.append((path, context.Process(target=run_notebook, args=(path, folder / f"notebook-{len(paths)}"))))
                running[-1][1].start()
            path, process = running.pop(0)
            process.join()
            bar.update()
            if process.exitcode:
                failed.append(path.name)
    return failed


def run_part(part, folder):
    "Run a part of what is counted under coverage; whether it went well."
    env = {**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    what = ["-m", "pytest", "-q", "--ignore", "tests/test_notebooks.py", "--ignore", "tests/test_fuzz.py", "--deselect", FULL_DISK] if part == "tests" else [__file__, "--part", "notebooks", "--work", str(folder)]
    return subprocess.run([sys.executable, "-m", "coverage", "run", f"--rcfile={folder / 'coveragerc'}", *what], cwd=ROOT, env=env).returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where counts are kept (default: a folder that is removed)")
    parser.add_argument("--only", nargs="+", choices=["tests", "notebooks"], default=["tests", "notebooks"], help="count one of them alone, in the same --work; what was counted stays")
    parser.add_argument("--least", type=float, default=90.0, metavar="PERCENT")
    parser.add_argument("-o", "--out", type=Path, default=OUT, metavar="FILE.json")
    parser.add_argument("--part", choices=["notebooks"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        failed = run_notebooks(options.work)
        sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.work or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "coveragerc").write_text(CONFIG.format(folder=folder, root=ROOT))
        good = [run_part(part, folder) for part in options.only]
        command = [sys.executable, "-m", "coverage"]
        subprocess.run([*command, "combine", "--keep", "-q", f"--rcfile={folder / 'coveragerc'}", "--data-file", str(folder / "all"), *map(str, folder.glob("counts.*"))], cwd=ROOT, check=True)
        subprocess.run([*command, "json", "-q", f"--rcfile={folder / 'coveragerc'}", "--data-file", str(folder / "all"), "-o", str(folder / "all.json")], cwd=ROOT, check=True)
        found = json.loads((folder / "all.json").read_text())
    rows = {name.removeprefix("timbre_palette/"): one["summary"] for name, one in found["files"].items()}
    show = lambda one: {"statements": one["num_statements"], "branches": one["num_branches"], "of statements (%)": round(one["percent_statements_covered"], 1),
                        "of branches (%)": round(one["percent_branches_covered"], 1) if one["num_branches"] else 100.0}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    kept = {"commit": commit, "all": show(found["totals"]), "modules": {name: show(one) for name, one in sorted(rows.items()) if one["num_statements"] and not name.endswith("_modidx.py")}}
    columns = list(kept["all"])
    print(f"| module | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, one in [*sorted(kept["modules"].items(), key=lambda pair: pair[1]["of branches (%)"]), ("all", kept["all"])]:
        print(f"| {name} | {' | '.join(str(one[column]) for column in columns)} |")
    options.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    sys.exit(not all(good) or kept["all"]["of branches (%)"] < options.least)


if __name__ == "__main__":
    main()
