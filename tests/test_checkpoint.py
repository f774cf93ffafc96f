"""Checkpoints from every source, and hostile ones."""
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from timbre_palette import checkpoint
from timbre_palette.audio import PaletteError
from timbre_palette.checkpoint import Pretrained
from timbre_palette.model import ConditionalWaveUNet

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = ConditionalWaveUNet(width=4)
    model.save_pretrained(tmp_path / "net", steps=3, licence="Apache-2.0")
    return model, tmp_path / "net"


@pytest.mark.parametrize("arguments", ({}, {"version": "v1"}, {"styles": 0}, {"styles": 5, "width": 8, "depth": 2}))
def test_a_model_comes_back_as_it_was(tmp_path, arguments):
    model = ConditionalWaveUNet(**arguments).eval()
    model.save_pretrained(tmp_path)
    again = Pretrained.from_pretrained(str(tmp_path))
    style = torch.rand(arguments.get("styles", 3)) if arguments.get("styles", 3) else None
    x = torch.randn(2, 1, 999)
    assert again.arguments == model.arguments and torch.equal(again(x, style), model(x, style))


def test_a_shipped_name(saved, monkeypatch):
    model, folder = saved
    monkeypatch.setattr(checkpoint, "WEIGHTS", folder.parent)
    assert checkpoint.shipped() == ["net"]
    assert torch.equal(ConditionalWaveUNet.from_pretrained("net").leave.weight, model.leave.weight)


def test_a_hub_name(saved, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra hub)")
    model, folder = saved
    asked = []

    def fake(repository, revision=None, allow_patterns=None):
        asked.append((repository, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    assert torch.equal(Pretrained.from_pretrained("someone/net", revision="v1").leave.weight, model.leave.weight)
    assert asked == [("someone/net", "v1", ["card.json", "model.safetensors"])]

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(PaletteError, match="someone/net"):
        Pretrained.from_pretrained("someone/net")


def test_pushing_saves_both_files(saved, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra hub)")
    model, _ = saved
    calls = []

    class Api:
        def create_repo(self, repository, exist_ok):
            calls.append(repository)

        def upload_folder(self, repo_id, folder_path):
            from pathlib import Path
            calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model.push_to_hub("someone/net")
    assert calls == ["someone/net", ("someone/net", ["card.json", "model.safetensors"])]


@pytest.mark.parametrize("edit", ({"class": "os.system"}, {"class": "Module"}, {"arguments": {"version": "v9"}}, {"arguments": {"width": 8}},
                                  {"arguments": {"width": -1}}, {"arguments": {"unknown": 1}}, {"arguments": None}, {"class": None}))
def test_an_altered_card_is_one_line(saved, edit):
    _, folder = saved
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **edit}))
    with pytest.raises(PaletteError) as caught:
        Pretrained.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_one_line(saved):
    _, folder = saved
    whole = (folder / "model.safetensors").read_bytes()
    for data in (b"", whole[:1000], b"\xff" * 8 + whole[8:], whole[:-100]):
        (folder / "model.safetensors").write_bytes(data)
        with pytest.raises(PaletteError, match="damaged"):
            Pretrained.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(whole)
    for text in ("", "{", "[]", "null"):
        (folder / "card.json").write_text(text)
        with pytest.raises(PaletteError, match="damaged"):
            Pretrained.from_pretrained(folder)
    (folder / "card.json").unlink()
    with pytest.raises(PaletteError, match="no card.json"):
        Pretrained.from_pretrained(folder)


def test_the_wrong_class_is_named(saved):
    @checkpoint.register
    class Another(Pretrained):
        "Some other model."

    with pytest.raises(PaletteError, match="ConditionalWaveUNet, not a Another"):
        Another.from_pretrained(saved[1])


@pytest.mark.parametrize("before", (False, True), ids=("first save", "saving again"))
def test_an_interrupted_save_changes_nothing(tmp_path, monkeypatch, before):
    model = ConditionalWaveUNet(width=4)
    if before:
        model.save_pretrained(tmp_path)
    monkeypatch.setattr(checkpoint.json, "dumps", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path)
    if not before:
        assert not list(tmp_path.iterdir())
    else:
        ConditionalWaveUNet.from_pretrained(tmp_path)  # the old one, untouched
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint.Path, "write_text", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path)
    if before:
        ConditionalWaveUNet.from_pretrained(tmp_path)  # still
    else:
        assert not list(tmp_path.iterdir())


def test_a_fresh_process_finds_the_class(saved):
    code = f"from timbre_palette.checkpoint import Pretrained; print(type(Pretrained.from_pretrained({str(saved[1])!r})).__name__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "ConditionalWaveUNet"


def test_styles_that_do_not_fit_are_one_line():
    model, x = ConditionalWaveUNet(width=4), torch.zeros(2, 1, 100)
    for style in (1.0, [1, 0], [[1, 0, 0]] * 3, None):
        with pytest.raises(PaletteError):
            model(x, style)
    with pytest.raises(PaletteError):
        ConditionalWaveUNet(width=4, styles=0)(x, [1, 0, 0])
    with pytest.raises(PaletteError, match="v1, v2"):
        ConditionalWaveUNet("v3")


@pytest.mark.parametrize("path", sorted(path.relative_to(ROOT) for path in (ROOT / "timbre_palette").rglob("*.py") if "\n@register\n" in path.read_text(encoding="utf-8")), ids=str)
def test_every_class_of_the_package_is_found_by_its_name(path):
    for name in re.findall(r"^@register\nclass (\w+)", (ROOT / path).read_text(encoding="utf-8"), re.M):
        assert checkpoint._HOMES[name] == ".".join(path.with_suffix("").parts)
