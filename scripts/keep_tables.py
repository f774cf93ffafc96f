"""Keep what the reports on the paper's tables and figures show: `python scripts/keep_tables.py TABLES`, a folder that `timbre-palette tables` has worked in.

`--parts units` keeps what each trained unit was found to be, without its weights: `timbre-palette tables --kept nbs/results/data/units` takes them up again.
`--parts tables` takes over tables.json and, in short, what lies between the styles (between.json), if it is there. Rows and tables that only an earlier run
has stay, if it had the same budget, seeds and songs; they say which run they are of, and ranks are computed over all. `--anew` leaves them out.
`--parts pictures` draws Figure 2 on a separated stem and appendix A.5's ten pages on the stand-ins for the paper's recordings, with v2, SpectrogramUNet
and Conv-TasNet of one budget: the pictures go to nbs/results/figures, small enough to be kept, their numbers to analysis.json. Some minutes for the pictures.
"""
import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from tqdm import tqdm

from timbre_palette.analysis import analyse, draw_figures
from timbre_palette.audio import PaletteError, read_audio, write_text
from timbre_palette.evaluation import write_measured
from timbre_palette.experiments import Budget, Unit, find_renderer, pack_unit
from timbre_palette.material import FIVE, STANDINS
from timbre_palette.tables import LABELS, NUMBERS, plan_units, rank

RESULTS, RATE = Path(__file__).resolve().parent.parent / "nbs" / "results", 44100
MODELS = {"TimbrePalette (v2)": "waveunet-v2", "SpectrogramUNet": "spectrogram-unet", "Conv-TasNet": "conv-tasnet"}
STEM = "freecol__sunrise.wav"
SAME = {"budget": "budget, or of other seeds", "data": "choice of songs", "scored_on": "material to be scored on"}  # what runs must have in common for their rows to stand in one table
RUN = ("version", "commit", "hardware", "torch", "units", "minutes_of_training", "kept")  # what is said of each
RANKS = {"rank by distance (paper)": ("STFT dist", True), "rank by SI-SNR (paper)": ("SI-SNR (dB)", False), "rank (paper)": ("lowest loss", True)}  # by what, and whether lower is better
SPEED = "times real time"
SEVERAL = "The rows are of several runs, whose number is in the last column. A speed that was not measured in the last of them is marked. It cannot be compared with the others, nor can minutes of training across runs."
BETWEEN = ("model", "song", "style", "weights", "grid", "si_snr", "sd_sdr", "stft_distance")


def rounded(value):
    "A number to four decimals, None for one that is not finite; anything else as it is."
    return value if not isinstance(value, float) else round(value, 4) if np.isfinite(value) else None


def remarks(row):
    "A row's remarks."
    return row["remark"].split(", ")


def standing(row):
    "What a row is worth beside the same row of another run: seeds that were run, then whether it was measured there, and not only kept."
    return (int(row.get("seeds") or 1) if "not run" not in remarks(row) else 0, "kept" not in remarks(row))


def merge_rows(ours, earlier):
    "The rows of a table as they are shown, each of `ours` or, where it is worth more, of `earlier`, with ranks over all. Raises `PaletteError` where doing nothing scored otherwise."
    before = {row["model"]: row for row in earlier}
    columns = list(max((*ours, *earlier), key=len))
    rows = []
    for row in ours:
        other = before.get(row["model"], row)
        measured = [name for name, _ in RANKS.values() if row.get(name) and other.get(name)]
        if row["model"] == LABELS["identity"] and not np.allclose([float(row[name]) for name in measured], [float(other[name]) for name in measured], rtol=5e-3):
            raise PaletteError("doing nothing scores otherwise than in the tables that are there: songs or measures have changed; use --anew")
        best = other if standing(other) > standing(row) else row
        rows.append({name: best.get(name, "") for name in columns})
    for place, (measure, lower) in RANKS.items():
        ranked = [row for row in rows if row.get(place) and "reduced" not in remarks(row)]
        for row, value in zip(ranked, rank([float(row[measure].split(" ")[0]) if row[measure] else None for row in ranked], lower)):
            row[place] = f"{value or '-'} {row[place].split(' ')[1]}"
    return rows


def numbered(report, number):
    "A report's tables, with the number of its run, as text, on each row of networks that has been run, or on a table without such; `number` where nothing is said yet."
    tables = []
    for table in report["tables"]:
        table = {**table, "notes": [note for note in table["notes"] if note != SEVERAL]}
        if of_networks(table):
            rows = [{**row, "run": "" if "not run" in remarks(row) else row.get("run", number)} for row in table["shown"]]
            tables.append({**table, "shown": rows})
        else:
            tables.append({**table, "run": table.get("run", number)})
    return tables


def of_networks(table):
    "Whether a table's rows are trained networks, which can be of several runs."
    return "remark" in table["shown"][0]


def speed(row, names):
    "The speed of a row of an earlier run, as text that says so."
    return row[SPEED] if not row[SPEED] or "kept" in row[SPEED] else f"{row[SPEED].split(' ')[0]} (run {names[row['run']]})"


