"""Threads and processes: calls at once give what they give one after another, after a fork and under spawn too; and ten thousand of them leave nothing behind."""
import hashlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from timbre_palette.anchors import palette
from timbre_palette.audio import read_audio, write_audio
from timbre_palette.effects.chains import production
from timbre_palette.enhance import enhance, enhance_file, find_model
from timbre_palette.filters import mel_filters
from timbre_palette.loudness import loudness_reference, measure
from timbre_palette.metrics import band_levels
from timbre_palette.style_transfer.match import match
from timbre_palette.synth import demo_clip
from timbre_palette.timbre_transfer.instrument import noise_matrix
from timbre_palette.timbre_transfer.transfer import find_instrument, transfer
from timbre_palette.timbre_transfer.whistles import whistle

ROOT = Path(__file__).resolve().parent.parent
TESTS = Path(__file__).resolve().parent
CLIP = demo_clip(22050)[:, :11025]
PATIENCE_S = 240  # after which a process that waits for another is held to wait for ever


def file_again(suffix, **changes):
    "The bytes of a file that was written, enhanced and written again."
    with tempfile.TemporaryDirectory() as folder:
        write_audio(Path(folder) / "in.wav", CLIP, 22050, "PCM_16")
        enhance_file(Path(folder) / "in.wav", Path(folder) / f"out{suffix}", **changes)
        return read_audio(Path(folder) / f"out{suffix}").samples


# What a server calls: each returns arrays or numbers.
CALLS = {"palette": lambda: palette(torch.tensor(CLIP[None]), 22050, [0.2, 0.3, 0.5]).numpy(),
         "causal palette": lambda: palette(torch.tensor(CLIP[None]), 22050, [1, 1, 1], 0.5, "causal").numpy(),
         "effects": lambda: production()(torch.tensor(CLIP[None]), 22050, compressor_threshold_db=-30.0, equaliser_peak_1_gain_db=6.0).numpy(),
         "dsp": lambda: enhance(CLIP, 22050, "s80_a10_m10", model="dsp"),
         "graybox": lambda: enhance(CLIP, 22050, "warmth"),
         "blackbox": lambda: enhance(CLIP[:, :3000], 44100, "layeredness", model="blackbox"),
         "waveunet": lambda: enhance(CLIP[:1, :3000], 44100, "fullness", model="waveunet-v2"),
         "loudness": lambda: np.array([*measure(CLIP, 22050), loudness_reference(CLIP, 22050), *band_levels(CLIP, 22050).values()]),
         "file": lambda: file_again(".flac", style="s33_a33_m33", clip="limit", dithered=True),
         "ogg": lambda: file_again(".ogg", style="warmth", model="dsp"),
         "match": lambda: np.array(list(match(CLIP, 22050, CLIP[:, ::-1] * np.float32(0.3)).settings.values())),
         "preset": lambda: np.array(list(match(CLIP, 22050, preset="warm").settings.values())),
         "transfer": lambda: transfer(whistle(3, seconds=1.0, sample_rate=16000, high_hz=3000.0).samples, 16000, find_instrument("trumpet"))}


def digest(name):
    "What a call gives, bit for bit, as a word."
    return hashlib.sha256(np.ascontiguousarray(CALLS[name]()).tobytes()).hexdigest()


def one_after_another():
    return {name: digest(name) for name in CALLS}


def at_once(threads=3):
    "The words that each call gave in several threads, which begin together and each in an order of its own."
    start, names = threading.Barrier(threads), list(CALLS)

    def work(number):
        start.wait(PATIENCE_S)
        return [(names[k], digest(names[k])) for k in np.random.default_rng(number).permutation(len(names))]

    found = {name: set() for name in CALLS}
    with ThreadPoolExecutor(threads) as pool:
        for name, word in (pair for done in pool.map(work, range(threads)) for pair in done):
            found[name].add(word)
    return found


def cold(pipe):
    "In a new process, in which nothing is loaded yet: the threads come first."
    together = at_once()
    pipe.send((together, one_after_another()))


