"""Parts of the user's own: docs/parts.md as it stands runs, what cannot be loaded is refused, nothing is stale."""

import json
import re

import pytest
import torch

from reprise.augment.pipeline import augment_own
from reprise.evaluation.evaluate import extra_metric
from reprise.model.backbone import load_model
from reprise.model.networks import timm_name
from reprise.params.load import load_params
from reprise.repo.project import Project
from reprise.repo.verify import stale
from reprise.runtime.errors import UserError
from reprise.runtime.parts import load_part, part_sha256
from reprise.training.losses import LOSSES, find_loss
from reprise.training.module import LitClassifier
from reprise.training.setup import own_callbacks
from tests.conftest import PARAMS, blocks, tiny_clone

NAMED = re.compile(r"# project/(\w+)\.py\n(.*)", re.DOTALL)
OWN = dict(NAMED.fullmatch(block).groups() for block in blocks("docs/parts.md", "python"))
ALL, SOURCE = blocks("docs/parts.md", "sh")
MODEL, LOSS = "project/models.py:tiny_net", "project/losses.py:Squared"


def write(root, **files):
    """Write files of project/ below a root, by their names without the suffix."""
    for name, code in files.items():
        (root / "project").mkdir(exist_ok=True)
        (root / f"project/{name}.py").write_text(code)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root with the page's parts, which stands in for this repository's."""
    write(tmp_path, **OWN)
    for function in (load_part, timm_name):
        monkeypatch.setattr(function, "__defaults__", (tmp_path,))
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny clone with the page's files, after its commands."""
    clone = tiny_clone(tmp_path_factory.mktemp("parts") / "clone")
    write(clone.path, **OWN)
    done = clone.run("sh", "-e", "-c", ALL)
    clone.commit()
    return clone, done


def results(clone):
    return [json.loads((clone.path / name).read_text()) for name in ("models/model.json", "metrics/test.json")]


def test_the_page_runs_with_all_parts_at_once_and_its_model_runs_code_where_that_is_asked_for(made, tmp_path):
    clone, done = made
    card, metrics = results(clone)
    assert "epoch 2: step " in done.stdout
    assert metrics["accuracy"] <= metrics["top3"] <= metrics["top5_accuracy"]
    assert card["architecture"]["code_sha256"] == part_sha256(MODEL, clone.path)
    assert clone.run("python", "-m", "reprise", "verify").returncode == 0
    files = clone.path / "models/model.safetensors", clone.path / "models/model.json"
    with pytest.raises(UserError, match=f"needs {MODEL} as in training, unlike {tmp_path}"):
        load_model(*files, project=tmp_path)
    assert load_model(*files, project=clone.path)[0](torch.zeros(1, 1, 32, 32)).shape == (1, 10)


@pytest.mark.slow
def test_a_stage_of_ones_own_makes_the_images(tmp_path):
    clone = tiny_clone(tmp_path / "clone")
    write(clone.path, source=OWN["source"])
    clone.run("sh", "-e", "-c", SOURCE)
    assert json.loads((clone.path / "models/model.json").read_text())["classes"] == ["bright", "dark"]
    clone.commit()
    assert clone.run("python", "-m", "reprise", "verify").returncode == 0


def test_a_part_that_is_missing_costs_no_out_and_an_edited_one_is_seen_until_it_is_put_back(made, tmp_path):
    clone = made[0].copy(tmp_path / "clone")
    before = results(clone)
    refused = clone.run("dvc", "exp", "run", "-S", "train.loss=project/losses.py:Square", check=False)
    assert (
        refused.returncode and "no such name; it has: Squared" in refused.stderr and "Traceback" not in refused.stderr
    )
    assert results(clone) == before
    clone.set(f"train.loss={LOSS}")  # Git may take the refused value, of equal size, for the committed one
    write(clone.path, models=OWN["models"].replace("relu()", "tanh()"))
    assert {"check", "train", "evaluate"} <= json.loads(clone.run("dvc", "status", "--json").stdout).keys()
    assert {"check", "train", "evaluate"} <= {found.stage for found in stale(Project(clone.path))}
    files = clone.path / "models/model.safetensors", clone.path / "models/model.json"
    with pytest.raises(UserError, match=f"^{files[1]}: needs {MODEL}"):
        load_model(*files, project=clone.path)
    clone.run("git", "checkout", "-q", "project")
    assert load_model(*files, project=clone.path)


