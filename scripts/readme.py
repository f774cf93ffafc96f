"""Write README.md from nbs/index.ipynb, without Quarto: `python scripts/readme.py [--check | --media]`.

Markdown cells as they are, code cells in a row as one fenced block, then their text output. Links to notebooks,
images and sounds are made to work from the repository's root; players, which GitHub does not show, become links.
`--check` only compares, exit code 1 if README.md is not what the notebook says. `--media` draws the picture at
its top and renders the two sounds again.
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
        source = re.sub(r'<audio [^>]*?src="([^"]+)"[^>]*></audio>', r"([listen](\1))", source)
        parts.append(re.sub(r"\]\(([\w./]+\.(?:ipynb|png|mp3))\)", r"](nbs/\1)", source))
    return "<!-- written by scripts/readme.py from nbs/index.ipynb: edit that -->\n\n" + "\n\n".join(filter(None, parts)) + "\n"


STYLES = {"fullness": "fullness", "warmth": "warmth", "layeredness": "layeredness", "a third of each": "s33_a33_m33"}
HEARD = slice(0, 6 * 44100 + 22050)  # three bars


def make_media():
    "What each style changes in the demo clip, as a picture; and the clip before and after the last of them, equally loud."
    import numpy as np
    import soundfile
    from matplotlib.figure import Figure
    from timbre_palette.audio import db_to_gain
    from timbre_palette.enhance import enhance
    from timbre_palette.figures import frequency_axis
    from timbre_palette.loudness import measure
    from timbre_palette.metrics import average_spectrum
    from timbre_palette.synth import demo_clip

    clip = demo_clip()
    versions = {name: enhance(clip, 44100, style, model="dsp") for name, style in STYLES.items()}
    figure = Figure(figsize=(9, 2.6), dpi=80, layout="constrained")
    axes = figure.subplots()
    for name, samples in versions.items():
        hz, level = average_spectrum(samples, 44100)
        axes.plot(hz, level - average_spectrum(clip, 44100)[1], lw=2, label=name)
    axes.set(ylabel="change (dB)")
    frequency_axis(axes)
    axes.grid(alpha=0.3)
    axes.legend()
    (root / "nbs/images").mkdir(exist_ok=True)
    figure.savefig(root / "nbs/images/styles.png")

    sounds = {"before": clip[:, HEARD], "after": versions["a third of each"][:, HEARD]}
    loudness = {name: measure(samples, 44100)[0] for name, samples in sounds.items()}
    (root / "nbs/sounds").mkdir(exist_ok=True)
    for name, samples in sounds.items():
        fade = np.minimum(1, np.arange(samples.shape[1])[::-1] / 22050)  # out, in half a second
        level = fade * db_to_gain(min(loudness.values()) - loudness[name])
        soundfile.write(root / f"nbs/sounds/{name}.mp3", (level * samples).T, 44100, bitrate_mode="CONSTANT", compression_level=0.78)  # 96 kbit/s


if __name__ == "__main__":
    if "--media" in sys.argv:
        make_media()
    wanted = render(json.loads((root / "nbs/index.ipynb").read_text(encoding="utf-8")))
    readme = root / "README.md"
    if "--check" in sys.argv:
        if readme.read_text(encoding="utf-8") != wanted:
            sys.exit("README.md differs from nbs/index.ipynb; run: python scripts/readme.py")
    else:
        readme.write_text(wanted, encoding="utf-8")
