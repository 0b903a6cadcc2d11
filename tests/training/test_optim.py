"""Every optimizer and schedule that timm lists trains, goes on from its saved state in equal bits, or is refused."""

import io
from typing import get_args

import pytest
import timm
import torch
from timm.optim import list_optimizers
from torch import nn
from torch.nn.functional import cross_entropy

from reprise.data.formats.packed import load_metadata
from reprise.model.backbone import create_network
from reprise.params.load import load_params
from reprise.params.schema import Schedule
from reprise.runtime.errors import UserError
from reprise.training.optim import create_optimizer, create_schedule, orthogonal
from reprise.training.train import train
from tests.conftest import PARAMS
from tests.training.test_checkpoint import bits, checkpoints_of, crash

REFUSED = {
    "adahessian": "it needs second derivatives",
    "kron": "it is compiled for each machine",
    "bnb": "it is bitsandbytes's, which needs a CUDA GPU",
    "fused": "it is apex's, which needs a CUDA GPU",
}
SCHEDULES = get_args(Schedule)
STEPS = 4  # in an epoch


def params(*overrides):
    return load_params(PARAMS, ["train.lr=0.01", "train.epochs=2", *overrides]).train


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))


LABELS = torch.arange(16) % 3
IMAGES = 0.3 * torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
IMAGES[torch.arange(16), 0, LABELS * 2] += 1  # a bar whose height is the label


def run(net, optimizer, schedule, steps):
    """Make the steps; return the loss before each, and the learning rate."""
    seen = []
    for _ in steps:
        optimizer.zero_grad()
        loss = cross_entropy(net(IMAGES), LABELS)
        loss.backward()
        seen.append((loss.item(), optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if schedule is not None:
            schedule.step(loss.item()) if hasattr(schedule, "patience") else schedule.step()
    return seen


def made(train_params):
    net = small_net()
    optimizer = create_optimizer(net, train_params)
    no_schedule = train_params.schedule == "none"
    return net, optimizer, None if no_schedule else create_schedule(optimizer, train_params, STEPS)


def saved(*parts):
    buffer = io.BytesIO()
    torch.save([part and part.state_dict() for part in parts], buffer)
    return io.BytesIO(buffer.getvalue())


def restored(train_params, state):
    """Make the parts anew and load a state into them."""
    parts = made(train_params)
    for part, kept in zip(parts, torch.load(state, weights_only=True), strict=True):
        if part is not None:
            part.load_state_dict(kept)
    return parts


@pytest.mark.parametrize("name", [*list_optimizers(), "lookahead_adamw"])
def test_every_optimizer_of_timm_lowers_the_loss_and_goes_on_in_equal_bits_or_is_refused(name):
    reason = next((reason for start, reason in REFUSED.items() if name.startswith(start)), None)
    if reason:
        with pytest.raises(UserError, match=rf"train\.optimizer = {name}: {reason}"):
            create_optimizer(small_net(), params(f"train.optimizer={name}"))
        return
    wanted = params(f"train.optimizer={name}", "train.schedule=cosine")
    whole = made(wanted)
    losses = [loss for loss, _ in run(*whole, range(STEPS))]
    state = saved(*whole)
    losses += [loss for loss, _ in run(*whole, range(STEPS))]
    assert sum(losses[STEPS:]) < sum(losses[:STEPS])
    torch.manual_seed(99)
    resumed = restored(wanted, state)
    assert [loss for loss, _ in run(*resumed, range(STEPS))] == losses[STEPS:]
    for one, two in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_lowers_the_loss_and_goes_on_where_it_was(name, warmup):
    if warmup and name in ("plateau", "none"):
        with pytest.raises(UserError, match="warmup_epochs = 1: expected less than epochs = 6, and 0 with the sched"):
            params(f"train.schedule={name}", "train.warmup_epochs=1", "train.epochs=6")
        return
    wanted = params(f"train.schedule={name}", f"train.warmup_epochs={warmup}", "train.epochs=6")
    whole = made(wanted)
    first = run(*whole, range(9))
    state = saved(*whole)
    rest = run(*whole, range(6 * STEPS - 9 if name == "onecycle" else 6 * STEPS - 8))
    lrs = [lr for _, lr in first + rest]
    assert rest[-1][0] < first[0][0] / 2
    assert max(lrs) == pytest.approx(0.01, rel=0.01)
    if warmup or name == "onecycle":
        assert lrs[0] < 0.001
    if warmup:
        assert lrs.index(max(lrs)) == STEPS - (name == "onecycle")  # torch counts to the last step of the rise
    if name not in ("plateau", "none", "constant"):
        assert lrs[-1] < 0.005
    assert run(*restored(wanted, state), rest) == rest


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.optimizer=adamww"], "'adamww' is not an optimizer of timm; did you mean adamw"),
        (["train.optimizer=AdamW"], "'AdamW' is not an optimizer of timm; did you mean adamw"),
        (["train.optimizer=qqqq"], r"`timm\.optim\.list_optimizers\(\)` names them all"),
        (["train.optimizer_kwargs.bettas=1"], "timm cannot make it with optimizer_kwargs bettas=1"),
        (["train.optimizer_kwargs.weight_decay=1"], r"train\.optimizer_kwargs\.weight_decay: not here, train\.\* has"),
        (["train.optimizer_kwargs.foreach=true"], "`fused` and `foreach` cannot be `True` together"),
        (["train.optimizer=sgd", "train.optimizer_kwargs.momentum=-1"], "Invalid momentum value"),
        (["train.schedule=cosine", "train.schedule_kwargs.minlr=0"], "schedule = cosine: not possible .* 'minlr'"),
        (["train.schedule=none", "train.schedule_kwargs.min_lr=0"], "schedule = none takes none; set it to {}"),
        (["train.schedule=plateau", "train.schedule_kwargs.mode=max"], "multiple values for argument 'mode'"),
        (["train.schedule=plateau", "train.schedule_kwargs.min_lr=x"], "plateau: not possible .*min_lr is no number"),
        (["train.schedule=onecycle", "train.schedule_kwargs.pct_start=2"], "train.schedule = onecycle: not possible"),
        (["train.schedule=wsd", "train.schedule_kwargs.decay_epochs=9"], "wsd schedule requires 0 < decay_epochs"),
    ],
)
def test_what_timm_does_not_take_is_refused_in_one_line(overrides, said):
    with pytest.raises(UserError, match=said) as refused:
        made(params(*overrides))
    assert "\n" not in str(refused.value)


