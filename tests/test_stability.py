"""Collapses found where they are, whichever pass they are in, and the losses that make them."""
import json
import math
from pathlib import Path

import auraloss
import numpy as np
import pytest
import torch
from torch import nn

from timbre_palette.audio import PaletteError
from timbre_palette.baselines.early import NaiveWaveUNet, RecursiveGrayBox
from timbre_palette.data import Batch
from timbre_palette.graybox import GrayBox
from timbre_palette.losses import LOSSES, LogSTFTLoss, NaiveLogSTFTLoss, StableLoss, stft_magnitude
from timbre_palette.model import ConditionalWaveUNet, CornerModel
from timbre_palette.stability import EPOCH, describe_origin, pole_radius, stability_rows, survive, trace_nonfinite
from timbre_palette.training import PaletteObjective

DATA = Path(__file__).resolve().parent.parent / "nbs" / "results" / "data"
SECTIONS = 5


class Noise:
    "Batches of noise, which no bin is empty of, but for `silent` steps, which begin with nothing; a pure function of the step."
    def __init__(self, silent=()):
        self.silent = silent

    def __getitem__(self, step):
        x = 0.1 * torch.randn(2, 1, 9000, generator=torch.Generator().manual_seed(step))
        if step in self.silent:
            x[0, :, :6000] = 0
        return Batch(x, 44100, np.eye(3)[[0, 1]], np.ones(2))


def recursive():
    return RecursiveGrayBox(sections=SECTIONS, hidden=8)


def with_poles_outside(section, radius):
    "A recursive gray-box, one section of which has poles of a radius beyond one whatever it hears."
    def build():
        model = recursive()
        nn.init.zeros_(model.control[-1].weight)
        nn.init.zeros_(model.control[-1].bias)
        with torch.no_grad():
            model.control[-1].bias[5 * section + 3:5 * section + 5] = torch.tensor([-2 * radius * math.cos(0.3), radius ** 2])
        return model
    return build


BUILDS = {"early-graybox": recursive, "early-graybox-poles": lambda: RecursiveGrayBox(sections=3, hidden=8, form="poles"), "early-waveunet": lambda: NaiveWaveUNet(levels=4, growth=4),
          "graybox": lambda: GrayBox(peaks=2, units=1), "waveunet-v2": lambda: ConditionalWaveUNet(width=4)}


def test_pole_radii_are_those_of_the_roots():
    rng = np.random.default_rng(3)
    rows = np.concatenate([rng.normal(size=(200, 2)), [[0, 0], [-2, 1], [2, 1], [0, -0.81], [0, 0.81]]])
    assert np.allclose(pole_radius(*torch.tensor(rows).T), [np.abs(np.roots([1, *row])).max() for row in rows], atol=1e-6)


@pytest.mark.parametrize("gain_db", [-20, -6, 6])
def test_a_gain_costs_its_logarithm(gain_db):
    x = Noise()[0].x
    assert LogSTFTLoss(1e-9)(10 ** (gain_db / 20) * x, x).item() == pytest.approx(abs(gain_db) * math.log(10) / 20, rel=1e-4)
    assert NaiveLogSTFTLoss()(10 ** (gain_db / 20) * x, x).item() == pytest.approx(abs(gain_db) * math.log(10) / 20, rel=1e-4)


def test_the_log_stft_loss_is_aurales():
    y, x = (nn.functional.pad(Noise()[step].x, (2048, 2048)) for step in (0, 1))
    theirs = auraloss.freq.STFTLoss(2048, 512, 2048, w_sc=0, w_log_mag=1, w_lin_mag=0, eps=1e-16)(y, x)
    assert torch.allclose(LogSTFTLoss(1e-8)(y, x), theirs, rtol=1e-4)


def test_the_safe_loss_has_a_bounded_gradient_everywhere():
    "Silence against silence, against sound, sound against silence, and almost nothing; no sample is worth more than its windows' share of 1 / eps."
    assert isinstance(LOSSES["log-stft"](), LogSTFTLoss) and NaiveLogSTFTLoss not in LOSSES.values()
    loss, x = LogSTFTLoss(), Noise()[0].x
    frames = stft_magnitude(x).shape[-1]
    for output, target in ((0 * x, 0 * x), (0 * x, x), (x, 0 * x), (1e-30 * x, x), (1e-42 * x, 0 * x)):
        output = output.clone().requires_grad_()
        loss(output, target).backward()
        assert torch.isfinite(output.grad).all() and output.grad.abs().max() <= 4 / (len(x) * frames * loss.eps)


