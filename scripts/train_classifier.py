"""Train the instrument classifier that judges timbre transfer: `python scripts/train_classifier.py DATA -o OUT`, DATA a folder with manifest.csv, instruments, speech and whistles in it.

Writes a checkpoint with its card to OUT and prints what it gets right. `--work` is a folder for features, `--hidden 0` trains logistic regression.
A few minutes on one core, most of them for features.
"""
import argparse
import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from timbre_palette.audio import read_audio, resample
from timbre_palette.effects.reverb import noise_reverb
from timbre_palette.material import sawtooth
from timbre_palette.songs import Track, describe_tracks, split_between, title_key
from timbre_palette.timbre_transfer.classifier import CLASSES, JUDGE_RATE, InstrumentClassifier, judge_windows, timbre_features
from timbre_palette.timbre_transfer.oscillator import filtered_noise, oscillate
from timbre_palette.timbre_transfer.takes import prepare_take
from timbre_palette.timbre_transfer.whistles import whistle as whistled_tune

SHARE, SEED = 0.5, 0  # of the train recordings of instruments that are the classifier's; the models have the others
SHARE_OF_OTHERS = 0.8  # of instruments that no model learns; the rest is held out
LEARNED = ("trumpet", "flute", "strings", "voice")  # classes that models may learn
WHISTLES = 300  # synthetic ones of each of two kinds, two seconds each
FAMILIES = {"singer": "voice", "speech": "voice", "guitar-acoustic": "struck", "guitar": "struck", "piano": "struck", "violin": "strings", "cello": "strings",
            "saxophone": "reed", "clarinet": "reed", "loop": "other"}  # classes of the manifest's names that are not classes themselves
PHRASES = {"cello-double-2": "cello", "cello-double": "cello", "cello-phrase": "cello", "flute-A4": "flute", "piano": "piano", "sax-phrase-short": "saxophone", "sax-phrase": "saxophone",
           "singing-female": "voice", "soprano-E4": "voice", "speech-female": "speech", "speech-male": "speech", "trumpet-A4": "trumpet", "violin-B3": "violin"}  # the test phrases that one class fits
LONGEST = 20.0  # seconds of a recording that are read
COPIES = 3  # of each window: as it is, and in two rooms
COPIES_OF = {"reed": 10}  # where there are fewest recordings
TUNES = 150  # of each class, joined of short pieces: most recordings are single long notes, and melodies are to be judged
SEMITONES = 3.0  # at most, that a copy is faster or slower
LICENCE = "Apache-2.0 (the weights; the recordings they learned from have the licences listed under data, and are not in the package)"


