"""The listening test: fair sounds, fair orders, nothing lost, an honest count; and in a browser, to the end, through a killed kernel."""
import csv
import io
import json
import os
import re
import signal
import time
from itertools import permutations

import numpy as np
import pyloudnorm
import pytest
import soundfile
import yaml
from browsers import chromium, jupyter, new_page, page_samples, write_notebook
from scipy.signal import resample_poly
from scipy.stats import chisquare

from timbre_palette import listening as li
from timbre_palette.audio import PaletteError, write_audio
from timbre_palette.enhance import enhance
from timbre_palette.synth import demo_clip

VERSIONS = li.paper_versions()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return li.prepare_test(tmp_path_factory.mktemp("listening") / "test", seconds=1.0)


@pytest.fixture
def fresh(prepared, tmp_path):
    "The same test, taken by nobody."
    (tmp_path / "listeners").mkdir()
    (tmp_path / "sounds").symlink_to(prepared.folder / "sounds")
    (tmp_path / "test.json").write_text((prepared.folder / "test.json").read_text())
    return li.open_test(tmp_path)


def test_all_sounds_are_as_loud_and_none_is_too_high(tmp_path):
    "By pyloudnorm, and by four times as many samples."
    loud = 0.9 * np.sign(np.sin(np.arange(2 * 44100) / 40))
    stereo = np.stack([demo_clip()[0, :88200], 0.1 * demo_clip()[0, 44100:132300]])
    clicks = np.where(np.arange(88200) % 22050 < 40, 0.9, 1e-3) * np.sin(np.arange(88200))
    test = li.prepare_test(tmp_path / "test", {"square": (loud, 44100), "two channels": (stereo, 44100), "clicks": (clicks, 44100)}, model="dsp")
    for source in test.sources:
        for version in (li.DRY, *test.versions):
            samples, rate = soundfile.read(test.path(source, version), always_2d=True)
            assert abs(pyloudnorm.Meter(rate).integrated_loudness(samples) - test.about["lufs"]) < 0.02
            assert 20 * np.log10(np.abs(resample_poly(samples, 4, 1)).max()) < -0.95
    assert test.about["lufs"] < -20  # for the clicks' sake


def test_what_is_prepared_is_what_the_library_renders(prepared, renders):
    for (source, version), wanted in renders.items():
        there = soundfile.read(prepared.path(source, version), dtype="float32")[0]
        assert np.abs(there - there @ wanted / (wanted @ wanted) * wanted).max() < 1e-6


def test_a_test_is_made_once(prepared, tmp_path):
    stamps = {path: path.stat().st_mtime_ns for path in prepared.folder.rglob("*")}
    assert li.prepare_test(prepared.folder, seconds=1.0) == prepared and stamps == {path: path.stat().st_mtime_ns for path in prepared.folder.rglob("*")}
    write_audio(tmp_path / "flute.wav", demo_clip()[:, :44100], 44100)
    for settings in ({"versions": li.paper_versions("a25_m75")}, {"model": "dsp"}, {"sources": [tmp_path / "flute.wav", "guzheng", "piano", "strings"]}):
        with pytest.raises(PaletteError, match="another listening test"):
            li.prepare_test(prepared.folder, **{"seconds": 1.0, **settings})


@pytest.mark.parametrize("settings, words", [
    ({"versions": ("warmth",)}, "two to nine"), ({"versions": ("warmth", "warmth")}, "two to nine"), ({"versions": ("warmth", "loud")}, "unknown style"), ({"sources": ()}, "different names"),
    ({"sources": ["nowhere.wav"]}, "nowhere.wav"), ({"model": "no-such"}, "unknown model"), ({"sources": {"hush": (np.zeros(44100), 44100)}}, "nothing can be heard in hush")])
def test_what_cannot_be_is_refused(settings, words, tmp_path):
    with pytest.raises(PaletteError, match=words):
        li.prepare_test(tmp_path / "test", **{"seconds": 0.5, **settings})
    assert not (tmp_path / "test" / "test.json").exists()


def test_orders_are_as_if_drawn():
    "Each of 24 orders as often as the others, of sources and of versions, and the one tells nothing of the other."
    dealt = [li.deal(f"listener {k}", ("a", "b", "c", "d"), VERSIONS) for k in range(4800)]
    sources = [tuple(step["source"] for step in steps) for steps in dealt]
    for found, items in ((sources, "abcd"), *(([tuple(steps[k]["versions"]) for steps in dealt], VERSIONS) for k in range(4))):
        assert chisquare([found.count(order) for order in permutations(items)]).pvalue > 1e-4
    first = [(steps[0]["versions"][0], steps[1]["versions"][0]) for steps in dealt]
    assert chisquare([first.count((one, other)) for one in VERSIONS for other in VERSIONS]).pvalue > 1e-4


