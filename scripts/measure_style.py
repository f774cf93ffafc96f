"""Measure what the report on style transfer shows: `python scripts/measure_style.py DATA`, DATA a folder with music/test and speech/vctk in it.

Scores the shipped systems, with refinement and without, beside an untouched input and the rule-based baseline: on synthetic pairs whose reference is another part of the
recording (`--parts music speech`) or the same (`--parts music-same speech-same`), on pairs of different recordings (`--parts real-music real-speech`), what each step of refinement brings and costs (`--parts steps`), and how fast a song is matched (`--parts speed`).
Writes style_<part>.json to nbs/results/data. Some ten minutes a part on one core.
"""
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from timbre_palette.audio import write_audio, write_text
from timbre_palette.evaluation import write_measured
from timbre_palette.songs import find_tracks
from timbre_palette.style_transfer.match import find_system, match_file
from timbre_palette.style_transfer.refine import STEPS
from timbre_palette.style_transfer.scores import by_rules, by_system, realistic_pairs, reference_itself, score_pairs, summarise_scores, synthetic_pairs, untouched
from timbre_palette.synth import demo_clip

FOLDER = Path(__file__).resolve().parent.parent / "nbs" / "results" / "data"
PLACES = {"music": "music/test", "speech": "speech/vctk"}  # of what no system has heard
KEPT_STEPS = (0, 5, 10, 20, 30, 60)


def methods_of(system):
    "The rows of the tables."
    return {"input": untouched, "rule-based DSP": by_rules, "AD": by_system(system, level=False), "AD, level matched": by_system(system), f"AD, {STEPS} steps of refinement": by_system(system, steps=STEPS)}


def write(part, **found):
    "A JSON file of the report."
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"style_{part.replace('-', '_')}.json"
    write_text(path, write_measured({"made_by": f"python scripts/measure_style.py DATA --parts {part}", "threads": torch.get_num_threads(), **found}))
    print(path)


def rounded(records):
    "Records short enough to be kept."
    return [{name: round(value, 4) if isinstance(value, float) and np.isfinite(value) else None if isinstance(value, float) else value for name, value in record.items()} for record in records]


def score(part, kind, pairs, count, methods, more=()):
    "Score a list of pairs and keep the records, after `more`."
    with tqdm(total=count, desc=part) as bar:
        records = score_pairs(methods, pairs, progress=lambda done: bar.update())
    rows = [row for some in (records, more) for row in summarise_scores(some)]
    for row in rows:
        print({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()})
    write(part, system=f"style-{kind}", rows=rounded(rows), records=rounded(records))


def synthetic(kind, same=False):
    "A part: pairs with a known target, three segments of each recording; and how far apart their halves are."
    def measure(part, data, options):
        system, tracks = find_system(options.system or kind), find_tracks(data / PLACES[kind])
        pairs = [pair for seed in range(options.seeds) for pair in synthetic_pairs(tracks, system.effects, seed=seed, same=same)]
        halves = [] if same else score_pairs({"the reference itself": reference_itself}, pairs, ("MSD-average", "SCE", "RMS", "LUFS"))
        score(part, kind, pairs, len(pairs), methods_of(system), halves)
    return measure


def realistic(kind):
    "A part: every style brought to every style, between different recordings."
    def measure(part, data, options):
        system, tracks = find_system(options.system or kind), find_tracks(data / PLACES[kind])
        score(part, kind, realistic_pairs(tracks, system.effects, options.times), 25 * options.times, methods_of(system))
    return measure


def steps(part, data, options):
    "What so many steps of refinement bring, and how long they take."
    system, tracks = find_system(options.system or "music"), find_tracks(data / PLACES["music"])
    rows, pairs = [], list(synthetic_pairs(tracks, system.effects, seed=9))
    for count in tqdm(KEPT_STEPS, desc=part):
        begun = time.perf_counter()
        transfer = by_system(system, steps=count)
        outputs = [transfer(pair.input, pair.reference, pair.sample_rate) for pair in pairs]
        seconds = (time.perf_counter() - begun) / len(pairs)
        found = summarise_scores(score_pairs({"AD": lambda *pair, outputs=iter(outputs): next(outputs)}, pairs, ("STFT", "MSD", "SCE", "RMS", "LUFS")))[0]
        rows.append({"steps": count, "seconds": round(seconds, 2), **{name: round(value, 4) for name, value in found.items() if isinstance(value, float)}})
        print(rows[-1])
    write(part, system="style-music", pairs=len(pairs), seconds_heard=5.0, rows=rows)


def speed(part, data, options):
    "A stereo song of three minutes at 44.1 kHz, matched from file to file, in seconds; the medians of five, after one to warm up."
    system = find_system(options.system or "music")
    with tempfile.TemporaryDirectory() as folder:
        clip = demo_clip(44100)
        song = np.tile(clip, -(-180 * 44100 // clip.shape[1]))[:, :180 * 44100]
        write_audio(Path(folder) / "song.wav", song, 44100, "PCM_16")
        write_audio(Path(folder) / "reference.wav", np.tile(demo_clip(44100, 5), 4), 44100, "PCM_16")
        rows = []
        for count in (0, STEPS):
            taken = []
            for _ in range(6 if not count else 2):
                begun = time.perf_counter()
                match_file(Path(folder) / "song.wav", Path(folder) / "out.wav", Path(folder) / "reference.wav", model=system, steps=count)
                taken.append(time.perf_counter() - begun)
            rows.append({"steps": count, "seconds": round(float(np.median(taken[1:])), 2), "times_real_time": round(180 / float(np.median(taken[1:])), 1)})
            print(rows[-1])
    write(part, system="style-music", rows=rows)


PARTS = {"music": synthetic("music"), "speech": synthetic("speech"), "music-same": synthetic("music", True), "speech-same": synthetic("speech", True), "real-music": realistic("music"), "real-speech": realistic("speech"), "steps": steps, "speed": speed}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3, help="segments of each recording (default: %(default)s)")
    parser.add_argument("--times", type=int, default=3, help="pairs of each two styles (default: %(default)s)")
    parser.add_argument("--system", help="weights to score in place of the shipped ones")
    options = parser.parse_args()
    for name in options.parts:
        PARTS[name](name, options.data, options)
