"""Shared by all tests: where real music is, and the rule that CI skips nothing."""
import importlib
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Two processes share the tests (see pyproject.toml). Each has one thread, and so has what it starts: threads that wait for one another while others work are slow beyond measure.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background lets them ignore these, and so would every process they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def script(name):
    "A script of the project, as a module that other processes find by its name too."
    place = str(ROOT / "scripts")
    if place not in sys.path:
        sys.path.append(place)
    return importlib.import_module(name)


def small_songs(folder, count, frames):
    "`count` small songs of so many frames at 8 kHz in `folder`, which is returned."
    from timbre_palette.audio import write_audio
    from timbre_palette.synth import demo_clip
    clip = demo_clip(8000)
    for number in range(count):
        write_audio(folder / f"song {number}.flac", np.roll(clip, 7000 * number, axis=1)[:, :frames], 8000, "PCM_16")
    return folder


def data_folder():
    "The folder of real audio, or None."
    for place in (os.environ.get("TIMBRE_PALETTE_DATA"), ROOT.parent / "shared" / "data"):
        if place and (Path(place) / "music" / "test").is_dir():
            return Path(place)
    return None


@pytest.fixture(scope="session")
def songs():
    "The test songs, real music."
    folder = data_folder()
    if folder is None:
        pytest.skip("no real music here: set TIMBRE_PALETTE_DATA to a folder with music/test in it")
    return sorted((folder / "music" / "test").iterdir())


@pytest.fixture(scope="session")
def command():
    "The installed command, as a list."
    path = Path(sys.executable).parent / "timbre-palette"
    assert path.exists(), "the package is not installed in this environment: pip install -e '.[dev]'"
    return [str(path)]


@pytest.fixture(scope="session")
def launched():
    "What to put before a command so that two processes run it, on CPUs too."
    return [str(Path(sys.executable).parent / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no"]


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped and os.environ.get("TIMBRE_PALETTE_NO_SKIPS"):
        terminalreporter.section("skipped where nothing may be skipped", red=True)


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("TIMBRE_PALETTE_NO_SKIPS") and reporter and reporter.stats.get("skipped") and exitstatus == 0:
        session.exitstatus = 1