def read_rows(data):
    "Pairs of a `Track` and its class, by split; the class of what is none of ours is its kind."
    splits = defaultdict(list)
    with open(data / "manifest.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            top, _, folder = row["file"].partition("/")
            if top in ("instruments", "speech", "whistles"):
                path = data / row["file"]
                kind = PHRASES.get(path.stem, "phrase") if folder.startswith("phrases") else row["kind"]
                kind = FAMILIES.get(kind, kind)
                track = Track(path, int(row["sample_rate"]), round(float(row["seconds"]) * int(row["sample_rate"])), title_key(path.stem), folder.partition("/")[0], row["split"])
                splits[row["split"]].append((track, kind))
    return splits


def whistle(rng, seconds=2.0):
    "A synthetic whistle `(1, time)` at the classifier's rate: a gliding pitch with vibrato, a faint harmonic or two, breath about the pitch."
    hop, frames = 80, int(seconds * JUDGE_RATE / 80)
    t = np.arange(frames) / frames * seconds
    places = np.sort(rng.uniform(0, seconds, 4))
    notes = np.interp(t, places, rng.uniform(0, 1, 4)) if rng.random() < 0.5 else rng.uniform(0, 1, 4)[np.searchsorted(places, t).clip(max=3)]
    base = rng.uniform(np.log2(500), np.log2(3000))
    pitch = 2 ** (base + notes * rng.uniform(0, 1)) * 2 ** (rng.uniform(0, 0.04) * np.sin(2 * np.pi * rng.uniform(4, 7) * t))
    level = np.interp(t, np.sort(rng.uniform(0, seconds, 5)), rng.uniform(0.2, 1, 5)) * np.minimum(1, np.minimum(t, seconds - t) / rng.uniform(0.01, 0.1))
    levels = level[:, None] * 10 ** (np.array([0, rng.uniform(-50, -3), rng.uniform(-60, -9)]) / 20)
    tone, _ = oscillate(torch.tensor(pitch[None]).float(), torch.tensor(levels[None]).float(), JUDGE_RATE, hop)
    grid, centre = np.linspace(0, 8000, 65), np.median(pitch)
    breath = np.exp(-np.abs(np.log2(np.maximum(grid, 50) / centre)) / rng.uniform(0.3, 2)) * 10 ** (rng.uniform(-50, -6) / 20)
    noise, _ = filtered_noise(torch.tensor((level[:, None] * breath)[None]).float(), hop, seed=int(rng.integers(1 << 31)))
    return (tone + noise)[0].numpy()


def bent(take, start, seconds, semitones):
    "A piece of a take `(time,)` at the classifier's rate, from a place on, so much faster or slower at its beginning and at its end."
    speed = 2 ** (np.linspace(*semitones, round(seconds * JUDGE_RATE)) / 12)
    piece = np.interp(start + np.cumsum(speed), np.arange(len(take)), take, right=0.0)
    ramp = np.minimum(1, np.arange(len(piece)) / (0.005 * JUDGE_RATE)) * np.minimum(1, np.arange(len(piece))[::-1] / (0.02 * JUDGE_RATE))
    return piece * ramp


def melody(takes, rng):
    "A tune `(1, time)`, up to two seconds long, of pieces of some `takes` of one instrument, a few of them gliding, with pauses or without."
    parts, pauses, seconds = [], rng.random() < 0.5, rng.uniform(0.5, 2.0)
    while sum(map(len, parts)) < seconds * JUDGE_RATE:
        take, length, slow = takes[rng.integers(len(takes))], rng.uniform(0.08, 0.6), rng.uniform(-SEMITONES, SEMITONES)
        start = 0 if rng.random() < 0.5 else rng.uniform(0, max(1, len(take) - length * JUDGE_RATE))
        parts.append(bent(take, start, length, (slow, slow + (rng.uniform(-5, 5) if rng.random() < 0.3 else 0.0))) * 10 ** (rng.uniform(-6, 0) / 20))
        if pauses:
            parts.append(np.zeros(round(rng.uniform(0.02, 0.2) * JUDGE_RATE)))
    return np.concatenate(parts)[None, :round(seconds * JUDGE_RATE)].astype(np.float32)


def melodies(rows, whistles, rng, progress):
    "Features of tunes joined of recordings, and of synthetic `whistles`, and their classes."
    takes, found, labels = defaultdict(lambda: defaultdict(list)), [], []
    for track, label in tqdm(rows, desc="takes"):
        recording = read_audio(track.path, 0, round(LONGEST * track.sample_rate))
        take = prepare_take(resample(recording.samples, track.sample_rate, JUDGE_RATE), JUDGE_RATE)
        if len(take) > JUDGE_RATE // 10:
            takes[label][track.path.parent].append(take)
    for n, samples in enumerate(whistles):
        takes["whistle"][n % 2].append(samples[0])
    for label in tqdm(sorted(takes), desc=progress):
        groups = list(takes[label].values())
        chances = np.sqrt([len(group) for group in groups])
        for _ in range(TUNES):
            found.append(features_of(melody(groups[rng.choice(len(groups), p=chances / chances.sum())], rng), JUDGE_RATE, rng, 2))
            labels.append(label)
    return found, labels


def in_rooms(x, rng):
    "Windows `(n, 1, time)` in a room drawn at random, with noise of a colour drawn at random under them."
    decay = 10 ** rng.uniform(-1, 0.2)
    wet = noise_reverb(x, JUDGE_RATE, torch.tensor(rng.uniform(-12, 0, (1, 8))), torch.tensor(decay * rng.uniform(0.6, 1.4, (1, 8))).clamp(max=5.0), float(rng.uniform(0.05, 0.4)), int(rng.integers(4)))
    spectrum = np.fft.rfft(rng.standard_normal((len(x), x.shape[-1]))) / np.arange(1, x.shape[-1] // 2 + 2) ** rng.uniform(0, 1)
    noise = torch.tensor(np.fft.irfft(spectrum, x.shape[-1])[:, None]).float()
    scale = wet.square().mean(-1, keepdim=True).sqrt() / noise.square().mean(-1, keepdim=True).sqrt()
    return wet + noise * scale * 10 ** (-rng.uniform(8, 60) / 20)


def features_of(samples, rate, rng, copies):
    "Features `(windows, n)` of a recording, first of itself, then of copies in rooms, faster or slower."
    found = [timbre_features(judge_windows(samples, rate))]
    for _ in range(copies - 1):
        played_at = round(rate * 2 ** (rng.uniform(-SEMITONES, SEMITONES) / 12))
        found.append(timbre_features(in_rooms(judge_windows(samples, played_at), rng)))
    return torch.cat(found)


def gather(rows, copies, progress):
    "A list of features of recordings, one item for each row."
    rng, found = np.random.default_rng(SEED), []
    for track, label in tqdm(rows, desc=progress):
        found.append(features_of(read_audio(track.path, 0, round(LONGEST * track.sample_rate)).samples, track.sample_rate, rng, COPIES_OF.get(label, copies) if copies > 1 else 1))
    return found


def fit(recordings, labels, sources, hidden, steps, seed=SEED):
    "An `InstrumentClassifier` trained on features of recordings: classes count alike, and in a class its sources by the root of their size."
    torch.manual_seed(seed)
    x = torch.cat(recordings)
    owner = [n for n, features in enumerate(recordings) for _ in features]
    y = torch.tensor([CLASSES.index(labels[n]) for n in owner])
    groups = [(labels[n], sources[n]) for n in owner]
    size, of_class = Counter(groups), Counter()
    for (label, _), count in size.items():
        of_class[label] += count ** 0.5
    weights = torch.tensor([1 / (size[group] ** 0.5 * of_class[group[0]]) for group in groups])
    model = InstrumentClassifier(hidden=hidden, features=x.shape[1]).train()
    model.centre.copy_(x.mean(0))
    model.spread.copy_(x.std(0) + 0.02)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps)
    bands, generator = x.shape[1] // 3, torch.Generator().manual_seed(seed)
    waves = torch.cos(torch.pi * torch.arange(1, 5)[:, None] * torch.linspace(0, 1, bands)) * torch.tensor([1.0, 0.7, 0.5, 0.35])[:, None]
    for pick in torch.multinomial(weights, 256 * steps, replacement=True, generator=generator).split(256):
        batch = x[pick]
        batch[:, :bands] += 0.4 * torch.randn(256, 4, generator=generator) @ waves  # tens of dB: a tone curve
        loss = nn.functional.nll_loss(model.scores(batch), y[pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def judged(model, recordings):
    "The class of each recording, by the mean of its windows' log-probabilities."
    return [model.classes[model.scores(features).mean(0).argmax()] for features in recordings]


def shares(rows, named):
    "How many of the recordings of each class are right, by source too, and all confusions that occurred."
    right, all_of, confused = Counter(), Counter(), Counter()
    for (track, label), name in zip(rows, named):
        for key in ("all", label, f"{track.source}/{label}"):
            all_of[key] += 1
            right[key] += name == label
        if name != label:
            confused[f"{label} called {name}"] += 1
    agreed = sum((name == "trumpet") == (label == "trumpet") for (_, label), name in zip(rows, named))
    return {"right": {key: f"{right[key]} of {all_of[key]}" for key in all_of}, "accuracy": round(right["all"] / max(1, all_of["all"]), 4), "trumpet or not": round(agreed / len(rows), 4), "confused": dict(confused.most_common())}


@torch.no_grad()
def calibrate(model, rows, recordings):
    "Lowers the log-odds of a trumpet, of which there are more recordings than of all else, by what is best on recordings held out of training; returns by how much."
    bias = (model.net[-1] if isinstance(model.net, nn.Sequential) else model.net).bias
    found = {}
    for step in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0):
        bias[0] -= step
        figures = shares(rows, judged(model, recordings))
        found[step] = figures["accuracy"] + figures["trumpet or not"]
        bias[0] += step
    best = max(found, key=found.get)
    bias[0] -= best
    return best


def measure(model, parts, features):
    "All figures of a card."
    named = {name: dict(zip((track.path.name for track, _ in parts[name]), judged(model, features[name]))) for name in ("whistles", "phrases")}
    return {name: shares(parts[name], judged(model, features[name])) for name in ("held out", "test")} | {
        "whistles": named["whistles"], "other test phrases": named["phrases"], "tones": {name: next(iter(model.judge(samples, JUDGE_RATE))) for name, samples in tones()}}


def tones():
    "Plain sounds `(1, time)` at 16 kHz by name."
    phase = np.arange(2 * JUDGE_RATE) / JUDGE_RATE
    for hz in (220, 440, 880, 1760):
        yield f"sine {hz} Hz", np.sin(2 * np.pi * hz * phase)[None].astype(np.float32)
        yield f"sawtooth {hz} Hz", 0.5 * sawtooth(hz * phase, int(7900 / hz))[None].astype(np.float32)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    splits = read_rows(arguments.data)
    mine, others = (set(split_between([track for track, _ in splits["train"]], share, SEED)[0]) for share in (SHARE, SHARE_OF_OTHERS))
    def is_mine(row):
        return row[0] in (mine if row[1] in LEARNED and row[0].source != "words" else others)
    parts = {"train": [row for row in splits["train"] if is_mine(row)], "held out": [row for row in splits["train"] if not is_mine(row)], "test": [row for row in splits["test"] if row[1] in CLASSES[:-2]],
             "whistles": [row for row in splits["test"] if row[1] == "whistle"], "phrases": [row for row in splits["test"] if row[1] == "phrase"]}
    cache = arguments.work and arguments.work / "features.pt"
    if cache and cache.exists():
        features = torch.load(cache, weights_only=True)
    else:
        features = {name: gather(rows, COPIES if name == "train" else 1, name) for name, rows in parts.items()}
        rng = np.random.default_rng(SEED)
        whistles = [sound for n in tqdm(range(WHISTLES), desc="synthetic whistles") for sound in (whistle(rng), whistled_tune(n, 2.0, JUDGE_RATE).samples)]
        features["synthetic"] = [features_of(sound, JUDGE_RATE, rng, COPIES) for sound in tqdm(whistles, desc="their features")]
        features["tunes"], tune_labels = melodies(parts["train"], whistles, rng, "tunes")
        features["tune labels"] = torch.tensor([CLASSES.index(label) for label in tune_labels])
        if cache:
            cache.parent.mkdir(parents=True, exist_ok=True)
            torch.save(features, cache)
    labels, sources = ([pick(row) for row in parts["train"]] for pick in (lambda row: row[1], lambda row: row[0].source))
    made = len(features["synthetic"])
    model = fit(features["train"] + features["synthetic"] + features["tunes"], labels + ["whistle"] * made + [CLASSES[k] for k in features["tune labels"]], sources + ["synthetic"] * made + ["tunes"] * len(features["tunes"]), arguments.hidden, arguments.steps)
    lowered = calibrate(model, parts["held out"], features["held out"])
    metrics = measure(model, parts, features)
    for name, value in metrics.items():
        print(name, value)
    if arguments.out:
        model.save_pretrained(arguments.out, licence=LICENCE, made_again_by="python scripts/train_classifier.py DATA -o OUT", steps=arguments.steps, seed=SEED, share=f"{SHARE} of trumpet, flute, strings and voice, {SHARE_OF_OTHERS} of the others, by songs.split_between", hardware="one CPU core", trumpet_lowered_by=lowered,
                              data={name: describe_tracks([track for track, _ in parts[name]]) for name in ("train", "held out", "test")} | {"synthetic": f"{2 * WHISTLES} whistles of 2 s", "joined of the train recordings": f"{TUNES} tunes of 0.5 to 2 s of each class"}, metrics=metrics)
