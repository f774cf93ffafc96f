"""EfficientNet-B2 is the published network: its size, its cost, its shapes; and it learns in every corner."""
import math

import pytest
import torch

from timbre_palette.audio import PaletteError
from timbre_palette.style_transfer.efficientnet import B0, EfficientNetB2, MBConv, SqueezeExcitation, convolution, drop_path, round_channels, scaled

CLASSIFIER = 1408 * 1000 + 1000  # parameters of the published network that are not ours


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def body(width, depth):
    "The parameters of any EfficientNet without its classifier, from a formula over the table (three channels in)."
    stem, head = round_channels(32, width), round_channels(1280, width)
    total, before = 27 * stem + 2 * stem, stem
    for stage in scaled(B0, width, depth):
        for _ in range(stage.repeats):
            inside, squeezed = before * stage.expansion, max(1, before // 4)
            total += (before + 2) * inside if stage.expansion > 1 else 0
            total += (stage.kernel ** 2 + 2) * inside + 2 * inside * squeezed + inside + squeezed + (inside + 2) * stage.channels
            before = stage.channels
    return total + (before + 2) * head


def multiplications(network, *shape):
    "Of the convolutions, for an input of (channels, height, width)."
    made = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, _, out: made.append(module.weight.numel() * out[0, 0].numel()))
    with torch.inference_mode():
        network(torch.zeros(1, *shape))
    return sum(made)


def test_it_has_the_published_number_of_parameters():
    "torchvision: 9,109,994 for B2; its B0, B1 and B3 by the same table: 5,288,548, 7,794,184 and 12,233,232."
    assert parameters(EfficientNetB2(3)) == 9_109_994 - CLASSIFIER == 7_700_994 == body(1.1, 1.2)
    assert parameters(EfficientNetB2()) == parameters(EfficientNetB2(1)) == 7_700_418
    for (width, depth), published in {(1.0, 1.0): 5_288_548, (1.0, 1.1): 7_794_184, (1.2, 1.4): 12_233_232}.items():
        assert body(width, depth) + (round_channels(1280, width) + 1) * 1000 == published


def test_it_makes_the_published_number_of_multiplications():
    "Tan and Le, Table 2: 1.0 billion, at 260 × 260; torchvision: 1.088 billion at 288 × 288."
    assert abs(multiplications(EfficientNetB2(3).eval(), 3, 260, 260) / 1e9 - 1.0) < 0.1
    assert round((multiplications(EfficientNetB2(3).eval(), 3, 288, 288) + 1408 * 1000) / 1e9, 3) == 1.088


@pytest.mark.parametrize("height, width", ((32, 32), (33, 65), (129, 64), (1, 1), (2049, 6)))
def test_shapes_are_a_thirty_second_rounded_up(height, width):
    network = EfficientNetB2().eval()
    with torch.inference_mode():
        assert network(torch.randn(2, 1, height, width)).shape == (2, EfficientNetB2.features, math.ceil(height / 32), math.ceil(width / 32))


def test_other_inputs_are_an_error():
    for shape in ((2, 3, 64, 64), (2, 64, 64), (64, 64)):
        with pytest.raises(PaletteError, match=r"takes \(batch, 1, height, width\)"):
            EfficientNetB2()(torch.zeros(shape))


def test_every_parameter_learns_and_the_input_too():
    torch.manual_seed(0)
    network, x = EfficientNetB2(drop=0.0).train(), torch.randn(3, 1, 64, 96, requires_grad=True)
    (network(x) * torch.randn(3, 1408, 2, 3)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0


def test_evaluation_is_the_same_each_time_and_training_is_not():
    torch.manual_seed(0)
    network, x = EfficientNetB2(drop=0.5), torch.randn(2, 1, 64, 64)
    assert not torch.equal(network.train()(x), network(x))
    with torch.inference_mode():
        network.eval()
        assert torch.equal(network(x), network(x))
        assert torch.allclose(network(x)[:1], network(x[:1]), atol=1e-4)  # an item does not depend on its neighbours


def test_a_small_network_of_its_blocks_can_learn():
    "To tell low from high in a picture: pictures it has not seen, above four fifths."
    torch.manual_seed(0)
    net = torch.nn.Sequential(convolution(1, 8, 3, 2), MBConv(8, 8, 2, 3, 1, 0.1), MBConv(8, 16, 2, 5, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 1))

    def batch(count):
        y = torch.randint(2, (count, 1)).float()
        rows = torch.linspace(0, math.pi, 16)[None, None, :, None]
        return torch.randn(count, 1, 16, 16) + torch.where(y[..., None, None] > 0, torch.cos(6 * rows), torch.cos(2 * rows)), y

    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        x, y = batch(32)
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(net(x), y).backward()
        optimiser.step()
    x, y = batch(200)
    assert ((net(x) > 0) == (y > 0)).float().mean() > 0.8  # by the norms of the batch: their running averages need some hundred steps


def test_stochastic_depth_leaves_items_out_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.randn(20000, 1, 2, 1)
    y = drop_path(x, 0.3)
    left_out = (y == 0).flatten(1).all(1)
    assert abs(left_out.float().mean() - 0.3) < 0.02 and torch.allclose(y[~left_out], x[~left_out] / 0.7) and drop_path(x, 0.0) is x
    chances = [block.drop for block in EfficientNetB2().blocks]
    assert len(chances) == 23 and chances[0] == 0 and sorted(chances) == chances and 0.18 < chances[-1] < 0.2


def test_norms_are_the_published_ones():
    norms = [module for module in EfficientNetB2().modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)} and len(norms) == 2 + 2 * 2 + 21 * 3


def test_excitation_by_hand():
    torch.manual_seed(0)
    gate, x = SqueezeExcitation(4, 2), torch.randn(1, 4, 3, 2)
    means = x.mean((2, 3))[0]
    hidden = gate.squeeze.weight[:, :, 0, 0] @ means + gate.squeeze.bias
    wanted = torch.sigmoid(gate.excite.weight[:, :, 0, 0] @ (hidden * torch.sigmoid(hidden)) + gate.excite.bias)
    assert torch.allclose(gate(x), x * wanted[None, :, None, None], atol=1e-6)
