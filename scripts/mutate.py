"""Break the code on purpose, in one small place at a time, and see whether a test notices: `python scripts/mutate.py [--modules anchors filters ...] [--mutants 40] [--seed 0] [--out FILE.json] [--only MODULE:NUMBER]`.

A mutant is a module with one node of its syntax tree changed: an arithmetic operator, a comparison, a number, True or False, a condition, the call that is returned, a statement or an argument left out, a slice moved by one,
a function put in another's place, a string that is a key or a mode made empty. Docstrings, what errors say, other text for people and annotations stay as they are: a changed message is no fault of the code. Nor is an
argument `device` left out, which makes no difference where there is one device (`tests/test_devices.py` is for machines with two). The sample is a function of the seed, without repetition, and spread over functions.

Each mutant is a fork of a process that has imported what is heavy, but nothing of the package; there the import system finds the changed tree in place of the module, and no file is written. The module's tests run, then
the examples of its notebook, until one fails: the mutant is killed. One that takes several times the usual time is killed too. Unchanged modules have to pass first. Results go to a file, with which a run that was stopped
goes on; `--again` tries the survivors once more, `--keep FILE` adds a summary to a file. Ends with 1 if less than 85 % of a module's mutants are killed.
"""
import argparse
import ast
import builtins
import copy
import gc
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "timbre_palette"
ENOUGH = 0.85
HEAVY = ("numpy", "scipy.signal", "scipy.fft", "torch", "torchaudio.functional", "pyloudnorm", "librosa", "auraloss", "pesq", "pedalboard", "soundfile", "soxr", "matplotlib.pyplot", "nbformat", "pytest", "_pytest.assertion.rewrite", "tqdm")
MEMORY = 8 << 30  # bytes that a mutant may ask for

def first(file, words):
    "A file of tests as two stages, those first whose names have one of the words in them."
    return f"{file} -k '{words}'", f"{file} -k 'not ({words})'"


# What is run against a module, cheap and telling things first: files of tests, with what pytest is told beside, and "examples", those of the module's notebook.
# Tests of speed are left out; on a busy machine they would kill anything.
EFFECT_TESTS = "tests/test_effects.py -k 'not far_faster and not no_longer_than and not learns_its_times'"
TESTS = {
    "anchors": (*first("tests/test_palette.py", "short_time or left_out or edges or not_raised or stages_for_blocks or anchors_are"), "examples"),
    "filters": ("examples", "tests/test_filters.py", "tests/test_effects.py -k 'bands_against or response_in or autocast'"),
    "loudness": (*first("tests/test_loudness.py", "gates or scaling or every_number or glides or listens or anywhere or any_rate or sliding or points"), "examples"),
    "metrics": (*first("tests/test_metrics.py", "closed_form or welchs or written_out or white_noise or few_samples or shares_of or stands_in"), "examples"),
    "losses": ("tests/test_losses.py", "examples"),
    "effects": ("tests/test_effect_tables.py", EFFECT_TESTS, "examples"),
}
OWN_TESTS = {"effects.settings": ("tests/test_effect_tables.py", "tests/test_settings.py", "examples"),
             "effects.plugins": ("tests/test_effect_tables.py", "tests/test_effects.py -k plugin", "examples")}  # of single files of a sub-package

