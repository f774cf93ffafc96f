"""Gradients through effects: exact where they must be, right on average where they are guessed, and what the paper's public code does otherwise."""
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from timbre_palette.audio import PaletteError, write_audio
from timbre_palette.checkpoint import Pretrained
from timbre_palette.effects.chains import EFFECTS, chain, production
from timbre_palette.effects.parameters import Effect, Parameter
from timbre_palette.effects.plugins import find_effect
from timbre_palette.style_transfer.encoder import PaperEncoder
from timbre_palette.style_transfer.experiments import STYLE_BUDGETS, Method, StyleUnit, by_strategy, find_style_unit, train_style_unit
from timbre_palette.style_transfer.match import match
from timbre_palette.style_transfer.proxies import ConditionedTCN, EffectProxy
from timbre_palette.style_transfer.strategies import HYBRIDS, STRATEGIES, Automatic, EndToEnd, Perturbation, Proxied, compare_gradients, find_strategy, known_range
from timbre_palette.style_transfer.system import StyleController, StyleTransfer
from timbre_palette.synth import demo_clip

RATE, PAIR = 24000, ("equaliser", "compressor")
SMALL = {"hidden": 8, "encoder_arguments": {"width": 8, "dimensions": 16}}


@pytest.fixture(scope="module")
def sound():
    return 0.5 * torch.tensor(demo_clip(RATE)[:, 24000:32000]).mean(0)[None, None].repeat(3, 1, 1) * torch.tensor([1.0, 0.5, 0.25])[:, None, None]


@pytest.fixture(scope="module")
def proxies():
    "Small ones that do something."
    torch.manual_seed(0)
    made = [EffectProxy(name, channels=4) for name in PAIR]
    for proxy in made:
        torch.nn.init.normal_(proxy.network.leave.weight, std=0.1)
    return made


def places(count=3, seed=0):
    return production().random(count, seed).float().mul(0.8).add(0.1)


def gradient(strategy, x, place, loss=lambda y: y.square().mean((1, 2)).log().sum()):
    place = place.clone().requires_grad_()
    return torch.autograd.grad(loss(strategy(x, RATE, place)), place)[0]


def test_networks_have_the_papers_sizes():
    count = lambda module: sum(p.numel() for p in module.parameters())
    assert round(count(EndToEnd(PAIR)) / 1e3) == 174 and round(count(EndToEnd(PAIR, 2)) / 1e3) == 336
    assert round(sum(count(EffectProxy(name)) for name in PAIR) / 1e3) == 336
    assert ConditionedTCN(24).reach.before == 12 * (1 + 8 + 64 + 512)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_keeps_the_shape_and_hands_back_a_gradient(name, sound, proxies):
    options = {"proxies": proxies} if name in HYBRIDS else {"channels": 4} if name.startswith("ctcn") else {}
    strategy = find_strategy(name, PAIR, **options).train()
    for parameter in strategy.parameters():
        if name.startswith("ctcn"):
            torch.nn.init.normal_(parameter, std=0.1)
    place, x = places(), sound.clone()
    found = gradient(strategy, x, place)
    assert found.shape == place.shape and torch.isfinite(found).all() and (found.abs().sum(1) > 0).all()
    assert torch.equal(x, sound) and strategy.eval()(x, RATE, place).shape == x.shape
    stereo = strategy(x.repeat(1, 2, 1), RATE, place)
    assert stereo.shape == (3, 2, x.shape[-1]) and torch.allclose(stereo[:, 0], stereo[:, 1], atol=1e-4)


def test_spsa_is_the_gradient_on_average(sound):
    place, loss = places(), lambda y: (y[..., 1000:] - 0.3 * sound[..., 1000:]).abs().mean((1, 2)).sum()
    true = gradient(Automatic(PAIR), sound, place, loss)
    rows = {times: compare_gradients({"ad": Automatic(PAIR), "spsa": Perturbation(PAIR, 1e-3)}, sound, RATE, place, loss, times)[1] for times in (1, 200)}
    assert rows[200]["cosine"] > 0.9 > rows[1]["cosine"] > -0.2
    assert rows[1]["length"] > 1.5 and 0.8 < rows[200]["length"] < 1.4 and torch.isfinite(true).all()


def test_spsa_repeats_its_coins_and_goes_on_with_them(sound):
    first, second = Perturbation(PAIR), Perturbation(PAIR)
    found = [gradient(first, sound, places()) for _ in range(3)]
    assert not torch.equal(found[0], found[1])
    second.load_state_dict({"tosses": torch.tensor(2)})
    assert torch.equal(gradient(second, sound, places()), found[2])