@pytest.fixture(scope="module")
def words():
    return one_after_another()


def answer(context, work, *arguments):
    "What a process of that context sends, within the time that it is given."
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(*arguments, send))
    process.start()
    send.close()
    try:
        assert receive.poll(PATIENCE_S), "nothing came: it waits for what is not there"
        return receive.recv()
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()


def test_threads_at_once_give_what_one_gives(words):
    filters = list(warnings.filters)
    assert at_once() == {name: {word} for name, word in words.items()}
    assert warnings.filters == filters


def test_a_new_process_whose_threads_come_first(words):
    "Under spawn: models, caches and modules are loaded by several threads at once, and everything is the same in another process."
    together, after = answer(multiprocessing.get_context("spawn"), cold)
    assert after == words and together == {name: {word} for name, word in words.items()}


def forked(pipe):
    pipe.send(one_after_another())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot fork here")
def test_a_fork_after_torch_was_used(words):
    assert answer(multiprocessing.get_context("fork"), forked) == words


FORK = """
import multiprocessing, os, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
import test_processes as tests
big = np.tile(tests.CLIP, 4)  # enough for torch to share it among threads
render = lambda: [tests.palette(torch.tensor(big[None]), 22050, [1, 1, 1]).numpy(), tests.enhance(big, 22050), tests.CALLS["match"]()]
assert torch.get_num_threads() == 2
before = render()
def child(pipe):
    pipe.send(max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(render(), before)))
print(tests.answer(multiprocessing.get_context("fork"), child))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot fork here")
def test_a_fork_after_torch_used_several_threads():
    "OpenMP's threads are not there in the child, which must not wait for them."
    done = subprocess.run([sys.executable, "-c", FORK, str(TESTS)], env={**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}, capture_output=True, text=True, timeout=2 * PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-3  # sums in another order


def test_warnings_are_as_they_were_however_many_threads_measure():
    "Their filters belong to the whole process, and who saves them must not restore another's."
    filters, x, start = list(warnings.filters), np.random.default_rng(0).uniform(-1, 1, (1, 8000)), threading.Barrier(4)

    def work(number):
        start.wait(PATIENCE_S)
        for _ in range(200):
            loudness_reference(x, 8000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert warnings.filters == filters


def model(name):
    return lambda: find_model(name)(torch.tensor(CLIP[None, :, :2000]), 44100, [1, 1, 1])


# What is loaded or computed once and kept; which of it is asked for first, in which mode, must not matter.
KEPT = {"graybox": model("graybox"), "blackbox": model("blackbox"), "waveunet": model("waveunet-v2"), "mel bands": lambda: mel_filters(12345, 1024), "noise bands": lambda: noise_matrix(12345)}


@pytest.mark.parametrize("name", KEPT)
def test_what_was_kept_for_inference_serves_gradients(name):
    from timbre_palette.enhance import _shipped_model
    _shipped_model.cache_clear()
    mel_filters.cache_clear()
    noise_matrix.cache_clear()
    with torch.inference_mode():
        KEPT[name]()
    kept = KEPT[name]()
    weight = torch.ones_like(kept, requires_grad=True)
    (weight * kept).sum().backward()
    assert weight.grad.isfinite().all() and weight.grad.any()
    if name in ("graybox", "blackbox", "waveunet"):
        x = torch.tensor(CLIP[None, :, :2000], requires_grad=True)
        find_model({"waveunet": "waveunet-v2"}.get(name, name))(x, 44100, [1, 1, 1]).square().sum().backward()
        assert x.grad.isfinite().all() and x.grad.any()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")
def test_two_hundred_calls_leave_nothing_behind():
    "`scripts/measure_growth.py` makes ten thousand."
    done = subprocess.run([sys.executable, ROOT / "scripts" / "measure_growth.py", "--calls", "200", "--every", "50", "--allowed-mb", "20"], capture_output=True, text=True, timeout=2 * PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.strip().splitlines()) > 5
