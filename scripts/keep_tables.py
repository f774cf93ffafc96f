"""Keep what the reports on the paper's tables and figures show: `python scripts/keep_tables.py TABLES`, a folder that `timbre-palette tables` has worked in.

`--parts tables` takes over tables.json and, in short, what lies between the styles (between.json). `--parts pictures` draws Figure 2 on a separated stem
and appendix A.5's ten pages on the stand-ins for the paper's recordings, with v2, SpectrogramUNet and Conv-TasNet of one budget: the pictures go
to nbs/results/figures, small enough to be kept, their numbers to analysis.json. Some minutes for the pictures.
"""
import argparse
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from tqdm import tqdm

from timbre_palette.analysis import analyse, draw_figures
from timbre_palette.audio import read_audio, write_text
from timbre_palette.evaluation import write_measured
from timbre_palette.experiments import Unit, find_renderer
from timbre_palette.material import FIVE, STANDINS

RESULTS, RATE = Path(__file__).resolve().parent.parent / "nbs" / "results", 44100
MODELS = {"TimbrePalette (v2)": "waveunet-v2", "SpectrogramUNet": "spectrogram-unet", "Conv-TasNet": "conv-tasnet"}
STEM = "freecol__sunrise.wav"
BETWEEN = ("model", "song", "style", "weights", "grid", "si_snr", "sd_sdr", "stft_distance")


def rounded(value):
    "A number to four decimals, None for one that is not finite; anything else as it is."
    return value if not isinstance(value, float) else round(value, 4) if np.isfinite(value) else None


def keep_tables(tables):
    "The tables, and what lies between the styles without what no figure shows."
    shutil.copyfile(tables / "tables" / "tables.json", RESULTS / "data" / "tables.json")
    between = json.loads((tables / "between.json").read_text(encoding="utf-8"))
    between["distances"] = {name: [round(value, 6) for value in values] for name, values in between["distances"].items()}
    between["records"] = [{name: rounded(record[name]) for name in BETWEEN} for record in between["records"]]
    write_text(RESULTS / "data" / "between.json", write_measured({"made_by": "python scripts/keep_tables.py TABLES", **between}))


def shrink(path, folder, share=0.66):
    "A picture in fewer points and 96 colours."
    picture = Image.open(path).convert("RGB")
    picture = picture.resize([round(share * side) for side in picture.size], Image.LANCZOS).quantize(96, dither=Image.Dither.NONE)
    picture.save(folder / path.name, optimize=True)


def keep_pictures(tables):
    "Figure 2, the ten pages and their numbers."
    models = {label: find_renderer(tables, Unit(name), 0) for label, name in MODELS.items()}
    stem = read_audio(tables / "stems" / STEM)
    stems = {Path(STEM).stem: lambda: (stem.samples, stem.sample_rate)}
    clips = {name: (lambda name=name: (STANDINS[name](RATE), RATE)) for name in FIVE}
    (RESULTS / "figures").mkdir(exist_ok=True)
    with TemporaryDirectory() as work, tqdm() as bar:
        def progress(done, total):
            "Move the bar."
            bar.total, bar.n = total, done
            bar.refresh()

        for path in draw_figures(stems, models, work, sheets=("2",), progress=progress) + draw_figures(clips, models, work, sheets=("pages",), progress=progress):
            shrink(path, RESULTS / "figures")
    rows = [{"clip": name, **{key: rounded(value) for key, value in row.items()}} for name, read in {**clips, **stems}.items() for row in analyse(*read(), "fullness", models)]
    write_text(RESULTS / "data" / "analysis.json", write_measured({"made_by": "python scripts/keep_tables.py TABLES --parts pictures", "style": "fullness", "seconds": 3.0, "rows": rows}))


PARTS = {"tables": keep_tables, "pictures": keep_pictures}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    for part in options.parts:
        PARTS[part](options.tables)
