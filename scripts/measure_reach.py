"""Measure what the receptive-field report shows: `python scripts/measure_reach.py SONGS`, SONGS a folder with train, val and test in it.

Writes reach_fields.json (how far networks hear), reach_models.json (how well they do), reach_filters.json (best filters by length), reach_limits.json (the palette under v2's limits)
and reach_further.json (v2 trained further under two losses) to nbs/results/data; `--parts filters` measures one of them, `--songs 3` fewer songs;
`--units TABLES` adds networks that `timbre-palette tables` has trained in that folder.
A minute for the fields, about half an hour for each of the others on one busy core.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from timbre_palette.anchors import STYLES, palette, palette_reference
from timbre_palette.audio import write_text
from timbre_palette.baselines.table import find_baseline
from timbre_palette.checkpoint import Pretrained
from timbre_palette.data import Segments, excerpt
from timbre_palette.enhance import find_model
from timbre_palette.evaluation import MEASURES, evaluate, identity, write_measured
from timbre_palette.experiments import Unit, find_budget, find_renderer, read_card, read_scores, unit_folder
from timbre_palette.losses import LOSSES
from timbre_palette.metrics import sd_sdr, si_snr, stft_distance
from timbre_palette.reach import Split, fit_lengths, loudness_gain_db, receptive_field, restricted, sweep_lengths
from timbre_palette.songs import load_splits

FOLDER = Path(__file__).resolve().parent.parent / "nbs" / "results" / "data"
LENGTHS = (1, 3, 7, 15, 31, 63, 127, 246, 511, 1023, 2047, 4095, 8191, 16383)
V2_FIELD = 246  # samples, checked against the measured one
RATE = 44100


def write(name, values):
    "A JSON file of the report."
    FOLDER.mkdir(exist_ok=True)
    write_text(FOLDER / name, write_measured(values))
    print(FOLDER / name)


def in_rows(records, keys):
    "Records of one song each as rows with the songs' values in lists, rounded."
    rows = {}
    for record in records:
        row = rows.setdefault(tuple(record[key] for key in keys), {**{key: record[key] for key in keys}, **{measure: [] for measure in MEASURES}})
        for measure in MEASURES:
            row[measure].append(round(min(record[measure], 300.0), 4 if measure == "stft_distance" else 2))
    return list(rows.values())


def measure_fields(splits, count, units):
    "Receptive fields in samples at 44.1 kHz: rows with `behind`, `ahead`, whether the loudness of all is heard too, and how it is known."
    rows = []
    for name in ("waveunet-v1", "waveunet-v2", "tcn", "conv-tasnet"):
        network = find_baseline(name).build()
        reach = network.reach or network.convolutions_reach
        rows.append({"model": name, "behind": reach.before, "ahead": reach.after, "hears_all": network.reach is None,
                     "how": "its layers" if network.reach else "its convolutions; its normalisation hears the clip"})
    for name in ("graybox", "blackbox"):
        shipped = Pretrained.from_pretrained(name).double().eval()
        for floor in (1e-5, 1e-3):  # the filters fade, and FFTs round
            behind, ahead = np.max([receptive_field(lambda x: shipped.render(x, RATE, style), 1 << 17, floor=floor) for style in np.eye(3)], 0).tolist()
            rows.append({"model": name, "behind": behind, "ahead": ahead, "hears_all": True, "how": f"gradient of the shipped weights above {floor:g} of its largest"})
    v2 = next(row for row in rows if row["model"] == "waveunet-v2")
    assert v2["behind"] + 1 + v2["ahead"] == V2_FIELD
    write("reach_fields.json", {"made_by": "python scripts/measure_reach.py SONGS --parts fields", "rows": rows})


def measure_filters(splits, count, units):
    "The best filters by length, song and style, and those for all training songs."
    train, test = ([track for track in splits[name] if track.sample_rate == RATE][:count] for name in ("train", "test"))
    heard = lambda tracks, style: (Split(excerpt(track)[0, 0].numpy(), RATE, style) for track in tqdm(tracks, desc=style) if sounds(track))
    records = []
    for style in STYLES:
        learned = fit_lengths(heard(train, style), LENGTHS)
        for track in tqdm(test, desc=style):
            records += [{"style": style, **record} for record in sweep_lengths(Split(excerpt(track)[0, 0].numpy(), RATE, style), LENGTHS, learned)]
    write("reach_filters.json", {"made_by": "python scripts/measure_reach.py SONGS --parts filters", "lengths": LENGTHS, "sample_rate": RATE, "train_songs": len(train),
                                 "songs": [track.name for track in test], "rows": in_rows(records, ("style", "kind", "taps"))})


def sounds(track):
    "Whether a track's excerpt is more than silence."
    return bool(excerpt(track).any())


def of_unit(name, tracks, units):
    "Records of a unit of the tables on songs, as it was scored there, or scored now and not noted down there; none where it was not trained."
    unit, protocol = Unit(name), find_budget("cpu")
    if not units or not read_card(units, unit, 0):
        return []
    records = read_scores(unit_folder(units, unit, 0) / "scores.json", {"songs": tracks}, protocol.excerpt_s).get("songs")
    return [{**record, "model": name} for record in records or evaluate({name: find_renderer(units, unit, 0)}, tqdm(tracks, desc=name), seconds=protocol.excerpt_s)]


def measure_models(splits, count, units):
    "The shipped models, and v1, TCN and Conv-TasNet as `timbre-palette tables` has trained them in the folder `units`, on test songs. What is known of one that is not there stays."
    test = [track for track in splits["test"] if track.sample_rate == RATE][:count]
    songs, path = [track.name for track in test], FOLDER / "reach_models.json"
    records = evaluate({name: find_model(name) for name in ("graybox", "blackbox")}, tqdm(test, desc="test songs"))
    records += [record for name in ("waveunet-v1", "tcn", "conv-tasnet") for record in of_unit(name, test, units)]
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"songs": None}
    scored = {record["model"] for record in records}
    known = [row for row in before["rows"] if row["model"] not in scored] if before["songs"] == songs else []
    rows = [{**row, "inverted": sum(bool(record.get("inverted")) for record in records if record["model"] == row["model"] and record["style"] == row["style"])} for row in in_rows(records, ("model", "style"))]
    write("reach_models.json", {"made_by": "python scripts/measure_reach.py SONGS --parts models --units TABLES", "songs": songs, "rows": rows + known})


def measure_limits(splits, count, units):
    "The palette under v2's limits and v2 itself, on test songs; v2 on songs it learned from."
    train, test = ([track for track in splits[name] if track.sample_rate == RATE][:count] for name in ("train", "test"))
    train = [track for track in train if sounds(track)]
    gains = [loudness_gain_db(excerpt(track)[0, 0].numpy(), RATE) for track in tqdm(train, desc="loudness")]
    gain_db = float(np.mean(gains))
    splits_of = lambda style: (Split(excerpt(track)[0, 0].numpy(), RATE, style) for track in tqdm(train, desc=style))
    learned = {style: fit_lengths(splits_of(style), (V2_FIELD,))["inside", V2_FIELD] for style in STYLES}
    limits = {"field": restricted(field=V2_FIELD), "field, one filter for all": restricted(filters=learned), "head": restricted(head=1.0), "deaf": restricted(gain_db=gain_db),
              "field, head, deaf": restricted(V2_FIELD, gain_db, 1.0), "all, one filter for all": restricted(None, gain_db, 1.0, learned)}
    made = []
    v2 = find_model("waveunet-v2")

    def with_level(x, sample_rate, weights, amount=1.0):
        "v2, whose level is noted."
        y = v2(x, sample_rate, weights, amount)
        target = palette_reference(x[0].numpy(), sample_rate, weights)
        made.append(20 * np.log10(abs(float((y[0].numpy() * target).sum() / (target ** 2).sum()))))
        return y

    records = []
    for track in tqdm(test, desc="test songs"):
        records += evaluate({"identity": identity, **limits, "waveunet-v2": with_level}, [track])
    needed = [loudness_gain_db(excerpt(track)[0, 0].numpy(), RATE) for track in test]
    known = train[::max(1, len(train) // 8)][:8]
    on_train = evaluate({"identity": identity, "field": limits["field"], "waveunet-v2": v2}, tqdm(known, desc="training songs"))
    layered = [level for k, level in enumerate(made) if k % 3 == 2]
    write("reach_limits.json", {"made_by": "python scripts/measure_reach.py SONGS --parts limits", "field": V2_FIELD, "gain_db": round(gain_db, 2), "gain_spread_db": round(float(np.std(gains)), 2),
                                "train_songs": len(train), "songs": [track.name for track in test], "needed_gain_db": np.round(needed, 2).tolist(),
                                "v2_level_off_db": np.round(layered, 2).tolist(), "rows": in_rows(records, ("model", "style")),
                                "songs_learned_from": [track.name for track in known], "rows_learned_from": in_rows(on_train, ("model", "style"))})


def measure_further(splits, count, units, steps=60, size=2, seconds=0.5, learning_rate=2e-4, segments=12):
    "v2 as shipped, trained further on the same batches: under StableLoss, and under the error of the wave alone."
    train, val = Segments(splits["train"][:count], size, seconds, seed=1), Segments(splits["val"][:count], segments, 1.0, seed=2)[0].x
    rows = []

    def validation(model):
        "Scores of a model by style, on the same segments of validation songs."
        found = []
        for k, style in enumerate(STYLES):
            weights = np.eye(3)[k]
            target = palette(val, RATE, weights)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                y = val if model is None else model(val, weights)
            figures = {"si_snr": si_snr, "sd_sdr": sd_sdr, "stft_distance": stft_distance}
            heard = val.abs().amax((1, 2)) > 1e-3
            found.append({"style": style, **{name: round(measure(y.float(), target)[heard].mean().item(), 4) for name, measure in figures.items()}})
        return found

    rows += [{"loss": "untouched input", "step": 0, **row} for row in validation(None)]
    rows += [{"loss": "as shipped", "step": 0, **row} for row in validation(Pretrained.from_pretrained("waveunet-v2").eval())]
    for loss in ("error", "stable"):
        torch.manual_seed(0)
        model, objective = Pretrained.from_pretrained("waveunet-v2"), LOSSES[loss]()
        optimiser = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=1e-5)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1, (step + 1) / 20) * (1 - step / steps))
        for step in tqdm(range(steps), desc=loss):
            batch = train[step]
            with torch.no_grad():
                target = palette(batch.x, RATE, batch.weights)
            with torch.autocast("cpu", torch.bfloat16):
                y = model(batch.x, batch.weights)
            value = objective(y.float(), target)
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            scheduler.step()
        rows += [{"loss": loss, "step": steps, **row} for row in validation(model.eval())]
        write("reach_further.json", {"made_by": "python scripts/measure_reach.py SONGS --parts further", "steps": steps, "batch": size, "seconds": seconds, "learning_rate": learning_rate,
                                     "validation_segments": len(val), "rows": rows})


PARTS = {"fields": measure_fields, "models": measure_models, "filters": measure_filters, "limits": measure_limits, "further": measure_further}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("songs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--songs", dest="count", type=int, help="this many of each split only")
    parser.add_argument("--units", help="a folder of timbre-palette tables, whose v1, TCN and Conv-TasNet are scored too")
    options = parser.parse_args()
    splits = load_splits([options.songs])
    for part in options.parts:
        PARTS[part](splits, options.count, options.units)
