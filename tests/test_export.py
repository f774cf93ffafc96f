"""ONNX files that do what torch does: block by block, at any rate, in any number of channels, and say so where they cannot."""
import sys

import numpy as np
import pytest
import torch

from conftest import data_folder
from timbre_palette.anchors import palette, palette_stages
from timbre_palette.audio import PaletteError, read_audio, resample
from timbre_palette.blackbox import BlackBox
from timbre_palette.export import OnnxStream, export_controller, export_onnx, open_onnx, time_stream
from timbre_palette.graybox import GrayBox
from timbre_palette.loudness import integrated_loudness
from timbre_palette.songs import find_tracks
from timbre_palette.streaming import FORMS
from timbre_palette.synth import demo_clip

SHIPPED = "graybox"  # the name of shipped weights to test with; without it, small random controllers
STYLE = [0.5, 0.2, 0.3]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model():
    if SHIPPED:
        return GrayBox.from_pretrained(SHIPPED)
    torch.manual_seed(3)
    model = GrayBox()
    for parameter in model.controllers.parameters():
        torch.nn.init.normal_(parameter, std=0.12)
    return model.eval()


def sound(sample_rate, channels, seconds=3):
    "Music, `(channels, time)`: real where there is some, else the demo clip; loud enough to be bent."
    folder = data_folder()
    if folder is None:
        samples = demo_clip(sample_rate)
    else:
        track = find_tracks(folder / "music" / "test")[0]
        recording = read_audio(track.path, 10 * track.sample_rate, (seconds + 1) * track.sample_rate)
        samples = resample(recording.samples, recording.sample_rate, sample_rate)
    samples = np.broadcast_to(samples, (max(2, len(samples)), samples.shape[1]))[:channels, :seconds * sample_rate]
    return np.ascontiguousarray(samples)


def through(stages, samples, block, lufs):
    "What torch's stages make of samples in blocks, the loudness held unless it is None, without the latency."
    latency = sum(getattr(stage, "latency", 0) for stage in stages)
    for stage in stages:
        if lufs is not None and getattr(stage, "listens", False):
            stage.hold(lufs)
    pieces = []
    with torch.no_grad():
        for piece in torch.tensor(np.pad(samples, ((0, 0), (0, latency)))).split(block, 1):
            for stage in stages:
                piece = stage(piece)
            pieces.append(piece)
    return torch.cat(pieces, 1).numpy()[:, latency:]


@pytest.mark.parametrize("channels", (1, 2))
@pytest.mark.parametrize("sample_rate, block", [(44100, 512), (44100, 4096), (22050, 512), (22050, 8192), (96000, 8192)])
@pytest.mark.parametrize("form", FORMS)
def test_a_style_is_that_of_torch(model, tmp_path, form, sample_rate, block, channels):
    for samples in (demo_clip(sample_rate)[:channels, :3 * sample_rate], sound(sample_rate, channels)):
        expected = through(model.stages(sample_rate, STYLE, 0.9, causal=FORMS[form]), samples, block, -17.0)
        metadata = export_onnx(model, tmp_path / "style.onnx", sample_rate, STYLE, 0.9, block, form)
        rendered = OnnxStream(tmp_path / "style.onnx", channels).render(samples, -17.0)
        worst = np.abs(rendered - expected).max()
        print(f"{form}, {sample_rate} Hz, {block} frames, {channels} channels: {worst:.1e}")
        assert rendered.shape == samples.shape and worst < TOLERANCE
        assert np.abs(expected - samples).max() > 100 * TOLERANCE  # the model does something
    assert metadata["latency"] == (0 if form == "live" else round(sample_rate / 4))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weights", [*np.eye(3).tolist(), [1, 2, 1]])