def test_nothing_that_was_kept_is_lost(fresh, monkeypatch):
    sitting = li.Sitting(fresh, "ann")
    sitting.update(0, ranking=list(VERSIONS[::-1]), done=True)
    before = sitting.path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(PaletteError):
        sitting.update(1, done=True)
    assert sitting.path.read_bytes() == before and len(list(sitting.path.parent.iterdir())) == 1
    monkeypatch.undo()
    assert li.Sitting(fresh, " ann ").at == 1


@pytest.mark.parametrize("content", ["", "{", '{"listener": "bob", "steps": []}', '{"listener": "ann", "steps": [{"source": "flute", "versions": []}]}'])
def test_a_strange_file_is_not_written_over(content, fresh):
    path = fresh.folder / "listeners" / "ann.json"
    path.write_text(content)
    with pytest.raises(PaletteError, match="ann.json"):
        li.Sitting(fresh, "ann")
    assert path.read_text() == content


def test_every_listener_has_a_file(fresh):
    names = ["a/b", "a_b", "..", ".", "ä", "Ä", "name with spaces", "x" * 80, "%2F", "CON:1"]
    paths = {li.Sitting(fresh, name).path for name in names}
    assert len({path.name.lower() for path in paths}) == len(names) and all(path.parent == fresh.folder / "listeners" and path.is_file() for path in paths)
    assert li.read_ballots(fresh.folder) == []


@pytest.mark.parametrize("count", [1, 2, 5, 12, 40])
def test_points_add_up(count):
    rng = np.random.default_rng(count)
    said = [("xyz"[rng.integers(3)], rng.permutation(4)) for _ in range(count)]
    ballots = [li.Ballot(listener, str(k), {version: rank + 1 for version, rank in zip(VERSIONS, ranks)}) for k, (listener, ranks) in enumerate(said)]
    assert all(sum(ballot.points.values()) == 10 for ballot in ballots)
    rows = li.borda_rows(ballots)
    assert np.isclose(sum(row["score"] for row in rows), 10) and all(1 <= row["score"] <= 4 for row in rows)
    assert [row["score"] for row in rows] == pytest.approx([5 - (np.mean([ranks[k] for _, ranks in said]) + 1) for k in range(4)])
    assert all(row["listeners"] == len({name for name, _ in said}) and row["ballots"] == len(said) for row in rows)


def test_an_interval_is_over_listeners():
    "Ten ballots of one mind are one opinion: two listeners who disagree leave an interval as wide as the scale, however often they say it."
    say = lambda listener, k, order: li.Ballot(listener, str(k), {version: order.index(version) + 1 for version in "ab"})
    rows = li.borda_rows([say(who, k, order) for who, order in (("ann", "ab"), ("bob", "ba")) for k in range(10)])
    assert rows[0]["score"] == 1.5 and np.isclose(rows[0]["deviation"], np.std([2, 1] * 10, ddof=1)) and np.isclose(rows[0]["half"], 12.7062 * 0.5, atol=1e-3)
    shown = li.show_scores(rows)
    assert shown[0]["mean score ± deviation"] == "1.50 ± 0.51" and shown[0]["paper"] == ""
    assert li.note_scores(rows).endswith("The means sum to 3.00.")


def test_the_papers_row_has_two_names():
    for fourth in li.FOURTH:
        rows = li.borda_rows([li.Ballot("ann", "flute", dict(zip(li.paper_versions(fourth), (1, 2, 3, 4))))])
        assert rows[3]["paper_score"] == 2.69 and "11.63" in li.note_scores(rows) and li.show_scores(rows)[3]["paper"] == "2.69 ± 1.14"


