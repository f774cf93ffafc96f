"""The paper's rivals: sizes by hand, reach by gradient, any sound, and each through the training loop."""
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from timbre_palette.audio import PaletteError, write_audio
from timbre_palette.baselines.early import FORMS, NaiveWaveUNet, RecursiveGrayBox, all_pole
from timbre_palette.baselines.spectrogram import GAIN_DB, BiLSTMAttention, DLinear, SpecTransformer, SpectrogramUNet
from timbre_palette.baselines.table import BASELINES, Baseline, describe_baselines, find_baseline
from timbre_palette.baselines.tasnet import ConvTasNet
from timbre_palette.baselines.tcn import TCN
from timbre_palette.checkpoint import Pretrained, find_class
from timbre_palette.data import Batch
from timbre_palette.evaluation import evaluate
from timbre_palette.losses import LOSSES
from timbre_palette.model import ConditionalWaveUNet, measured_reach
from timbre_palette.recipe import Recipe, find_recipe, write_recipe
from timbre_palette.songs import find_tracks
from timbre_palette.synth import demo_clip
from timbre_palette.training import PaletteObjective, train_palette

CORNERS = np.eye(3)
SPECTRUM = {"n_fft": 256, "hop": 64}
TINY_TASNET = {"enc_num_feats": 16, "msk_num_feats": 8, "msk_num_hidden_feats": 8, "msk_num_layers": 3, "msk_num_stacks": 2}
SMALL = {  # every class, small enough to run at once
    "waveunet-wide": Baseline("ConditionalWaveUNet", {"width": 8}), "waveunet-deep": Baseline("ConditionalWaveUNet", {"width": 4, "depth": 5}),
    "waveunet-unconditioned": Baseline("ConditionalWaveUNet", {"width": 4, "styles": 0}),
    "tcn": Baseline("TCN", {"channels": 8, "kernel": 5, "blocks": 4}), "tcn-unconditioned": Baseline("TCN", {"channels": 8, "blocks": 3, "styles": 0}),
    "spectrogram-unet": Baseline("SpectrogramUNet", {"width": 4, "depth": 3, **SPECTRUM}),
    "spectrogram-unet-unconditioned": Baseline("SpectrogramUNet", {"width": 4, "depth": 3, "styles": 0, **SPECTRUM}),
    "bilstm-attention": Baseline("BiLSTMAttention", {"hidden": 16, **SPECTRUM}), "bilstm-attention-unconditioned": Baseline("BiLSTMAttention", {"hidden": 16, "styles": 0, **SPECTRUM}),
    "spec-transformer": Baseline("SpecTransformer", {"hidden": 16, "layers": 2, **SPECTRUM}),
    "dlinear": Baseline("DLinear", {"length": 8, "window": 5, **SPECTRUM}), "dlinear-shared": Baseline("DLinear", {"length": 8, "window": 5, "individual": False, "styles": 0, **SPECTRUM}),
    "conv-tasnet": Baseline("ConvTasNet", TINY_TASNET), "conv-tasnet-unconditioned": Baseline("ConvTasNet", {**TINY_TASNET, "styles": 0}),
    "early-graybox": Baseline("RecursiveGrayBox", {"sections": 3, "hidden": 16, **SPECTRUM}),
    "early-graybox-poles": Baseline("RecursiveGrayBox", {"sections": 3, "hidden": 16, "form": "poles", "styles": 0, **SPECTRUM}),
    "early-waveunet": Baseline("NaiveWaveUNet", {"levels": 6, "growth": 4}),
}


def small(name, seed=0):
    "A small network with weights of a seed."
    if "tasnet" in name:
        pytest.importorskip("torchaudio.models", reason="torchaudio is not installed (extra dev)", exc_type=Exception)
    torch.manual_seed(seed)
    return SMALL[name].build()


def styled(model):
    "A style for `forward`, if the network takes one."
    return CORNERS[0] if model.arguments.get("styles", 0) else None


