"""Show that the package installs, and works where it is installed: `python scripts/install_matrix.py`.

Builds the wheel and the sdist once, from the files that git knows. Then, for each Python, with the newest and with the oldest allowed versions of
what the package needs: an empty environment, the package into it (the wheel with the newest; the sdist with the oldest, held by constraints-oldest.txt),
and, from an empty folder, with an empty home and the network off, the jobs of `BARE`; then the extra notebooks, and the jobs of `EXTRA`.

The environment, of several GB where PyTorch comes with CUDA, is removed before the next is made. Prints a table, and writes nbs/results/data/install_matrix.json.
What has passed there is not done again (`--again` does), so it can be stopped and started again. A Python is asked for by its number, and looked for on the
PATH and where pyenv keeps them, or by its path.
"""
import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import wave
from itertools import product
from pathlib import Path

import numpy as np

from timbre_palette.audio import write_text
from timbre_palette.evaluation import write_measured

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "nbs" / "results" / "data" / "install_matrix.json"
RATE, SECONDS, LIMIT = 44100, 2.0, 900
DEPENDENCIES = {"newest": ("wheel", []), "oldest": ("sdist", ["-c", str(ROOT / "constraints-oldest.txt")])}
PACKAGES = "torch numpy scipy matplotlib soundfile soxr pyloudnorm safetensors tqdm ipywidgets anywidget librosa jupyterlab voila".split()

MODULES = """
import importlib, pkgutil, sys, timbre_palette
from pathlib import Path
assert Path(timbre_palette.__file__).is_relative_to(sys.prefix), timbre_palette.__file__
names = [found.name for found in pkgutil.walk_packages(timbre_palette.__path__, "timbre_palette.") if found.name != "timbre_palette._modidx"]
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        if MAY_LACK not in str(error):
            raise
assert len(names) > 60, names
"""
WEIGHTS = """
from timbre_palette import audio, checkpoint
import timbre_palette.cli, timbre_palette.blackbox, timbre_palette.graybox, timbre_palette.model
import timbre_palette.style_transfer.proxies, timbre_palette.style_transfer.system, timbre_palette.timbre_transfer.classifier, timbre_palette.timbre_transfer.instrument
names = checkpoint.shipped()
assert len(names) >= 13, names
for name in names:
    checkpoint.Pretrained.from_pretrained(name)
"""
MAY_LACK = {"bare": "timbre_palette[notebooks]", "notebooks": "nothing may be lacking"}


def modules(stage):
    "The job that imports every module of the installed package; what needs the extra notebooks may say so where it is not there."
    return ["python", "-c", MODULES.replace("MAY_LACK", repr(MAY_LACK[stage]))]


BARE = {
    "pip check": ["python", "-m", "pip", "check"],
    "every module": modules("bare"),
    "every weight": ["python", "-c", WEIGHTS],
    "version": ["timbre-palette", "--version"],
    "demo": ["timbre-palette", "demo"],
    **{f"enhance by {model}": ["timbre-palette", "enhance", "song.wav", "-o", f"{model}.wav", "--style", "warmth", "--model", model] for model in ("graybox", "blackbox", "waveunet-v2", "dsp")},
    **{f"match by {model}": ["timbre-palette", "match", "song.wav", "-o", f"match-{model}.wav", "--preset", "warm", "--model", model] for model in ("music", "speech")},
    **{f"transfer to {name}": ["timbre-palette", "transfer", "whistle.wav", "-o", f"{name}.wav", "--to", name] for name in ("trumpet", "flute", "violin")},
}
NOTEBOOKS = ("26_enhance", "36_explore", "style_transfer/22_match", "timbre_transfer/10_instrument")
EXTRA = {
    "pip check": BARE["pip check"],
    "every module": modules("notebooks"),
    **{f"notebook {name}": ["jupyter", "nbconvert", "--to", "notebook", "--execute", "--output", "executed", f"{name.split('/')[-1]}.ipynb"] for name in NOTEBOOKS},
}
STAGES = {"bare": ("", BARE), "notebooks": ("[notebooks]", EXTRA)}

# What cuts a command off: a network of its own, in which only the machine itself is there (Jupyter talks to its kernels that way).
LONELY = """
import fcntl, os, socket, struct, sys
fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, struct.pack("16sH14s", b"lo", 1, b""))
os.execvp(sys.argv[1], sys.argv[1:])
"""


def offline():
    "What to put before a command so that it has no network; an empty list where the system cannot do that."
    prefix = ["unshare", "-rn", sys.executable, "-c", LONELY]
    try:
        works = subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    except OSError:
        works = False
    return prefix if works else []


NOWHERE = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "all", "HTTP", "HTTPS", "ALL")}  # for where it cannot; nobody answers there


