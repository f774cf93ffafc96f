"""The paper's figures: shapes and counts of its table, scales that are shared, words that do not overlap, numbers that are the evaluation's."""
import itertools

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from timbre_palette.analysis import (ANALYSIS, PAPER_CONTINUITY, SIGNED, analyse, describe_layers, log_spectrogram, loudest_start, plot_architecture, plot_continuity, plot_edges,
                                     plot_full_analysis, plot_style_analysis, spectral_difference)
from timbre_palette.anchors import palette, palette_reference
from timbre_palette.audio import PaletteError, write_audio
from timbre_palette.baselines.spectrogram import SpectrogramUNet
from timbre_palette.blend import crossfade
from timbre_palette.evaluation import evaluate_simplex, identity, score, simplex_means
from timbre_palette.metrics import BANDS_HZ, band_levels
from timbre_palette.model import VERSIONS, ConditionalWaveUNet
from timbre_palette.songs import find_tracks
from timbre_palette.synth import demo_clip

TABLE_7 = """Input|-|[B, 1, 441000]
Conv1d|inc (k=15, s=1)|[B, 32, 441000]
DownBlock|d1 (k=15, s=2)|[B, 64, 220500]
DownBlock|d2 (k=15, s=2)|[B, 128, 110250]
DownBlock|d3 (k=15, s=2)|[B, 256, 55125]
Style Vector|-|[B, 3]
MLP|style_mlp|[B, 256]
Bottleneck|bottleneck|[B, 256, 55125] (element-wise add)
UpBlock|u1 (ConvTranspose1d)|[B, 128, 110250] (concat with d2 output)
UpBlock|u2 (ConvTranspose1d)|[B, 64, 220500] (concat with d1 output)
UpBlock|u3 (ConvTranspose1d)|[B, 32, 441000] (concat with inc output)
Conv1d|outc (k=1, s=1)|[B, 1, 441000]
Activation|tanh|[B, 1, 441000]"""


def boosted(x, sample_rate, weights, amount=1.0):
    "A model that is 6.02 dB too loud."
    return 2 * palette(x, sample_rate, weights, amount)


MODELS = {"exactly so": palette, "much too loud": boosted}


def draw(figure):
    "A figure, drawn by Agg, whose words do not overlap and lie within it; all words that were drawn."
    canvas, drawn, paint = FigureCanvasAgg(figure), {}, Text.draw

    def note(text, renderer, *rest):
        "Draw a text, and remember it."
        if text.get_visible() and text.get_text().strip():
            drawn[id(text)] = text
        paint(text, renderer, *rest)

    canvas.draw()  # the layout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", note)
        canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in drawn.values()]
    for text, box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, f"{text!r} leaves the page"
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert wide <= 1 or high <= 1, f"{one!r} and {other!r} overlap by {wide:.1f} × {high:.1f} pixels"
    return [text for text, _ in boxes]


@pytest.fixture(scope="module")
def clip():
    return demo_clip(22050)[:, :100000]


def test_the_papers_table_seven():
    v1, v2 = (describe_layers(ConditionalWaveUNet(version)) for version in VERSIONS)
    assert ["|".join((row["layer"], row["name"], row["output"])) for row in v1] == TABLE_7.splitlines()
    assert [row["output"] for row in v2] == [row["output"] for row in v1]
    assert [row["name"] for row in v2 if row["layer"] == "UpBlock"] == [f"u{k} (Upsample + Conv1d)" for k in (1, 2, 3)]
    assert sum(row["parameters"] for row in v1) == sum(row["parameters"] for row in v2) == 1_454_241
    assert [row["parameters"] for row in v2][1:5] == [32 * 16, 64 * (32 * 15 + 1), 128 * (64 * 15 + 1), 256 * (128 * 15 + 1)]
    assert v2[8]["made_of"] == ["Upsample ×2, linear", "Conv1d 256→128, k3, s1", "GELU", "concat with d2", "Conv1d 256→128, k15, s1", "GELU"]


@pytest.mark.parametrize("settings", [{"version": "v1", "width": 4, "depth": 1}, {"width": 2, "depth": 5, "styles": 0}, {"width": 6, "depth": 2, "kernel": 9, "styles": 4}], ids=str)
@pytest.mark.parametrize("frames", [1, 7, 1000])
def test_layers_are_those_of_a_run(settings, frames):
    model = ConditionalWaveUNet(**settings)
    seen, hooks = {}, []
    for name, module in {"inc": model.enter, **{f"d{k + 1}": layer for k, layer in enumerate(model.down)}, **{f"u{k + 1}": layer for k, layer in enumerate(model.merge)}, "outc": model.leave}.items():
        hooks.append(module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: (out.shape[1], out.shape[-1])})))
    with torch.no_grad():
        model(torch.zeros(1, 1, frames), torch.zeros(settings["styles"]) if settings.get("styles") else None if "styles" in settings else torch.zeros(3))
    for hook in hooks:
        hook.remove()
    rows = describe_layers(model, frames)
    assert {row["name"].split()[0]: row["shape"] for row in rows if row["name"].split()[0] in seen} == seen
    assert sum(row["parameters"] for row in rows) == sum(weights.numel() for weights in model.parameters())
    assert ("bottleneck" in [row["name"] for row in rows]) == (settings.get("styles", 3) > 0)
    assert all(weights.device.type == "cpu" for weights in model.parameters()) and not any(module._forward_hooks for module in model.modules())