@pytest.mark.slow
def test_a_killed_training_with_own_parts_ends_in_the_bits_of_one_and_begins_anew_with_others(made, tmp_path):
    clone = made[0].copy(tmp_path / "clone")
    hook = "def on_train_batch_start(self, trainer, *_): os.getenv('CRASH') == str(trainer.global_step) and os._exit(9)"
    write(clone.path, crash=f"import lightning, os\nclass Crash(lightning.Callback):\n    {hook}\n")
    clone.commit()
    callbacks = "train.callbacks=[project/crash.py:Crash]"
    command = ("python", "src/train.py", "train.checkpoint_every.minutes=0", callbacks, "train.augment.mixup=0.2")
    model = clone.path / "runs/latest/model.safetensors"
    clone.run(*command)
    whole = model.read_bytes()
    assert clone.run(*command, check=False, CRASH="13").returncode == 9
    write(clone.path, losses=OWN["losses"].replace("square()", "abs()"))
    assert "continuing" not in clone.run(*command).stderr
    assert model.read_bytes() != whole
    clone.run("git", "checkout", "-q", "project")
    assert "continuing in epoch" in clone.run(*command).stderr
    assert model.read_bytes() == whole


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("project/losses.py:Nothing", "the file has no such name; it has: Squared$"),
        ("project/none.py:Squared", "no such part; .* project/losses.py, "),
        ("project/../outside.py:Squared", "no such part"),
        ("/outside.py:Squared", "no such part"),
        ("project/losses.py", "the file has no such name"),
        ("project/linked.py:Squared", "a link; only what lies in project/ itself"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(part, said, root):
    (root / "outside.py").write_text(OWN["losses"])
    if "linked" in part:
        (root / "project/linked.py").symlink_to(root / "outside.py")
    with pytest.raises(UserError, match=said) as error:
        load_part(part, root)
    assert "\n" not in str(error.value)


def test_a_part_sees_the_folder_alone_as_it_is_now_and_a_digest_covers_what_it_imports(root, tmp_path_factory):
    write(root, a="from .b import VALUE\n", b="VALUE = 1\n")
    assert load_part("project/a.py:VALUE", root) == 1
    before = part_sha256("project/a.py:VALUE", root)
    write(root, b="VALUE = 2  # same size, same second\n")
    assert part_sha256("project/a.py:VALUE", root) != before
    other = tmp_path_factory.mktemp("other")
    write(other, a="VALUE = 3\n", c="1 / 0\n")
    assert load_part("project/a.py:VALUE", other) == 3
    with pytest.raises(ZeroDivisionError):  # with its traceback
        load_part("project/c.py:x", other)


def test_losses_take_smoothed_mixed_and_weighted_targets(root):
    logits, labels = torch.randn(6, 3, generator=torch.manual_seed(0)), torch.tensor([0, 1, 2, 2, 1, -100])
    shares, targets, weight = logits[:5].softmax(dim=1), torch.eye(3)[labels[:5]], torch.tensor([0.5, 1.0, 4.0])
    known, weights = (shares * targets).sum(dim=1), targets @ weight
    lit = LitClassifier(torch.nn.Identity(), 3).train()
    lit.own_loss, lit.criterion.weight = find_loss("focal"), weight
    focal = ((1 - known) ** 2 * -known.log() * weights).sum() / weights.sum()
    torch.testing.assert_close(lit.step((logits, labels))[0], focal)
    lit.own_loss, lit.criterion.weight, lit.criterion.label_smoothing = find_loss(LOSS), None, 0.3
    squared = (shares - 0.7 * targets - 0.1).square().sum(dim=1).mean()
    torch.testing.assert_close(lit.step((logits, labels))[0], squared)
    soft = torch.cat([targets, torch.zeros(1, 3)])
    torch.testing.assert_close(lit.step((logits, soft))[0], squared)
    torch.testing.assert_close(lit.eval().step((logits, labels))[0], -known.log().mean())
    assert LOSSES["bce"](torch.zeros(1, 4), torch.eye(4)[:1]).tolist() == pytest.approx([0.693147])


def test_an_augmentation_draws_by_its_generator_whatever_stream_it_takes(root):
    streams = "torch.rand(1, generator=generator) + torch.rand(1) + random.random() + rand()"
    code = f"import random, torch\nfrom numpy.random import rand\nx = lambda images, generator: images + {streams}"
    write(root, part=code)
    part, state = {"x": load_part("project/part.py:x", root)}, torch.get_rng_state()
    seeded = [lambda _, n=n: torch.Generator().manual_seed(n) for n in (1, 1, 2)]
    first, again, other = (augment_own(torch.zeros(2, 1, 4, 4), part, generators) for generators in seeded)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())  # that of dropout


TAKES_NONE = "import torch\nclass x(torch.nn.Linear):\n    def __init__(self): super().__init__(1, 1)"
KEPT = "import lightning\nclass x(lightning.Callback):\n    def state_dict(self): return {1: 2}"
CALLBACKS = load_params(PARAMS, ["train.callbacks=[project/part.py:x]"]).train
SCORED = torch.ones(2, 2), torch.ones(2)


@pytest.mark.parametrize(
    ("code", "use", "said"),
    [
        ("x = lambda logits, targets: logits.sum()", find_loss, "expected the loss of each image"),
        (TAKES_NONE, find_loss, "which nothing would train"),
        ("x = lambda *_: [1]", lambda part: extra_metric(part, *SCORED), "gives no number"),
        (KEPT, lambda _: own_callbacks(CALLBACKS), "has a state_dict"),
        ("x = 1", lambda _: own_callbacks(CALLBACKS), r"no lightning\.Callback"),
        ("x = 1", timm_name, "put timm's @register_model above it"),
    ],
)
def test_a_part_that_is_not_what_it_has_to_be_is_refused(code, use, said, root):
    write(root, part=code)
    with pytest.raises(UserError, match=said):
        use("project/part.py:x")