def linear_effect():
    "Louder by its setting, and remembers the rates it was called at."
    rates = []

    def louder(x, sample_rate, gain):
        rates.append(sample_rate)
        return x * torch.as_tensor(gain, dtype=x.dtype).reshape(-1, 1, 1)
    return Effect("louder", (Parameter("gain", "", 0.0, 1.0, 0.5),), louder, differentiable=False), rates


@pytest.mark.parametrize("place, share", ((0.5, 1.0), (0.0, 0.5), (1.0, 0.5)))
def test_spsa_divides_by_the_step_it_took(place, share):
    effect, rates = linear_effect()
    x, place = torch.ones(1, 1, 10), torch.tensor([[place]])
    for paper_compat, expected in ((False, 10.0), (True, 10.0 * share)):  # the sum of ten samples, whose slope is 1 each
        strategy = Perturbation((effect,), 1e-2, paper_compat=paper_compat)
        asked = place.clone().requires_grad_()
        strategy(x, 44100, asked).sum().backward()
        assert asked.grad.item() == pytest.approx(expected, rel=1e-4)
    assert rates == [44100, 44100, 44100, 24000]  # heard, and asked for the gradient; the public code forgets the rate


def test_a_full_hybrid_hears_the_effects_and_asks_the_proxies(sound, proxies):
    place = places()
    full, half, public = (Proxied(PAIR, proxies, name, compat).train() for name, compat in (("np-fh", False), ("np-hh", False), ("np-fh", True)))
    exact = production().render(sound, RATE, place)
    assert torch.equal(full(sound, RATE, place).detach(), exact) and not torch.allclose(half(sound, RATE, place), exact, atol=1e-3)
    assert torch.equal(public(sound, RATE, place), half(sound, RATE, place))  # the defect: effects are never heard in training
    # its gradient is that of the proxies at the sounds that the effects made, where they know their way
    low, high = known_range(production())
    place = place.clamp(low, high)
    wanted = torch.randn(sound.shape, generator=torch.Generator().manual_seed(1))
    found = gradient(full, sound, place, lambda y: (y * wanted).sum())
    settings = place.clone().requires_grad_()
    first, second = settings.split([18, 6], -1)
    with torch.autocast("cpu", torch.bfloat16):
        between = EFFECTS["equaliser"].render(sound, RATE, first).detach()
        guess = proxies[0].render(sound, RATE, first)
        inner = (between + guess - guess.detach())
        output = proxies[1].render(inner, RATE, second)
    output.backward(wanted)
    assert torch.allclose(found, settings.grad, rtol=1e-2, atol=1e-4 * settings.grad.abs().max())


@pytest.mark.parametrize("name", HYBRIDS)
def test_whoever_goes_by_proxies_is_led_back_to_where_they_know_their_way(sound, proxies, name):
    "From all knobs at an end, where gradients of proxies may have any direction."
    low, high = known_range(production())
    assert (low < high).all() and production().normalised(equaliser_high_shelf_gain_db=12.0)[15] == pytest.approx(high[15].item()) and low[-1].item() == pytest.approx(0.25)
    corner = (torch.arange(24) % 2).float().repeat(3, 1)
    inward = gradient(Proxied(PAIR, proxies, name).train(), sound, corner, lambda y: y.square().mean())
    anyhow = gradient(Proxied(PAIR, proxies, name, paper_compat=True).train(), sound, corner, lambda y: y.square().mean())
    outside = (corner > high) | (corner < low)
    assert outside.sum() > 60 and (inward * (corner - 0.5) >= 0)[outside].all() and not (anyhow * (corner - 0.5) >= 0)[outside].all()


def test_half_hybrids_and_proxies_differ_in_use_only(sound, proxies):
    place = places()
    used = {name: Proxied(PAIR, proxies, name).eval()(sound, RATE, place) for name in HYBRIDS}
    exact = production().render(sound, RATE, place)
    assert torch.equal(used["np-hh"], exact) and torch.equal(used["np-fh"], exact) and not torch.allclose(used["np"], exact, atol=1e-3)


