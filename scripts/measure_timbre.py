"""Measure what the report on timbre transfer shows: `python scripts/measure_timbre.py DATA --article RUN`, DATA a folder with instruments, whistles, speech and music in it, RUN the folder of a run of
the recipe `trumpet-article`.

Held-out takes played again by the article's auto-encoder and by ours; real whistles played by a trumpet: their pitch, their onsets, and what a classifier calls them; what becomes of silence, speech,
songs and noise; and how fast all that is. Writes timbre_transfer.json to nbs/results/data and pictures to nbs/results/figures. Some ten minutes on one core.
"""
import argparse
import io
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from timbre_palette.audio import PaletteError, db_to_gain, peak_db, read_audio, write_text
from timbre_palette.checkpoint import Pretrained, shipped
from timbre_palette.evaluation import write_measured
from timbre_palette.songs import find_tracks
from timbre_palette.timbre_transfer.instrument import LOWEST_RATE, extract_features
from timbre_palette.timbre_transfer.learning import score_resynthesis
from timbre_palette.timbre_transfer.pitch import TRACKERS, WHISTLE_HZ, agreement, find_onsets, onset_scores, track
from timbre_palette.timbre_transfer.takes import find_takes, split_takes
from timbre_palette.timbre_transfer.transfer import FixedSpectrum, LiveTransfer, find_instrument, find_mapping, pitch_tracked_synthesis, pitched_share, transfer
from timbre_palette.timbre_transfer.whistles import add_noise, whistle

RESULTS = Path(__file__).resolve().parent.parent / "nbs" / "results"
OTHERS = ("yin", "pyin", "praat_ac", "praat_cc", "swift_f0")  # trackers that are not ours
CENTS, ONSET_S = 20, 0.03
SECONDS = 10.0  # of each odd recording
FIRST_SEED = 5000  # of whistles that nothing learned from
RATE = 44100


def resynthesis(data, article, progress):
    "Rows for held-out takes of each instrument that there are weights for, played again; of the trumpet by the article's models too."
    rows = []
    for name in (name for name in shipped() if name.startswith("timbre-")):
        model = find_instrument(name.removeprefix("timbre-"))
        methods = {"pitch-tracked": FixedSpectrum(like=model).resynthesise, name: model.resynthesise, f"{name}, as expected": lambda x, rate, model=model: model.resynthesise(x, rate, 0.0)}
        methods |= {label: other.resynthesise for label, other in article.items()} if name == "timbre-trumpet" else {}
        found = score_resynthesis(methods, split_takes(data / "instruments", model.arguments["instrument"])["test"], progress=progress)
        rows += [{"instrument": model.arguments["instrument"], **row} for row in found]
    return rows


def contour(x, rate, low_hz, high_hz):
    "What at least three of five trackers agree on in a recording, and each tracker's pitch."
    found = {name: track(x, rate, name, low_hz=low_hz, high_hz=high_hz) for name in TRACKERS}
    return agreement(found, CENTS, among=OTHERS).pitch, found


def whistled(folder, methods, judge, progress):
    "A row for each whistle and method: pitch, onsets, and what a classifier calls it."
    rows = []
    for path in tqdm(sorted(folder.iterdir()), desc="whistles", disable=not progress):
        recording = read_audio(path)
        x, rate = recording.samples.mean(0), recording.sample_rate
        asked, heard = contour(x, rate, *WHISTLE_HZ)
        onsets = find_onsets(x, rate, heard["path"])
        octaves = find_mapping(extract_features(x[None, None], rate), find_instrument()).octaves
        rows.append({"file": path.name, "method": "the whistle", "octaves": 0, "called": next(iter(judge.judge(recording.samples, rate))), "trumpet": judge.judge(recording.samples, rate)["trumpet"]})
        for name, method in methods.items():
            begun = time.process_time()
            sound = method(recording.samples, rate)
            taken = time.process_time() - begun
            there, found = contour(sound[0], rate, 80.0, 3000.0)
            cents = 1200 * np.abs(np.log2(np.maximum(there.hz, 1e-6) / np.maximum(asked.hz * 2.0 ** octaves, 1e-6)))
            both = asked.voiced & there.voiced
            rows.append({"file": path.name, "method": name, "octaves": octaves, "frames": int(asked.voiced.sum()), "within_20_cents": float((both & (cents <= CENTS)).sum() / asked.voiced.sum()),
                         "agreed_in_both": float(both.sum() / asked.voiced.sum()), "median_cents": float(np.median(cents[both])),
                         **{f"within_20_cents, {one}": float(((1200 * np.abs(np.log2(np.maximum(pitch.hz, 1e-6) / np.maximum(asked.hz * 2.0 ** octaves, 1e-6))) <= CENTS) & pitch.voiced & asked.voiced).sum() / asked.voiced.sum())
                            for one, pitch in found.items()},
                         "onsets_asked": len(onsets), "onsets": onset_scores(find_onsets(sound[0], rate, found["path"]), onsets, ONSET_S)["f_score"],
                         "called": next(iter(judge.judge(sound, rate))), "trumpet": judge.judge(sound, rate)["trumpet"], "peak_db": float(peak_db(sound)), "times_real_time": recording.seconds / taken})
    return rows


