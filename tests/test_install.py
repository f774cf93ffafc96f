"""What is installed: the wheel and the sdist hold what they must, the lowest versions are those that are tried, and the script of the matrix notices what is wrong."""
import json
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser

import numpy as np
import pytest
from packaging.requirements import Requirement

from conftest import ROOT, script
from timbre_palette.checkpoint import shipped
from timbre_palette.enhance import MODELS

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PACKED = ("settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt", "constraints-oldest.txt", "timbre_palette", "tests")

matrix = script("install_matrix")


def settings():
    "What settings.ini says, by name."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def backend(folder, kind, out):
    "Build the `wheel` or the `sdist` of a folder as pip does, with the setuptools that is here; its path, and what was said."
    command = f"from setuptools import build_meta; print('built', build_meta.build_{kind}({str(out)!r}), sep=':')"
    done = subprocess.run([sys.executable, "-c", command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / re.findall(r"^built:(.+)$", done.stdout, re.M)[-1], done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The sdist of a copy of this repository, the wheel made of that sdist, what was said, and the sdist unpacked."
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    work = tmp_path_factory.mktemp("build")
    source = work / "source"
    source.mkdir()
    for name in PACKED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name, **({"ignore": shutil.ignore_patterns("__pycache__")} if copy is shutil.copytree else {}))
    sdist, said = backend(source, "sdist", work)
    with tarfile.open(sdist) as packed:
        packed.extractall(work, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    unpacked = work / sdist.name.removesuffix(".tar.gz")
    wheel, more = backend(unpacked, "wheel", work)
    return {"sdist": sdist, "wheel": wheel, "said": said + more, "unpacked": unpacked}


def test_the_wheel_holds_the_package_and_its_weights_whole(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "timbre_palette").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert names == wanted  # no tests, no notebooks, nothing forgotten
        for name in wanted:
            if "weights/" in name:
                assert wheel.read(name) == (ROOT / name).read_bytes(), name
    assert {name.split("/")[2] for name in names if name.endswith("model.safetensors")} == set(shipped())
    assert "would be ignored" not in built["said"] and "absent from the `packages`" not in built["said"]  # weights as data, not as a package without code


def test_the_wheel_says_what_it_is(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
        read = lambda name: wheel.read(f"{info}/{name}").decode()
        licence = next(name for name in wheel.namelist() if name.startswith(info) and name.endswith("LICENSE"))
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
        assert "timbre-palette = timbre_palette.cli:run" in read("entry_points.txt")
        metadata = read("METADATA")
    fields = re.findall(r"^([\w-]+): (.+)$", metadata.split("\n\n")[0], re.M)
    given = lambda name: [value for key, value in fields if key == name]
    assert given("Requires-Python") == [f">={settings()['min_python']}"] and given("Version") == [settings()["version"]]
    for python in PYTHONS:
        assert f"Programming Language :: Python :: {python}" in given("Classifier")
    needed = {Requirement(one).name: str(Requirement(one).specifier) for one in given("Requires-Dist") if "extra" not in one}
    assert needed == {Requirement(one).name: str(Requirement(one).specifier) for one in settings()["requirements"].split()}
    assert set(given("Provides-Extra")) >= {"notebooks", "train", "eval", "plugins", "pitch", "dev"}
    assert "](nbs/" not in metadata  # links that would lead nowhere on a package index


def test_the_sdist_has_what_building_and_the_readme_need_and_no_half_of_the_tests(built):
    there = {path.name for path in built["unpacked"].iterdir()}
    assert {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt", "constraints-oldest.txt", "timbre_palette"} <= there
    assert not {"tests", "nbs", "scripts"} & there


def pins(python):
    "The pins of constraints-oldest.txt that hold for a Python, by name."
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()]
    held = [one for one in map(Requirement, filter(None, lines)) if one.marker is None or one.marker.evaluate({"python_version": python})]
    assert len(held) == len({one.name for one in held}), "pinned twice"
    return {one.name: str(one.specifier).removeprefix("==") for one in held}


@pytest.mark.parametrize("python", PYTHONS)
def test_the_oldest_versions_are_the_lowest_that_are_allowed(python):
    asked = [Requirement(one) for key in ("requirements", "notebooks_requirements") for one in settings()[key].split()]
    held = pins(python)
    assert set(held) == {one.name for one in asked}
    for one in asked:
        assert one.specifier.contains(held[one.name]), one
        lowest = str(one.specifier).removeprefix(">=")
        same = [int(part) for part in held[one.name].split(".")][:len(lowest.split("."))] == [int(part) for part in lowest.split(".")]
        assert same or python > PYTHONS[0], f"{one} allows less than what is tried, {held[one.name]}"


def cell(python="3.12.1", dependencies="newest", **changes):
    "A cell of the matrix in which everything passed."
    stages = {stage: {"seconds": 61.4, "mb": 4321, "jobs": {name: {"seconds": 1.0} for name in jobs}} for stage, (_, jobs) in matrix.STAGES.items()}
    return {"python": python, "dependencies": dependencies, "from": "wheel", "stages": stages, "versions": {"torch": "2.9.9", "numpy": "2.2.2"}, **changes}


def test_the_table_says_what_was_measured():
    broken, cut, refused = cell("3.10.4", "oldest"), cell("3.9.20"), cell("3.13.0")
    broken["stages"]["bare"]["jobs"]["demo"]["failed"] = "it did not"
    cut["stages"].pop("notebooks")
    refused["stages"]["bare"] = {"seconds": 3.0, "mb": 20, "jobs": {}, "failed": "no wheel"}
    lines = [[word.strip() for word in line.strip("|").split("|")] for line in matrix.table([cell(), refused, broken, cut]).splitlines()]
    assert [line[0] for line in lines] == ["Python", ":--", "3.9.20", "3.10.4", "3.12.1", "3.13.0"]  # as numbers, not as words
    bare, extra = len(matrix.BARE), len(matrix.EXTRA)
    assert lines[4] == ["3.12.1", "newest", "wheel", "2.9.9", "2.2.2", "", "61 s", "4.3 GB", f"{bare} of {bare}", "61 s", "4.3 GB", f"{extra} of {extra}"]
    assert lines[3][8] == f"{bare - 1} of {bare}" and lines[2][9:] == ["–"] * 3 and lines[5][8] == f"0 of {bare}"
    assert matrix.failures(cell()) == []
    assert matrix.failures(broken) == ["bare, demo: it did not"] and matrix.failures(cut) == ["notebooks: not reached"]
    assert "bare, install: no wheel" in matrix.failures(refused)
    assert matrix.same_cell(cell(), "3.12", "newest") and not matrix.same_cell(cell(), "3.1", "newest") and not matrix.same_cell(cell(), "3.12", "oldest")


def test_every_shipped_model_has_its_job():
    jobs = list(matrix.BARE)
    assert {f"enhance by {model}" for model in MODELS} <= set(jobs)
    assert {f"transfer to {name.removeprefix('timbre-')}" for name in shipped() if name.startswith("timbre-")} <= set(jobs)
    assert {f"match by {name.removeprefix('style-')}" for name in shipped() if name.startswith("style-")} <= set(jobs)
    for name in matrix.NOTEBOOKS:
        assert (ROOT / "nbs" / f"{name}.ipynb").exists()
    exec(matrix.WEIGHTS, {})  # it can load them all here


def test_sounds_that_went_wrong_are_noticed(tmp_path):
    matrix.make_sounds(tmp_path)
    song, other = tmp_path / "song.wav", tmp_path / "other.wav"
    x = matrix.read_sound(song)
    assert len(x) == matrix.RATE * matrix.SECONDS and 0.45 < np.abs(x).max() <= 0.5
    for wrong, what in ((x[:-1], "samples instead of"), (0 * x, "silent"), (x, "is song.wav")):
        matrix.write_sound(other, wrong)
        assert what in matrix.wrong_sound(song, other)
    matrix.write_sound(other, 0.5 * x)
    assert matrix.wrong_sound(song, other) is None
    assert "was not written" in matrix.wrong_sound(song, tmp_path / "none.wav")


def test_commands_that_fail_or_take_too_long_are_noticed(tmp_path):
    run = lambda code, **options: matrix.call([sys.executable, "-c", code], tmp_path, **options)[1]
    assert run("print('fine')") is None
    assert run("print('one'); print('two'); raise SystemExit(3)") == "two" and run("raise SystemExit(3)") == "exit code 3"
    assert "more than 1 s" in run("import time; time.sleep(60)", limit=1)


def test_a_job_has_no_network_but_itself():
    cut = matrix.offline()
    if not cut:
        pytest.skip("this system cannot cut a command off (unshare -rn)")
    with socket.create_server(("127.0.0.1", 0)) as server:  # outside
        reach = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)"
        assert subprocess.run([sys.executable, "-c", reach], capture_output=True).returncode == 0
        assert subprocess.run([*cut, sys.executable, "-c", reach], capture_output=True).returncode != 0
    inside = "import socket; server = socket.create_server(('127.0.0.1', 0)); socket.create_connection(server.getsockname(), 2)"
    assert subprocess.run([*cut, sys.executable, "-c", inside], capture_output=True).returncode == 0


def test_pythons_are_found_by_path_and_by_number():
    number = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert matrix.find_python(sys.executable) == (sys.executable, number)
    assert matrix.find_python(number)[1] == number and matrix.find_python("2.0") is None


def test_what_is_stored_of_the_matrix_passed():
    stored = json.loads(matrix.OUT.read_text(encoding="utf-8"))
    cells = [(row["python"].rsplit(".", 1)[0], row["dependencies"]) for row in stored["cells"]]
    assert cells and len(set(cells)) == len(cells) and set(cells) <= {(python, dependencies) for python in PYTHONS for dependencies in matrix.DEPENDENCIES}
    for row in stored["cells"]:
        assert matrix.failures(row) == [], row["python"]
        assert row["from"] == matrix.DEPENDENCIES[row["dependencies"]][0]
        for stage, (_, jobs) in matrix.STAGES.items():
            assert set(row["stages"][stage]["jobs"]) == set(jobs)
        if row["dependencies"] == "oldest":
            lowest = pins(row["python"].rsplit(".", 1)[0])
            assert {name: version.split("+")[0] for name, version in row["versions"].items()} == {name: lowest[name] for name in row["versions"]}
    assert stored["network"] == "none"