def test_webmushra_finds_what_it_wants(prepared, tmp_path):
    "The keys of its documentation, sounds of one length, and a configuration that a YAML library reads as it was meant."
    path = li.export_webmushra(prepared.folder, tmp_path, "mine", 'A "title": with # and ä')
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(config) == {"testname", "testId", "bufferSize", "stopOnErrors", "showButtonPreviousPage", "remoteService", "pages"} and config["testname"] == 'A "title": with # and ä'
    (order, *pages), finish = config["pages"]
    assert order == "random" and finish["type"] == "finish" and finish["questionnaire"] == [{"type": "text", "label": "Name or number", "name": "listener"}]
    for page in pages:
        assert set(page) <= {"type", "id", "name", "content", "showWaveform", "enableLooping", "strict", "reference", "createAnchor35", "createAnchor70", "randomize", "showConditionNames", "stimuli"}
        infos = [soundfile.info(tmp_path / file) for file in (page["reference"], *page["stimuli"].values())]
        assert len({(info.samplerate, info.frames, info.channels, info.subtype) for info in infos}) == 1 and infos[0].subtype == "PCM_16" and page["type"] == "mushra"
        for version, file in page["stimuli"].items():
            assert np.abs(soundfile.read(tmp_path / file)[0] - soundfile.read(prepared.path(page["id"], version))[0]).max() < 1 / 32767
    assert not re.search(r"^ *- +-", path.read_text(), re.M)  # its parser does not know a list that begins on the line of another


def php_csv(sessions, uuid=True):
    "What webMUSHRA's service writes (`service/write.php`): sessions are triples of a name, an identity and pairs of a trial and its ratings."
    out = io.StringIO()
    write = csv.writer(out)
    write.writerow(["session_test_id", "listener", "age", *(["session_uuid"] if uuid else []), "trial_id", "rating_stimulus", "rating_score", "rating_time", "rating_comment"])
    for name, identity, trials in sessions:
        for trial, ratings in trials:
            for version, score in ratings.items():
                write.writerow(["mine", name, 30, *([identity] if uuid else []), trial, version, score, 12345, ""])
    return out.getvalue()