def test_layers_of_something_else():
    for wrong in (lambda: describe_layers(SpectrogramUNet()), lambda: describe_layers(ConditionalWaveUNet(width=2), 0), lambda: plot_architecture(torch.nn.Linear(1, 1))):
        with pytest.raises(PaletteError, match="described"):
            wrong()


@pytest.mark.parametrize("settings", [{}, {"version": "v1"}, {"version": "v1", "depth": 5, "width": 64, "styles": 0}, {"depth": 1, "width": 4}], ids=str)
def test_the_architecture_says_what_the_network_is(settings):
    model = ConditionalWaveUNet(**settings)
    figure = plot_architecture(model, 320000)
    words = "\n".join(draw(figure))
    for row in describe_layers(model, 320000):
        assert row["name"].split()[0] in words or row["layer"] in words
        assert all(layer in words for layer in row["made_of"])
    assert f"{sum(weights.numel() for weights in model.parameters()):,} parameters" in words
    depth = model.arguments["depth"]
    assert words.count("skip: ") == depth and f"× T/{2 ** depth}" in words
    renderer, blocks = figure.canvas.get_renderer(), [patch.get_window_extent() for patch in figure.axes[0].patches if patch.get_facecolor()[3] and hasattr(patch, "get_boxstyle")]
    for text in figure.axes[0].texts:
        box = text.get_window_extent(renderer)
        inside = [block for block in blocks if block.x0 < (box.x0 + box.x1) / 2 < block.x1 and block.y0 < (box.y0 + box.y1) / 2 < block.y1]
        assert not text.get_text() or not inside or (inside[0].x0 < box.x0 and box.x1 < inside[0].x1 and inside[0].y0 < box.y0 and box.y1 < inside[0].y1), text.get_text()


def test_rows_of_a_spectrogram_hold_its_power():
    x = np.random.default_rng(0).standard_normal((1, 30000))
    borders, level = log_spectrogram(x, 8000, rows=64)
    spectrum = np.abs(np.fft.rfft(np.lib.stride_tricks.sliding_window_view(np.pad(x[0], 1024), 2048)[::512] * np.hanning(2049)[:-1])) ** 2 / 512 ** 2
    width = 4000 / 1024
    inside = spectrum[:, 8:-1].sum(1) * width + 0.5 * width * spectrum[:, -1]
    assert level.shape == (64, len(spectrum))
    cut = borders[0] - 7.5 * width  # of the line that the lowest border parts
    total = (10 ** (level / 10) * np.diff(borders)[:, None]).sum(0) + cut * spectrum[:, 8]
    assert borders[0] == 30 and borders[-1] == pytest.approx(4000) and np.allclose(np.diff(np.log(borders)), np.log(4000 / 30) / 64)
    assert np.allclose(total, inside, rtol=1e-6)


def test_a_gain_is_its_difference_and_faint_things_are_none():
    x = 0.1 * np.random.default_rng(0).standard_normal((1, 20000))
    assert np.allclose(spectral_difference(0.5 * x, x), -20 * np.log10(2))
    assert not spectral_difference(1e-9 * x, 0 * x).any()  # below −180 dB
    tone = np.sin(2 * np.pi * 1000 * np.arange(20000) / 44100)[None]
    assert np.abs(spectral_difference(tone + 1e-7 * x, tone))[:, 5:-5].max() < 0.1


