"""True to its word: what the README and the docs tell to type can be typed, what the README claims is so, and nothing of ours is about to stop working."""
import ast
import configparser
import io
import json
import re
import shlex
import shutil
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ROOT
from timbre_palette import anchors, enhance
from timbre_palette.audio import AV_SUFFIXES, CONTAINERS, write_audio
from timbre_palette.blend import parse_style
from timbre_palette.checkpoint import WEIGHTS, shipped
from timbre_palette.cli import main, make_parser
from timbre_palette.demo import demo_versions
from timbre_palette.listening import paper_versions
from timbre_palette.material import SOLO_TAKES
from timbre_palette.model import ConditionalWaveUNet
from timbre_palette.recipe import RECIPES, find_recipe
from timbre_palette.style_transfer.strategies import STRATEGIES
from timbre_palette.style_transfer.system import LONGEST_S
from timbre_palette.synth import demo_clip
from timbre_palette.timbre_transfer.transfer import LiveTransfer, find_instrument
from timbre_palette.timbre_transfer.whistles import whistle

README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```[ ]*$", re.M | re.S)
WORDS = ("timbre-palette", "pip", "accelerate", "python", "pytest", "jupyter", "git", "nbdev_export", "nbdev_clean", "nbdev_docs", "nbdev_preview", "voila")  # with which a line for a shell begins


def pages():
    "Name and Markdown of the README and of every notebook."
    yield "README.md", README
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            yield path.relative_to(ROOT).as_posix(), "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def shell_lines():
    "Page, line and whether it is whole: of every block for a shell, of blocks without a language that begin like one, and what stands between backticks, where only a part may be meant."
    for page, text in pages():
        for block in FENCE.finditer(text):
            lines = [line for line in block["text"].splitlines() if line.strip()]
            if block["language"] in ("sh", "bash", "shell", "console") or (not block["language"] and lines and lines[0].split()[0] in WORDS):
                yield from ((page, line, True) for line in lines)
        for inline in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", text)):
            if inline.split()[:1] and inline.split()[0] in WORDS and (len(inline.split()) > 1 or inline.startswith("nbdev_")):
                yield page, inline, False


LINES = sorted(set(shell_lines()))


def commands(line):
    "The commands of a line, as lists of words, without its comment."
    words = shlex.split(line.replace("$(which timbre-palette)", "timbre-palette"), comments=True)
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        yield words[:end]
        words = words[end + 1:]


# --- lines for a shell

def check_ours(words):
    "Understood by the command's own parser, with settings that exist."
    options = make_parser().parse_args(words)
    if words[0] == "train":
        assert options.recipe in RECIPES or options.recipe.endswith((".json", ".yaml")), options.recipe
        if options.recipe in RECIPES:
            find_recipe(options.recipe, options.set)
    if words[0] == "enhance":
        assert options.model in enhance.MODELS or "/" in options.model or options.model.startswith("my-")  # a folder
        axes = [part.partition("=")[0] for part in options.style.split(",")] if "=" in options.style else ()
        parse_style(options.style, tuple(dict.fromkeys([*anchors.STYLES, *axes])))


def check_part(words):
    "A command of ours that exists, and options that it has."
    [commands] = [action.choices for action in make_parser()._actions if isinstance(action.choices, dict)]
    known = commands[words[0]]._option_string_actions
    assert all(word in known for word in words if word.startswith("--")), words


def check_pip(words):
    "Understood by pip, with files and extras that are there."
    from pip._internal.commands import create_command
    pip = create_command(words[0])
    options, named = pip.parse_args(words[1:])
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    assert all((ROOT / name).is_file() for name in options.constraints)
    for extra in re.findall(r"\[([\w,]+)\]", " ".join([*named, *options.editables])):
        assert all(f"{one}_requirements" in config["DEFAULT"] for one in extra.split(",")), extra


def check_accelerate(words):
    "Understood by accelerate, and behind it by the command."
    from accelerate.commands.launch import launch_command_parser
    assert words[0] == "launch"
    options = launch_command_parser().parse_args(words[1:])
    assert options.training_script == "timbre-palette"
    check_ours(options.training_script_args)


def check_python(words):
    "A script that is there and knows these options."
    if words[0] == "-m":
        return
    script = ROOT / words[0]
    text = script.read_text(encoding="utf-8")
    ast.parse(text)
    assert all(f'"{word}"' in text for word in words[1:] if word.startswith("--")), words
    assert len(words) == 1 or "argparse" in text or "argv" in text


CHECKS = {"timbre-palette": check_ours, "pip": check_pip, "accelerate": check_accelerate, "python": check_python}


def check_line(line, whole):
    "Every command of a line, which may be a part of one."
    for first, *words in commands(line):
        assert (Path(sys.executable).parent / first).exists() or shutil.which(first), f"there is no {first}"
        if whole and first in CHECKS:
            CHECKS[first](words)
        elif first == "timbre-palette":
            check_part(words)


@pytest.mark.parametrize("page", sorted({page for page, *_ in LINES}))
def test_lines_for_a_shell_are_understood(page, capsys):
    for _, line, whole in (found for found in LINES if found[0] == page):
        try:
            check_line(line, whole)
        except (SystemExit, AssertionError, ValueError, OSError) as error:
            pytest.fail(f"{page}: {line}\n{error}\n{capsys.readouterr().err}")


def test_there_are_lines_and_a_wrong_one_is_noticed(capsys):
    assert len(LINES) > 40 and {page for page, *_ in LINES} >= {"README.md", "nbs/index.ipynb", "nbs/tutorials/train.ipynb"}
    for wrong in ("enhance song.wav --styel warmth -o out.wav", "enhance song.wav", "train graybox --sett steps=3"):
        with pytest.raises(SystemExit):
            check_ours(wrong.split())
    with pytest.raises(ValueError, match="no setting"):
        check_ours(["train", "graybox", "--data", "songs/", "--set", "stepps=3"])
    with pytest.raises(AssertionError):
        check_pip(["install", ".[nonsense]"])
    with pytest.raises(AssertionError):
        check_line("timbre-palette info --loudly", whole=False)
    assert list(commands("pip install . && timbre-palette demo  # and so on")) == [["pip", "install", "."], ["timbre-palette", "demo"]]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with the files that the docs name, a second or two of each."
    folder, clip = tmp_path_factory.mktemp("docs"), demo_clip(22050)[:, :33000]
    (folder / "album").mkdir()
    for name in ("song.wav", "song.flac", "record.flac", "album/one.wav", "album/two.wav"):
        write_audio(folder / name, np.roll(clip, 1000 * len(name), 1), 22050, "PCM_16")
    tune = whistle(3, seconds=1.5, sample_rate=22050)
    write_audio(folder / "whistle.wav", tune.samples, 22050, "PCM_16")
    shutil.copytree(WEIGHTS / "graybox", folder / "my-graybox")
    shutil.copytree(WEIGHTS / "graybox", folder / "runs" / "mine" / "best")
    return folder


RUN = [line for line in dict.fromkeys(line for _, line, whole in LINES if whole) if re.match(r"timbre-palette (?:enhance|info|match|transfer) ", line)]


def test_lines_that_take_no_time_are_run(place, monkeypatch, capsys):
    "With the files that they name; one worker is enough, and what has to be learned first is left out."
    monkeypatch.chdir(place)
    done = 0
    for line in RUN:
        [words] = commands(line)
        if "tape=" in line:
            continue
        if "--workers" in words:
            words[words.index("--workers") + 1] = "1"
        assert main(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
        if "-o" in words:
            assert Path(words[words.index("-o") + 1]).exists()
        done += 1
    assert done >= 9 and {"matched.wav", "found.json", "found.png", "trumpet.wav", "violin.wav", "fuller.wav"} <= {path.name for path in place.iterdir()}
    for line in ("match song.wav --settings found.json -o again.wav", "match song.wav -o finer.wav --refine 2", "enhance song.wav -o limited.wav --clip limit --ceiling -3 --dither --json"):  # the README's other options
        assert main(line.split()) == 0, capsys.readouterr().err


# --- Python

def test_blocks_of_python_in_the_readme_print_what_stands_below(place, monkeypatch):
    "Figures of rounding may differ by 3 dB from machine to machine."
    monkeypatch.chdir(place)
    names, checked = {}, 0
    blocks = [(block["language"], block["text"]) for block in FENCE.finditer(README)]
    for (language, text), (following, shown) in zip(blocks, [*blocks[1:], ("", "")]):
        if language != "python":
            continue
        tree, printed = ast.parse(text), io.StringIO()
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        with redirect_stdout(printed):
            exec(compile(tree, "README", "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), "README", "eval"), names)
                if value is not None and not following:
                    print(repr(value))
        if not following and shown:
            found, wanted = (re.split(r"(\d+) dB above", part.strip()) for part in (printed.getvalue(), shown))
            assert found[::2] == wanted[::2]
            assert all(abs(int(a) - int(b)) <= 3 for a, b in zip(found[1::2], wanted[1::2]))
            checked += 1
    assert checked == 4
    plt = sys.modules.get("matplotlib.pyplot")
    if plt:
        plt.close("all")


def test_blocks_of_python_in_notebooks_text_are_for_colab():
    "All others are cells, which run."
    found = [(page, block["text"]) for page, text in pages() if page not in ("README.md", "nbs/index.ipynb") for block in FENCE.finditer(text) if block["language"] == "python"]
    assert found
    for page, text in found:
        assert ast.parse(text) and text.startswith("from google.colab import "), f"{page}: make a cell of it\n{text}"


def test_there_are_no_examples_that_nothing_runs():
    "A prompt in a docstring or in the text would be an example that no test runs: examples are cells."
    texts = dict(pages()) | {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "timbre_palette").rglob("*.py")}
    assert not [name for name, text in texts.items() if re.search(r"^\s*>>> ", text, re.M)]


# --- figures in words

def python():
    return re.search(r"^min_python = (.*)$", (ROOT / "settings.ini").read_text(encoding="utf-8"), re.M)[1]


def latency_ms():
    return round(1000 * LiveTransfer(find_instrument("trumpet"), 44100).latency / 44100)


def peak_of_a_loud_file(folder):
    "True peak in dBTP of a 16-bit file that was loud, enhanced."
    write_audio(folder / "loud.wav", demo_clip(22050)[:, :22050] * 3, 22050, "PCM_16")
    return enhance.enhance_file(folder / "loud.wav", folder / "lowered.wav", "layeredness")["output_dbtp"]


def words(count):
    return ("none", "one", "two", "three", "four", "five", "six")[count]


def cards():
    "The cards of the three models that the README's table is about."
    return [json.loads((WEIGHTS / name / "card.json").read_text(encoding="utf-8")) for name in ("graybox", "blackbox", "waveunet-v2")]


def unheard():
    "How many songs the models were scored on, none of which they had heard."
    assert not any(card["overlap"]["test_songs_trained_on"] for card in cards())
    [count] = {card["overlap"]["test_songs"] for card in cards()}
    return count


def heard():
    "How many samples one of the paper's network hears, a mean over its kinds of position."
    network, spans = ConditionalWaveUNet.from_pretrained("waveunet-v2"), []
    x = torch.randn(1, 1, 800, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = network(x, torch.eye(3)[0])
    for place in range(400, 400 + network.step):
        places = torch.autograd.grad(y[0, 0, place], x, retain_graph=True)[0][0, 0].nonzero()
        spans.append(int(places.max() - places.min()) + 1)
    return np.mean(spans)


MINUS = "−"
# What the README says, as it has to stand there, by what is so. Each is made of what the package has or does.
CLAIMS = {
    "Python": lambda: f"Python {python()} or newer",
    "fullness": lambda: f"+{anchors.PEAK_DB:g} dB of body around {anchors.PEAK_HZ:g} Hz",
    "warmth": lambda: f"drives {anchors.BAND_HZ[0]:g} Hz to {anchors.BAND_HZ[1] / 1000:g} kHz softly into saturation",
    "layeredness": lambda: f"brings the song to {MINUS}{-anchors.TARGET_LUFS:g} LUFS, then tilts its spectrum by {MINUS}{-anchors.SLOPE_DB:g} dB an octave",
    "style": lambda: "`s80_a10_m10`: {:.0f} % fullness, {:.0f} % warmth, {:.0f} % layeredness".format(*100 * parse_style("s80_a10_m10")),
    "amount": lambda: "The amount runs from 0, the song as it was, to 1",
    "ceiling": lambda: f"if their true peak would pass {MINUS}{-enhance.CEILING_DBTP:g} dBTP",
    "depths": lambda: f"goes before rounding to {' or '.join(depth for depth in enhance.BIT_DEPTHS if depth in ('16', '24'))} bits",
    "formats": lambda: "WAV, FLAC, OGG, MP3 and AIFF go in and out; M4A and AAC go in",
    "heard": lambda: "at most half a minute of each",
    "latency": lambda: f"live playing with {latency_ms()} ms of latency",
    "instruments": lambda: "There are a trumpet, a flute and a violin",
    "models": lambda: f"## {words(len(enhance.MODELS)).capitalize()} models",
    "demo": lambda: f"a short clip in {words(len({name for name, model in demo_versions() if model}))} styles by {words(len({model for _, model in demo_versions() if model}))} models",
    "listening": lambda: f"a blind test of {words(len(paper_versions()))} blends on {words(len(SOLO_TAKES))} recordings",
    "gradients": lambda: "five ways to a gradient and two networks without effects",
    "songs": lambda: f"Means over {unheard()} songs that no model has heard",
    "tutorials": lambda: f"{words(len(list((ROOT / 'nbs' / 'tutorials').glob('*.ipynb')))).capitalize()} tutorials run on Colab",
    "field of the network": lambda: f"why {round(heard(), -1):.0f} samples are too few",
    "noise": lambda: "to far below the noise of 16 bits",
    "loudness": lambda: "BS.1770 loudness and true peak",
    "errors": lambda: f"Whatever goes wrong is one line and exit code {main(['info', 'nowhere.wav'])}",
    "licence": lambda: "Apache 2.0",
}


@pytest.fixture(scope="module")
def claims():
    return {name: claim() for name, claim in CLAIMS.items()}


def test_the_readme_claims_what_is_so(claims):
    assert not {name: claim for name, claim in claims.items() if claim not in README}


def test_what_the_claims_in_words_rest_on(tmp_path):
    assert {container.format for container in CONTAINERS.values()} == {"WAV", "FLAC", "OGG", "MP3", "AIFF"} and set(AV_SUFFIXES) >= {".m4a", ".aac"}
    assert LONGEST_S == 30
    assert {name for name in shipped() if name.startswith("timbre-")} == {"timbre-trumpet", "timbre-flute", "timbre-violin"}
    assert len([name for name in STRATEGIES if not name.startswith("ctcn")]) == 5 and len([name for name in STRATEGIES if name.startswith("ctcn")]) == 2
    assert peak_of_a_loud_file(tmp_path) <= enhance.CEILING_DBTP
    gained = {row["measure"]: row["mean"] for row in json.loads((WEIGHTS / "graybox" / "card.json").read_text(encoding="utf-8"))["metrics"] if row["model"] == "graybox"}
    assert gained["sd_sdr"] > 98  # 16 bits, full scale against their noise
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_no_figure_of_the_readme_is_without_a_claim(claims):
    "In the text; blocks are run, and the tables of figures are compared with the models' cards."
    text = FENCE.sub("", README)
    text = re.sub(r"\]\([^)]*\)|<!--.*?-->|^\| (?:doing nothing|TimbrePalette \(paper\)|black-box|gray-box|exact palette).*$", "]", text, flags=re.M)
    claimed = [(match.start(), match.end()) for claim in claims.values() for match in re.finditer(re.escape(claim), text)]
    code = [(match.start(), match.end()) for match in re.finditer(r"`[^`\n]+`", text)]
    found = [text[max(0, match.start() - 40):match.end() + 40] for match in re.finditer(r"(?<![\w.])\d[\d.,]*", text)
             if not any(start <= match.start() < end for start, end in [*claimed, *code])]
    names = ("MUSDB18", "M4A", "MP3", "VST3")
    assert not [part for part in found if not any(name in part for name in names)], found


# --- what will stop working

OLD = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


@pytest.mark.parametrize("category", OLD)
def test_what_is_deprecated_fails_where_we_use_it(category):
    "The filters of pyproject.toml, here as in the processes of pytest-xdist: a warning whose place is a module of ours is an error, another's is not."
    for module in ("timbre_palette.audio", "timbre_palette.style_transfer.match"):
        with pytest.raises(category, match="old"):
            warnings.warn_explicit("old", category, f"{module}.py", 1, module=module)
    with warnings.catch_warnings(record=True) as told:
        warnings.warn_explicit("old", category, "elsewhere.py", 1, module="another.module")
    assert [warning.category for warning in told] == [category]


@pytest.mark.parametrize("category", OLD)
@pytest.mark.parametrize("source", ["import warnings\nwarnings.warn('old', {})", "import warnings\ndef ours():\n    warnings.warn('old', {}, stacklevel=2)\nours()"], ids=("in a cell", "by a call in a cell"))
def test_what_is_deprecated_fails_in_a_cell(category, source, tmp_path):
    "By the same rule as tests/test_notebooks.py runs all of them."
    from test_notebooks import find_deprecated
    names = {"__name__": "__main__"}
    with warnings.catch_warnings():
        find_deprecated()
        with pytest.raises(category):
            exec(compile(source.format(category.__name__), "<ipython-input-1>", "exec"), names)
