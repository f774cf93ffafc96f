"""Measure what the report on the filter transformer shows: `python scripts/measure_filter_transformer.py SPEECH --work WORK`.

SPEECH is a folder with recordings of speech in it (see `songs.find_tracks`). A thousand clips are drawn and split by recording. Two proxies are learned, then systems under several
strategies; then every pair of the test is matched by direct descent, and by the best linear filters of some lengths. Each part leaves a file in WORK and is not done again, so it can be stopped and started again. Writes filter_transformer.json to nbs/results/data.
A quarter of an hour on one free core; where the core is shared, the time that is kept is longer.
"""
import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from timbre_palette.audio import write_text
from timbre_palette.checkpoint import write_tensors
from timbre_palette.evaluation import write_measured
from timbre_palette.reach import apply_filter, best_filter, correlations
from timbre_palette.songs import load_splits
from timbre_palette.style_transfer.encoder import ENCODER_RATE
from timbre_palette.style_transfer.filter_transformer import (EQ_AND_COMPRESSOR, EXPERIMENTS, FILTERS, FilterProxy, FilterTransformer, best_settings, distances, draw_clips,
                                                              filter_chain, imitate, in_parts, make_pairs, train_filters, train_filter_proxy)
from timbre_palette.tables import find_commit

OUT = Path(__file__).resolve().parent.parent / "nbs" / "results" / "data" / "filter_transformer.json"
COUNTS = {"train": 900, "val": 50, "test": 50}  # a thousand clips, split as DeepAFx-ST splits recordings
SEED = 0
LEARNED = "EQ + compressor"  # what the text's system learned
WITH = {"reverb": (*EQ_AND_COMPRESSOR, "reverb"), "distortion": (*EQ_AND_COMPRESSOR, "distortion")}  # chains that have the effect
SYSTEMS = {  # name: effects, strategy, the experiment it learns from
    "half hybrid": (EQ_AND_COMPRESSOR, "half hybrid", LEARNED),
    "full hybrid": (EQ_AND_COMPRESSOR, "full hybrid", LEARNED),
    "AD": (EQ_AND_COMPRESSOR, "AD", LEARNED),
    "AD, with a reverb": (WITH["reverb"], "AD", "reverb"),
    "AD, with a distortion": (WITH["distortion"], "AD", "distortion"),
}
DESCENTS = {  # by experiment: chains whose settings are found by descent
    LEARNED: {"EQ + compressor": EQ_AND_COMPRESSOR},
    "reverb": {"EQ + compressor": EQ_AND_COMPRESSOR, "EQ + compressor + gain": (*EQ_AND_COMPRESSOR, "output"), "with a reverb": WITH["reverb"]},
    "distortion": {"EQ + compressor": EQ_AND_COMPRESSOR, "EQ + compressor + gain": (*EQ_AND_COMPRESSOR, "output"), "with a distortion": WITH["distortion"]},
}
TAPS = {"gain": 1, "1 ms": 24, "5 ms": 120, "20 ms": 480, "100 ms": 2400}  # of linear filters
DRIVES_DB = (10, 15, 20, 25, 30, 40, 48)


def rounded(values, digits=5):
    "A tensor as a list of short numbers."
    return [float(f"{value:.{digits}g}") for value in torch.as_tensor(values).flatten().tolist()]


def scored(output, target):
    "Distances in means, and clip by clip."
    found = distances(output, target)
    return {**{name: float(f"{values.mean().item():.6g}") for name, values in found.items()}, "clips": {name: rounded(values) for name, values in found.items()}}


def curve(rows):
    "A learning curve, short."
    return [{name: value if not isinstance(value, float) else float(f"{value:.5g}") for name, value in row.items()} for row in rows]


class Parts:
    "What is measured part by part, each kept as a file of the work folder."
    def __init__(self, work):
        self.work = work
        work.mkdir(parents=True, exist_ok=True)

    def __call__(self, name, measure):
        "What `measure()` gave, now or before."
        path = self.work / f"{name.replace(' ', '-').replace(',', '').replace('+', 'and')}.json"
        if not path.exists():
            begun = time.perf_counter()
            found = measure()
            write_text(path, json.dumps({**found, "seconds": round(time.perf_counter() - begun, 1)}))
            print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
        return json.loads(path.read_text(encoding="utf-8"))