def test_norms_biases_and_position_embeddings_are_not_decayed():
    for name in ("test_resnet", "test_vit"):
        model = timm.create_model(name, num_classes=3)
        optimizer = create_optimizer(model, params("train.weight_decay=0.5"))
        decay = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
        for key, weight in model.named_parameters():
            plain = weight.ndim <= 1 or key in ("pos_embed", "cls_token")
            assert decay[id(weight)] == (0 if plain else 0.5), key


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_earlier_layers_learn_more_slowly_by_a_constant_factor_under_any_schedule(schedule):
    model = timm.create_model("test_vit", num_classes=3)
    wanted = params("train.layer_decay=0.5", f"train.schedule={schedule}")
    optimizer = create_optimizer(model, wanted)
    if schedule != "none":
        made_schedule = create_schedule(optimizer, wanted, STEPS)
        optimizer.step()
        made_schedule.step(*[1.0] * (schedule == "plateau"))
    lr = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    head = lr[id(model.head.weight)]
    assert lr[id(model.blocks[-1].mlp.fc1.weight)] == pytest.approx(head / 2)
    assert lr[id(model.blocks[0].mlp.fc1.weight)] == pytest.approx(head / 2 ** len(model.blocks))
    assert lr[id(model.patch_embed.proj.weight)] == pytest.approx(head / 2 ** (len(model.blocks) + 1))


def test_torchs_own_optimizers_are_fused_unless_told_otherwise():
    for name in ("adamw", "sgd"):
        assert create_optimizer(small_net(), params(f"train.optimizer={name}")).defaults["fused"]
    assert not create_optimizer(small_net(), params("train.optimizer_kwargs.fused=false")).defaults["fused"]
    assert create_optimizer(small_net(), params("train.optimizer=sgd")).defaults["nesterov"]