# Mutants that behave as the code does, by their text: why.
TWO_DIMENSIONS = "the tensor has two dimensions, of which the last is 1"
EQUIVALENT = {
    "losses.py LogSTFTLoss.magnitude: return stft_magnitude(x, self.n_fft, self.hop, self.window) → return stft_magnitude(x, self.n_fft, self.hop)": "the window that is made where none is given is the same",
    "filters.py finite_taps: len(taps) <= n_fft // 4 or n_fft >= 4 * longest → len(taps) <= n_fft // 4 or n_fft > 4 * longest": "taps are longest at most: where the two sides are equal, the first condition holds",
    "filters.py finite_taps: len(taps) <= n_fft // 4 or n_fft >= 4 * longest → len(taps) < n_fft // 4 or n_fft >= 4 * longest": "one doubling more, for the same taps",
    "filters.py tilt_reference: irfft(rfft(np.asarray(x, np.float64), n_fft) * (_causal(gain) if causal else gain), n_fft)[..., :frames] → irfft(rfft(np.asarray(x, np.float64), n_fft) * (_causal(gain) if causal else gain))[..., :frames]":
        "the length is even, and then the one that is taken where none is given",
    "filters.py module: PIECE = 1 << 16 → PIECE = 1 >> 16": "a convolution in shorter pieces; only the speed differs",
    "filters.py fft_filter: 2 ** math.ceil(math.log2((8 if precise else 2.5) * tail)) → 2 ** math.floor(math.log2((8 if precise else 2.5) * tail))": "blocks of another length, longer than the tail too; only the speed differs",
    "filters.py minimum_phase: torch.fft.rfft(cepstrum * fold, n).exp → torch.fft.rfft(cepstrum * fold).exp": "the cepstrum has n samples",
    "filters.py _tilt_length: 2 * next_fast_len((frames + max(frames, sample_rate) + 1) // 2, real=True) → 2 * next_fast_len((frames + max(frames, sample_rate) + 1) // 2)": "another fast length with the same room",
    "loudness.py true_peak_db: flat.abs().amax(-1) → flat.abs().amax(1)": TWO_DIMENSIONS,
    "loudness.py _gated.mean_where: mask.sum(-1).clamp → mask.sum(1).clamp": TWO_DIMENSIONS,
    "loudness.py _gated.mean_where: torch.where(mask, power, 0.0).sum(-1) → torch.where(mask, power, 0.0).sum(1)": TWO_DIMENSIONS,
    "loudness.py Leveller.__call__: -1 → 1": TWO_DIMENSIONS,
    "loudness.py loudness_reference: power.mean() if len(power) else 0.0 → power.mean() if len(power) else 1.0": "where no block has passed the absolute gate, none is left for the relative one",
    "loudness.py _block_power: torch.nn.functional.pad(as_double(torch.einsum('bct,c->bt', weighted.square(), weights)).cumsum(-1), (1, 0)) → torch.nn.functional.pad(as_double(torch.einsum('bct,c->bt', weighted.square(), weights)).cumsum(-1), (1, 1))":
        "blocks end with the sound: a zero behind it is not read",
    "loudness.py _highest: part.device.type == 'cpu' → part.device.type == ''": "all windows are looked at, not only those that could matter",
    "loudness.py PeakMeter.push: len(self._matrix) - STEP + 1 → len(self._matrix) - STEP + 2": "64 and 65 have the same half, rounded down",
    "loudness.py LoudnessMeter.highest: np.convolve(self._energy, np.ones(tenths), 'valid').max → np.convolve(self._energy, np.ones(tenths)).max": "a part of a window holds no more energy than a whole one around it",
    "loudness.py _k_taps: 2 * sample_rate → 3 * sample_rate": "a finer grid, on which the same taps have rung out too",
    "anchors.py _bell_db: -2j * np.pi * np.outer(np.arange(3), np.arange(N_FFT // 2 + 1) / N_FFT) → 2j * np.pi * np.outer(np.arange(3), np.arange(N_FFT // 2 + 1) / N_FFT)":
        "the response of real coefficients to the conjugate is the conjugate; only its magnitude is taken",
    "effects/ballistics.py module: _BLOCK = 256 → _BLOCK = 257": "the loop's length, which only the speed depends on",
    "effects/reverb.py convolve: True → False": "another fast length with the same room",
    "effects/plugins.py _Renderer.__call__: max(0, 16 - item.shape[1]) → max(0, 16 + item.shape[1])": "more zeros behind the sound, which are cut off again",
    "metrics.py Spectrum.push: samples[:, :0] → samples[:, 1:0]": "both are empty",
    "metrics.py _centroid_hz: magnitudes = _heard(x, 2048, 512).sum(-3) → magnitudes = _heard(x, 2048, 512).mean(-3)": "a centroid does not know of gain",
    "metrics.py _mono_16k: x.detach().mean(-2).reshape → x.detach().sum(-2).reshape": "PESQ brings both sounds to one level itself",
}

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
             ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
NAMES = {"min": "max", "minimum": "maximum", "amin": "amax", "any": "all", "sin": "cos", "floor": "ceil", "sum": "mean", "log": "log10", "zeros": "ones", "zeros_like": "ones_like", "argmin": "argmax", "sqrt": "square"}
NAMES = {**NAMES, **{after: before for before, after in NAMES.items()}}


@dataclass
class Mutant:
    "One change: in which file and function, at which line, of what kind, and what the place reads before and after."
    file: str
    function: str
    line: int
    kind: str
    before: str = ""
    after: str = ""
    place: tuple = ()  # the node that holds the changed one, its field, and the index in it
    node: ast.AST = None
    text: str = ""  # what it is known by
    number: int = -1


# --- mutants