class Material:
    "Clips and pairs of the three splits."
    def __init__(self, speech):
        tracks = load_splits([speech], split="90/5/5", seed=SEED)
        self.tracks = tracks
        self.clips = {split: draw_clips(tracks[split], count, SEED + n) for n, (split, count) in enumerate(COUNTS.items())}

    def pairs(self, split, experiment):
        "Pairs of a split."
        return make_pairs(self.clips[split], filter_chain(*EXPERIMENTS[experiment]), SEED + 10 + list(COUNTS).index(split))

    def reaching(self, split, name):
        "What reaches an effect in the chain: the clips, or the clips behind an equaliser."
        x = torch.cat(self.clips[split]) if split == "train" else self.clips[split][0]
        return x if name == "peq" else make_pairs((x, x), FILTERS["peq"], SEED + 20 + list(COUNTS).index(split)).target


def learn_proxy(material, name, path, steps):
    "A part: a proxy learned, its weights kept, and how near it comes on test clips."
    proxy, rows = train_filter_proxy(name, material.reaching("train", name), material.reaching("val", name), steps, SEED, progress=print)
    write_tensors(path, proxy.state_dict())
    x = material.reaching("test", name)
    wanted = make_pairs((x, x), FILTERS[name], SEED + 30)
    return {"curve": curve(rows), "asked": steps, "rows": {"untouched": scored(x, wanted.target), "proxy": scored(in_parts(proxy, x, wanted.settings), wanted.target)},
            "parameters": sum(weight.numel() for weight in proxy.parameters())}


def learn_system(material, name, proxies, epochs):
    "A part: a system learned, and what it makes of the test's pairs."
    names, strategy, experiment = SYSTEMS[name]
    torch.manual_seed(SEED)
    model = FilterTransformer(names)
    rows = train_filters(model, strategy, proxies, material.pairs("train", experiment), material.pairs("val", experiment), epochs, SEED, progress=print)
    found = {}
    for asked in EXPERIMENTS if experiment == LEARNED else (experiment,):
        pairs = material.pairs("test", asked)
        found[asked] = scored(imitate(model, strategy, proxies, pairs), pairs.target)
    return {"curve": curve(rows), "asked": epochs, "rows": found, "parameters": sum(weight.numel() for weight in model.parameters())}


def descend(material, experiment, names, steps):
    "A part: settings found for each pair of the test, and what they make of it."
    pairs, effect = material.pairs("test", experiment), filter_chain(*names)
    settings = best_settings(effect, pairs.x, pairs.target, steps)
    physical = {name: rounded(values, 4) for name, values in effect.physical(settings).items()}
    return {**scored(in_parts(lambda *part: effect.render(part[0], ENCODER_RATE, part[1]), pairs.x, settings), pairs.target), "settings": physical}


def linear(material, experiment):
    "A part: the best causal linear filters, in squared error, for each pair."
    pairs, effect, reach = material.pairs("test", experiment), filter_chain(*EXPERIMENTS[experiment]), max(TAPS.values())
    quiet = F.pad(pairs.x, (reach, pairs.x.shape[-1] + reach))
    whole = in_parts(lambda *part: effect.render(part[0], ENCODER_RATE, part[1]), quiet, pairs.settings)  # with what rings on
    outputs = {name: [] for name in TAPS}
    for x, dry, wet in zip(pairs.x, quiet.double().numpy(), whole.double().numpy()):
        alike = correlations(dry[0], wet[0], reach)
        for name, taps in TAPS.items():
            outputs[name].append(apply_filter(best_filter(alike, taps), x[0].double().numpy()))
    return {"rows": {name: scored(torch.tensor(np.stack(output))[:, None].float(), pairs.target) for name, output in outputs.items()}}


