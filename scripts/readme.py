"""Write README.md from nbs/index.ipynb, without Quarto: `python scripts/readme.py [--check | --figure]`.

Markdown cells as they are, code cells in a row as one fenced block, then their text output. Links to notebooks
and images are made to work from the repository's root. `--check` only compares, exit code 1 if
README.md is not what the notebook says. `--figure` draws the picture at its top again.
"""
import json
import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def text(lines):
    "A notebook's text, which is a string or a list of lines."
    return lines if isinstance(lines, str) else "".join(lines)


def output_text(output):
    "The plain text of a code cell's output."
    return text(output.get("text") or output.get("data", {}).get("text/plain", "")).rstrip()


def render(notebook):
    "The notebook as Markdown; code cells in a row become one block."
    parts, code = [], []
    for cell in [*notebook["cells"], {"cell_type": "markdown", "source": ""}]:
        source = text(cell["source"]).rstrip()
        if cell["cell_type"] == "code":
            code.append((source, "\n".join(filter(None, map(output_text, cell["outputs"])))))
            continue
        if code:
            parts.append("```python\n" + "\n\n".join(source for source, _ in code) + "\n```")
            parts += [f"```\n{shown}\n```" for _, shown in code if shown]
            code = []
        parts.append(re.sub(r"\]\(([\w./]+\.(?:ipynb|png))\)", r"](nbs/\1)", source))
    return "<!-- written by scripts/readme.py from nbs/index.ipynb: edit that -->\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def draw():
    "What each style changes in the demo clip."
    from timbre_palette.enhance import enhance
    from timbre_palette.figures import plot_spectra
    from timbre_palette.synth import demo_clip

    clip = demo_clip()
    styles = {name: enhance(clip, 44100, name, model="dsp") for name in ("fullness", "warmth", "layeredness", "s33_a33_m33")}
    figure = plot_spectra({"the dry clip": clip, **styles}, 44100)
    figure.set_size_inches(9, 5)
    (root / "nbs/images").mkdir(exist_ok=True)
    figure.savefig(root / "nbs/images/styles.png", dpi=80)


if __name__ == "__main__":
    if "--figure" in sys.argv:
        draw()
    wanted = render(json.loads((root / "nbs/index.ipynb").read_text(encoding="utf-8")))
    readme = root / "README.md"
    if "--check" in sys.argv:
        if readme.read_text(encoding="utf-8") != wanted:
            sys.exit("README.md differs from nbs/index.ipynb; run: python scripts/readme.py")
    else:
        readme.write_text(wanted, encoding="utf-8")
