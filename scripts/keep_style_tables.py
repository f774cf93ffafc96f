"""Keep what the report on DeepAFx-ST's tables shows: `python scripts/keep_style_tables.py TABLES`, a folder that `timbre-palette tables --paper deepafx-st` has worked in.

What each unit and method was found to be goes to nbs/results/data/deepafx_st, without weights: `timbre-palette tables --paper deepafx-st --kept nbs/results/data/deepafx_st` takes it
up again. The tables go to deepafx_st.json beside it, and Figures 4 and 5, small enough to be kept, to nbs/results/figures.
"""
import argparse
import shutil
import sys
from pathlib import Path

from timbre_palette.audio import PaletteError
from timbre_palette.style_transfer.tables import keep_style

RESULTS = Path(__file__).resolve().parent.parent / "nbs" / "results"


def keep(tables, results=RESULTS):
    "Units and scores, tables, figures, as far as they are there."
    keep_style(tables, results / "data" / "deepafx_st")
    made = tables / "tables"
    (results / "figures").mkdir(exist_ok=True)
    for source, target in [(made / "tables.json", results / "data" / "deepafx_st.json"), *((made / place / f"style_figure_{number}.png", results / "figures" / f"style_figure_{number}{place and '_' + place}.png") for number in (4, 5) for place in ("", "shipped"))]:
        if source.is_file():
            shutil.copyfile(source, target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path)
    options = parser.parse_args()
    try:
        keep(options.tables)
    except PaletteError as error:
        sys.exit(f"{options.tables}: {error}")