def changed(node, **fields):
    "A copy of a node with other fields."
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def without(values, n):
    "A list without its `n`-th element."
    return [value for k, value in enumerate(values) if k != n]


def negated(test):
    "The opposite of a condition."
    return ast.UnaryOp(ast.Not(), test)


def other_number(value):
    "A constant near, but not equal."
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) or value == 0 else value * 1.1


def operators(node):
    "Arithmetic, bits and logic."
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OPERATORS:
        yield "operator", changed(node, op=OPERATORS[type(node.op)]())
    if isinstance(node, ast.UnaryOp):
        yield "sign", node.operand
    if isinstance(node, ast.BoolOp):
        yield "logic", changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def conditions(node):
    "Comparisons, moved; conditions, negated."
    if isinstance(node, ast.Compare):
        for n, op in enumerate(node.ops):
            yield "comparison", changed(node, ops=[*node.ops[:n], COMPARISONS[type(op)](), *node.ops[n + 1:]])
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield "condition", changed(node, test=negated(node.test))
    if isinstance(node, ast.comprehension):
        for n, test in enumerate(node.ifs):
            yield "condition", changed(node, ifs=[*node.ifs[:n], negated(test), *node.ifs[n + 1:]])


def constants(node):
    "Numbers, truth, and strings that are keys or modes."
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield "number", ast.Constant(other_number(node.value))
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.-]+", node.value):
        yield "string", ast.Constant("")


def calls(node):
    "A returned call undone, a statement or an argument left out, another function called."
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Call) and node.value.args and not isinstance(node.value.args[0], ast.Starred):
        yield "return", changed(node, value=node.value.args[0])
    if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield "statement", ast.Pass()
    if not isinstance(node, ast.Call):
        return
    for n, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, "device"):
            yield "argument", changed(node, keywords=without(node.keywords, n))
    if len(node.args) > 1 and not isinstance(node.args[-1], ast.Starred):
        yield "argument", changed(node, args=node.args[:-1])
    name = getattr(node.func, "attr", getattr(node.func, "id", None))
    if name in NAMES and (isinstance(node.func, ast.Attribute) or hasattr(builtins, NAMES[name])):
        yield "function", changed(node, func=changed(node.func, **{"attr" if isinstance(node.func, ast.Attribute) else "id": NAMES[name]}))
    if name == "abs":
        yield "function", node.args[0] if node.args else node.func.value


def slices(node):
    "A slice that begins or ends one later, or one from the edge."
    if isinstance(node, ast.Slice):
        for side, from_edge in (("lower", 1), ("upper", -1)):
            bound = getattr(node, side)
            if bound is None:
                yield "slice", changed(node, **{side: ast.Constant(from_edge) if from_edge > 0 else ast.UnaryOp(ast.USub(), ast.Constant(1))})
            else:
                yield "slice", changed(node, **{side: ast.BinOp(bound, ast.Add(), ast.Constant(1))})


CHANGES = (operators, conditions, constants, calls, slices)


def skipped(node, field):
    "Whether what stands in a field of a node stays as it is: imports, errors, annotations, docstrings, decorators, text between braces."
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Raise)) or field in ("annotation", "returns", "decorator_list", "format_spec", "ctx"):
        return True
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def children(node):
    "Every child of a node that may change: its field, its index there, or None, and itself."
    for field, value in ast.iter_fields(node):
        if skipped(node, field):
            continue
        for n, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if isinstance(child, ast.AST) and not (isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)):
                yield field, n, child


def put(place, node):
    "Put a node into its place."
    parent, field, n = place
    if n is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[n] = node


def readable(above, place, node):
    "Before and after, with as much around the place as it takes to know it: not more than a line."
    parent, field, n = place
    old = getattr(parent, field) if n is None else getattr(parent, field)[n]
    if isinstance(old, (ast.If, ast.While)):
        return ast.unparse(old.test), ast.unparse(node.test)
    for around in reversed(above):
        if isinstance(old, ast.stmt) or not isinstance(around, ast.expr) or len(ast.unparse(around)) > 12:
            break
    if isinstance(old, ast.stmt) or not isinstance(around, (ast.expr, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return, ast.Expr)):
        return ast.unparse(old), ast.unparse(node)
    before = ast.unparse(around)
    put(place, node)
    after = ast.unparse(around)
    put(place, old)
    return before, after