def find_python(wanted):
    "The interpreter that is asked for by its path or by its number, such as 3.12, and that number; None if it is not here."
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for place in [shutil.which(wanted), shutil.which(f"python{wanted}"), *(str(place) for place in sorted(kept.glob("*/bin/python")) if place.parts[-3].startswith(f"{wanted}."))]:
        number = place and subprocess.run([place, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True).stdout.strip()
        if number and (number == wanted or os.sep in wanted):  # what has the name may be a shim that leads nowhere
            return place, number
    return None


def call(command, folder, environment=None, limit=LIMIT):
    "Run a command from a folder; (seconds, None), or (seconds, the last line it said) if it failed or took too long."
    begun = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        said, _ = process.communicate(timeout=limit)
        said = re.sub(r"\x1b\[[\d;]*m", "", said).strip()  # without colours
        failed = process.returncode and (said.splitlines() or [f"exit code {process.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        failed = f"took more than {limit} s"
    finally:
        process.kill()
        process.wait()
    return round(time.perf_counter() - begun, 1), failed or None


def write_sound(path, samples):
    "A mono sound as 16-bit WAV, without the package that is under test."
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, RATE, 0, "NONE", ""))
        sound.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())


def read_sound(path):
    "The samples of such a file."
    with wave.open(str(path), "rb") as sound:
        return np.frombuffer(sound.readframes(sound.getnframes()), "<i2") / 32768


def make_sounds(folder):
    "song.wav, chords of decaying partials over a little noise, and whistle.wav, three notes: what the jobs work on."
    t = np.arange(int(RATE * SECONDS)) / RATE
    beat = t % 0.5
    song = sum(np.sin(2 * np.pi * hz * k * beat) / k for hz in (110, 220, 277.2, 329.6) for k in range(1, 9)) * np.exp(-5 * beat)
    song += 0.05 * np.random.default_rng(0).standard_normal(len(t))
    hz = np.interp(t, [0, 0.6, 0.7, 1.3, 1.4, SECONDS], [1046.5, 1046.5, 1318.5, 1318.5, 1568, 1568])
    whistle = np.sin(2 * np.pi * np.cumsum(hz) / RATE) * np.minimum(1, np.minimum(t, SECONDS - t) / 0.05)
    write_sound(folder / "song.wav", 0.5 * song / np.abs(song).max())
    write_sound(folder / "whistle.wav", 0.3 * whistle)


def wrong_sound(before, after):
    "What is wrong with a sound that was made of another, in words; None if it is as long, neither silent nor the same."
    if not after.exists():
        return f"{after.name} was not written"
    x, y = read_sound(before), read_sound(after)
    if len(x) != len(y):
        return f"{after.name} has {len(y)} samples instead of {len(x)}"
    return f"{after.name} is silent" if np.abs(y).max() < 0.01 else f"{after.name} is {before.name}" if np.array_equal(x, y) else None


def run_job(job, env, folder, cut):
    "Run a job of `BARE` or `EXTRA` with the programs of an environment; what `call` gives, a sound being looked at too."
    home = folder / "home"
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name in ("LANG", "LC_ALL", "OMP_NUM_THREADS", "TMPDIR")}
    environment = {**kept, **NOWHERE, "no_proxy": "127.0.0.1,localhost", "PATH": f"{env / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin", "HOME": str(home), "MPLBACKEND": "agg"}
    seconds, failed = call([*cut, env / "bin" / job[0], *job[1:]], folder, environment)
    if not failed and "-o" in job:
        failed = wrong_sound(folder / job[2], folder / job[job.index("-o") + 1])
    return seconds, failed


def size_mb(folder):
    "What a folder takes on a disk, in MB (10^6 bytes); a file with two names counts once."
    files = {(status.st_dev, status.st_ino): status.st_size for path in folder.rglob("*") if not path.is_symlink() and path.is_file() for status in [path.stat()]}
    return round(sum(files.values()) / 1e6)


