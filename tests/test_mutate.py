"""The script that breaks the code on purpose: what it changes, what it leaves alone, and that it can tell what is tested from what is not."""
import ast
import importlib
import json
import os
import sys

import pytest

from conftest import ROOT, script

TOY = '''"""A module of a few lines, with 3 numbers in this text."""
__all__ = ["double", "unused"]
from math import floor

LIMITS = {"low": 0.5, "high": 2}

def double(x: "float", most=10) -> "float":
    "Twice `x`, at most `most`; 0 for less than 1."
    if x < 1 and not most == 7:
        raise ValueError("less than one")
    total = [x, x, 0][:2]
    total.append(1)
    return min(sum(total) - 1, most)

def unused(x):
    "Nobody asks."
    return abs(x) ** 2
'''
TESTS = '''from toy import LIMITS, double
import pytest

def test_double():
    assert double(3) == 6 and double(1) == 2 and double(6) == 10 and double(30, 20) == 20 and LIMITS == {"low": 0.5, "high": 2}
    with pytest.raises(ValueError):
        double(0.99)
'''


@pytest.fixture(scope="module")
def mutate():
    "The script, as a module."
    return script("mutate")


@pytest.fixture
def toy(mutate):
    "The tree of the toy, and its mutants by what they read after."
    tree, mutants = mutate.all_mutants(TOY, "toy.py")
    return tree, mutants


def test_every_kind_of_change(toy):
    tree, mutants = toy
    after = {(mutant.function, mutant.after) for mutant in mutants}
    for change in (("double", "x < 1 or not most == 7"), ("double", "x <= 1 and (not most == 7)"), ("double", "x < 2 and (not most == 7)"), ("double", "not most != 7"), ("double", "x < 1 and most == 7"), ("double", "not (x < 1 and (not most == 7))"), ("double", "[x, x, 1][:2]"),
                   ("double", "[x, x, 0][:2 + 1]"), ("double", "[x, x, 0][1:2]"), ("double", "pass"), ("double", "min(sum(total) + 1, most)"), ("double", "return max(sum(total) - 1, most)"), ("double", "return sum(total) - 1"),
                   ("unused", "return x ** 2"), ("unused", "return abs(x) * 2"), ("unused", "return abs(x) ** 3"), ("module", "{'': 0.5, 'high': 2}"), ("module", "{'low': 0.55, 'high': 2}")):
        assert change in after, change
    assert len({mutant.text for mutant in mutants}) == len(mutants) and {mutant.kind for mutant in mutants} >= {"operator", "comparison", "condition", "logic", "number", "string", "return", "statement", "slice", "function"}


def test_a_mutant_differs_in_one_place(mutate, toy):
    tree, mutants = toy
    original = ast.dump(tree)
    lines = ast.unparse(tree).splitlines()
    for mutant in mutants:
        other = mutate.mutated(tree, mutant)
        assert ast.dump(tree) == original and ast.dump(other) != original
        changed = [(a, b) for a, b in zip(lines, ast.unparse(other).splitlines(), strict=True) if a != b]
        assert len(changed) == 1, mutant.text
        compile(other, "toy.py", "exec")


def test_words_for_people_stay(mutate, toy):
    tree, mutants = toy
    def words(tree):
        "Docstrings, errors, annotations, imports and what is public."
        return ([ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.FunctionDef))], [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Raise, ast.ImportFrom))],
                [ast.unparse(node.annotation) for node in ast.walk(tree) if isinstance(node, ast.arg) and node.annotation], ast.unparse(tree.body[1]))
    assert all(words(mutate.mutated(tree, mutant)) == words(tree) for mutant in mutants)


def test_the_sample_is_a_function_of_the_seed(mutate):
    def drawn(module, seed):
        return [mutant.text for mutant in mutate.mutants_of(module, seed)[0]]
    first = drawn("losses", 0)
    assert first == drawn("losses", 0) != drawn("losses", 1) and sorted(first) == sorted(drawn("losses", 1)) and len(set(first)) == len(first) > 100
    mutants, trees = mutate.mutants_of("effects", 0)
    assert {mutant.file for mutant in mutants[:80]} == set(trees) and [mutant.number for mutant in mutants] == list(range(len(mutants)))
    functions = [(mutant.file, mutant.function) for mutant in mutants]
    assert len(set(functions[:80])) == min(80, len(set(functions)))  # every function once, before any comes twice