def levels(material):
    "A part: how loud clips and targets are, and the same distances among 16-bit integers."
    rows = {experiment: scored(pairs.x, pairs.target) for experiment in EXPERIMENTS for pairs in [material.pairs("test", experiment)]}
    pairs = material.pairs("test", "distortion")
    integers = lambda x: (32767 * x.clamp(-1, 1)).round()
    x, drives = pairs.x, []
    for drive_db in DRIVES_DB:
        target = FILTERS["distortion"](x, ENCODER_RATE, drive_db=drive_db) if drive_db <= 30 else torch.tanh(10 ** (drive_db / 20) * x)
        within, among = distances(x, target), distances(integers(x), integers(target))
        drives.append({"drive_db": drive_db, **{name: float(f"{values.mean().item():.5g}") for name, values in within.items()},
                       **{f"{name}_16_bit": float(f"{values.mean().item():.7g}") for name, values in among.items()}})
    return {"rows": rows, "drives": drives, "mean_magnitude": float(f"{x.abs().mean().item():.4g}")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is done already")
    parser.add_argument("--proxy-steps", type=int, default=600, help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="of a system, at most (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="of descent (default: %(default)s)")
    options = parser.parse_args()
    part, material = Parts(options.work), Material(options.speech)
    rows, curves, proxies = [], [], {}

    def add(experiment, row, kind, found):
        "A row of the tables."
        rows.append({"experiment": experiment, "row": row, "kind": kind, **{name: found[name] for name in ("mae", "mr_stft", "clips")}})

    loudness = part("levels", lambda: levels(material))
    for experiment, found in loudness["rows"].items():
        add(experiment, "untouched", "identity", found)
    seconds, proxy_rows = loudness["seconds"], []
    for name in EQ_AND_COMPRESSOR:
        path = options.work / f"{name}.safetensors"
        found = part(f"proxy {name}", lambda: learn_proxy(material, name, path, options.proxy_steps))
        proxies[name] = FilterProxy(len(FILTERS[name].parameters)).requires_grad_(False).eval()
        proxies[name].load_state_dict(load_file(path))
        seconds += found["seconds"]
        curves += [{"what": f"proxy of {name}", "asked": found["asked"], "parameters": found["parameters"], "seconds": found["seconds"], "curve": found["curve"]}]
        proxy_rows += [{"proxy": name, "row": row, "mae": one["mae"], "mr_stft": one["mr_stft"]} for row, one in found["rows"].items()]
    for name in SYSTEMS:
        found = part(name, lambda: learn_system(material, name, proxies, options.epochs))
        seconds += found["seconds"]
        curves += [{"what": name, "asked": found["asked"], "parameters": found["parameters"], "seconds": found["seconds"], "curve": found["curve"]}]
        for experiment, one in found["rows"].items():
            add(experiment, name, "controller", one)
    settings = []
    for experiment, chains in DESCENTS.items():
        for name, names in chains.items():
            found = part(f"descent {experiment} {name}", lambda: descend(material, experiment, names, options.steps))
            seconds += found["seconds"]
            add(experiment, name, "descent", found)
            settings.append({"experiment": experiment, "row": name, "settings": found["settings"]})
    for experiment in ("reverb", "distortion"):
        found = part(f"linear {experiment}", lambda: linear(material, experiment))
        seconds += found["seconds"]
        for name, one in found["rows"].items():
            add(experiment, name, "linear filter", one)
    OUT.parent.mkdir(exist_ok=True)
    write_text(OUT, write_measured({
        "made_by": "python scripts/measure_filter_transformer.py SPEECH --work WORK", "commit": find_commit(), "seed": SEED, "hardware": f"{torch.get_num_threads()} thread of a CPU ({platform.machine()})",
        "torch": torch.__version__.split("+")[0], "minutes": round(seconds / 60, 1), "data": "speech/words: spoken words, Debian tuxpaint-stamps-default (GPL-2)",
        "recordings": {split: len(found) for split, found in material.tracks.items()}, "clips": COUNTS, "steps": options.steps, "mean_magnitude": loudness["mean_magnitude"],
        "drives": loudness["drives"], "proxies": proxy_rows, "curves": curves, "rows": rows, "settings": settings}))
    print(OUT.name)