def merge_tables(ours, earlier):
    "A report like tables.json of `ours` and what only `earlier` has. Raises `PaletteError` where they cannot stand in one table."
    for name, words in SAME.items():
        if ours["about"][name] != earlier["about"][name]:
            raise PaletteError(f"the tables that are there are of another {words}; use those, or --anew to leave their rows out")
    said = lambda report: {name: report["about"].get(name) for name in RUN}
    runs = {run["run"]: run for run in earlier["about"].get("runs", [{"run": "1", **said(earlier)}])}
    last = str(len(runs) + 1)
    runs[last] = said(ours)
    there, tables = {table["name"]: table for table in numbered(ours, last)}, []
    for table in numbered(earlier, "1"):
        new = there.pop(table["name"], table)
        tables.append({**new, "shown": merge_rows(new["shown"], table["shown"])} if of_networks(new) else new)
    tables += there.values()
    used = sorted({place["run"] for table in tables for place in (table["shown"] if of_networks(table) else [table])} - {""}, key=int)
    names = {run: str(k + 1) for k, run in enumerate(used)} | {"": ""}
    for table in tables:
        for row in table["shown"] if of_networks(table) else ():
            row |= {"run": names[row["run"]], SPEED: speed(row, names) if row["run"] not in (last, "") else row[SPEED]}
        if of_networks(table) and len({row["run"] for row in table["shown"]} - {""}) > 1:
            table["notes"].append(SEVERAL)
        elif not of_networks(table):
            table["run"] = names[table["run"]]
    return {"about": {**ours["about"], "runs": [{**runs[run], "run": names[run]} for run in used]}, "tables": tables}


def keep_tables(tables, results=RESULTS, anew=False):
    "The tables, and what lies between the styles without what no figure shows."
    kept, report = results / "data" / "tables.json", json.loads((tables / "tables" / "tables.json").read_text(encoding="utf-8"))
    if kept.is_file() and not anew:
        report = merge_tables(report, json.loads(kept.read_text(encoding="utf-8")))
    write_text(kept, json.dumps(report, indent=1) + "\n")
    if (tables / "between.json").is_file():
        between = json.loads((tables / "between.json").read_text(encoding="utf-8"))
        between["distances"] = {name: [round(value, 6) for value in values] for name, values in between["distances"].items()}
        between["records"] = [{name: rounded(record[name]) for name in BETWEEN} for record in between["records"]]
        write_text(results / "data" / "between.json", write_measured({"made_by": "python scripts/keep_tables.py TABLES", **between}))


def keep_units(tables, results=RESULTS, anew=False):
    "What was found of each unit that has been trained, a file each."
    budget = Budget(**json.loads((tables / "budget.json").read_text(encoding="utf-8")))
    folder = results / "data" / "units"
    folder.mkdir(parents=True, exist_ok=True)
    for unit, seed in plan_units(NUMBERS, budget):
        packed = pack_unit(tables, unit, seed)
        if packed:
            write_text(folder / f"{unit.name}-{seed}.json", write_measured(packed))


def shrink(path, folder, share=0.66):
    "A picture in fewer points and 96 colours."
    picture = Image.open(path).convert("RGB")
    picture = picture.resize([round(share * side) for side in picture.size], Image.LANCZOS).quantize(96, dither=Image.Dither.NONE)
    picture.save(folder / path.name, optimize=True)


def keep_pictures(tables, results=RESULTS, anew=False):
    "Figure 2, the ten pages and their numbers."
    models = {label: find_renderer(tables, Unit(name), 0) for label, name in MODELS.items()}
    stem = read_audio(tables / "stems" / STEM)
    stems = {Path(STEM).stem: lambda: (stem.samples, stem.sample_rate)}
    clips = {name: (lambda name=name: (STANDINS[name](RATE), RATE)) for name in FIVE}
    (results / "figures").mkdir(exist_ok=True)
    with TemporaryDirectory() as work, tqdm() as bar:
        def progress(done, total):
            "Move the bar."
            bar.total, bar.n = total, done
            bar.refresh()

        for path in draw_figures(stems, models, work, sheets=("2",), progress=progress) + draw_figures(clips, models, work, sheets=("pages",), progress=progress):
            shrink(path, results / "figures")
    rows = [{"clip": name, **{key: rounded(value) for key, value in row.items()}} for name, read in {**clips, **stems}.items() for row in analyse(*read(), "fullness", models)]
    write_text(results / "data" / "analysis.json", write_measured({"made_by": "python scripts/keep_tables.py TABLES --parts pictures", "style": "fullness", "seconds": 3.0, "rows": rows}))


PARTS = {"units": keep_units, "tables": keep_tables, "pictures": keep_pictures}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--anew", action="store_true", help="leave out what only an earlier run has")
    options = parser.parse_args()
    try:
        for part in options.parts:
            PARTS[part](options.tables, anew=options.anew)
    except PaletteError as error:
        sys.exit(f"{options.tables}: {error}")
