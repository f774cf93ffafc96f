"""The docs, up to Quarto's pages: prepared without a warning, no link broken, and an entry for everything public that says what it must."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pytest
import yaml

from timbre_palette.pages import definitions

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "timbre_palette"
SITE = "https://timbre-palette.github.io/timbre_palette/"
REPOSITORY = "https://github.com/timbre-palette/timbre_palette/"
COLAB = "https://colab.research.google.com/github/timbre-palette/timbre_palette/"
LARGEST = 1 << 20  # bytes of a page, of its notebook before Quarto adds its own


# --- what is public, and what its docstrings have to say

# An argument with one of these names holds audio or what comes of it.
ARRAYS = set("x y samples output target block blocks taps sos dry wet signals spectrum controls features amplitudes kernels coefficients response".split())
SHAPE = re.compile(r"`[^`]*\((?:[^`(),]+,\s*)+[^`(),]*\)[^`]*`|of any shape|[Ss]ame shape|the shape of|callable|function")
# Quantities whose names leave the unit open, and what can name it.
QUANTITIES = {"gain": r"dB|factor|amplitude", "level": r"dB|LUFS|amplitude", "loudness": "LUFS", "frequencies": "Hz", "rate": "Hz", "floor": "dB|factor|times|added to",
              "delay": "seconds|frames|samples", "attack": r"\bms\b|seconds|pole", "release": r"\bms\b|seconds|pole", "in_memory": "bytes|as of", "tempo": "minute"}
AS = re.compile(r"(?:as|like|of|for|see|than) (?:\w+ ){0,2}`[\w.]+`")  # what another name's docstring says
ERROR = re.compile(r"\b[Rr]aises?\b|\b[Ee]rrors?\b")
UNIT = re.compile(r"_(?:DB|DBTP|HZ|S|MS|LU|LUFS|BYTES|BITS|KBPS|STEPS?)$")
# Where something published is done: the page, or a docstring on it, says what.
SOURCES = {"anchors": "algorithm 3|section 3.3.1", "filters": "RBJ", "loudness": r"BS\.1770", "losses": "section 3.6", "metrics": "Luo and Mesgarani", "model": "section 3.5",
           "graybox": "section 3.2", "blend": "section 3.7", "recipe": "section 4.3|A.4", "data": r"A\.4|[Aa]lgorithm 4", "polish": "Levenberg", "mastering": "Lipshitz",
           "synth": "Karplus", "material": "Fitzgerald", "analysis": "appendix A.5", "stability": "Table 2", "reach": "receptive", "tables": "Table 3", "experiments": "paper",
           "effects.ballistics": "Giannoulis", "effects.compressor": "Giannoulis", "effects.equaliser": "DeepAFx-ST|RBJ", "effects.reverb": "Moorer", "baselines.early": "Stoller",
           "baselines.spectrogram": "Jansson", "style_transfer.efficientnet": "Tan and Le", "baselines.tasnet": "Luo and Mesgarani", "baselines.tcn": "Bai",
           "style_transfer.rules": "section 3.3", "style_transfer.encoder": "section 2.2", "style_transfer.system": "section 3.6", "style_transfer.pairs": "section 2.1",
           "style_transfer.styles": "section 4.2", "style_transfer.refine": "ST-ITO", "style_transfer.scores": "section 4.1|sections 4.1", "style_transfer.training": "section 3.4|sections 2.1", "style_transfer.presets": "section 5", "style_transfer.match": "section 5", "style_transfer.probes": "section 4.4", "style_transfer.proxies": "section 3.5",
           "style_transfer.proxy_training": "section 3.5", "style_transfer.strategies": "equation 2", "style_transfer.experiments": "section 3|sections 3", "style_transfer.figures": "Figure 4", "style_transfer.tables": "Table 3",
           "timbre_transfer.pitch": "Boersma", "timbre_transfer.whistles": "article on timbre transfer",
           "timbre_transfer.oscillator": "Engel", "timbre_transfer.takes": "article on timbre transfer", "timbre_transfer.article": "article on timbre transfer",
           "timbre_transfer.instrument": "Engel", "timbre_transfer.transfer": "article", "timbre_transfer.learning": "article", "timbre_transfer.whistling": "article on timbre transfer"}


def module_name(path):
    return path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py")) if path.stem not in ("__init__", "_modidx")}
CLASSES = {node.name: node for tree in TREES.values() for node in tree.body if isinstance(node, ast.ClassDef)}


def exported(tree):
    "The names in a module's `__all__`."
    return next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")


def said_of(cls):
    "The docstrings of a class and of those of ours that it is made from."
    bases = [CLASSES[base.id] for base in cls.bases if isinstance(base, ast.Name) and base.id in CLASSES]
    return " ".join([ast.get_docstring(cls) or "", *map(said_of, bases)])


def public(trees=TREES):
    "Yields (module, name, node, class or None, the module's helpers) of every exported function and class, and of every public method."
    for module, tree in trees.items():
        helpers = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("_")}
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                yield module, node.name, node, None, helpers
                for inner in node.body if isinstance(node, ast.ClassDef) else ():
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        yield module, f"{node.name}.{inner.name}", inner, node, helpers


def raises(node, helpers, seen=()):
    "Whether a function raises a `PaletteError`, itself or by a helper of its module."
    for inner in ast.walk(node):
        name = inner.func.id if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) else ""
        if isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call) and getattr(inner.exc.func, "id", "") == "PaletteError":
            return True
        if name in helpers and name not in seen and raises(helpers[name], helpers, (*seen, name)):
            return True
    return False


def docstring_findings(trees=TREES):
    "Lines that say which docstring lacks what."
    found = []
    for module, name, node, cls, helpers in public(trees):
        doc, method = ast.get_docstring(node) or "", name.rpartition(".")[2]
        if not doc and not (cls and re.search(rf"`{method}[`(]", said_of(cls))):
            found.append(f"{module}.{name}: no docstring")
            continue
        around = f"{doc} {said_of(cls) if cls else ''}"
        calls = [inner for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name in ("__init__", "__post_init__", "__call__")] if isinstance(node, ast.ClassDef) else [node]
        arguments = {argument.arg for call in calls for argument in (*call.args.args, *call.args.kwonlyargs)}
        if any(raises(call, helpers) for call in calls) and not ERROR.search(around):
            found.append(f"{module}.{name}: raises PaletteError and does not say so")
        if (arrays := arguments & ARRAYS) and not SHAPE.search(around) and not AS.search(doc):
            found.append(f"{module}.{name}: no shape of {', '.join(sorted(arrays))}")
        found += [f"{module}.{name}: no unit of {argument}" for argument in sorted(arguments & set(QUANTITIES)) if not re.search(QUANTITIES[argument], around)]
    return found


def notebooks_by_module():
    "The cells of the notebook behind each module: pairs of type and source."
    found = {}
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
        for _, source in cells:
            if match := re.search(r"^#\| default_exp (\S+)", source):
                found[match[1]] = cells
    return found


def is_text(definition):
    "Whether a constant is a string of several words, which says itself what it is."
    value = ast.parse(definition).body[0].value
    last = value.right if isinstance(value, ast.BinOp) else value
    return isinstance(last, ast.Constant) and isinstance(last.value, str) and len(last.value.split()) > 1


def constant_findings(cells):
    "Constants in the cells of a notebook whose meaning or unit cannot be known: no comment, no unit in the name, not in the text, and no text themselves."
    text = "\n".join(source for _, source in cells)
    for kind, source in cells:
        for names, definition in definitions(source) if kind == "code" and source.startswith("#| export") else ():
            for name in names if definition and "#" not in definition and not is_text(definition) else ():
                if not UNIT.search(name) and not re.search(rf"`(?:\w+\.)?{name}\b", text):
                    yield name


def test_docstrings_say_what_they_must():
    found = docstring_findings()
    assert not found, "\n".join(found)


def test_constants_are_explained():
    found = [f"{module}.{name}" for module, cells in notebooks_by_module().items() for name in constant_findings(cells)]
    assert not found, "\n".join(found)


def test_sources_are_named():
    books = notebooks_by_module()
    assert not [f"{module}: {pattern}" for module, pattern in SOURCES.items() if not re.search(pattern, "\n".join(source for _, source in books[module]))]


def test_these_checks_can_fail():
    module = ast.parse('''
def _refuse(): raise PaletteError("no")
def silent(): pass
def shapeless(x): "Does it."
def unitless(gain): "Makes it louder."
def careless(folder):
    "Reads it."
    _refuse()
class Box:
    "`forward(x)` takes `x` `(batch, time)`."
    def forward(self, x): pass
    def stage(self): pass
''')
    assert docstring_findings({"m": module}) == ["m.silent: no docstring", "m.shapeless: no shape of x", "m.unitless: no unit of gain",
                                                 "m.careless: raises PaletteError and does not say so", "m.Box.stage: no docstring"]
    assert list(constant_findings([("code", "#| export\nDEPTH = 3\nGAIN_DB = 2.0\nSIZE = 4  # bytes")])) == ["DEPTH"]


# --- pages

FENCE = re.compile(r"^(```+|~~~+)[^\n]*\n.*?^\1[ ]*$", re.M | re.S)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.S)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]*)(?:\s+\"[^\"]*\")?\)")


def slug(heading):
    "The id that Pandoc gives a heading."
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "").replace("\\", "")
    plain = re.sub(r"[^\w\s.-]", "", plain.lower())
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", plain.strip())) or "section"


class Page:
    "One page as it is handed to Quarto."
    def __init__(self, source, notebook):
        self.source, self.cells = source, notebook["cells"]
        self.front = yaml.safe_load("".join(self.cells[0]["source"]).strip().strip("-")) if self.cells[0]["cell_type"] == "raw" else {}
        self.place = (PurePosixPath(source).parent / self.front.get("output-file", "")).as_posix()
        outputs = [output for cell in self.cells for output in cell.get("outputs", ())]
        self.text = "\n\n".join("".join(shown) for cell in self.cells for shown in
                                ([cell["source"]] if cell["cell_type"] == "markdown" else [output["data"]["text/markdown"] for output in cell.get("outputs", ()) if "text/markdown" in output.get("data", {})]))
        self.html = "\n".join("".join(output["data"]["text/html"]) for output in outputs if "text/html" in output.get("data", {}))

    @cached_property
    def prose(self):
        "Its Markdown without code."
        return CODE.sub("`code`", FENCE.sub("", self.text))

    @cached_property
    def entries(self):
        "Signature and docstring by the name of each entry."
        found = re.findall(r"^#{3,4} ([\w.]+)\n\n```python\n(.*?)\n```\n\n(.*?)(?=^---$|^#{1,4} |\Z)", self.text, re.M | re.S)
        return {name: (signature, said.strip()) for name, signature, said in found}

    @cached_property
    def ids(self):
        "Where links into the page can lead, each as often as it is there."
        headings = [re.sub(r"\s*\{[^}]*\}\s*$", "", line) for line in re.findall(r"^#{1,6} +(.+)$", FENCE.sub("", self.text), re.M) if not re.search(r"\{#", line)]
        return Counter([*map(slug, headings), *re.findall(r"\{#([^\s}]+)", FENCE.sub("", self.text)), *re.findall(r'\bid="([^"]+)"', self.html)])

    @cached_property
    def links(self):
        return LINK.findall(self.prose) + re.findall(r'\b(?:src|href)="([^"]*)"', self.prose + self.html)


class Site:
    "All pages, by the notebook they are made from."
    def __init__(self, folder):
        self.folder = folder
        self.pages = {path.relative_to(folder).as_posix(): Page(path.relative_to(folder).as_posix(), json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.rglob("*.ipynb"))}
        self.by_place = {page.place: page for page in self.pages.values()}
        self.sidebar = yaml.safe_load((folder / "_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]

    def problem(self, page, link):
        "What is wrong with a link on a page, or None."
        target, _, anchor = link.partition("#")
        if link.startswith((REPOSITORY, COLAB)):
            path = re.match(r"blob/main/([^?]+)$", target.removeprefix(REPOSITORY).removeprefix(COLAB))
            if target in (REPOSITORY, REPOSITORY[:-1]):
                return None
            if not path or not (ROOT / path[1]).exists():
                return "is no file of the repository"
            lines = (ROOT / path[1]).read_text(encoding="utf-8").splitlines()
            return None if not anchor or re.match(r"\s*(?:@|def |class |async def )", lines[int(anchor.removeprefix("L")) - 1]) else "is another line"
        if target.startswith(SITE):
            other = self.by_place.get(target.removeprefix(SITE))
        elif target.startswith("data:audio/"):
            return None  # a player in a tutorial
        elif re.match(r"\w+:", target):
            parts = urlsplit(target)
            return None if parts.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc) else "is no https address"
        elif not target:
            other = page
        else:
            path = (self.folder / page.source).parent / target
            if target.startswith("/") or not path.exists() or self.folder not in path.resolve().parents:
                return "is not there"
            other = self.pages.get(path.resolve().relative_to(self.folder).as_posix())
            if other is None and not anchor:
                return None
        return "is not there" if other is None else "has no such place" if anchor and not other.ids[anchor] else None


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The pages as nbdev prepares them for a Quarto that does nothing; whatever it says on the way fails."
    folder = tmp_path_factory.mktemp("docs")
    for name in ("settings.ini", "setup.py", "README.md", "_quarto.yml"):
        shutil.copy(ROOT / name, folder)
    for name in ("nbs", "timbre_palette"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__", ".last_checked"))
    (folder / "bin").mkdir()
    (folder / "bin" / "quarto").write_text("#!/bin/sh\nexit 0\n")
    (folder / "bin" / "quarto").chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "MPLBACKEND": "agg"}
    environment.pop("IN_TEST", None)
    subprocess.run([sys.executable, "setup.py", "-q", "egg_info"], cwd=folder, env=environment, check=True, capture_output=True)  # how nbdev finds our names
    done = subprocess.run([Path(sys.executable).parent / "nbdev_proc_nbs", "--n_workers", "1"], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and not done.stdout.strip() and not done.stderr.strip(), done.stdout + done.stderr
    return Site((folder / "_proc").resolve())


def sidebar_problems(site):
    "The sidebar holds every page once, under a heading, and nothing else."
    assert site.sidebar[0] == "index.ipynb" and all(entry["section"] and entry["contents"] for entry in site.sidebar[1:])
    listed = Counter([site.sidebar[0], *(page for entry in site.sidebar[1:] for page in entry["contents"])])
    return [f"{name}: {listed[name]} times in the sidebar" for name in {*listed, *site.pages} if listed[name] != 1 or name not in site.pages]


def page_problems(site):
    "Pages have a title, a description and an address of their own; they are small, and say nothing of the machine that made them."
    for name, page in site.pages.items():
        raw = (site.folder / name).read_text(encoding="utf-8")
        if not (page.front.get("title") and page.front.get("description")):
            yield f"{name}: no title or no description"
        if site.by_place[page.place] is not page:
            yield f"{name}: has the address of another, {page.place}"
        if len(raw) > LARGEST:
            yield f"{name}: {len(raw)} bytes"
        if re.search(r"(?<![\w.])/(?:tmp|home|root|work)/", raw):
            yield f"{name}: a path of some machine"
        for cell in page.cells:
            outputs = cell.get("outputs", ())
            if [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]:
                yield f"{name}: an error or a warning in {cell['id']}"
            if re.search(r"^show_doc\(", "".join(cell["source"]), re.M) and not (outputs and "text/markdown" in outputs[0].get("data", {})):
                yield f"{name}: no entry from {''.join(cell['source'])!r}"


def text_problems(site):
    "Formulas are such that Pandoc sees them, nothing is escaped twice, no link stands in another (nbdev links code), and no two places have one name."
    for name, page in site.pages.items():
        prose = page.prose
        for formula in re.findall(r"\$\$.*?\$\$", prose, re.S):
            prose = prose.replace(formula, "")
        for line in prose.splitlines():
            if line.count("$") % 2 or any(formula != formula.strip() for formula in line.split("$")[1::2]):
                yield f"{name}: a dollar sign that opens no formula, or closes none: {line[:80]}"
        if re.search(r"&(?:lt|gt|amp|quot|#\d+);", page.prose) or re.search(r"\\[()\[]", prose):
            yield f"{name}: an entity, or a formula between other signs than dollars"
        yield from (f"{name}: a link within a link, {match}" for match in re.findall(r"\[\[[^\]]*\]\([^)]*\)\]\(", page.prose))
        yield from (f"{name}: {count} places are called {place}" for place, count in page.ids.items() if count > 1)


def link_problems(site):
    "Every link and image leads somewhere."
    return [f"{name}: {link[:200]} {problem}" for name, page in site.pages.items() for link in page.links if (problem := site.problem(page, link))]


def entry_problems(site):
    "Every exported name has an entry on its module's page, with a signature and its docstring; a constant its definition."
    modules = {match[1]: page for page in site.pages.values() for cell in json.loads((ROOT / "nbs" / page.source).read_text(encoding="utf-8"))["cells"]
               if (match := re.match(r"#\| default_exp (\S+)", "".join(cell["source"])))}
    for module, tree in TREES.items():
        page = modules[module]
        documented = {name: node for inside, name, node, _, _ in public({module: tree})}
        for name in sorted({*exported(tree), *documented}):
            if name not in documented:
                if not page.ids[name] or not re.search(rf"^[^\n#]*\b{name}\b[^\n]*=", "\n".join(match[0] for match in FENCE.finditer(page.text)), re.M):
                    yield f"{module}.{name}: no definition on its page"
            elif doc := ast.get_docstring(documented[name]):
                signature, said = page.entries.get(name, ("", ""))
                if not re.match(rf"(?:class )?{re.escape(name)}(?:\(|$)", signature):
                    yield f"{module}.{name}: no signature on its page"
                elif re.sub(r"\W", "", doc)[:40] not in re.sub(r"\W", "", re.sub(r"\]\([^)]*\)", "]", said)):
                    yield f"{module}.{name}: its page does not say what its docstring says"
                if name.lower() not in page.ids:
                    yield f"{module}.{name}: no place to link to"
                if f"{module.replace('.', '/')}.py#L" not in page.text.partition(f"# {name}\n")[0][-300:]:
                    yield f"{module}.{name}: no link to its source"


def test_pages(site):
    "One test for all of them, since their preparation is what takes time."
    found = [problem for check in (sidebar_problems, page_problems, text_problems, link_problems, entry_problems) for problem in check(site)]
    assert len(site.pages) == len(list((ROOT / "nbs").rglob("*.ipynb"))) and sum(len(page.links) for page in site.pages.values()) > 1000
    assert not found, "\n".join(found)


def test_checks_of_pages_can_fail(tmp_path):
    front = lambda place: {"cell_type": "raw", "id": "front", "source": f"---\ntitle: a page\noutput-file: {place}.html\n---"}
    text = ("## Here\n\n[a](two.ipynb) [b](#here) [c](#there) [d](http://example.org) [`e`](https://example.org) [f](/tmp/x.png) ![g](h.png) "
            f"[i]({SITE}one.html#here) [j]({SITE}one.html#gone) [k]({REPOSITORY}blob/main/setup.py) [l]({REPOSITORY}blob/main/gone.py) [[m](n)](o)\n\n"
            "costs $3 &amp; more, $x$\n\n## Here\n\n`[p](code)`\n\n```\n[q](fence) $\n```")
    for name, place in (("one", "one"), ("three", "three"), ("four", "three")):
        (tmp_path / f"{name}.ipynb").write_text(json.dumps({"cells": [front(place), {"cell_type": "markdown", "id": "text", "source": text if name == "one" else "Fine, $y$."}]}))
    (tmp_path / "_quarto.yml").write_text("website: {sidebar: {contents: [index.ipynb, {section: More, contents: [one.ipynb]}]}}")
    found = Site(tmp_path.resolve())
    assert [line.split()[1] for line in link_problems(found)] == ["two.ipynb", "#there", "http://example.org", "/tmp/x.png", "h.png", f"{SITE}one.html#gone", f"{REPOSITORY}blob/main/gone.py", "o"]
    assert sorted(sidebar_problems(found)) == ["four.ipynb: 0 times in the sidebar", "index.ipynb: 1 times in the sidebar", "three.ipynb: 0 times in the sidebar"]
    assert [line.partition(":")[2].split()[:3] for line in text_problems(found)] == [["a", "dollar", "sign"], ["an", "entity,", "or"], ["a", "link", "within"], ["2", "places", "are"]]
    assert {line.partition(" ")[2] for line in page_problems(found)} == {"no title or no description", "has the address of another, three.html", "a path of some machine"}


def test_the_landing_page_shows_it_at_once():
    "Before its first heading: a figure, players of small sounds, and the two commands, which the README has too, once each."
    readme, top = (ROOT / "README.md").read_text(encoding="utf-8"), ""
    for cell in json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]:
        if "".join(cell["source"]).startswith("## "):
            break
        top += "".join(cell["source"]) + "\n\n"
    media = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", top) + re.findall(r'<audio [^>]*src="([^"]+)"', top)
    assert len(media) == 3 and all((ROOT / "nbs" / path).stat().st_size < 100_000 for path in media)
    for command in ("pip install .*&& timbre-palette demo", "pip install .*&& pytest"):
        assert len(re.findall(f"^{command}$", top, re.M)) == len(re.findall(f"^{command}$", readme, re.M)) == 1
    assert "<audio" not in readme and "nbs/sounds/after.mp3" in readme


def test_the_workflow_publishes_what_nbdev_makes():
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    build = yaml.safe_load((ROOT / ".github" / "workflows" / "docs.yml").read_text(encoding="utf-8"))["jobs"]["build"]["steps"]
    used = {step["uses"].partition("@")[0]: step.get("with", {}) for step in build if "uses" in step}
    assert re.fullmatch(r"1\.\d+\.\d+", used["quarto-dev/quarto-actions/setup"]["version"])
    assert re.search(rf"^doc_path = {used['actions/upload-pages-artifact']['path']}$", settings, re.M)
    words = {step["run"].split()[0] for step in build if "run" in step}
    assert "nbdev_docs" in words and all((Path(sys.executable).parent / word).exists() or shutil.which(word) for word in words)
