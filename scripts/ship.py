"""Put a finished run's weights where the package ships them: `python scripts/ship.py runs/graybox graybox`.

Refuses weights without figures (no test split was there), or that invert what they should imitate.
"""
import sys

from timbre_palette.checkpoint import WEIGHTS, Pretrained

YARDSTICKS = ("identity", "oracle", "rules", "silence", "pitch-tracked")  # rows beside the model's own
LICENCE = "Apache-2.0 (the weights; the recordings they learned from have the licences listed under data, and are not in the package)"

if __name__ == "__main__":
    run, name = sys.argv[1:]
    model = Pretrained.from_pretrained(f"{run}/best")
    rows = model.card.get("metrics") or sys.exit(f"{run}: its card has no figures; train with a folder that has a test split")
    if any(row.get("inverted") for row in rows):
        sys.exit(f"{run}: some outputs are inverted; such weights are not shipped")
    label = "model" if "model" in rows[0] else "method"  # of a model that renders styles, or of one that sets effects by example
    model.save_pretrained(WEIGHTS / name, licence=LICENCE, metrics=[{**row, label: row[label] if row[label] in YARDSTICKS else name} for row in rows])
    print(f"{WEIGHTS / name}: {sum(p.numel() for p in model.parameters()):,} parameters, {(WEIGHTS / name / 'model.safetensors').stat().st_size:,} bytes")
