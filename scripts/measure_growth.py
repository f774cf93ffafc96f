"""See that a server does not grow: `python scripts/measure_growth.py [--calls 10000] [--every 1000] [--seed 0]`.

Short calls, drawn at random with sounds of random length, rate and level, as a server would make them: the palette, styles by the shipped models, effects, loudness, files read, enhanced and written, a match,
a whistle played by an instrument, weights loaded anew, calls that are refused, and now and then some in threads. Prints the memory in use and the open files at 0, `--every`, 2 × `--every` calls and so on.
Ends with 1 if either grows: files beyond those after the first tenth, memory by more than `--allowed-mb` from then to the end, both read after a garbage collection. Linux only. Ten thousand calls take some ten minutes on one core.
"""
import argparse
import ctypes
import gc
import json
import os
import platform
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from timbre_palette.anchors import palette, palette_stages
from timbre_palette.audio import PaletteError, read_audio, read_header, resample, write_audio
from timbre_palette.blend import crossfade, parse_style
from timbre_palette.checkpoint import Pretrained
from timbre_palette.effects.chains import EFFECTS, production
from timbre_palette.enhance import enhance, enhance_file, inspect_file
from timbre_palette.loudness import measure
from timbre_palette.mastering import level_report, limit
from timbre_palette.streaming import open_stream
from timbre_palette.style_transfer.match import find_system, match
from timbre_palette.synth import demo_clip
from timbre_palette.timbre_transfer.transfer import find_instrument, transfer
from timbre_palette.timbre_transfer.whistles import whistle

RATES = (8000, 22050, 44100, 48000)  # Hz


class Sounds:
    "What is drawn for a call, by a generator of its own, and a folder for its files."
    def __init__(self, rng, folder):
        self.rng, self.folder = rng, folder
        self.rate = int(rng.choice(RATES))
        frames, channels = int(rng.integers(100, 6000)), int(rng.integers(1, 3))
        clip = demo_clip(self.rate)
        start = int(rng.integers(clip.shape[1] - frames))
        self.samples = clip[:channels, start:start + frames] * np.float32(rng.uniform(0.1, 2))
        self.x = torch.tensor(self.samples[None])
        self.style = rng.dirichlet(np.ones(3))

    def file(self, suffix=".wav"):
        "A file with the samples."
        path = self.folder / f"in{suffix}"
        write_audio(path, self.samples, self.rate)
        return path


@lru_cache
def _whistle(seed):
    return whistle(seed, seconds=1.0, sample_rate=16000, high_hz=3000.0).samples


def enhanced(model, most=6000):
    return lambda s: enhance(s.samples[:, :most], s.rate, s.style, s.rng.random(), model)


def streamed(s):
    "In blocks, live."
    stream = open_stream(Pretrained.from_pretrained("graybox") if s.rng.random() < 0.3 else palette_stages, s.rate, s.style)
    return [stream.push(block) for block in s.x[0].split(512, -1)]


def through_files(s):
    "Written, enhanced in another format, looked at and read."
    source, out = s.file(s.rng.choice([".wav", ".flac"])), s.folder / f"out{s.rng.choice(['.wav', '.flac', '.ogg', '.mp3'])}"
    with suppress(PaletteError):  # MP3 knows few rates
        enhance_file(source, out, s.style, clip=s.rng.choice(["scale", "limit", "none"]), dithered=True, overwrite=True)
        inspect_file(out)
        read_header(out)
    return read_audio(source)


def refused(s):
    "What ends in an error, and may keep nothing either."
    broken = s.folder / "broken.wav"
    broken.write_bytes(b"RIFF" + s.rng.bytes(300))
    for work in (lambda: read_audio(broken), lambda: enhance_file(broken, s.folder / "no.wav"), lambda: parse_style("x90"), lambda: enhance(s.samples, s.rate, model="none"),
                 lambda: write_audio(s.folder / "no.wav", s.samples * np.nan, s.rate), lambda: enhance_file(s.file(), s.folder / "no.wav", amount=2.0)):
        with suppress(PaletteError):
            work()
            raise AssertionError("this should have been refused")


def in_threads(s):
    "Four calls at once."
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda style: enhance(s.samples, s.rate, style), np.eye(3).tolist() + [s.style]))