def test_the_small_ones_are_all_classes_of_the_table():
    assert {baseline.model for baseline in SMALL.values()} == {baseline.model for baseline in BASELINES.values()}


def test_the_papers_rows_are_all_there():
    rows = {pair for baseline in BASELINES.values() for pair in baseline.rows}
    assert {name for table, name in rows if table == 2} == {"Graybox Model", "Early WaveUNet"}
    assert {name for table, name in rows if table == 3} == {"WaveUNet-Wide", "TCN", "WaveUNet-Deep", "BiLSTMAttention", "SpecTransformer", "DLinear"}
    assert {name for table, name in rows if table == 4} == {"Baseline (SpectrogramUNet)", "Baseline (Conv-TasNet)", "Baseline (NonCond-Avg)", "TimbrePalette (Ours, v2)"}
    assert {name for table, name in rows if table == 5} == {"TimbrePalette (Ours, v2)", "Ablation (Ours, v1_ConvT)", "Baseline (NonCond-Avg)"}
    with pytest.raises(PaletteError, match="unknown baseline"):
        find_baseline("WaveNet")


def mlp(size):
    "The style MLP 3 → 128 → size."
    return 3 * 128 + 128 + 128 * size + size


def wave_unet(width, depth):
    "A conditional Wave-U-Net by hand."
    total = 15 * width + width + mlp(width * 2 ** depth) + width + 1
    for level in range(depth):
        n, w = width * 2 ** level, width * 2 ** (level + 1)
        total += 15 * n * w + w + 3 * w * n + n + 15 * w * n + n
    return total


BINS = 1025
PARAMETERS = {
    "waveunet-v2": 1_454_241, "waveunet-v1": 1_454_241, "waveunet-unconditioned": 1_454_241 - mlp(256), "waveunet-wide": wave_unet(64, 3), "waveunet-deep": wave_unet(16, 5),
    "tcn": (9 + 2) * 48 + 15 * (48 * 48 * 9 + 2 * 48) + 2 * 48 + 49 + mlp(2 * 48 * 8),
    # five by five; batch norms with two values a channel; on the way up twice the channels but at the bottom
    "spectrogram-unet-unconditioned": sum(25 * n * w + 3 * w for n, w in ((1, 16), (16, 32), (32, 64), (64, 128), (128, 256), (256, 512)))
    + 25 * 512 * 256 + sum(25 * 2 * w * n for w, n in ((256, 128), (128, 64), (64, 32), (32, 16), (16, 1))) + 3 * (256 + 128 + 64 + 32 + 16) + 1,
    # encoder and decoder 2·512·16; in 512→128 and out 128→512 with a norm and a PReLU; 24 blocks, the last without its way on
    "conv-tasnet-unconditioned": 2 * 512 * 16 + 2 * 512 + 128 * 512 + 128 + 1 + 512 * 128 + 512
    + 24 * (128 * 512 + 512 + 2 * (1 + 2 * 512) + 3 * 512 + 512 + 2 * (512 * 128 + 128)) - (512 * 128 + 128),
    "bilstm-attention": BINS * 256 + 256 + mlp(256) + sum(2 * (4 * 256 * (inputs + 256) + 2 * 4 * 256) for inputs in (256, 512)) + 2 * 512 * 256 + 1024 * 512 + 512 + 512 * BINS + BINS,
    "spec-transformer": BINS * 256 + 256 + mlp(256) + 4 * (4 * (256 * 256 + 256) + 2 * 256 * 1024 + 1024 + 256 + 4 * 256) + 2 * 256 + 256 * BINS + BINS,
    "dlinear": BINS * 2 * (32 * 32 + 32) + 3 * BINS,
    "early-graybox": BINS * 64 + 64 + 64 * 64 + 64 + 131 * 64 + 64 + 64 * 30 + 30,
    # Stoller and others: 24 more channels a level, fifteen taps down, five up
    "early-waveunet": sum(15 * n * w + w for n, w in zip((1, *range(24, 312, 24)), range(24, 336, 24))) + sum(5 * (24 * (i + 1) + 24 * i) * 24 * i + 24 * i for i in range(1, 13)) + 26,
}
PARAMETERS["spectrogram-unet"] = PARAMETERS["spectrogram-unet-unconditioned"] + mlp(512)
PARAMETERS["conv-tasnet"] = PARAMETERS["conv-tasnet-unconditioned"] + mlp(128)