def all_mutants(source, file="module.py"):
    "The syntax tree of a module, and every mutant that can be made from it."
    tree, found, seen, texts = ast.parse(source), [], set(), Counter()

    def visit(node, function, above):
        for field, n, child in children(node):
            inside = function
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                inside = child.name if function == "module" else f"{function}.{child.name}"
            line = getattr(child, "lineno", getattr(above[-1] if above else child, "lineno", 0))
            for kind, replacement in (pair for change in CHANGES for pair in change(child)):
                place = (node, field, n)
                ast.fix_missing_locations(ast.copy_location(replacement, child))
                before, after = readable([*above, node], place, replacement)
                if before != after and (line, before, after) not in seen:
                    seen.add((line, before, after))
                    text = f"{file} {inside}: {before} → {after}"
                    texts[text] += 1
                    found.append(Mutant(file, inside, line, kind, before, after, place, replacement, text + (f" ({texts[text]})" if texts[text] > 1 else "")))
            visit(child, inside, [*above, node])

    visit(tree, "module", [])
    return tree, found


def in_turn(groups):
    "One of each group after another, until all are empty."
    for n in range(max(map(len, groups), default=0)):
        yield from (group[n] for group in groups if n < len(group))


def sample(mutants, seed):
    "All mutants in an order that the seed decides: each function in turn, and in it each kind in turn. The first so many are the sample."
    generator, by_function = random.Random(seed), {}
    for mutant in mutants:
        by_function.setdefault((mutant.file, mutant.function), {}).setdefault(mutant.kind, []).append(mutant)
    functions = []
    for kinds in by_function.values():
        for group in kinds.values():
            generator.shuffle(group)
        kinds = list(kinds.values())
        generator.shuffle(kinds)
        functions.append(list(in_turn(kinds)))
    generator.shuffle(functions)
    ordered = list(in_turn(functions))
    for number, mutant in enumerate(ordered):
        mutant.number = number
    return ordered


def mutated(tree, mutant):
    "The tree with the change in it, a copy."
    parent, field, n = mutant.place
    old = getattr(parent, field) if n is None else getattr(parent, field)[n]
    put(mutant.place, mutant.node)
    other = copy.deepcopy(tree)
    put(mutant.place, old)
    return other


# --- trying them

class Changed(SourceFileLoader):
    "Loads a module from a syntax tree."
    def __init__(self, name, path, tree):
        super().__init__(name, path)
        self.tree = tree

    def get_code(self, fullname):
        return compile(self.tree, self.path, "exec", dont_inherit=True)


class Finder:
    "Finds one module, changed, before anything else is asked."
    def __init__(self, name, path, tree):
        self.name, self.path, self.tree = name, str(path), tree

    def find_spec(self, name, path=None, target=None):
        return spec_from_file_location(name, self.path, loader=Changed(name, self.path, self.tree)) if name == self.name else None


def examples(module):
    "Run the cells of a module's notebook that are not exported, in the names of the module."
    notebook = re.search(r"File to edit: (.*\.ipynb)", Path(module.__file__).read_text(encoding="utf-8"))[1]
    cells = json.loads((Path(module.__file__).parent / notebook).read_text(encoding="utf-8"))["cells"]
    names = dict(vars(module))
    os.chdir(ROOT / "nbs")
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not re.match(r"#\| *(export|hide|default_exp|eval: *false)|[%!]", source):
            exec(compile(source, f"{notebook}: {cell.get('id', '')}", "exec"), names)


def run_stage(stage, name):
    "Whether one of a module's tests, a file or its examples, passes."
    if stage == "examples":
        try:
            examples(importlib.import_module(name))
            return True
        except BaseException as error:
            print(f"{type(error).__name__}: {error}")
            return False
    import shlex
    import pytest
    file, *others = shlex.split(stage)
    code = pytest.main([str(ROOT / file), *others, "-x", "-q", "-p", "no:cacheprovider", "--assert", "plain", "--tb", "line", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "-o", "addopts="])
    if code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
        os._exit(2)
    return code == 0


def try_one(name, path, tree, stages, log, work):
    "In a fork: run the stages against a module `name`, changed or not. Ends with 0 if it survives, with 10 and more by the stage that killed it."
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if Path("/proc/self/statm").exists() else 0
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY)) if used else None
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["TMPDIR"] = tempfile.tempdir = str(work)
    if tree is not None:
        sys.meta_path.insert(0, Finder(name, path, tree))
    for n, stage in enumerate(stages):
        if not run_stage(stage, name):
            sys.stdout.flush()
            os._exit(10 + n)
    sys.stdout.flush()
    os._exit(0)