def followed(data, progress, most=30, seconds=8.0):
    "How much of what sounds can be followed, by kind of training recordings: quantiles of `pitched_share`, by which the bound of `transfer` was chosen."
    rng = np.random.default_rng(0)
    kinds = {kind: [one for one in find_takes(data / "instruments", kind) if one.split == "train"] for kind in ("trumpet", "flute", "violin", "saxophone", "clarinet", "singer")}
    kinds |= {"speech": find_tracks(data / "speech" / "words"), "music": find_tracks(data / "music" / "train")}
    sounds = {f"synthetic whistles, {snr_db} dB": [(add_noise(whistle(FIRST_SEED + n, seconds / 2, RATE).samples, snr_db, n), RATE) for n in range(most // 2)] for snr_db in (5, 10, 20, 40)}
    rows = []
    for kind, tracks in tqdm([*kinds.items(), *sounds.items()], desc="shares", disable=not progress):
        if kind in kinds:
            chosen = [tracks[n] for n in rng.permutation(len(tracks))[:most]]
            tracks = [(read_audio(one.path, 0, round(seconds * one.sample_rate)).samples.mean(0, keepdims=True), one.sample_rate) for one in chosen]
        shares = [pitched_share(extract_features(x[None], rate)) for x, rate in tracks if rate >= LOWEST_RATE]
        rows.append({"recordings": kind, "count": len(shares), **{name: float(np.quantile(shares, place)) for name, place in (("lowest", 0), ("5 %", 0.05), ("median", 0.5), ("95 %", 0.95), ("highest", 1))}})
    return rows


def odd(data, instrument, progress):
    "What becomes of what is no single voice: by kind how many recordings are refused, are silent, or are played, and how loud at most."
    rng = np.random.default_rng(0)
    hiss = rng.standard_normal(round(SECONDS * RATE))
    red = np.cumsum(hiss) - np.linspace(0, hiss.sum(), len(hiss))
    made = {"silence": [np.zeros((1, RATE))], "noise": [0.1 * hiss[None], (0.3 * red / np.abs(red).max())[None], 1e-4 * hiss[None]], "clicks": [(np.arange(len(hiss)) % 11025 == 0)[None] * 0.5]}
    sounds = [(kind, sound.astype(np.float32), RATE) for kind, several in made.items() for sound in several]
    for kind, place in (("speech", data / "speech" / "vctk"), ("songs", data / "music" / "test")):
        for one in find_tracks(place):
            sounds.append((kind, read_audio(one.path, 0, round(SECONDS * one.sample_rate)).samples, one.sample_rate))
    rows = {}
    for kind, sound, rate in tqdm(sounds, desc="odd recordings", disable=not progress):
        row = rows.setdefault(kind, {"input": kind, "recordings": 0, "refused": 0, "silent": 0, "played": 0, "loudest_db": None, "finite": True, "said": None})
        row["recordings"] += 1
        try:
            played = transfer(sound, rate, instrument)
        except PaletteError as error:
            row["refused"] += 1
            row["said"] = str(error)
            continue
        row["finite"] &= bool(np.isfinite(played).all()) and played.shape == sound.shape
        row["played" if played.any() else "silent"] += 1
        row["loudest_db"] = max(row["loudest_db"] or -200.0, float(peak_db(played)))
    return list(rows.values())


def live(recording, instrument, blocks=(64, 256, 512, 1024)):
    "Rows of how many times faster than real time a live transfer is on one thread, by processor time, the median of three, by the size of blocks; and its latency."
    x, rows = torch.from_numpy(recording.samples.mean(0, keepdims=True)), []
    for block in blocks:
        taken = []
        for _ in range(4):
            player, begun = LiveTransfer(instrument, recording.sample_rate), time.process_time()
            for part in x.split(block, 1):
                player.push(part)
            taken.append(time.process_time() - begun)
        rows.append({"block": block, "latency_ms": 1000 * player.latency / recording.sample_rate, "times_real_time": recording.seconds / float(np.median(taken[1:]))})
    return rows


def spectrogram(axes, sound, rate, title, f0_hz=None, highest_hz=6000):
    "Draw a spectrogram of a sound `(time,)`, with a pitch and its multiples where it is given."
    axes.specgram(sound + 1e-7 * np.random.default_rng(0).standard_normal(len(sound)), NFFT=1024, Fs=rate, noverlap=768, vmin=-130, vmax=-40, cmap="magma")
    for n in range(1, 6) if f0_hz is not None else ():
        axes.plot(np.arange(len(f0_hz)) / 100, n * f0_hz, color="white", lw=0.6)
    axes.set(ylim=(0, highest_hz), title=title)


def save(figure, path):
    "Write a figure as a PNG of few colours, small enough to be kept."
    stream = io.BytesIO()
    figure.savefig(stream)
    plt.close(figure)
    Image.open(stream).convert("RGB").quantize(48).save(path, optimize=True)


def draw_article(run, path):
    "What a run of the article's recipe plays at its beginning, half-way and near its end, beside its input."
    moments = sorted((folder for folder in run.glob("examples-*")), key=lambda folder: int(folder.name.rpartition("-")[2]))
    figure, panels = plt.subplots(2, 1 + len(moments), figsize=(12, 5), dpi=80, layout="constrained", sharex=True, sharey=True)
    for row, name in zip(panels, ("1", "whistle-1")):
        for axes, (title, sound) in zip(row, [("input", moments[0] / f"{name}-input.wav"), *((f"step {folder.name.rpartition('-')[2]}", folder / f"{name}-output.wav") for folder in moments)]):
            recording = read_audio(sound)
            spectrogram(axes, recording.samples[0], recording.sample_rate, title)
        row[0].set_ylabel("a trumpet (Hz)" if name == "1" else "a whistle (Hz)")
    save(figure, path)


def draw_transfer(path, whistle, sound, asked, octaves):
    "A whistle and the trumpet that plays it, with what is asked of it."
    figure, panels = plt.subplots(1, 2, figsize=(12, 3.6), dpi=80, layout="constrained", sharex=True)
    hz = np.where(asked.voiced, asked.hz, np.nan)
    spectrogram(panels[0], whistle.samples[0], whistle.sample_rate, "a whistle and its pitch, on which three trackers agree", hz)
    spectrogram(panels[1], sound[0], whistle.sample_rate, f"the trumpet, that pitch {-octaves} octave{'s' * (octaves != -1)} down, and its multiples", hz * 2.0 ** octaves)
    for axes in panels:
        axes.set_xlabel("s")
    panels[0].set_ylabel("Hz")
    save(figure, path)


def about(model):
    "Where the figures of a run of the article's recipe come from."
    card = {key: model.card.get(key) for key in ("recipe", "data", "hardware", "minutes", "seconds_per_step", "identity", "curve", "chosen_at_step")}
    card["recipe"]["start"] = Path(card["recipe"]["start"]).parent.name  # the run, not where it was
    return {**card, "parameters": {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in ("encoder", "decoder")}}


def draw(folder, whistle, instrument, runs):
    "All pictures."
    for name, run in runs.items():
        draw_article(run, folder / f"{name}.png")
    asked, _ = contour(whistle.samples.mean(0), whistle.sample_rate, *WHISTLE_HZ)
    found = []
    sound = transfer(whistle.samples, whistle.sample_rate, instrument, told=lambda mapping, share: found.append(mapping))
    draw_transfer(folder / "whistle_to_trumpet.png", whistle, sound, asked, found[0].octaves)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--article", type=Path, nargs="*", default=[], help="folders of runs of the recipe trumpet-article")
    parser.add_argument("--only", nargs="+", choices=("resynthesis", "whistles", "followed", "odd", "live", "article"), help="parts to measure again; the others stay as they are")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = {run.name: run for run in options.article}
    article = {name: Pretrained.from_pretrained(run / "best").eval() for name, run in runs.items()}
    trumpet, judge = find_instrument(), Pretrained.from_pretrained("instrument-classifier").eval()
    first = read_audio(sorted((options.data / "whistles").iterdir())[0])
    methods = {"timbre-trumpet": lambda x, rate: transfer(x, rate, trumpet), "pitch-tracked": lambda x, rate: pitch_tracked_synthesis(x, rate, trumpet)}
    bar = tqdm(desc="resynthesis", disable=None)

    def count(done, total):
        "Move the bar."
        bar.total, bar.n = total, done
        bar.refresh()

    parts = {"resynthesis": lambda: resynthesis(options.data, article, count), "whistles": lambda: whistled(options.data / "whistles", methods, judge, True),
             "followed": lambda: followed(options.data, True), "odd": lambda: odd(options.data, trumpet, True), "live": lambda: live(first, trumpet),
             "article": lambda: {name: about(model) for name, model in article.items()}}
    kept, path = {}, RESULTS / "data" / "timbre_transfer.json"
    if options.only:
        kept = json.loads(path.read_text(encoding="utf-8"))
    measured = {name: kept[name] if options.only and name not in options.only else measure() for name, measure in parts.items()}
    write_text(path, write_measured({"made_by": "python scripts/measure_timbre.py DATA --article RUN", **measured}))
    if not options.only:
        draw(RESULTS / "figures", first, trumpet, runs)
    print(path)