def test_the_exact_palette_is_that_of_torch(tmp_path, form, weights):
    samples = sound(44100, 2)
    expected = through(palette_stages(44100, weights, 0.8, causal=FORMS[form]), samples, 2048, -25.0)
    export_onnx(palette, tmp_path / "exact.onnx", 44100, weights, 0.8, 2048, form)
    stream = OnnxStream(tmp_path / "exact.onnx")
    assert np.abs(stream.render(samples, -25.0) - expected).max() < TOLERANCE
    assert stream.listens == bool(weights[2])


def test_blocks_depend_on_what_went_before(model, tmp_path):
    "What the tolerance would let pass if the state were lost."
    samples = sound(44100, 2)[:, :8192]
    export_onnx(model, tmp_path / "style.onnx", 44100, STYLE)
    stream = OnnxStream(tmp_path / "style.onnx")
    stream.hold(-20.0)
    first, second = stream(samples[:, :4096]), stream(samples[:, 4096:])
    stream.reset()
    stream.hold(-20.0)
    assert np.array_equal(stream(samples[:, :4096]), first)
    stream.reset()
    stream.hold(-20.0)
    assert np.abs(stream(samples[:, 4096:]) - second).max() > 10 * TOLERANCE


def test_two_channels_do_not_mix(model, tmp_path):
    samples = sound(44100, 2, 1)
    samples[1] = samples[0, ::-1]
    export_onnx(model, tmp_path / "style.onnx", 44100, STYLE)
    both = OnnxStream(tmp_path / "style.onnx").render(samples, -20.0)
    for channel in (0, 1):
        alone = OnnxStream(tmp_path / "style.onnx", 1).render(samples[channel:channel + 1], -20.0)
        assert np.abs(both[channel] - alone[0]).max() < 1e-6


def test_the_gain_slides_from_one_loudness_to_the_next(tmp_path):
    "The exact palette's layeredness alone is a gain and a tilt: its level can be calculated."
    export_onnx(palette, tmp_path / "exact.onnx", 44100, "layeredness", block=1024)
    session, _ = open_onnx(tmp_path / "exact.onnx")
    state = {value.name: np.zeros([1, *value.shape[1:]], np.float32) for value in session.get_inputs() if value.name not in ("x", "lufs")}
    x, y = np.zeros((1, 1024), np.float32), {}
    x[0, 700] = 1
    for lufs in ((-20.0, -20.0), (-20.0, -10.0), (-np.inf, -np.inf), (-np.inf, -20.0)):
        y[lufs] = session.run(["y"], {"x": x, "lufs": np.array(lufs, np.float32), **state})[0][0, 700]
    plain = y[-np.inf, -np.inf]
    assert plain > 0.1
    for lufs, gain_db in {(-20.0, -20.0): 6, (-20.0, -10.0): 6 - 10 * 700 / 1024, (-np.inf, -20.0): 6 * 700 / 1024}.items():
        assert abs(20 * np.log10(y[lufs] / plain) - gain_db) < 1e-3


def test_a_loudness_that_is_followed_ends_where_torch_ends(model, tmp_path):
    samples = sound(44100, 2, 8)
    followed = through(model.stages(44100, STYLE, causal=True), samples, 4096, None)
    export_onnx(model, tmp_path / "style.onnx", 44100, STYLE)
    stream = OnnxStream(tmp_path / "style.onnx")
    count = samples.shape[1] // 4096
    ours = np.concatenate([stream(piece) for piece in np.split(samples[:, :count * 4096], count, 1)], 1)
    last = slice((count - 5) * 4096, count * 4096)
    level = np.abs(followed[:, last]).max()
    assert level > 0.01 and np.abs(ours[:, last] - followed[:, last]).max() < 0.02 * level
    for stage in (stages := model.stages(44100, STYLE, causal=True))[:3]:
        heard = stage(torch.tensor(samples) if stage is stages[0] else heard)
    assert abs(stream._lufs[1] - integrated_loudness(heard[None].detach(), 44100).item()) < 0.5