class Trial:
    "A fork that tries one mutant: begin it, and look whether it has ended."
    def __init__(self, name, path, tree, stages, limit, folder):
        self.stages, self.limit, self.start = stages, limit, time.monotonic()
        self.work = Path(tempfile.mkdtemp(dir=folder))
        self.log = self.work / "log.txt"
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            try:
                try_one(name, path, tree, stages, self.log, self.work)
            finally:
                os._exit(1)

    def ended(self):
        "None while it runs; then what came of it, and by what."
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        late = not pid and time.monotonic() - self.start > self.limit
        if not pid and not late:
            return None
        if late:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        code = -1 if late else os.waitstatus_to_exitcode(status)
        said = self.log.read_text(errors="replace")[-600:] if self.log.exists() else ""
        shutil.rmtree(self.work, ignore_errors=True)
        if late:
            return "killed", "time"
        if code == 0:
            return "survived", ""
        if code >= 10:
            return "killed", self.stages[code - 10].split()[0]
        if code < 0 or code == 1:  # a crash: by a signal, or in the import system
            return "killed", "crash"
        raise SystemExit(f"the tests could not be run:\n{said}")


def several(jobs, workers, folder):
    "Try `(name, path, tree, stages, limit)`, so many at a time; yields each job's number, what came of it, by what, and the seconds."
    waiting, running = list(enumerate(jobs)), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                n, make = waiting.pop(0)
                running[n] = Trial(*make(), folder)
            for n, trial in list(running.items()):
                if found := trial.ended():
                    del running[n]
                    yield n, *found, time.monotonic() - trial.start
            time.sleep(0.02)
    finally:
        for trial in running.values():
            os.killpg(trial.pid, signal.SIGKILL)


# --- whole modules

def files_of(module):
    "The files of a module, or of a sub-package, by the names that they are imported by."
    path = ROOT / PACKAGE / module
    if path.is_dir():
        return {f"{PACKAGE}.{module}.{one.stem}": one for one in sorted(path.glob("*.py")) if one.stem != "__init__"}
    return {f"{PACKAGE}.{module}": path.with_suffix(".py")}


def mutants_of(module, seed):
    "Every mutant of a module in the order of the seed, and for each file its name and tree."
    trees, found = {}, []
    for name, path in files_of(module).items():
        file = str(path.relative_to(ROOT / PACKAGE))
        tree, mutants = all_mutants(path.read_text(encoding="utf-8"), file)
        trees[file] = name, path, tree
        found += mutants
    return sample(found, f"{module} {seed}"), trees


def stages_of(name, module):
    "What is run against a file of a module."
    return OWN_TESTS.get(name.removeprefix(f"{PACKAGE}."), TESTS[module])


def save(path, results):
    "Write the results, whole or not at all."
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def shares(tried):
    "Of what was tried: how many, killed, by time, alike by hand, and the shares without and with these."
    killed = sum(one["outcome"] == "killed" for one in tried)
    alike = sum(one["outcome"] == "survived" and one["text"] in EQUIVALENT for one in tried)
    return {"mutants": len(tried), "killed": killed, "by_time": sum(one["by"] == "time" for one in tried), "equivalent": alike,
            "share": round(killed / max(1, len(tried)), 3), "share_without_equivalent": round(killed / max(1, len(tried) - alike), 3)}


def usual_times(names, module, workers, folder):
    "Seconds that the stages of each file take as it is; ends the program where one does not pass. What files share is run once."
    pieces = sorted({(name if stage == "examples" else "", stage) for name in names for stage in stages_of(name, module)})
    jobs = [lambda name=name, stage=stage: (name or sorted(names)[0], None, None, (stage,), 900) for name, stage in pieces]
    seconds = {}
    for n, outcome, by, taken in several(jobs, workers, folder):
        if outcome != "survived":
            raise SystemExit(f"{' '.join(pieces[n])} does not pass as it is; mend that first")
        seconds[pieces[n]] = taken
    usual = {name: sum(seconds[name if stage == "examples" else "", stage] for stage in stages_of(name, module)) for name in names}
    for name, taken in sorted(usual.items()):
        print(f"{name} as it is passes in {taken:.0f} s", flush=True)
    return usual


