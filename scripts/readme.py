"""Write README.md from nbs/index.ipynb, without Quarto: `python scripts/readme.py [--check]`.

Markdown cells as they are, code cells fenced, followed by their text output. Links to notebooks
and images are made to work from the repository's root. `--check` only compares, exit code 1 if
README.md is not what the notebook says.
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
    "The notebook as Markdown."
    parts = []
    for cell in notebook["cells"]:
        source = text(cell["source"]).rstrip()
        if cell["cell_type"] == "code":
            shown = "\n".join(filter(None, map(output_text, cell["outputs"])))
            parts += [f"```python\n{source}\n```"] + ([f"```\n{shown}\n```"] if shown else [])
        else:
            parts.append(re.sub(r"\]\(([\w./]+\.(?:ipynb|png))\)", r"](nbs/\1)", source))
    return "<!-- written by scripts/readme.py from nbs/index.ipynb: edit that -->\n\n" + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    wanted = render(json.loads((root / "nbs/index.ipynb").read_text(encoding="utf-8")))
    readme = root / "README.md"
    if "--check" in sys.argv:
        if readme.read_text(encoding="utf-8") != wanted:
            sys.exit("README.md differs from nbs/index.ipynb; run: python scripts/readme.py")
    else:
        readme.write_text(wanted, encoding="utf-8")