def test_a_whole_has_one_gain(model, tmp_path):
    samples = sound(44100, 2)
    heard = torch.tensor(samples)
    for stage in model.stages(44100, STYLE)[:3]:
        heard = stage(heard)
    expected = through(model.stages(44100, STYLE), samples, 4096, integrated_loudness(heard[None].detach(), 44100).item())
    export_onnx(model, tmp_path / "style.onnx", 44100, STYLE, form="studio")
    stream = OnnxStream(tmp_path / "style.onnx")
    assert np.abs(stream.render(samples) - expected).max() < TOLERANCE
    assert np.array_equal(stream.render(samples), stream.render(samples))  # nothing is left over
    assert stream.render(samples[:, :0]).shape == (2, 0)


def test_no_amount_is_the_input_bit_for_bit(model, tmp_path):
    samples = sound(44100, 2, 1)
    for each in (model, palette):
        export_onnx(each, tmp_path / "nothing.onnx", 44100, STYLE, 0)
        assert np.array_equal(OnnxStream(tmp_path / "nothing.onnx").render(samples), samples)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sample_rate", (22050, 44100, 192000))
def test_sliders_set_what_torch_sets(model, tmp_path, form, sample_rate):
    metadata = export_controller(model, tmp_path / "sliders.onnx", sample_rate, form)
    session, _ = open_onnx(tmp_path / "sliders.onnx")
    names, said = [output.name for output in session.get_outputs()], []
    for weights, amount, lufs in (([1, 0, 0], 1.0, -30.0), ([0, 1, 0], 0.5, -12.0), ([0.2, 0.3, 0.5], 0.8, -80.0)):
        with torch.no_grad():
            strengths = model.strengths(torch.zeros(1, 1, 1), weights, amount)
            stages = model.stages(sample_rate, weights, amount, causal=FORMS[form])
            gain_db = model.level_for(torch.tensor([lufs]), strengths).item()
            controls = {name: model.controllers[name](strengths) for name in ("waveshaper", "band")}
        say = dict(zip(names, session.run(None, {"strengths": strengths[0].numpy(), "lufs": np.array([lufs], np.float32)})))
        said.append(say)
        assert abs(say["gain_db"][0] - gain_db) < TOLERANCE
        for name, stage in (("equaliser_taps", stages[0]), ("tone_taps", stages[-1])):
            taps, ours = stage.taps.numpy(), say[name]
            length = max(len(taps), len(ours))
            assert np.abs(np.pad(taps, (0, length - len(taps))) - np.pad(ours, (0, length - len(ours)))).max() < 1e-5, name
        assert len(say["tone_taps"]) == (metadata["length"] if form == "live" else 2 * metadata["latency"] + 1)
        x = torch.linspace(-2, 2, 41)
        for name in controls:
            ours = say[name][0] * x.numpy() + (say[name][1:, None] * np.tanh(say[f"{name}_drives"][:, None] * x.numpy())).sum(0)
            with torch.no_grad():
                assert np.abs(model.blocks[name].shape(x[None, None], controls[name])[0, 0].numpy() - ours).max() < 1e-5
    assert np.abs(said[0]["tone_taps"] - said[2]["tone_taps"]).max() > 1e-3  # the sliders do something
    assert np.array_equal(said[0]["band_taps"], said[1]["band_taps"])


def test_files_are_sound_and_name_what_they_are(model, tmp_path):
    onnx = pytest.importorskip("onnx")
    export_onnx(model, tmp_path / "style.onnx", 48000, "s80_a10_m10", 0.75, 1024, "studio")
    export_controller(model, tmp_path / "sliders.onnx", 48000)
    plain = {"Add", "Concat", "Cos", "Div", "Erf", "Exp", "Expand", "Gather", "GreaterOrEqual", "Identity", "MatMul", "Max", "Min", "Mul", "Neg", "ReduceSum", "Reshape",
             "Shape", "Sin", "Slice", "Split", "Sub", "Tanh", "Where"}
    for name in ("style.onnx", "sliders.onnx"):
        file = onnx.load(tmp_path / name)
        onnx.checker.check_model(file, full_check=True)
        assert {node.op_type for node in file.graph.node} <= plain
        named = [node.name for node in file.graph.node]
        assert all(named) and len(set(named)) == len(named)  # older runtimes name what they join after its parts, and refuse two of a name
        assert file.producer_name == "timbre_palette" and file.producer_version
    metadata = OnnxStream(tmp_path / "style.onnx").metadata
    assert {key: metadata[key] for key in ("style", "amount", "sample_rate", "block", "latency", "form", "model")} == {
        "style": "s80_a10_m10", "amount": "0.75", "sample_rate": "48000", "block": "1024", "latency": "12000", "form": "studio", "model": "GrayBox"}
    assert metadata["version"] == file.producer_version