def test_webmushras_answers_become_ballots(tmp_path):
    ratings = dict(zip((*VERSIONS, "reference"), (80, 60, 100, 20, 100)))
    sessions = [("Ann, 1", "u1", [("flute", ratings), ("piano", dict.fromkeys((*VERSIONS, "reference"), 100))]), ("Bob", "u2", [("flute", {**ratings, "s25_m75": 90})]), ("Bob", "u3", [("flute", ratings)])]
    (tmp_path / "mushra.csv").write_text(php_csv(sessions))
    ballots = li.read_webmushra(tmp_path / "mushra.csv")
    assert [(ballot.listener, ballot.source, [ballot.ranks[version] for version in VERSIONS]) for ballot in ballots] == [
        ("Ann, 1", "flute", [2, 3, 1, 4]), ("Ann, 1", "piano", [2.5] * 4), ("Bob", "flute", [3, 4, 1, 2]), ("Bob", "flute", [2, 3, 1, 4])]
    rows = li.borda_rows(ballots)
    assert np.isclose(sum(row["score"] for row in rows), 10) and rows[0]["listeners"] == 2
    (tmp_path / "old.csv").write_text(php_csv(sessions[:2], uuid=False))
    assert li.read_webmushra(tmp_path / "old.csv") == ballots[:3]
    for name, text in (("twice", php_csv(sessions, uuid=False)), ("empty", ""), ("other", "a,b\n1,2\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(PaletteError, match=name):
            li.read_webmushra(tmp_path / name)
    with pytest.raises(PaletteError, match="nowhere"):
        li.read_webmushra(tmp_path / "nowhere")


def hear_all(page):
    "What the page's player tells when all letters are played."
    for letter in page.ranking.letters:
        page.player.current, page.player.playing = letter, True
        page.player.position += 0.3


def test_an_answer_belongs_to_its_step(fresh):
    page = li.listen(fresh.folder, "ann")
    hear_all(page)
    assert page.ranking.heard == list("ABCD")
    page.ranking.answer = {"step": 0, "order": list("BADC"), "go": 1}
    assert page.number == 1 and page.ranking.answer == {"step": 1, "order": list("ABCD"), "go": 0} and not page.player.playing
    page.ranking.answer = {"step": 0, "order": list("DCBA"), "go": 1}  # late, or twice
    assert page.number == 1 and page.sitting.steps[1]["ranking"] == page.sitting.steps[1]["versions"]
    page.ranking.answer = {"step": 1, "order": list("CABD"), "go": -1}
    assert page.number == 0 and page.ranking.answer["order"] == list("BADC") and page.ranking.heard == list("ABCD")
    assert [step["done"] for step in li.Sitting(fresh, "ann").steps] == [True, False, False, False]
    page.ranking.answer = {"step": 0, "order": list("BADC"), "go": 1}
    assert page.number == 1 and page.ranking.answer["order"] == list("CABD")  # as it was left


def test_what_cannot_be_kept_is_told(fresh, monkeypatch):
    page = li.listen(fresh.folder, "ann")
    monkeypatch.setattr(li, "write_text", lambda *arguments: (_ for _ in ()).throw(PaletteError("the disk is full")))
    page.ranking.answer = {"step": 0, "order": list("BADC"), "go": 1}
    assert page.number == 0 and page.ranking.trouble == "Not kept: the disk is full" and page.ranking.answer["go"] == 0
    monkeypatch.undo()
    page.ranking.answer = {"step": 0, "order": list("BADC"), "go": 1}
    assert page.number == 1 and page.ranking.trouble == ""


def test_a_name_that_cannot_be_taken(fresh):
    (fresh.folder / "listeners" / "bob.json").write_text("{}")
    page = li.listen(fresh.folder)
    page.ranking.listener = "bob"
    assert page.ranking.stage == "name" and "another name" in page.ranking.trouble and page.ranking.listener == ""
    page.ranking.listener = "ann"
    assert page.ranking.stage == "rank" and page.ranking.trouble == "" and page.number == 0


@pytest.fixture(scope="module")
def renders():
    "What the library makes of each source in each style: samples by both names."
    return {(source, version): enhance(samples, rate, version)[0] for source, (samples, rate) in li.find_sources(seconds=1.0).items() for version in VERSIONS}


class Listener:
    "A listener with a taste, who tells versions apart by their sound alone: who hears what the library renders for a style, at whatever gain."
    def __init__(self, page, taste, renders):
        self.page, self.taste, self.renders = page, taste, renders

    def versions(self):
        "The version behind each letter, and the source."
        found = {}
        for letter in "ABCD":
            sound = page_samples(self.page, letter)[0]
            matches = [key for key, render in self.renders.items() if len(render) == len(sound) and np.abs(sound - sound @ render / (render @ render) * render).max() < 1e-6]
            assert len(matches) == 1
            found[letter] = matches[0]
        sources = {source for source, _ in found.values()}
        assert len(sources) == 1 and len({version for _, version in found.values()}) == 4
        return sources.pop(), {letter: version for letter, (_, version) in found.items()}

    def order(self):
        return self.page.locator(".tp-ranking li").evaluate_all("rows => rows.map(row => row.dataset.letter)")

    def rank(self, hear, up):
        "Listen to each and put it where it belongs; `hear(letter)` and `up(letter)` are the hand."
        source, versions = self.versions()
        wanted = sorted(versions, key=lambda letter: self.taste.index(versions[letter]))
        for place, letter in enumerate(wanted):
            hear(letter)
            self.page.wait_for_selector(f".tp-ranking [data-letter={letter}][data-heard=true]")
            for _ in range(self.order().index(letter) - place):
                up(letter)
        assert self.order() == wanted
        return source

    def by_keys(self):
        return self.rank(self.page.keyboard.press, lambda letter: self.page.keyboard.press("ArrowUp"))

    def by_mouse(self):
        row = ".tp-ranking [data-letter={}] {}"
        return self.rank(lambda letter: self.page.click(row.format(letter, ".tp-hear")), lambda letter: self.page.click(row.format(letter, "[data-by='-1']")))

    def see(self, heading):
        self.page.wait_for_function("text => document.querySelector('.tp-listening h3')?.innerText.startsWith(text)", arg=heading)
        if heading.startswith("Recording"):  # with its sounds
            step = int(heading.split()[1]) - 1
            self.page.wait_for_function("""step => { const button = document.querySelector('.tp-player .tp-versions button:nth-child(4)');
                return button && !button.disabled && document.querySelector('.tp-ranking').dataset.step == step; }""", arg=step)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with jupyter(tmp_path_factory.mktemp("jupyter")) as running:
        yield running


def start(server, page, place, test, name):
    "The page of a listener who types their name."
    cell = f"import os\nfrom pathlib import Path\nfrom timbre_palette.listening import listen\nPath('pid').write_text(str(os.getpid()))\nlisten({str(test.folder)!r})"
    write_notebook(server.folder / f"{place}.ipynb", cell)
    server.open(page, place, f"{place}.ipynb", ".tp-ranking input")
    page.fill(".tp-ranking input", name)
    page.keyboard.press("Enter")


def is_blind(test, frames, page):
    "Nothing that went between page and kernel, or stands in the page, tells a version from another."
    words = [word.encode() for word in (*test.versions, *test.sources)]
    traffic = b"\n".join(frame if isinstance(frame, bytes) else frame.encode() for frame in frames)
    assert len(traffic) > 16 * 4 * 44100 and not [word for word in words if word in traffic or word in page.content().encode()]
    assert set(re.findall(rb'"gain_db": ?([-\d.]+)', traffic)) == {b"0.0"}


def test_to_the_end_through_a_killed_kernel(server, fresh, renders):
    """By keys alone, in Voilà: the Borda table has what the listener likes; and a kernel that is killed half-way takes nothing with it."""
    taste = ("s33_a33_m33", "s25_m75", "s80_a10_m10", "a80_s10_m10")
    with chromium() as browser, new_page(browser) as page:
        frames = []
        page.on("websocket", lambda socket: [socket.on(event, lambda frame: frames.append(frame)) for event in ("framereceived", "framesent")])
        start(server, page, "voila", fresh, "Ann Ö.")
        listener, heard = Listener(page, taste, renders), []
        for step in (1, 2):
            listener.see(f"Recording {step} of 4")
            heard.append(listener.by_keys())
            page.keyboard.press("Enter")
        listener.see("Recording 3 of 4")
        third, order = listener.by_keys(), listener.order()
        path = fresh.folder / "listeners" / "Ann%20%C3%96..json"
        end = time.monotonic() + 10
        while time.monotonic() < end and json.loads(path.read_text())["steps"][2]["ranking"] != list(taste):
            time.sleep(0.05)
        os.kill(int((server.folder / "pid").read_text()), signal.SIGKILL)
        kept = li.read_ballots(fresh.folder)
        assert [ballot.source for ballot in kept] == heard and all(sorted(ballot.ranks, key=ballot.ranks.get) == list(taste) for ballot in kept)
        page.keyboard.press("Enter")
        page.wait_for_selector(".tp-notice:has-text('not kept')")  # the page says so, and does not go on
        assert page.inner_text(".tp-listening h3") == "Recording 3 of 4"

        start(server, page, "voila", fresh, "Ann Ö.")
        listener.see("Recording 3 of 4")
        assert listener.order() == order and page.locator("[data-heard=true]").count() == 4 and li.read_ballots(fresh.folder) == kept
        page.keyboard.press("Enter")
        listener.see("Recording 4 of 4")
        page.keyboard.press("Backspace")  # and back, and on
        listener.see("Recording 3 of 4")
        page.keyboard.press("Enter")
        listener.see("Recording 4 of 4")
        heard += [third, listener.by_keys()]
        page.keyboard.press("Enter")
        listener.see("Thank you")
        is_blind(fresh, frames, page)
    ballots = li.read_ballots(fresh.folder)
    assert [ballot.source for ballot in ballots] == heard and sorted(heard) == sorted(fresh.sources)
    rows = {row["blend"]: row for row in li.borda_rows(ballots)}
    assert [(rows[version]["score"], rows[version]["deviation"], rows[version]["ballots"]) for version in taste] == [(4, 0, 4), (3, 0, 4), (2, 0, 4), (1, 0, 4)]


def test_two_listeners_in_jupyterlab(server, fresh, renders):
    """By mouse and by keys: their table is what their tastes add up to; the notebook around is left alone."""
    tastes = {"ann": VERSIONS, "bob": (VERSIONS[1], VERSIONS[0], *VERSIONS[2:])}
    with chromium() as browser, new_page(browser) as page:
        start(server, page, "lab", fresh, "ann")
        for name, taste in tastes.items():
            listener = Listener(page, taste, renders)
            if name == "bob":
                page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
                page.wait_for_selector(".tp-ranking input")
                page.fill(".tp-ranking input", name)
                page.click(".tp-ranking form button")
            for step in range(1, 5):
                listener.see(f"Recording {step} of 4")
                if name == "ann":
                    listener.by_keys()
                    page.keyboard.press("x")  # a command of the notebook: cut this cell
                    page.keyboard.press("Enter")
                else:
                    listener.by_mouse()
                    page.click(".tp-keep")
            listener.see("Thank you")
        assert page.locator(".jp-Cell").count() == page.locator(".jp-CodeCell").count() == 1
    rows = li.borda_rows(li.read_ballots(fresh.folder))
    assert [(row["score"], row["ballots"], row["listeners"]) for row in rows] == [(3.5, 8, 2), (3.5, 8, 2), (2, 8, 2), (1, 8, 2)]
    assert [round(row["half"], 2) for row in rows] == [6.35, 6.35, 0, 0] and np.isclose(rows[0]["deviation"], np.std([4, 3] * 4, ddof=1))