@pytest.mark.parametrize("name", BASELINES)
def test_parameters_by_hand(name):
    if "tasnet" in name:
        pytest.importorskip("torchaudio.models", reason="torchaudio is not installed (extra dev)", exc_type=Exception)
    (row,) = describe_baselines([name])
    assert row["parameters"] == PARAMETERS[name]
    network = BASELINES[name].build()
    assert (row["samples"] is None) == (network.reach is None) and row["model"] == name


NARROW = [ConditionalWaveUNet(width=2, depth=5), ConditionalWaveUNet("v1", width=2, depth=4), TCN(channels=12), SpectrogramUNet(width=2), DLinear(individual=False),
          NaiveWaveUNet(growth=1), SpectrogramUNet(width=2, depth=2, n_fft=512, hop=128, styles=0), TCN(channels=16, kernel=3, blocks=5, styles=0)]


@pytest.mark.parametrize("model", NARROW, ids=lambda model: f"{type(model).__name__}-{model.step}")
def test_the_stated_reach_is_the_measured_one(model):
    "With the kernels and strides of the full size and few channels, at the two places of a period that hear furthest."
    torch.manual_seed(0)
    model = type(model)(**model.arguments)  # with weights of this seed
    first = last = place = np.arange(model.step)
    for layer in model.path():
        first, last = layer(first, last)
    before, after = int((place - first).argmax()), int((last - place).argmax())
    middle = -(-(max(model.reach) + 1) // model.step) * model.step
    frames = middle + model.step + max(model.reach) + 1
    assert measured_reach(model, frames, {middle + before, middle + after}) == model.reach
    assert model.reach.before == place[before] - first[before] and model.reach.after == last[after] - place[after]


@pytest.mark.parametrize("name", [name for name in SMALL if SMALL[name].model in ("BiLSTMAttention", "SpecTransformer", "ConvTasNet", "RecursiveGrayBox")])
def test_the_others_hear_the_whole_clip(name):
    model = small(name)
    assert model.reach is None and measured_reach(model, 900, [0, 899]) == (899, 899)
    for causal, said in ((False, "a whole clip at once"), (True, "cannot play live")):
        with pytest.raises(PaletteError, match=said):
            model.stages(44100, CORNERS[0], causal=causal)


def test_the_tcn_is_causal():
    model = small("tcn").eval()
    x = torch.randn(1, 1, 400, generator=torch.manual_seed(1))
    later = torch.cat([x[..., :250], torch.randn(1, 1, 150)], -1)
    with torch.no_grad():
        assert torch.equal(model(x, CORNERS[1])[..., :250], model(later, CORNERS[1])[..., :250])
    assert model.reach == (2 * 4 * 15, 0) and small("waveunet-deep").reach.after > 400


@pytest.mark.parametrize("name", SMALL)
def test_any_sound_comes_out_in_its_shape(name):
    model = small(name).eval()
    with torch.no_grad():
        for shape in ((1, 1, 1), (2, 1, 2), (1, 3, 63), (2, 2, 1000), (1, 1, 4097)):
            x = 0.3 * torch.randn(shape, generator=torch.manual_seed(0))
            before = x.clone()
            for sound in (x, 0 * x, 30 * x):
                y = model.render(sound, 44100, CORNERS[1])
                assert y.shape == x.shape and y.dtype == x.dtype and torch.isfinite(y).all(), (shape, name)
            assert torch.equal(x, before) and torch.equal(model.render(x, 44100, CORNERS[0], 0.0), x)
        for rate in (8000, 48000):
            y = model.render(x, rate, CORNERS[2], 0.5)
            assert y.shape == x.shape and torch.isfinite(y).all()
    for parameter in model.parameters():  # silence teaches, but without a number that is none
        parameter.grad = None
    model.render(torch.zeros(1, 1, 600), 44100, CORNERS[0]).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_is_its_items_and_stereo_its_channels(name):
    model = small(name).eval()
    x, styles, amount = 0.3 * torch.randn(3, 2, 1501, generator=torch.manual_seed(0)), CORNERS, torch.tensor([1.0, 0.3, 0.8])
    with torch.no_grad():
        together = model.render(x, 44100, styles, amount)
        for k in range(3):
            for channel in range(2):
                alone = model.render(x[k:k + 1, channel:channel + 1], 44100, styles[k], amount[k])
                assert torch.allclose(together[k:k + 1, channel:channel + 1], alone, atol=2e-5)
        wet = model.render(x, 44100, styles)
        assert torch.allclose(together, x + amount[:, None, None] * (wet - x), atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_the_style_matters_where_there_is_one(name):
    model = small(name).eval()
    x = 0.3 * torch.randn(1, 1, 1000, generator=torch.manual_seed(0))
    with torch.no_grad():
        renderings = [model.render(x, 44100, corner) for corner in CORNERS]
        wrong = [None, [1.0, 0], [[1.0, 0, 0]] * 2] if model.arguments.get("styles", 0) else [CORNERS[0]]
        for style in wrong:
            with pytest.raises(PaletteError):
                model(x, style)
    alike = [torch.equal(renderings[0], other) for other in renderings[1:]]
    assert not any(alike) if model.arguments.get("styles", 0) else all(alike)
    with pytest.raises(PaletteError):
        model.render(x, 44100, [0, 0, 0])


@pytest.mark.parametrize("name", [name for name in SMALL if SMALL[name].model in ("ConditionalWaveUNet", "TCN", "SpectrogramUNet", "DLinear", "NaiveWaveUNet")])
def test_in_blocks_it_is_the_whole(name):
    model = small(name).eval()
    x = 0.3 * torch.randn(1, 2, 9001, generator=torch.manual_seed(0))
    with torch.no_grad():
        whole = model(x, styled(model))
        assert torch.allclose(model._in_blocks(x, styled(model), block=2048), whole, atol=1e-5)
        (stage,) = model.stages(44100, CORNERS[0])
        late = torch.cat([stage(block) for block in torch.nn.functional.pad(x[0], (0, stage.latency)).split(3000, -1)], -1)
        until = x.shape[-1] - model.reach.after  # from where the clip's end is heard, behind which a layer has zeros and a stage has silence
        assert until > 6000 and torch.allclose(late[:, stage.latency:][:, :until], whole[0, :, :until], atol=1e-5)


def test_gains_of_the_spectrum_are_bounded():
    "The most a network can ask for is 40 dB, and it keeps the phase."
    model = small("dlinear-shared").eval()
    x = 0.1 * torch.randn(1, 1, 4000, generator=torch.manual_seed(0))
    with torch.no_grad():
        model.trend_bias.fill_(1e6)
        assert torch.allclose(model(x), x * 10 ** (GAIN_DB / 20), rtol=1e-4, atol=1e-4)
        model.trend_bias.fill_(-1e6)
        assert torch.allclose(model(x), x / 10 ** (GAIN_DB / 20), rtol=1e-4, atol=1e-6)


def batch(seconds=0.05, size=3, seed=0):
    "A piece of the demo clip in each corner."
    frames, clip = round(seconds * 44100), demo_clip()
    starts = np.random.default_rng(seed).integers(20000, clip.shape[1] - frames, size)
    return Batch(torch.tensor(np.stack([clip[:1, start:start + frames] for start in starts])), 44100, CORNERS[np.arange(size) % 3], np.ones(size))


@pytest.mark.parametrize("half", (False, True), ids=("float32", "bfloat16"))
@pytest.mark.parametrize("name", SMALL)
def test_it_learns_and_every_parameter_with_it(name, half):
    model, piece, objective = small(name).train(), batch(), PaletteObjective(LOSSES["stable"]())
    optimiser, losses = torch.optim.Adam(model.parameters(), 2e-3), []
    for step in range(12):
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, _ = objective(model, piece)
        loss.backward()
        if step == 0:
            assert not [key for key, value in model.named_parameters() if value.grad is None or not torch.isfinite(value.grad).all() or not value.grad.any()]
        optimiser.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all() and min(losses[-3:]) < 0.98 * losses[0], losses


@pytest.fixture(scope="module")
def songs_folder(tmp_path_factory):
    folder, clip = tmp_path_factory.mktemp("songs"), demo_clip()
    for number in range(4):
        write_audio(folder / f"song {number}.flac", np.roll(clip, 9000 * number, axis=1)[:, :66150], 44100, "PCM_16")
    return folder


@pytest.mark.parametrize("precision", ("float32", "bfloat16"))
@pytest.mark.parametrize("name", [name for name in SMALL if name in BASELINES])
def test_the_loop_trains_it_from_a_recipe_and_its_weights_come_back(songs_folder, tmp_path, name, precision):
    small(name)  # skips what is not here
    recipe = Recipe(SMALL[name].model, SMALL[name].arguments, precision=precision, draw="corners", steps=3, batch=2, seconds=0.05, validate_every=3, validation_batches=1, ema=0.5)
    (tmp_path / "recipe.yaml").write_text(write_recipe(recipe))
    assert find_recipe(tmp_path / "recipe.yaml") == recipe
    model = train_palette(recipe, [songs_folder], tmp_path / "run", "cpu")
    assert model.card["skipped_steps"] == 0 and np.isfinite(model.card["curve"][-1]["loss"])
    again, x = Pretrained.from_pretrained(tmp_path / "run" / "best"), batch().x
    assert type(again) is find_class(SMALL[name].model) and again.arguments == model.arguments
    with torch.no_grad():
        assert torch.equal(again.render(x, 44100, CORNERS), model.render(x, 44100, CORNERS))


def test_the_protocol_scores_them(songs_folder):
    models = {name: small(name).eval().render for name in ("tcn", "spectrogram-unet", "early-waveunet")}
    records = evaluate(models, find_tracks(songs_folder)[:1], seconds=0.5)
    assert len(records) == 9 and all(np.isfinite(record["stft_distance"]) for record in records)


def test_cards_find_the_classes_by_themselves():
    names = sorted({baseline.model for baseline in BASELINES.values()})
    code = f"import sys; from timbre_palette.checkpoint import find_class; print([find_class(name).__name__ for name in {names}] == {names}, 'torchaudio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["True", "False"]


def test_without_torchaudio_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio.models", None)
    with pytest.raises(PaletteError, match="torchaudio cannot be loaded") as error:
        ConvTasNet()
    assert "\n" not in str(error.value)
    rows = describe_baselines(["conv-tasnet", "tcn"])
    assert "torchaudio" in rows[0]["note"] and "parameters" not in rows[0] and rows[1]["parameters"] == PARAMETERS["tcn"]


def test_arguments_that_do_not_fit():
    pytest.importorskip("torchaudio.models", reason="torchaudio is not installed (extra dev)", exc_type=Exception)
    with pytest.raises(PaletteError, match="does not take"):
        ConvTasNet(msk_activate="tanh")
    with pytest.raises(PaletteError, match="does not take"):
        ConvTasNet(sources=2)
    with pytest.raises(PaletteError, match="unknown form"):
        RecursiveGrayBox(form="lattice")


@pytest.mark.parametrize("kernel", (15, 16))
def test_conv_tasnet_is_torchaudios_but_for_the_style(kernel):
    pytest.importorskip("torchaudio.models", reason="torchaudio is not installed (extra dev)", exc_type=Exception)
    torch.manual_seed(0)
    model = ConvTasNet(**TINY_TASNET, enc_kernel_size=kernel).eval()
    with torch.no_grad():
        for parameter in model.style[-1].parameters():
            parameter.zero_()
        for frames in (1, 6, 7, 8, 15, 16, 17, 999, 1000):
            x = torch.randn(1, 1, frames)
            assert torch.allclose(model(x, CORNERS[0]), model.network(x), atol=1e-6)


@pytest.mark.parametrize("time", (1, 2, 3, 511, 512, 513, 1024, 5000))
def test_the_recursion_is_scipys(time):
    rng = np.random.default_rng(time)
    x, a = rng.standard_normal((4, time)), np.array([[-1.99, 0.9901], [0.5, 0.5], [0, 0], [-2.01, 1.0105]])
    y = all_pole(torch.tensor(x), *torch.tensor(a).T).numpy()
    for lane, row, ours in zip(x, a, y):
        expected = lfilter([1], [1, *row], lane)
        assert np.abs(ours - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("poles", ([-1.9, 0.95], [0.0, 0.0], [-2.02, 1.021], [1.3, 1.2]), ids=str)
def test_the_recursions_gradient_is_exact(poles):
    x = torch.randn(2, 30, dtype=torch.float64, generator=torch.manual_seed(0)).requires_grad_()
    a1, a2 = (torch.full((2,), value, dtype=torch.float64, requires_grad=True) for value in poles)
    assert torch.autograd.gradcheck(all_pole, (x, a1, a2))


@pytest.mark.parametrize("name", ("early-graybox", "early-graybox-poles"))
def test_nothing_keeps_the_early_gray_box_from_exploding(name):
    "One pole pair a little outside: finite but huge for a short clip, not finite for a long one, and so is the gradient."
    model = small(name)
    with torch.no_grad():
        model.control[-1].weight.zero_()
        model.control[-1].bias.copy_(torch.tensor([0, 0, 0, *((-2.05, 1.06) if model.arguments["form"] == "coefficients" else (1.03, 0.1)), *[0.0] * 10]))
    x = 0.1 * torch.randn(1, 1, 20000, generator=torch.manual_seed(0))
    assert 1e6 < model.render(x[..., :800], 44100, CORNERS[0]).abs().max() < 1e30
    y = model.render(x, 44100, CORNERS[0])
    assert not torch.isfinite(y).all()
    y.abs().mean().backward()
    assert not torch.isfinite(model.control[-1].bias.grad).all()


def test_forms_agree_where_they_can():
    raw = torch.tensor([0.1, -0.2, 0.3, 0.9, 0.5])
    b0, b1, b2, a1, a2 = FORMS["poles"](raw).tolist()
    assert np.allclose([b0, b1, b2], [1.1, -0.2, 0.3]) and np.allclose(np.sort_complex(np.roots([1, a1, a2])), np.sort_complex(0.9 * np.exp([0.5j, -0.5j])))
    assert np.allclose(FORMS["coefficients"](raw), [1.1, -0.2, 0.3, 0.9, 0.5])


def test_the_naive_network_is_unbounded():
    model, x = small("early-waveunet").eval(), 0.1 * torch.randn(1, 1, 1000, generator=torch.manual_seed(0))
    with torch.no_grad():
        model.leave.bias.fill_(7.0)
        assert model.render(x, 44100, CORNERS[0]).mean() > 5


def test_attention_and_order_are_heard():
    "A Transformer without its places could not tell the order of frames; a mean over frames neither."
    torch.manual_seed(0)
    for model in (SpecTransformer(hidden=16, layers=1, heads=2, **SPECTRUM), BiLSTMAttention(hidden=16, **SPECTRUM)):
        features, style = torch.randn(1, 6, 129), torch.tensor([[1.0, 0, 0]])
        with torch.no_grad():
            straight, turned = model.log_gain(features, style), model.log_gain(features.flip(1), style).flip(1)
        assert not torch.allclose(straight, turned, atol=1e-4)
