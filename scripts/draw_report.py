"""Draw the pictures of the figures report: `python scripts/draw_report.py TABLES`, a folder that `timbre-palette tables` has trained networks in.

Figure 2 on a separated stem, and appendix A.5's ten pages on the stand-ins for the paper's recordings, with v2, SpectrogramUNet and Conv-TasNet of one
budget. They go to nbs/results/figures, small enough to be kept, their numbers to nbs/results/data/analysis.json.
"""
import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from tqdm import tqdm

from timbre_palette.analysis import FIVE, analyse, draw_figures
from timbre_palette.audio import read_audio
from timbre_palette.experiments import Unit, find_renderer
from timbre_palette.material import STANDINS

RESULTS, RATE = Path(__file__).resolve().parent.parent / "nbs" / "results", 44100
MODELS = {"TimbrePalette (v2)": "waveunet-v2", "SpectrogramUNet": "spectrogram-unet", "Conv-TasNet": "conv-tasnet"}
STEM = "freecol__sunrise.wav"


def shrink(path, folder, share=0.66):
    "A picture in fewer points and 96 colours."
    picture = Image.open(path).convert("RGB")
    picture = picture.resize([round(share * side) for side in picture.size], Image.LANCZOS).quantize(96, dither=Image.Dither.NONE)
    picture.save(folder / path.name, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables")
    options = parser.parse_args()
    models = {label: find_renderer(options.tables, Unit(name), 0) for label, name in MODELS.items()}
    stem = read_audio(Path(options.tables) / "stems" / STEM)
    clips = {name: (lambda name=name: (STANDINS[name](RATE), RATE)) for name in FIVE}
    (RESULTS / "figures").mkdir(exist_ok=True)
    with TemporaryDirectory() as work, tqdm() as bar:
        def progress(done, total):
            "Move the bar."
            bar.total, bar.n = total, done
            bar.refresh()

        for path in draw_figures({Path(STEM).stem: lambda: (stem.samples, stem.sample_rate)}, models, work, sheets=("2",), progress=progress) + draw_figures(clips, models, work, sheets=("pages",), progress=progress):
            shrink(path, RESULTS / "figures")
    rows = [{"clip": name, **row} for name, read in {**clips, Path(STEM).stem: lambda: (stem.samples, stem.sample_rate)}.items() for row in analyse(*read(), "fullness", models)]
    plain = [{name: round(value, 4) if isinstance(value, float) and np.isfinite(value) else None if isinstance(value, float) else value for name, value in row.items()} for row in rows]
    (RESULTS / "data" / "analysis.json").write_text(json.dumps({"made_by": "python scripts/draw_report.py TABLES", "style": "fullness", "seconds": 3.0, "rows": plain}, indent=1) + "\n", encoding="utf-8")