def versions(env):
    "What pip lists of `PACKAGES` in an environment."
    listed = json.loads(subprocess.run([env / "bin" / "python", "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, text=True).stdout)
    listed = {one["name"].lower(): one["version"] for one in listed}
    return {name: listed[name] for name in PACKAGES if name in listed}


def build(work):
    "Build the sdist, and the wheel out of it, from a copy of the files that git knows; {`wheel`: path, `sdist`: path}."
    source, dist = work / "source", work / "dist"
    for folder in (source, dist, work / "builder"):
        shutil.rmtree(folder, ignore_errors=True)
    for name in subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    for command in ([sys.executable, "-m", "venv", "builder"], ["builder/bin/python", "-m", "pip", "install", "build"], ["builder/bin/python", "-m", "build", "--outdir", dist, source]):
        _, failed = call(command, work)
        if failed:
            sys.exit(f"the package was not built: {failed}")
    return {"wheel": next(dist.glob("*.whl")), "sdist": next(dist.glob("*.tar.gz"))}


def measure(python, dependencies, files, work):
    "A cell of the matrix, as a dictionary: what installing took, what came, and what every job took or how it failed. Nothing of it stays on the disk."
    kind, constraints = DEPENDENCIES[dependencies]
    env, folder = work / "environment", work / "empty"
    row = {"python": None, "dependencies": dependencies, "from": kind, "stages": {}}
    try:
        for place in (env, folder):
            shutil.rmtree(place, ignore_errors=True)
        folder.mkdir(parents=True)
        make_sounds(folder)
        for name in NOTEBOOKS:
            shutil.copy(ROOT / "nbs" / f"{name}.ipynb", folder)
        subprocess.run([python, "-m", "venv", env], check=True)
        row["python"] = subprocess.run([env / "bin" / "python", "-c", "import platform; print(platform.python_version())"], check=True, capture_output=True, text=True).stdout.strip()
        for stage, (extra, jobs) in STAGES.items():
            print(f"Python {row['python']}, {dependencies}, {stage}: installing", flush=True)
            seconds, failed = call([env / "bin" / "python", "-m", "pip", "install", *constraints, f"{files[kind]}{extra}"], work, limit=3600)
            row["stages"][stage] = done = {"seconds": seconds, "mb": size_mb(env), "jobs": {}}
            if failed:
                done["failed"] = failed
                break
            for name, job in jobs.items():
                took, failed = run_job(job, env, folder, offline())
                done["jobs"][name] = {"seconds": took, **({"failed": failed.replace(str(work), "")} if failed else {})}
                print(f"  {took:6.1f} s  {name}" + (f": {failed}" if failed else ""), flush=True)
        row["versions"] = versions(env)
    finally:
        for place in (env, folder):
            shutil.rmtree(place, ignore_errors=True)
    return row


def failures(row):
    "What failed in a cell of the matrix, as lines; an empty list where everything passed."
    lines = [f"{stage}, install: {done['failed']}" for stage, done in row["stages"].items() if "failed" in done]
    lines += [f"{stage}, {name}: {job['failed']}" for stage, done in row["stages"].items() for name, job in done["jobs"].items() if "failed" in job]
    return lines + [f"{stage}: not reached" for stage in STAGES if stage not in row["stages"]]


def in_order(row):
    "How cells of the matrix are sorted: by Python, the newest dependencies first."
    return [int(part) for part in row["python"].split(".")], list(DEPENDENCIES).index(row["dependencies"])


def table(rows):
    "The matrix as a Markdown table, a line for each cell of it."
    head = ["Python", "dependencies", "from", "torch", "numpy", "scipy", "install", "size", "jobs passed", "with notebooks", "size", "jobs passed"]
    lines = [head, [":--"] * len(head)]
    for row in sorted(rows, key=in_order):
        cells = [row["python"], row["dependencies"], row["from"], *(row.get("versions", {}).get(name, "") for name in ("torch", "numpy", "scipy"))]
        for stage, (_, jobs) in STAGES.items():
            done = row["stages"].get(stage)
            cells += ["–"] * 3 if done is None else [f"{done['seconds']:.0f} s", f"{done['mb'] / 1000:.1f} GB", f"{sum('failed' not in job for job in done['jobs'].values())} of {len(jobs)}"]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def same_cell(row, python, dependencies):
    "Is this the cell of that Python, given as 3.12, and those dependencies?"
    return row["dependencies"] == dependencies and row["python"].split(".")[:2] == python.split(".")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=["3.10", "3.11", "3.12", "3.13"], metavar="NUMBER")
    parser.add_argument("--dependencies", nargs="+", choices=DEPENDENCIES, default=list(DEPENDENCIES))
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where environments are made (default: a temporary folder)")
    parser.add_argument("-o", "--out", type=Path, default=OUT, metavar="FILE.json")
    parser.add_argument("--again", action="store_true", help="also what has passed")
    options = parser.parse_args()
    os.environ.pop("PYTHONPATH", None)  # or pip would see a package of ours that is not in the environment
    known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"cells": []}
    done = lambda number, dependencies: any(same_cell(row, number, dependencies) and not failures(row) for row in known["cells"])
    pythons = [(wanted, find_python(wanted)) for wanted in options.python]
    missing = [(place, number, dependencies) for (_, found), dependencies in product(pythons, options.dependencies) if found for place, number in [found]
               if options.again or not done(number, dependencies)]
    for wanted in [wanted for wanted, found in pythons if not found]:
        print(f"Python {wanted} is not here: left out", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="install-") as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        files = build(work) if missing else {}
        for place, number, dependencies in missing:
            row = measure(place, dependencies, files, work)
            package = {f"{kind}_mb": round(path.stat().st_size / 1e6, 1) for kind, path in files.items()}
            rows = [other for other in known["cells"] if not same_cell(other, number, dependencies)] + [row]
            known = {"made_by": "python scripts/install_matrix.py", "system": f"{platform.system()}, {platform.machine()}", "network": "none" if offline() else "proxies that lead nowhere", **package, "cells": sorted(rows, key=in_order)}
            write_text(options.out, write_measured(known))
    print(table(known["cells"]))
    for row in known["cells"]:
        for line in failures(row):
            print(f"\nPython {row['python']}, {row['dependencies']}: {line}")
    sys.exit(any(failures(row) for row in known["cells"]))
