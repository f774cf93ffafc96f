"""Measure what the stability report shows: `python scripts/measure_stability.py SONGS`, SONGS a folder with songs in it (see `songs.load_splits`).

Trains early models and stable ones without any safeguard, under naive losses and safe ones, until something is not finite, and writes who lived how long
to nbs/results/data/stability.json. Runs that are there already with the same settings are kept, so it can be stopped and started
again; `--parts losses` measures one part, `--seeds 0` one seed. Three quarters of an hour on one busy core for all.
"""
import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from timbre_palette.anchors import palette
from timbre_palette.audio import write_text
from timbre_palette.data import Segments
from timbre_palette.evaluation import write_measured
from timbre_palette.losses import stft_magnitude
from timbre_palette.mastering import dither
from timbre_palette.model import RATE
from timbre_palette.songs import load_splits
from timbre_palette.stability import SUBJECTS, TRIED, survive

OUT = Path(__file__).resolve().parent.parent / "nbs" / "results" / "data" / "stability.json"
SIZE, SECONDS = 2, 0.65
BARE, ROOT, SAFE, STABLE = TRIED
GRAY, RECURSIVE, WAVE = ("early-graybox", "early-graybox-poles", "graybox"), ("early-graybox", "early-graybox-poles"), ("early-waveunet", "waveunet-v2")
STEPS = {"waveunet-v2": 45, "early-waveunet": 75}  # an epoch of the paper is 75
DATA = {"songs": lambda x, seed: x,
        "dithered": lambda x, seed: torch.tensor(np.rint(dither(x[:, 0].numpy(), 16, seed) * 2 ** 15) / 2 ** 15)[:, None].float(),
        "silence": lambda x, seed: silenced(DATA["dithered"](x, seed))}


def silenced(x):
    "The first half of the first segment is digital silence, as where a song begins."
    x = x.clone()
    x[0, :, :x.shape[-1] // 2] = 0
    return x


class Batches:
    "Batches of a seed, the sound treated as one of `DATA` says."
    def __init__(self, tracks, data, seed):
        self.segments, self.treat, self.seed = Segments(tracks, SIZE, SECONDS, seed=seed), DATA[data], seed

    def __getitem__(self, step):
        batch = self.segments[step]
        return batch._replace(x=self.treat(batch.x, 1000 * self.seed + step))


def cells(models, losses, data="songs", learning_rates=(1e-4,), precision="float32", steps=None):
    return [{"model": model, "loss": loss, "data": data, "learning_rate": rate, "precision": precision, "asked": steps or STEPS.get(model, 150)}
            for rate in learning_rates for loss in losses for model in models]


PARTS = {  # each a list of settings, in order of what they tell
    "naive": cells(SUBJECTS, (BARE, ROOT)),
    "filled": cells(GRAY, (BARE, ROOT), "dithered"),
    "silence": cells(SUBJECTS, (BARE, ROOT, SAFE), "silence", steps=8),
    "losses": cells(GRAY, (STABLE, SAFE)),
    "rates": cells(RECURSIVE, (STABLE, SAFE), learning_rates=(1e-3, 3e-3, 1e-2)),
    "waves-filled": cells(WAVE, (BARE, ROOT), "dithered", steps=45),
    "waves": cells(WAVE, (STABLE, SAFE), precision="bfloat16"),
    "waves-rates": cells(("early-waveunet",), (STABLE, SAFE), learning_rates=(1e-2,), precision="bfloat16", steps=45),
    "halves": cells(("early-waveunet",), (ROOT,), precision="bfloat16", steps=45) + cells(("early-waveunet",), (STABLE,), precision="float16", steps=8),
}
ONE_SEED = ("waves-filled", "waves", "waves-rates", "halves")


def count_zeros(tracks, data, seed, batches=150):
    "How many batches have a magnitude that is exactly zero, in the input and in the target, and how many a frame of digital silence."
    inputs = targets = frames = 0
    shares, places = [], []
    for step in range(batches):
        batch = Batches(tracks, data, seed)[step]
        empty = stft_magnitude(batch.x) == 0
        inputs += bool(empty.any())
        targets += bool((stft_magnitude(palette(batch.x, RATE, batch.weights)) == 0).any())
        frames += bool((batch.x == 0).unfold(-1, 2048, 512).all(-1).any())
        shares.append(empty.float().mean().item())
        places += (empty.nonzero()[:, 2] * RATE / 2048).tolist()
    return {"data": data, "seed": seed, "batches": batches, "with_zeros": inputs, "targets_with_zeros": targets, "with_silent_frames": frames,
            "share_of_bins": float(f"{np.mean(shares):.3g}"), "above_19_khz": round(float(np.mean(np.array(places) > 19000)), 4) if places else None}


def short(value):
    "A number to six digits, None for one that is not finite."
    return value if not isinstance(value, float) else float(f"{value:.6g}") if math.isfinite(value) else None


def thin(record, most=60):
    "A record whose curve has few points, the last among them."
    curve, every = record["curve"], -(-len(record["curve"]) // most)
    kept = [row for k, row in enumerate(curve) if k % every == 0 or k == len(curve) - 1]
    where = record["where"] and {name: short(value) for name, value in record["where"].items()}
    return {**{name: short(value) for name, value in record.items()}, "where": where, "losses": [short(loss) for loss in record["losses"]], "curve": [[short(value) for value in row] for row in kept]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("songs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    tracks = load_splits([options.songs])["train"]
    known = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {"zeros": [], "rows": []}
    known = {"made_by": "python scripts/measure_stability.py SONGS", "songs": len(tracks), "lossy": sum(track.path.suffix in (".ogg", ".mp3", ".m4a", ".opus") for track in tracks),
             "sample_rate": RATE, "batch": SIZE, "seconds": SECONDS, "optimiser": "Adam", "device": "cpu", "torch": torch.__version__.split("+")[0], "zeros": known["zeros"], "rows": known["rows"]}
    for data in DATA:
        if not any(row["data"] == data for row in known["zeros"]):
            known["zeros"].append(count_zeros(tracks, data, 0))
            write_text(OUT, write_measured(known))
    wanted = [{**cell, "seed": seed} for seed in options.seeds for part in options.parts if part not in ONE_SEED or seed == options.seeds[0] for cell in PARTS[part]]
    missing = [run for run in wanted if not any(all(row[name] == value for name, value in run.items()) for row in known["rows"])]
    for run in (bar := tqdm(missing)):
        bar.set_description(f"{run['model']}, {run['loss']}, {run['data']}, {run['learning_rate']:g}, seed {run['seed']}")
        begun = time.perf_counter()
        record = survive(SUBJECTS[run["model"]], TRIED[run["loss"]](), Batches(tracks, run["data"], run["seed"]), run["asked"], run["learning_rate"],
                         seed=run["seed"], precision=run["precision"], progress=lambda step, loss: bar.set_postfix(step=step, loss=f"{loss:.4g}"))
        known["rows"].append({**run, **thin(record), "minutes": round((time.perf_counter() - begun) / 60, 2)})
        write_text(OUT, write_measured(known))