@pytest.mark.parametrize("name", ["muon", "adamuon"])
def test_muon_orthogonalizes_in_fp32_on_a_cpu(name):
    weight = nn.Linear(32, 16, bias=False)
    chosen = [f"train.optimizer={name}", "train.optimizer_kwargs={ns_steps: 12, adjust_lr_fn: rms_to_rms}"]
    optimizer = create_optimizer(weight, params(*chosen, "train.weight_decay=0"))
    before = weight.weight.detach().double()
    weight.weight.grad = torch.randn(16, 32, generator=torch.Generator().manual_seed(2))
    seen = []
    installed = timm.optim.muon.zeropower_via_newtonschulz
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            timm.optim.muon, "zeropower_via_newtonschulz", lambda *a, **k: seen.append(installed(*a, **k)) or seen[-1]
        )
        optimizer.step()
    assert [each.dtype for each in seen] == [torch.float32]
    values = torch.linalg.svdvals(seen[0].double())
    assert values.min() > 0.6 and values.max() < 1.3
    assert not torch.equal(weight.weight.double(), before)
    elsewhere = orthogonal(torch.empty(4, 8, device="meta"), 3, [(3.4445, -4.775, 2.0315)] * 3)
    assert elsewhere.dtype == torch.bfloat16  # as timm has it


STILL = [f"train.augment.{name}=0" for name in ("rotate", "scale", "shift")]


def test_two_accumulated_batches_make_the_step_of_one_of_twice_the_size(digits, tiny_params):
    common = ["model.name=test_vit", "train.epochs=1", "train.schedule=cosine", "train.optimizer=sgd", *STILL]
    whole = tiny_params("train.batch_size=18", *common)
    halves = tiny_params("train.batch_size=9", "train.accumulate=2", *common)
    one, two = (train(digits, given.model, given.train) for given in (whole, halves))
    for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert one.history[0].lr == two.history[0].lr  # as many steps of the schedule
    assert one.history[0].train_loss == pytest.approx(two.history[0].train_loss, rel=1e-4)


def test_a_clipped_gradient_moves_the_weights_by_no_more_than_its_norm(digits, tiny_params):
    given = tiny_params(
        "train.optimizer=sgd", "train.optimizer_kwargs={momentum: 0, nesterov: false}", "train.schedule=none",
        "train.weight_decay=0", "train.lr=1", "train.clip_grad=0.001", "train.epochs=1",
    )  # fmt: skip
    moved = train(digits, given.model, given.train).network
    start, _ = create_network(given.model, load_metadata(digits), given.train.seed)
    squares = [(a - b).square().sum() for a, b in zip(start.parameters(), moved.parameters(), strict=True)]
    distance = sum(squares).item() ** 0.5
    assert 0 < distance <= 11 * 0.001 * 1.001  # 11 steps


@pytest.mark.parametrize(("step", "newest"), [(1, "000000-000000003.ckpt"), (2, "000001-000000000.ckpt")])
def test_a_crash_between_accumulated_batches_resumes_at_the_step_before(step, newest, digits, tiny_params, tmp_path):
    given = tiny_params(
        "train.accumulate=3", "train.schedule=cosine", "model.kwargs.drop_rate=0.3", "train.clip_grad=1",
        "train.checkpoint_every.minutes=0", "train.batch_size=36",
    )  # fmt: skip  # 5 batches, 2 steps an epoch
    whole = bits(train(digits, given.model, given.train), tmp_path / "whole")
    crash(step, digits, given, tmp_path / "scratch")
    assert checkpoints_of(tmp_path / "scratch")[-1].name == newest
    assert bits(train(digits, given.model, given.train, tmp_path / "scratch"), tmp_path / "resumed") == whole


def test_one_cycle_stays_down_after_its_last_step():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = create_schedule(optimizer, params("train.epochs=2"), steps=3)
    rates = []
    for _ in range(6):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[-1] == rates[-2] == pytest.approx(0.01 / 25 / 1e4)  # torch's defaults