def by_gradient(s):
    "A graph, to be forgotten."
    x = s.x.clone().requires_grad_()
    palette(x, s.rate, s.style).square().mean().backward()


# Calls and how often each is drawn.
CALLS = {"palette": (10, lambda s: palette(s.x, s.rate, s.style, s.rng.random(), str(s.rng.choice(["exact", "causal", "stft"])))), "cross-fade": (5, lambda s: crossfade(s.x, s.rate, s.style)),
         "gradient": (5, by_gradient), "graybox": (15, enhanced("graybox")), "dsp": (10, enhanced("dsp")), "blackbox": (2, enhanced("blackbox", 2000)), "waveunet": (1, enhanced("waveunet-v2", 1000)),
         "stream": (8, streamed), "effects": (10, lambda s: production().render(s.x, s.rate, production().random(1, s.rng.integers(1 << 30))[0])),
         "room": (2, lambda s: EFFECTS["room_reverb"](s.x, s.rate, room=s.rng.random())), "noise room": (1, lambda s: EFFECTS["noise_reverb"](s.x, 8000)),
         "loudness": (10, lambda s: measure(s.samples, s.rate)), "levels": (5, lambda s: level_report(s.samples, s.rate)), "limiter": (5, lambda s: limit(s.x, s.rate, -6.0)),
         "resampling": (5, lambda s: resample(s.samples, s.rate, int(s.rng.choice(RATES)))), "read and write": (10, lambda s: read_audio(s.file())), "files": (10, through_files),
         "weights": (3, lambda s: Pretrained.from_pretrained(str(s.rng.choice(["graybox", "blackbox", "timbre-flute"])))), "refused": (5, refused), "threads": (2, in_threads),
         "match": (1, lambda s: match(demo_clip(22050)[:, :12000], 22050, s.samples, s.rate, model=_system())), "preset": (1, lambda s: match(demo_clip(22050)[:, :12000], 22050, preset="warm", model=_system())),
         "transfer": (1, lambda s: transfer(_whistle(s.rng.integers(3)), 16000, _instrument()))}


@lru_cache
def _system():
    return find_system("music")


@lru_cache
def _instrument():
    return find_instrument("trumpet")


def resident_mb():
    "Memory that is in use now, in MB, without what is free and only kept by the C library."
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_files():
    return len(os.listdir("/proc/self/fd"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=10000)
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--allowed-mb", type=float, default=30.0)
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.json", help="what was read")
    options = parser.parse_args()
    torch.set_num_threads(1)  # short calls
    names, weights = list(CALLS), np.array([weight for weight, _ in CALLS.values()], float)
    readings, started = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        def draw(name, number):
            CALLS[name][1](Sounds(np.random.default_rng([options.seed, number]), Path(folder)))

        def read(done):
            readings.append((done, resident_mb(), open_files(), threading.active_count()))
            print(f"{done:6d} calls: {readings[-1][1]:7.1f} MB, {readings[-1][2]} open files, {readings[-1][3]} threads, {time.perf_counter() - started:.0f} s", flush=True)

        read(0)
        for number, name in enumerate(names):  # each once, so that everything is loaded
            draw(name, 10 ** 9 + number)
        rng = np.random.default_rng(options.seed)
        for number in range(options.calls):
            draw(names[rng.choice(len(names), p=weights / weights.sum())], number)
            if (number + 1) % options.every == 0:
                read(number + 1)
        left = [path.name for path in Path(folder).iterdir() if path.name.startswith(".")]
    warm = next(reading for reading in readings if reading[0] >= max(options.every, options.calls / 10))
    grown, problems = readings[-1][1] - warm[1], []
    if grown > options.allowed_mb:
        problems.append(f"memory grew by {grown:.1f} MB")
    problems += [f"{what} rose from {warm[k]} to {readings[-1][k]}" for k, what in ((2, "open files"), (3, "threads")) if readings[-1][k] > warm[k]]
    if left:
        problems.append(f"temporary files are left: {', '.join(left)}")
    if options.out:
        rows = [dict(zip(("calls", "memory (MB)", "open files", "threads"), (done, round(megabytes, 1), files, threads))) for done, megabytes, files, threads in readings]
        options.out.write_text(json.dumps({"seed": options.seed, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print("; ".join(problems) or f"nothing grew: {grown:+.1f} MB in {readings[-1][0] - warm[0]} calls, {readings[-1][2]} open files")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