def test_a_model_by_its_name(model, tmp_path):
    samples = sound(44100, 2, 1)
    model.save_pretrained(tmp_path / "weights")
    for name, each in ((tmp_path / "weights", model), (str(tmp_path / "weights"), model), ("dsp", palette)):
        rendered = []
        for given in (name, each):
            export_onnx(given, tmp_path / "style.onnx", 44100, STYLE)
            rendered.append(OnnxStream(tmp_path / "style.onnx").render(samples, -20.0))
        assert np.array_equal(*rendered)
    with pytest.raises(PaletteError, match="no such weights"):
        export_onnx("organ", tmp_path / "style.onnx", 44100, STYLE)


@pytest.mark.parametrize("package", ("onnx", "onnxruntime"))
def test_what_is_missing_is_named(model, tmp_path, monkeypatch, package):
    export_onnx(model, tmp_path / "style.onnx", 44100, STYLE)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PaletteError) as caught:
        export_onnx(model, tmp_path / "other.onnx", 44100, STYLE) if package == "onnx" else OnnxStream(tmp_path / "style.onnx")
    assert f"{package}: pip install 'timbre_palette[export]'" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize("changed, message", [
    ({"block": 1000}, "power of two"), ({"block": 32}, "power of two"), ({"block": 1 << 17}, "power of two"), ({"form": "concert"}, "unknown form"),
    ({"amount": 1.5}, "between 0 and 1"), ({"amount": float("nan")}, "between 0 and 1"), ({"style": "s80_x20"}, "unknown style"), ({"style": [1, 0]}, "3 styles"),
    ({"sample_rate": 100}, "sample rate"), ({"sample_rate": 44100.5}, "sample rate"), ({"path": "style.wav"}, "ends in .onnx"), ({"path": "missing/style.onnx"}, "cannot be written"),
    ({"model": BlackBox()}, "BlackBox cannot be exported")])
def test_what_cannot_be_exported_is_refused(model, tmp_path, changed, message):
    arguments = {"model": model, "path": "style.onnx", "sample_rate": 44100, "style": STYLE, **changed}
    with pytest.raises(PaletteError, match=message) as caught:
        export_onnx(**{**arguments, "path": tmp_path / arguments["path"]})
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_wrong_controllers_and_files_are_refused(model, tmp_path):
    for arguments in ({"model": palette}, {"model": "dsp"}, {"form": "concert"}, {"seconds": 2}, {"sample_rate": 0}):
        with pytest.raises(PaletteError):
            export_controller(**{"model": model, "path": tmp_path / "sliders.onnx", "sample_rate": 44100, **arguments})
    assert not list(tmp_path.iterdir())
    export_controller(model, tmp_path / "sliders.onnx", 8000, seconds=0.1)
    with pytest.raises(PaletteError, match="not a renderer"):
        OnnxStream(tmp_path / "sliders.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"noise" * 100)
    for name in ("noise.onnx", "missing.onnx"):
        with pytest.raises(PaletteError):
            open_onnx(tmp_path / name)


def test_it_is_faster_than_the_music(model):
    row = time_stream(model, block=4096, seconds=3, rounds=3)
    print({name: round(value, 2) for name, value in row.items()})
    assert row["onnx"] > 2 and abs(row["ratio"] - row["onnx"] / row["torch"]) < 1e-9