def test_the_loudest_window():
    rng = np.random.default_rng(0)
    x = 0.1 * rng.standard_normal((2, 8 * 4000 + 17))
    x[:, 15000:27000] *= 3
    start = loudest_start(x, 4000)
    energies = [np.sum(x[:, k * 400:k * 400 + 12000] ** 2) for k in range((x.shape[1] - 12000) // 400 + 1)]
    assert start == np.argmax(energies) / 10 and abs(start - 3.75) < 0.06
    assert loudest_start(x[:, :12000], 4000) == loudest_start(x[:, :11999], 4000) == loudest_start(x[:, :1], 4000) == 0


def test_numbers_are_those_of_the_evaluation(clip):
    mono = clip.mean(0, keepdims=True)
    rows = {row["model"]: row for row in analyse(clip, 22050, "s25_m75", {**MODELS, "fade": crossfade}, start=1.0, seconds=2.0)}
    part = slice(22050, 3 * 22050)
    target = palette_reference(mono, 22050, [0.25, 0, 0.75])[:, part]
    for name, model in {"identity": identity, **MODELS, "fade": crossfade}.items():
        output = model(torch.tensor(mono[None]), 22050, np.array([0.25, 0, 0.75]))[:, :, part]
        expected = score(output, torch.tensor(target[None]))
        assert {key: rows[name][key] for key in expected} == pytest.approx(expected, rel=1e-9)
        for band, level in band_levels(output[0].numpy(), 22050).items():
            assert rows[name][band] == pytest.approx(level - band_levels(target, 22050)[band])
        assert rows[name]["spectral_db"] == pytest.approx(np.abs(spectral_difference(output[0].numpy(), target)).mean())
    assert set(ANALYSIS) <= rows["fade"].keys()
    assert 3 < rows["much too loud"]["spectral_db"] < 6.03 and all(abs(rows["much too loud"][band] - 6.02) < 0.01 for band in BANDS_HZ)
    assert rows["exactly so"]["si_snr"] > 110 and rows["much too loud"]["si_snr"] > 110 and rows["much too loud"]["sd_sdr"] < 7


def test_loudness_belongs_to_the_whole_clip(clip):
    "The window is cut after rendering, so its numbers are another thing than those of the window as a clip."
    start = loudest_start(clip, 22050, 1.0)
    rows = analyse(clip, 22050, "layeredness", MODELS, seconds=1.0)
    first = round(start * 22050)
    alone = analyse(clip[:, first:first + 22050], 22050, "layeredness", MODELS, seconds=1.0)
    assert rows[1]["si_snr"] > 110 and abs(rows[0]["Bass (<250Hz)"] - alone[0]["Bass (<250Hz)"]) > 0.3


def colours(figure, kind):
    "Colour limits of the pictures of a figure that are drawn in a colour map."
    return [mesh.get_clim() for axes in figure.axes for mesh in axes.collections if hasattr(mesh, "get_coordinates") and (mesh.cmap is SIGNED) == kind and "colorbar" not in axes.get_label()]


@pytest.mark.parametrize("style", ["fullness", "s80_a10_m10"])
def test_the_full_page(clip, style):
    figure = plot_full_analysis(clip, 22050, style, MODELS)
    words = draw(figure)
    for title in ("original", "exact DSP", *MODELS, *(f"{name} − exact DSP" for name in MODELS), "level by band", "frequency (Hz)", "time (s)", "identity"):
        assert title in words, title
    levels, signed = colours(figure, False), colours(figure, True)
    assert len(levels) == 4 and len(set(levels)) == 1 and np.ptp(levels[0]) == 80
    assert signed == [(-25.0, 25.0)] * 2
    assert len([axes for axes in figure.axes if axes.get_label() == "<colorbar>"]) == 2
    assert all(axes.get_ylim() == pytest.approx((30, 11025)) and axes.get_yscale() == "log" for axes in figure.axes if axes.get_ylabel() == "frequency (Hz)")
    table = next(axes for axes in figure.axes if axes.tables).tables[0]
    cells = [[table[row, column].get_text().get_text() for column in range(len(ANALYSIS) + 1)] for row in range(4)]
    for shown, row in zip(cells[1:], analyse(clip, 22050, style, MODELS)):
        assert shown[0] == row["model"]
        for text, measure in zip(shown[1:], ANALYSIS):
            assert abs(float(text.replace("−", "-")) - row[measure]) <= (0.00006 if measure == "stft_distance" else 0.06)
    for cell in table.get_celld().values():
        box, text = cell.get_window_extent(), cell.get_text()
        assert not text.get_text() or text.get_window_extent().width <= box.width and text.get_window_extent().height <= box.height + 1, text.get_text()


def test_the_small_figure_and_its_bars(clip):
    figure = plot_style_analysis(clip, 22050, "warmth", MODELS, start=0.5, seconds=1.0)
    words = draw(figure)
    assert {"(a) original", "(b) exactly so", "(c) exactly so − exact DSP", "(d) level by band", "warmth, 0.50 to 1.50 s", "much too loud"} <= set(words)
    assert len(set(colours(figure, False))) == 1 and colours(figure, True) == [(-25.0, 25.0)]
    bars = next(axes for axes in figure.axes if axes.containers)
    mono = clip.mean(0, keepdims=True)
    target = palette_reference(mono, 22050, [0, 1, 0])[:, 11025:33075]
    for container, samples in zip(bars.containers, (mono[:, 11025:33075], target, target, 2 * target)):
        assert [bar.get_y() + bar.get_height() for bar in container] == pytest.approx(list(band_levels(samples, 22050).values()), abs=1e-3)
    assert len({bar[0].get_hatch() for bar in bars.containers[2:]}) == 2


def test_light_says_what_colour_says():
    lightness = np.array([0.2126, 0.7152, 0.0722]) @ (SIGNED(np.linspace(0, 1, 101))[:, :3] ** 2.2).T
    assert (np.diff(lightness) > 0).all()
    assert np.ptp(SIGNED(0.5)[:3]) < 0.02  # nothing is grey


@pytest.mark.parametrize("case", ["silence", "short", "tiny", "one sample", "8 kHz", "mono"])
def test_any_file(clip, case):
    x, rate = {"silence": (0 * clip, 22050), "short": (clip[:, :20000], 22050), "tiny": (clip[:, :300], 22050), "one sample": (clip[:, 5:6], 22050), "8 kHz": (demo_clip(8000)[:, :32000], 8000),
               "mono": (clip[:1], 22050)}[case]
    words = draw(plot_full_analysis(x, rate, [1, 1, 1], MODELS))
    assert "s33_a33_m33" in " ".join(words) and ("none" in words) == (case in ("silence", "8 kHz") or (case == "one sample")), words
    if case == "silence":
        assert words.count("–") == 3 * 5  # no SI-SNR, no SD-SDR, no band
    draw(plot_style_analysis(x, rate, "fullness", MODELS))


def test_what_is_refused(clip):
    broken = np.where(np.arange(clip.shape[1]) == 5, np.nan, clip)
    for x, settings, words in ((clip[0], {}, "channels, time"), (clip[:, :0], {}, "channels, time"), (broken, {}, "finite"), (clip, {"start": 9.0}, "start"), (clip, {"start": -1.0}, "start"),
                               (clip, {"seconds": 0.0}, "start"), (clip, {"style": "loud"}, "unknown style")):
        settings = {"style": "warmth", **settings}
        for function in (analyse, plot_style_analysis, plot_full_analysis):
            with pytest.raises(PaletteError, match=words):
                function(x, 22050, models=MODELS, **settings)
    for models in ({"one": palette}, {"original": palette, "other": palette}, {"a": palette, "b": palette, "c": palette}):
        with pytest.raises(PaletteError, match="two models"):
            plot_style_analysis(clip, 22050, "warmth", models)


def test_continuity_beside_the_papers():
    ours = {name: np.linspace(low, 2 * low, 10) for name, low in (("gray-box", 0.02), ("exact palette", 0.02), ("cross-fade", 0.05))}
    figure = plot_continuity({"paper": PAPER_CONTINUITY, **ours})
    words = draw(figure)
    assert PAPER_CONTINUITY == (0.0135, 0.0133, 0.0127, 0.0120, 0.0112, 0.0128, 0.0142, 0.0153, 0.0160, 0.0164)
    assert all(f"{value:.4f}" in words for values in ({"paper": PAPER_CONTINUITY} | ours).values() for value in values)
    lines = figure.axes[1].lines
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == len(lines) == 4
    assert np.array_equal(lines[0].get_ydata(), PAPER_CONTINUITY) and np.allclose(lines[0].get_xdata(), np.arange(10) / 10 + 0.05)
    draw(plot_continuity({"only one": [0.1, 0.2]}, "warmth", "s80_a10_m10"))
    for wrong in ({}, {"a": [1, 2], "b": [1]}, {str(k): [1.0] for k in range(7)}):
        with pytest.raises(PaletteError, match="ways"):
            plot_continuity(wrong)


def test_edges_are_those_of_the_records(clip, tmp_path):
    write_audio(tmp_path / "song.flac", clip[:, :30000], 22050, "PCM_24")
    records = evaluate_simplex({"identity": identity, "cross-fade": crossfade}, find_tracks(tmp_path), steps=4, seconds=1)
    figure = plot_edges(records, "sd_sdr")
    words = draw(figure)
    assert {"SD-SDR (dB)", "identity", "cross-fade", "warmth (%), the rest fullness", "layeredness (%), the rest warmth", "fullness (%), the rest layeredness"} <= set(words)
    weights, means = simplex_means(records, "identity", "sd_sdr")
    value = dict(zip(map(tuple, weights), means))
    for axes, (rest, named) in zip(figure.axes, ((0, 1), (1, 2), (2, 0))):
        share, shown = axes.lines[0].get_data()
        assert np.allclose(share, [0, 25, 50, 75, 100])
        assert np.allclose(shown, [value[tuple((1 - s / 100) * np.eye(3)[rest] + s / 100 * np.eye(3)[named])] for s in share])
    with pytest.raises(PaletteError, match="models"):
        plot_edges([])
