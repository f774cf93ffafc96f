"""Keep what a finished run has to tell, without its weights, for the reports: `python scripts/keep_run.py runs/v1 paper-v1`.

Writes the card (recipe, songs, curve, figures) to nbs/results/cards. Refuses a run without figures.
"""
import json
import sys
from pathlib import Path

CARDS = Path(__file__).resolve().parent.parent / "nbs" / "results" / "cards"

if __name__ == "__main__":
    run, name = sys.argv[1:]
    card = json.loads((Path(run) / "best" / "card.json").read_text(encoding="utf-8"))
    if not card.get("metrics"):
        sys.exit(f"{run}: its card has no figures; train with songs that have a test split")
    CARDS.mkdir(exist_ok=True)
    (CARDS / f"{name}.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(CARDS / f"{name}.json")