def test_any_plugin_can_take_the_place_of_an_effect(sound):
    pytest.importorskip("pedalboard")
    names = ("plugin:HighShelfFilter", "plugin:Compressor")
    boxed = [EffectProxy(name, channels=4) for name in names]
    for proxy in boxed:
        torch.nn.init.normal_(proxy.network.leave.weight, std=0.1)
    place = torch.full((3, 7), 0.45)
    for strategy in (Perturbation(names, 1e-2), Proxied(names, boxed, "np-fh"), Proxied(names, boxed, "np-hh")):
        assert (gradient(strategy.train(), sound, place).abs().sum(1) > 0).all()
    exact = chain(*map(find_effect, names)).render(sound, RATE, place)
    assert torch.equal(Proxied(names, boxed, "np-fh").train()(sound, RATE, place).detach(), exact)
    with pytest.raises(PaletteError, match="no gradient"):
        gradient(Automatic(names), sound, place)


@pytest.mark.parametrize("wrong, message", ((lambda: find_strategy("rl", PAIR), "unknown strategy 'rl'; use one of ad, spsa"), (lambda: find_effect("fuzz"), "unknown effect 'fuzz'"),
                                            (lambda: Proxied(PAIR, [EffectProxy("compressor", channels=4)] * 2), "do not stand for equaliser, compressor"),
                                            (lambda: EffectProxy("compressor", channels=4).render(torch.zeros(1, 1, 9), RATE, torch.rand(1, 5)), "has 6 settings")))
def test_errors_say_what_to_do(wrong, message):
    with pytest.raises(PaletteError, match=message):
        wrong()


def test_proxies_stay_as_they_are_while_the_system_learns(proxies, tmp_path):
    for proxy in proxies:
        proxy.save_pretrained(tmp_path / proxy.arguments["effect"])
    names = [str(tmp_path / effect) for effect in PAIR]
    system = StyleTransfer(**SMALL, strategy="np-fh", strategy_arguments={"proxies": names}).train()
    before = {name: value.clone() for name, value in system.state_dict().items()}
    optimiser, x = torch.optim.Adam(system.parameters(), 1e-2), 0.1 * torch.randn(4, 1, 6000)
    system.transfer(x, RATE, torch.tensor([3, 2, 1, 0])).square().mean().backward()
    optimiser.step()
    after = system.state_dict()
    assert all(torch.equal(before[name], after[name]) == name.startswith("strategy.") for name in before if not name.endswith(("tosses",)))
    system.save_pretrained(tmp_path / "system")
    again = Pretrained.from_pretrained(tmp_path / "system")
    assert again.arguments["strategy"] == "np-fh" and torch.equal(again.strategy.proxies[0].network.leave.weight, proxies[0].network.leave.weight)


def test_what_has_no_settings_to_read_is_not_matched_with(sound):
    system = StyleTransfer(**SMALL, strategy="ctcn-1", strategy_arguments={"channels": 4}).eval()
    with pytest.raises(PaletteError, match="mean nothing outside"):
        match(sound[0].numpy(), RATE, sound[1].numpy(), RATE, model=system)


def test_the_public_code_has_another_controller_and_learns_its_window():
    activations = lambda compat: {type(layer).__name__ for layer in StyleController(16, 8, torch.full((3,), 0.5), compat).layers} - {"Linear"}
    assert activations(False) == {"PReLU"} and activations(True) == {"LeakyReLU"}
    assert StyleTransfer(**SMALL, paper_compat=True).arguments["paper_compat"] is True
    learned = lambda encoder: "window" in dict(encoder.named_parameters())
    compat = PaperEncoder(paper_compat=True)
    assert learned(compat) and not learned(PaperEncoder())
    compat.eval()(torch.randn(1, 1, 9000)).sum().backward()
    assert compat.window.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs")
    for split, seeds in (("train", (0, 1)), ("val", (2,)), ("test", (3, 4))):
        for seed in seeds:
            (folder / split).mkdir(exist_ok=True)
            write_audio(folder / split / f"{seed}.wav", demo_clip(RATE, seed), RATE, "PCM_16")
    return folder


def test_units_are_trained_once_and_used_in_their_way(songs, tmp_path):
    tiny = replace(STYLE_BUDGETS["tiny"], steps=1)
    unit = StyleUnit("ad", "music")
    card = train_style_unit(unit, tiny, songs, tmp_path, "cpu")
    assert card["curve"][-1]["step"] == 1 and train_style_unit(unit, tiny, songs, tmp_path, "cpu") == card
    with pytest.raises(PaletteError, match="another budget"):
        train_style_unit(unit, replace(tiny, steps=2), songs, tmp_path, "cpu")
    system = find_style_unit(Method("AD", "ad"), "music", tmp_path)
    input, reference = (torch.tensor(demo_clip(44100, seed))[:, :44100] for seed in (3, 4))
    output = by_strategy(system)(input, reference, 44100)
    assert output.shape == input.shape and torch.isfinite(output).all()
