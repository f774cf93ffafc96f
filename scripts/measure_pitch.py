"""Measure what the report on pitch shows: `python scripts/measure_pitch.py DATA`, DATA a folder with whistles in it.

Every tracker on synthetic whistles, over the signal-to-noise ratio, the register and the rate, told the range of whistles and told a wide one; on sines and on sounds without a pitch; what
trackers agree on in the real whistles; and how fast each is. Writes pitch.json to nbs/results/data. Some minutes on one core.
"""
import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from timbre_palette.audio import read_audio, write_text
from timbre_palette.evaluation import write_measured
from timbre_palette.timbre_transfer.pitch import HOP_S, RANGE_HZ, TRACKERS, WHISTLE_HZ, LivePitch, agreement, find_onsets, onset_scores, pitch_scores, track
from timbre_palette.timbre_transfer.whistles import add_noise, whistle

FOLDER = Path(__file__).resolve().parent.parent / "nbs" / "results" / "data"
SNRS_DB = (0, 5, 10, 15, 20, 30, 40)
RATES = (44100, 16000, 48000)
REGISTERS = ((500, 1000), (1000, 2000), (2000, 3500), (3500, 5000))  # Hz
FIRST_SEED = 1000  # none of these tunes was looked at when the trackers were made
OTHERS = ("yin", "pyin", "praat_ac", "praat_cc", "swift_f0")  # those that are not ours
METHODS = {**{name: partial(track, method=name) for name in TRACKERS}, "swift_f0, not slowed": partial(track, method="swift_f0", slowed=1)}


def measure(task):
    "What every tracker scores on one tune with each level of noise, with its onsets: rows."
    n, seconds, snrs_db, range_hz, settings = task
    tune, rows = whistle(FIRST_SEED + n, seconds, RATES[n % len(RATES)], **settings), []
    for snr_db in snrs_db:
        heard = add_noise(tune.samples, snr_db, FIRST_SEED + n)
        for name, method in METHODS.items():
            found = method(heard, tune.sample_rate, low_hz=range_hz[0], high_hz=range_hz[1])
            onsets = onset_scores(find_onsets(heard, tune.sample_rate, found), tune.onsets_s)["f_score"]
            rows.append({"tracker": name, "snr_db": snr_db, **pitch_scores(found, tune.pitch), "onsets": onsets})
    return rows


def over_tunes(pool, bar, count, seconds, snrs_db, range_hz, **settings):
    "A row for each level of noise and each tracker: means over so many tunes, the median of the medians, and the worst tune."
    found, rows = [], []
    for some in pool.map(measure, [(n, seconds, snrs_db, range_hz, settings) for n in range(count)]):
        found += some
        bar.update()
    for snr_db in snrs_db:
        for name in METHODS:
            mine = [{key: value for key, value in row.items() if key not in ("tracker", "snr_db")} for row in found if (row["tracker"], row["snr_db"]) == (name, snr_db)]
            means = {key: round(float((np.nanmedian if key == "median_cents" else np.mean)([one[key] for one in mine])), 4) for key in mine[0]}
            rows.append({"tracker": name, "snr_db": snr_db, **means, "worst_f_score": round(min(one["f_score"] for one in mine), 4)})
    return rows


def without_pitch():
    "What is not a note: the share of frames that is called one, by what it is."
    rng = np.random.default_rng(0)
    hiss = rng.standard_normal(3 * 44100)
    return {"silence": np.zeros(44100), "white noise": 0.1 * hiss, "red noise": 0.002 * (np.cumsum(hiss) - np.linspace(0, np.sum(hiss), len(hiss)))}


def sines(hz_s, rate=44100):
    "Cents by which each tracker is off a sine, told the widest range."
    rows = []
    for hz in hz_s:
        x = 0.5 * np.sin(2 * np.pi * hz * np.arange(rate) / rate)
        found = {name: track(x, rate, name) for name in TRACKERS}
        rows.append({"hz": hz, **{name: round(float(np.median(1200 * np.log2(pitch.hz[pitch.voiced] / hz))), 2) if pitch.voiced[5:-5].mean() > 0.5 else None for name, pitch in found.items()}})
    return rows