def try_module(module, arguments, results, out, folder):
    "Try the sample of a module, what is not in the results already."
    mutants, trees = mutants_of(module, arguments.seed)
    wanted = mutants[:arguments.mutants]
    if arguments.only:
        wanted = [mutants[int(only.split(":")[1])] for only in arguments.only if only.split(":")[0] == module]
    before = {} if arguments.only else {one["text"]: one for one in results.get(module, []) if not (arguments.again and one["outcome"] == "survived")}
    todo = [mutant for mutant in wanted if mutant.text not in before]
    tried = [before[mutant.text] for mutant in wanted if mutant.text in before]
    usual = usual_times({trees[mutant.file][0] for mutant in todo}, module, arguments.workers, folder)

    def job(mutant):
        name, path, tree = trees[mutant.file]
        return name, path, mutated(tree, mutant), stages_of(name, module), max(60, 5 * usual[name])

    for k, (n, outcome, by, seconds) in enumerate(several([lambda mutant=mutant: job(mutant) for mutant in todo], arguments.workers, folder)):
        mutant = todo[n]
        tried.append({"number": mutant.number, "file": mutant.file, "line": mutant.line, "function": mutant.function, "kind": mutant.kind, "before": mutant.before, "after": mutant.after, "outcome": outcome,
                      "by": by, "seconds": round(seconds, 1), "text": mutant.text})
        print(f"{module} {k + 1}/{len(todo)}: {outcome} {by} {seconds:.0f} s" + (f"  {mutant.number} {mutant.file}:{mutant.line} {mutant.before} → {mutant.after}" if outcome == "survived" or arguments.only else ""), flush=True)
        if not arguments.only:
            results[module] = sorted(tried, key=lambda one: one["number"])
            save(out, results)
    if not arguments.only:
        results[module] = sorted(tried, key=lambda one: one["number"])
    return tried


def keep(path, results, seed):
    "Add the summary of this seed to a file."
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for module, tried in results.items():
        survivors = [{"number": one["number"], "file": one["file"], "line": one["line"], "before": one["before"], "after": one["after"], **({"equivalent": EQUIVALENT[one["text"]]} if one["text"] in EQUIVALENT else {})}
                     for one in tried if one["outcome"] == "survived"]
        whole.setdefault(module, {})[f"seed {seed}"] = {**shares(tried), "survivors": survivors}
    save(path, whole)


def table(results):
    "Shares by module, and the survivors, as text."
    rows = [f"{'module':<10} mutants killed by time alike  share  without those alike"]
    for module, tried in results.items():
        s = shares(tried)
        rows.append(f"{module:<10} {s['mutants']:7} {s['killed']:6} {s['by_time']:7} {s['equivalent']:5} {s['share']:6.1%} {s['share_without_equivalent']:6.1%}")
    for module, tried in results.items():
        rows += [f"{one['file']}:{one['line']} {module}:{one['number']} ({one['function']}) {one['before']} → {one['after']}" + (f"  [alike: {EQUIVALENT[one['text']]}]" if one["text"] in EQUIVALENT else "")
                 for one in tried if one["outcome"] == "survived"]
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modules", nargs="+", default=list(TESTS), choices=list(TESTS))
    parser.add_argument("--mutants", type=int, default=40, help="of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, choices=(1, 2))
    parser.add_argument("--out", type=Path, help="default: runs/mutation-SEED.json")
    parser.add_argument("--keep", type=Path, help="a file to which the summary is added")
    parser.add_argument("--only", nargs="+", default=[], metavar="MODULE:NUMBER")
    parser.add_argument("--again", action="store_true", help="try survivors again")
    arguments = parser.parse_args()
    out = arguments.out or ROOT / "runs" / f"mutation-{arguments.seed}.json"
    results = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    modules = list(dict.fromkeys(only.split(":")[0] for only in arguments.only)) or arguments.modules
    warm()
    folder = tempfile.mkdtemp()
    try:
        tried = {module: try_module(module, arguments, results, out, folder) for module in modules}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(tried))
    if arguments.only:
        return 0
    save(out, results)
    if arguments.keep:
        keep(arguments.keep, tried, arguments.seed)
    return int(any(shares(one)["share_without_equivalent"] < ENOUGH for one in tried.values()))


def warm():
    "Import what is heavy, and nothing of the package."
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["MPLBACKEND"] = "agg"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # which takes longer than most tests
    sys.path.insert(0, str(ROOT))
    import warnings
    warnings.simplefilter("ignore")
    for name in HEAVY:
        try:
            importlib.import_module(name)
        except (ImportError, OSError, RuntimeError):
            pass  # not installed here: its tests skip
    import torch
    torch.set_num_threads(1)
    gc.freeze()  # so that no fork looks through all of it
    assert PACKAGE not in sys.modules, "the package has to be imported by each fork"


if __name__ == "__main__":
    sys.exit(main())