def test_what_is_tested_is_killed_and_what_is_not_survives(mutate, tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "test_toy.py").write_text(TESTS)
    tree, mutants = mutate.all_mutants(TOY, "toy.py")
    chosen = {after: next(mutant for mutant in mutants if mutant.after == after) for after in ("x <= 1 and (not most == 7)", "return max(sum(total) - 1, most)", "return abs(x) * 2")}
    jobs = [lambda tree=tree: ("toy", tmp_path / "toy.py", tree, (str(tmp_path / "test_toy.py"),), 120) for tree in (tree, *(mutate.mutated(tree, mutant) for mutant in chosen.values()))]
    outcome = {n: found for n, found, *_ in mutate.several(jobs, 2, tmp_path)}
    assert outcome == {0: "survived", 1: "killed", 2: "killed", 3: "survived"}
    assert (tmp_path / "toy.py").read_text() == TOY and "toy" not in sys.modules


def test_what_hangs_is_killed(mutate, tmp_path):
    tree = ast.parse("while True:\n    pass")
    (tmp_path / "test_toy.py").write_text(TESTS)
    (n, outcome, by, seconds), = mutate.several([lambda: ("toy", tmp_path / "toy.py", tree, (str(tmp_path / "test_toy.py"),), 2)], 1, tmp_path)
    assert (outcome, by) == ("killed", "time") and 2 <= seconds < 20


def test_examples_are_tests(mutate, tmp_path, monkeypatch):
    cells = [("code", "#| export\nraise SystemExit"), ("markdown", "raise SystemExit"), ("code", "#| eval: false\nraise SystemExit"), ("code", ["half = value / 2\n", "assert half == 2"])]
    (tmp_path / "toy.ipynb").write_text(json.dumps({"cells": [{"cell_type": kind, "source": source, "id": "a"} for kind, source in cells]}))
    (tmp_path / "toy_with_examples.py").write_text("# File to edit: toy.ipynb\nvalue = 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(os.getcwd())
    module = importlib.import_module("toy_with_examples")
    mutate.examples(module)
    assert not hasattr(module, "half")
    module.value = 5
    with pytest.raises(AssertionError):
        mutate.examples(module)
    del sys.modules["toy_with_examples"]


def test_shares_and_what_is_kept(mutate, tmp_path, monkeypatch):
    one = {"number": 0, "file": "toy.py", "line": 3, "function": "f", "kind": "number", "before": "1", "after": "2", "by": "", "seconds": 1.0, "text": "a"}
    tried = [{**one, "outcome": "killed", "by": "time"}, {**one, "outcome": "killed"}, {**one, "outcome": "survived", "text": "alike"}, {**one, "outcome": "survived"}]
    monkeypatch.setattr(mutate, "EQUIVALENT", {"alike": "no difference"})
    assert mutate.shares(tried) == {"mutants": 4, "killed": 2, "by_time": 1, "equivalent": 1, "share": 0.5, "share_without_equivalent": 0.667}
    for seed in (0, 1):
        mutate.keep(tmp_path / "kept.json", {"toy": tried}, seed)
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert list(kept["toy"]) == ["seed 0", "seed 1"] and [survivor.get("equivalent") for survivor in kept["toy"]["seed 1"]["survivors"]] == ["no difference", None]
    assert "50.0%  66.7%" in mutate.table({"toy": tried})


def test_what_the_table_names_is_there(mutate):
    for stage in {stage for stages in (*mutate.TESTS.values(), *mutate.OWN_TESTS.values()) for stage in stages} - {"examples"}:
        assert (ROOT / stage.split()[0]).exists(), stage
    texts = {mutant.text for module in mutate.TESTS for mutant in mutate.mutants_of(module, 0)[0]}
    assert set(mutate.EQUIVALENT) <= texts  # a change of the code asks for another look


def test_what_is_kept_is_enough(mutate):
    "The measured shares, of two seeds: at least 85 % killed, without those that are alike."
    kept = json.loads((ROOT / "nbs" / "results" / "data" / "mutation.json").read_text(encoding="utf-8"))
    assert set(kept) == set(mutate.TESTS)
    for module, seeds in kept.items():
        for seed in ("seed 0", "seed 1"):
            one = seeds[seed]
            assert one["mutants"] >= 40 and one["share_without_equivalent"] >= mutate.ENOUGH and one["mutants"] - one["killed"] == len(one["survivors"]), (module, seed)