def real(folder):
    "What trackers agree on in recordings: three of those that are not ours make the consensus, ours are held against it too."
    rows = []
    for path in sorted(folder.iterdir()):
        recording = read_audio(path)
        x = recording.samples.mean(0)
        found = {name: track(x, recording.sample_rate, name, low_hz=WHISTLE_HZ[0], high_hz=WHISTLE_HZ[1]) for name in TRACKERS}
        together = agreement(found, among=OTHERS)
        frames = int(together.pitch.voiced.sum())
        onsets = find_onsets(x, recording.sample_rate, found["path"])
        rows.append({"file": path.name, "seconds": round(recording.seconds, 2), "frames_agreed": frames, "share_agreed": round(frames / len(together.pitch.hz), 3),
                     "low_hz": round(float(together.pitch.hz[together.pitch.voiced].min())), "high_hz": round(float(together.pitch.hz[together.pitch.voiced].max())),
                     "onsets": len(onsets), "onsets_live": round(onset_scores(find_onsets(x, recording.sample_rate, found["live"]), onsets)["f_score"], 3),
                     **{name: round(share, 4) for name, share in together.within.items()}, **{f"{name} beyond": round(share, 3) for name, share in together.beyond.items()}})
    return rows


def speed(seconds=5, rate=44100, block=512):
    "How many times faster than real time each tracker is, by processor time, medians of two, after one to warm up; the live one in blocks."
    tune = whistle(FIRST_SEED, seconds, rate)
    x, rows = add_noise(tune.samples, 20)[0], []
    def live():
        tracker = LivePitch(rate, HOP_S, *WHISTLE_HZ)
        for start in range(0, len(x), block):
            tracker.push(x[start:start + block])
    for name, work in {**{name: partial(track, x, rate, name, low_hz=WHISTLE_HZ[0], high_hz=WHISTLE_HZ[1]) for name in TRACKERS}, f"live, blocks of {block}": live}.items():
        taken = []
        for _ in range(3):
            begun = time.process_time()
            work()
            taken.append(time.process_time() - begun)
        rows.append({"tracker": name, "times_real_time": round(seconds / float(np.median(taken[1:])), 1)})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tunes", type=int, default=8, help="tunes for each level of noise, half as many for the other tables (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    options = parser.parse_args()
    few = max(3, options.tunes // 2)
    with tqdm(total=options.tunes + few * (len(REGISTERS) + 2)) as bar, ProcessPoolExecutor(options.workers) as pool:
        part = partial(over_tunes, pool, bar)
        noise = part(options.tunes, options.seconds, SNRS_DB, WHISTLE_HZ)
        wide = part(few, options.seconds, (20,), RANGE_HZ)
        registers = [{"low_hz": low, "high_hz": high, **row} for low, high in REGISTERS for row in part(few, options.seconds, (10,), WHISTLE_HZ, low_hz=low, high_hz=high)]
        breathy = part(few, options.seconds, (20,), WHISTLE_HZ, breath_db=-10.0, vibrato_cents=120.0)
    nothing = [{"sound": sound, **{name: round(float(track(x, 44100, name).voiced.mean()), 3) for name in TRACKERS}} for sound, x in without_pitch().items()]
    measured = {"made_by": f"python scripts/measure_pitch.py DATA --tunes {options.tunes} --seconds {options.seconds:g}", "tunes": options.tunes, "tunes_elsewhere": few, "seconds": options.seconds, "first_seed": FIRST_SEED, "rates": RATES,
                "range_hz": WHISTLE_HZ, "wide_range_hz": RANGE_HZ, "latency_ms": {f"from {low:g} Hz": round(1000 * LivePitch(44100, low_hz=low).latency_s, 1) for low in (RANGE_HZ[0], WHISTLE_HZ[0])},
                "noise": noise, "wide": wide, "registers": registers, "breathy": breathy, "sines": sines((110, 220, 440, 880, 1760, 2500, 3520, 4999)), "nothing": nothing, "real": real(options.data / "whistles"), "speed": speed()}
    write_text(FOLDER / "pitch.json", write_measured(measured))
    print(FOLDER / "pitch.json")