def test_the_loss_has_the_gradient_of_its_value():
    y = torch.randn(1, 1, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = 0.3 * y.detach().flip(-1)

    class Double(LogSTFTLoss):
        def forward(self, output, target):
            logs = [torch.log(self.magnitude(signal) + self.eps) for signal in (output, target)]
            return (logs[0] - logs[1]).abs().mean()

    assert torch.autograd.gradcheck(lambda y: Double(n_fft=64, hop=16).double()(y, target), (y,))


def test_the_naive_loss_is_not_finite_at_silence():
    x = Noise()[0].x
    for eps, finite in ((0.0, False), (1e-7, True)):
        y = (0 * x).requires_grad_()
        value = NaiveLogSTFTLoss(eps)(y, x)
        value.backward()
        assert bool(torch.isfinite(value)) == finite and not torch.isfinite(y.grad).all()


@pytest.mark.parametrize("section", range(0, SECTIONS, 2))
def test_poles_outside_are_found_in_their_section(section):
    record = survive(with_poles_outside(section, 1.2), StableLoss(), Noise(), 3)
    assert record["survived"] == 0 and record["first"] == "loss" and record["losses"] == []
    assert record["where"]["pass"] == "forward" and record["where"]["module"] == f"model.sections.{section}" and record["where"]["function"] in ("_ring", "all_pole")
    assert record["radius"] == pytest.approx(1.2, abs=1e-5) and record["section"] == f"sections.{section}"


def test_a_pole_barely_outside_freezes_adam():
    "1.006 to the power of 9000 is 2e23: loss and gradient are finite, its square is not, and the parameters stay where they are."
    build, kept = with_poles_outside(1, 1.006), []
    record = survive(lambda: kept.append(build()) or kept[0], StableLoss(), Noise(), 3)
    assert record["survived"] == 3 and record["first"] is None and record["frozen"] == 1
    assert torch.equal(kept[0].control[-1].bias[8:10], build().control[-1].bias[8:10])
    assert survive(recursive, StableLoss(), Noise(), 3)["frozen"] is None


@pytest.mark.parametrize("eps, first, operation", [(0.0, "loss", "log"), (1e-7, "gradient", "sqrt")])
def test_the_naive_loss_dies_at_the_step_that_is_silent(eps, first, operation):
    "Forward without a floor, backward with one behind the root."
    record = survive(recursive, NaiveLogSTFTLoss(eps), Noise(silent=(2,)), 4)
    assert record["survived"] == 2 and record["first"] == first and len(record["curve"]) == 3 and record["epochs"] == 4 / EPOCH
    where = record["where"]
    assert (where["pass"], where["module"], where["operation"], where["smallest"]) == ("forward" if first == "loss" else "backward", "objective.loss", operation, 0.0)
    assert describe_origin(where).startswith(f"{where['pass']}: {operation} in objective.loss, given 0")


@pytest.mark.parametrize("name", BUILDS)
def test_all_of_them_survive_safe_losses_through_silence(name):
    for loss in (StableLoss(), LogSTFTLoss()):
        record = survive(BUILDS[name], loss, Noise(silent=(1,)), 3, precision="bfloat16")
        assert record["survived"] == record["asked"] == 3 and record["first"] is record["where"] is None and len(record["losses"]) == 3


@pytest.mark.parametrize("name", ["early-graybox", "waveunet-v2"])
def test_a_seed_says_it_all(name):
    runs = [survive(BUILDS[name], StableLoss(), Noise(), 3, 1e-3, seed=seed) for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2] and json.loads(json.dumps(runs[0])) == runs[0]


class Planted(CornerModel):
    "Two layers, and a function between them."
    def __init__(self, between):
        super().__init__()
        self.enter, self.leave, self.between = nn.Conv1d(1, 2, 3, padding=1), nn.Conv1d(2, 1, 1), between

    def forward(self, x, style=None):
        return self.leave(self.between(self.enter(x)))


def in_place(y):
    "An overflow in place."
    y = y * 1.0
    y.mul_(1e30).mul_(1e30)
    return y * 0


FAULTS = {
    "overflow": (lambda y: y * 0 + torch.exp(1e4 * y.abs().amax()).clamp(max=1e38) * 0 + (1e38 * y) * 1e38 * 0, "forward", "mul"),
    "division": (lambda y: y / (y - y), "forward", "div"),
    "in place": (in_place, "forward", "mul_"),
    "nan": (lambda y: y + torch.log(-torch.ones_like(y)), "forward", "log"),
    "norm": (lambda y: y + (y - y).square().sum(1, keepdim=True).sqrt(), "backward", "sqrt"),
    "power": (lambda y: y + (y * 0).abs().pow(0.5), "backward", "pow"),
    "masked": (lambda y: y + torch.where(y > 1e9, torch.sqrt(y - y), 0.0), "backward", "sqrt"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name):
    "The operation, the pass, and this file's line; whatever is not finite and put aside is not blamed."
    between, passing, operation = FAULTS[name]
    torch.manual_seed(0)
    model = Planted(lambda y: between(y) + torch.where(torch.ones_like(y) > 0, 0.0, torch.full_like(y, math.inf)))
    where = trace_nonfinite(model, PaletteObjective(StableLoss()), Noise()[0])
    assert where["pass"] == passing and where["operation"] == operation and where["module"] == "model" and where["line"]


def test_what_is_finite_has_no_origin_and_what_was_not_before_is_told():
    torch.manual_seed(0)
    model, objective, batch = Planted(torch.tanh), PaletteObjective(StableLoss()), Noise()[0]
    hooks = lambda: sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in [*model.modules(), *objective.modules()])
    assert trace_nonfinite(model, objective, batch) is None and hooks() == 0
    broken = batch._replace(x=batch.x / 0)
    assert trace_nonfinite(model, objective, broken)["operation"] == "batch" and "already" in describe_origin(trace_nonfinite(model, objective, broken))
    nn.init.constant_(model.leave.weight, math.inf)
    assert trace_nonfinite(model, objective, batch) == {"pass": "before", "module": "model", "operation": "leave.weight", "value": "inf"}


def test_a_step_too_long_is_a_parameter():
    class Huge(Planted):
        "Two parameters at the ends of float32, which sum to nothing and which a large step throws beyond."
        def __init__(self):
            super().__init__(torch.tanh)
            self.huge = nn.Parameter(torch.tensor([3.3e38, -3.3e38]))

        def forward(self, x, style=None):
            return super().forward(x) + self.huge.sum()

    record = survive(Huge, StableLoss(), Noise(), 3, learning_rate=3e37)
    assert record["first"] == "parameter" and record["survived"] == 0 and record["where"]["pass"] == "before"
    with pytest.raises(PaletteError, match="optimiser"):
        survive(recursive, StableLoss(), Noise(), 1, optimiser="LBFGS")
    with pytest.raises(PaletteError, match="precision"):
        survive(recursive, StableLoss(), Noise(), 1, precision="float8")


def test_rows_are_means_over_seeds():
    dead = {"model": "early-waveunet", "loss": "a", "data": "songs", "learning_rate": 1e-4, "precision": "float32", "asked": 9, "survived": 3, "epochs": 0.04, "first": "loss",
            "where": {"pass": "forward", "module": "objective.loss", "operation": "log", "smallest": 0.0, "largest": 2.0}}
    alive = {**dead, "survived": 9, "epochs": 0.12, "first": None, "where": None}
    row, other = stability_rows([{**dead, "seed": 0}, {**alive, "seed": 1}, {**alive, "seed": 0, "loss": "b", "model": "graybox"}])
    assert row["steps"] == 6 and row["each"] == "3, 9" and row["epochs"] == pytest.approx(0.08) and row["result"] == "collapsed, 1 of 2" and row["paper_epochs"] == "<5"
    assert row["where"] == "forward: log in objective.loss, given 0 to 2" and other["result"] == "survived" and other["paper_result"] == other["where"] == ""


def test_the_stored_runs_are_whole():
    stored = json.loads((DATA / "stability.json").read_text(encoding="utf-8"))
    keys = [tuple(row[name] for name in ("model", "loss", "data", "learning_rate", "precision", "asked", "seed")) for row in stored["rows"]]
    assert len(keys) == len(set(keys)) and all((row["first"] is None) == (row["survived"] == row["asked"]) == (row["where"] is None) for row in stored["rows"])
