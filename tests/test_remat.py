"""Rematerialisation: the same gradients from less memory; and micro-batches chosen by the memory there is."""

import io
import types

import jax
import jax.numpy as jnp
import pytest
from helpers import gap, mlp_task
from rich.console import Console
from toys import TinyGAN

from functrain import config as configs
from functrain import tree
from functrain.autodiff import DPSGD, SAM, Forward
from functrain.autodiff.remat import compiler_options, remat
from functrain.building import build
from functrain.built import batches, compile, first_state
from functrain.config import ConfigError
from functrain.experiment import Experiment
from functrain.models import GPT, CIFARResNet
from functrain.optim import Learner
from functrain.precision import Autocast, BFloat16, autocast
from functrain.runs import show_before
from functrain.tasks import Classification, Language
from functrain.train import memory, state, step
from functrain.train.program import with_learners

POLICIES = ("dots", "blocks", "full", "offload")
KEY = jax.random.key(0)


def of_text(layers=2, width=8, block=8, rows=4, dropout=0.0, **learner):
    """(task, batch) of a GPT."""
    model = GPT(inputs=(block,), outputs=11, layers=layers, heads=2, width=width, dropout=dropout)
    text = jax.random.randint(KEY, (rows, block + 1), 0, 11)
    return Language(model=model, learner=Learner(**learner)), {"x": text[:, :-1], "y": text[:, 1:]}


def of_images(**learner):
    """(task, batch) of a ResNet, with the statistics of its norms; float64 where that is enabled."""
    model = CIFARResNet(inputs=(8, 8, 3), outputs=10, layers=8, width=4)
    return Classification(model=model, learner=Learner(**learner)), {
        "x": jax.random.normal(KEY, (6, 8, 8, 3), float),
        "y": jnp.arange(6),
    }


def of_digits(**learner):
    """(task, batch) of an MLP, which has no blocks, with dropout."""
    return mlp_task(**learner), {"x": jax.random.normal(KEY, (8, 8, 8), float), "y": jnp.arange(8)}


CASES = {
    "gpt": (lambda: of_text(dropout=0.2), POLICIES),
    "resnet": (of_images, ("blocks", "full")),
    "mlp": (of_digits, ("dots", "full")),
    "sam": (lambda: of_digits(estimator=SAM()), ("full",)),
    "forward": (lambda: of_digits(estimator=Forward()), ("full",)),
    "private": (lambda: of_digits(estimator=DPSGD(clip=0.1, noise=0.5)), ("full",)),
    "accumulate": (lambda: of_digits(accumulate=2), ("full",)),
}


def stepped(task, batch, over=lambda f: f):
    """The state after a step, and its metrics; random keys left out."""
    first = jax.jit(lambda seed: state.init(task, jax.random.key(seed)))
    seeds = 0 if over(len) is len else jnp.arange(3)
    after, metrics = jax.jit(over(lambda seed: step.make_step(task)(first(seed), batch)))(seeds)
    return after.replace(key=0), metrics


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_same(case, float64, quick):
    """Parameters, moments, batch statistics and metrics after a step, in float64 to 1e-10: Adam divides by |g|."""
    made, policies = CASES[case]
    task, batch = made()
    plain = stepped(task, batch)
    for policy in policies:
        assert gap(stepped(with_learners(task, remat=policy), batch), plain) < 1e-10, policy


@pytest.mark.parametrize(
    ("precision", "made", "limit"),
    [(BFloat16(), of_digits, 2e-2), (Autocast(), of_text, 1e-6)],
    ids=["bfloat16", "autocast"],
)
def test_under_precision_and_over_it(precision, made, limit):
    """Each primitive by itself, no compiler to fuse them: to the rounding of what cotangents are summed in."""
    task, batch = made()
    params = task.model.init(KEY)[0]

    def loss(params, state, batch, *, key):
        return task.full_loss(params, state, batch, key=key, train=True)

    def gradient(f):
        return jax.value_and_grad(lambda p: f(p, {}, batch, key=KEY)[0].total)(params)

    plain = gradient(precision(loss))
    assert gap(gradient(remat(precision(loss), "full")), plain) < limit
    assert gap(gradient(precision(remat(loss, "full"))), plain) < limit


def test_autocast_is_seen_in_every_piece():
    """What is computed again is computed in the same dtypes: every product of the way there and back is in bfloat16."""
    task, batch = of_text()
    params = task.model.init(KEY)[0]
    f = autocast(lambda p: task.model.apply(p, {}, batch["x"], key=None, train=True)[0].sum())
    lowered = jax.jit(jax.grad(remat(f, "full"))).lower(params).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert len(products) > 30
    assert all("xbf16>" in line for line in products)


def test_several_seeds_side_by_side(float64, quick):
    """Under vmap over the members of a run."""
    task, batch = of_digits()
    assert gap(stepped(with_learners(task, remat="full"), batch, jax.vmap), stepped(task, batch, jax.vmap)) < 1e-10


def test_several_players(float64, quick):
    """Each player's learner keeps less; of players without blocks, blocks keeps all."""
    batch = {"x": jax.random.normal(KEY, (6, 2), float)}
    plain = stepped(TinyGAN(), batch)
    for policy in ("full", "blocks"):
        assert gap(stepped(with_learners(TinyGAN(), remat=policy), batch), plain) < 1e-10


# -- what is kept ------------------------------------------------------------------------------------


def temporaries(f, *arguments, policies):
    """Of the compiled gradient under each policy: bytes, by XLA's analysis."""
    found = {}
    for policy in policies:
        compiled = jax.jit(jax.grad(remat(f, policy))).lower(*arguments).compile(compiler_options("cpu"))
        found[policy] = compiled.memory_analysis().temp_size_in_bytes
    return found


def test_memory_falls():
    """blocks < dots < none of a GPT."""
    task, batch = of_text(layers=4, rows=32)
    params = jax.eval_shape(task.model.init, KEY)[0]
    loss = lambda params: task.full_loss(params, {}, batch, key=None, train=True)[0].total  # noqa: E731
    temp = temporaries(loss, params, policies=("none", "dots", "blocks"))
    assert temp["blocks"] < 0.7 * temp["dots"]
    assert temp["dots"] < 0.7 * temp["none"]


def test_halves_keep_a_logarithm():
    """Of 32 blocks, blocks keeps 32 arrays, full about 5."""

    def f(x):
        for i in range(32):
            with jax.named_scope(f"block{i}"):
                x = jnp.sin(jnp.cos(jnp.sin(x)))
        return x.sum()

    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    temp = temporaries(f, x, policies=("blocks", "full"))
    assert 24 * 4000 < temp["blocks"] < 40 * 4000
    assert temp["full"] < 10 * 4000


def test_a_run_is_compiled_so():
    """The program of a run has the option of the compiler that it takes, and takes over its state."""
    built = {p: build(config(f"train.remat={p}", "data.batch_size=1024")) for p in ("none", "full")}
    programs = {policy: compile(one).program for policy, one in built.items()}
    assert programs["full"].memory["temp"] < 0.7 * programs["none"].memory["temp"]
    for policy, program in programs.items():
        held = tree.nbytes(jax.eval_shape(lambda p=policy: first_state(built[p])))
        assert program.memory["alias"] >= held
        assert program.needs() < program.memory["temp"] + program.memory["argument"] + held / 2
    assert built["none"].flops == built["full"].flops > 0  # what is computed again is no work done


def test_what_is_computed_again():
    """Products of a gradient, beyond those of none: of each block, attention's two, or all but the last; or halves."""
    task, batch = of_text(layers=4)
    params = task.model.init(KEY)[0]

    def products(policy):
        f = remat(lambda p: task.model.apply(p, {}, batch["x"], key=None, train=True)[0].sum(), policy)
        return str(jax.make_jaxpr(jax.grad(f))(params)).count("dot_general[")

    plain = products("none")
    assert products("dots") == plain + 4 * 2
    assert products("blocks") == plain + 4 * 5
    assert products("full") > plain + 4 * 6 * 2


def test_offload_goes_to_the_hosts_memory():
    """Lowered for a GPU, what products gave goes to pinned memory and back; this machine need not have one."""
    task, batch = of_text()
    params = task.model.init(KEY)[0]
    f = remat(lambda p: task.model.apply(p, {}, batch["x"], key=None, train=True)[0].sum(), "offload")
    text = jax.jit(jax.grad(f)).trace(params).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("pinned_host") == 2 * 3  # of a block: qkv, what out gives, and up


# -- settings ----------------------------------------------------------------------------------------

MODELS = {
    "mlp": {"kind": "mlp", "hidden": [32, 32, 32, 32]},
    "vit": {"kind": "vit", "layers": 3, "patch": 4, "heads": 2, "width": 16},
}


def config(*overrides, model="mlp"):
    """A config of the digits."""
    data = {
        "task": {"kind": "classification"},
        "model": MODELS[model],
        "data": {"kind": "digits", "batch_size": 840},
        "train": {"steps": 2},
        "observe": {"tensorboard": False, "figures": False},
    }
    return configs.parse(Experiment, configs.override(configs.Source(data), list(overrides)))


GRADIENT_FREE = ("optimizer.kind=cma_es", "optimizer.covariance=diagonal")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["train.remat=blocks"], "train.remat: found 'blocks'; model.kind = 'mlp' has no blocks"),
        (["train.remat=offload"], "train.remat: 'offload' is to the host's memory; a CPU has no other"),
        (["train.remat=dots", *GRADIENT_FREE], "train.remat: found 'dots'; no gradient is taken here: leave it out"),
        (["train.remat=all"], "expected 'none', 'dots', 'blocks', 'full' or 'offload'"),
        (["train.memory_gb=-1"], "train.memory_gb: found -1"),
    ],
)
def test_wrong_uses_are_one_line(overrides, line):
    with pytest.raises(ConfigError) as error:
        build(config(*overrides))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_fits(quick):
    """One line that says what the least of all cuts would need."""
    few = ["data.batch_size=2", "train.accumulate=0", "train.memory_gb=1e-4"]
    with pytest.raises(ConfigError, match=r"no cut of a batch of 2 fits; with \d examples? at a time a step needs"):
        build(config(*few))


def test_an_unknown_policy_of_the_function():
    with pytest.raises(ValueError, match="remat: found 'all'; expected one of: none, dots"):
        remat(jnp.sin, "all")


def test_micro_batches_by_the_memory_there_is():
    """The fewest that fit; written out, so that it is not looked for again; the gradient is that of the whole."""
    whole = build(config("train.accumulate=0", "train.memory_gb=100"))
    assert whole.config.train.accumulate == whole.fit.chosen == 1
    limit = 0.8 * whole.fit.needs[1]
    built = build(config("train.accumulate=0", f"train.memory_gb={limit / 1e9}"))
    needs, n = built.fit.needs, built.fit.chosen
    assert built.config.train.accumulate == n > 1
    assert needs[n] <= limit < min(needs[m] for m in needs if m < n)
    assert list(needs) == [m for m in memory.divisors(840) if m <= n]
    assert str(built.fit).startswith(f"train.accumulate = {n}: micro-batches of {840 // n} need")
    show_before(Console(file=(told := io.StringIO()), width=80), built)
    assert str(built.fit) in told.getvalue()
    again = build(built.config)
    assert again.fit is None
    assert again.config == built.config
    batch, train_state = batches(whole, 0, 1)[0], first_state(whole)
    learners = [one.task.learners["model"] for one in (built, again, whole)]
    assert [learner.accumulate for learner in learners] == [n, n, 1]

    def gradient(learner):
        def loss(params, state, batch, *, key):
            return whole.task.full_loss(params, state, batch, key=key, train=True)

        goal = learner.goal(loss, train_state.players["model"], train_state.state, batch, key=KEY)
        return jax.jit(goal.gradient)(train_state.players["model"].params)[0]

    assert gap(gradient(learners[0]), gradient(learners[2])) < 2e-6


def test_what_a_step_needs_is_what_it_is_compiled_to(quick):
    """The search compiles without arrays; what it says is what the program with them has. Several seeds count."""
    for more in ([], ["train.seeds=2", "train.members=in_turn"], ["train.seeds=2", "train.members=together"]):
        built = build(config("train.accumulate=0", "train.memory_gb=100", *more))
        compiled = compile(built)
        held = tree.nbytes(compiled.train_state[1:]) if isinstance(compiled.train_state, tuple) else 0
        assert built.fit.needs[1] == compiled.program.needs() + held
        assert compiled.program.needs() >= tree.nbytes(compiled.train_state) - held
    assert compiled.program.needs() >= compiled.program.memory["temp"]


def test_fewest():
    """Divisors of what one device has of the batch, in turn, until one fits; more may need more."""
    needs = {1: 900, 2: 950, 3: 700, 4: 300, 6: 200, 12: 100}
    assert memory.fewest(needs.get, 12, 1, 700).chosen == 3
    assert memory.fewest(needs.get, 12, 1, 2000) == memory.Fit(12, 1, {1: 900}, 2000)
    assert memory.fewest(needs.get, 12, 2, 300).needs.keys() == {1, 2, 3, 6}  # 4 micro-batches of 3: not for 2 devices
    with pytest.raises(ConfigError, match="with 4 examples at a time a step needs 7e-07 GB, and there are 5e-07 GB"):
        memory.fewest(needs.get, 12, 4, 500)


def test_memory_there_is(tmp_path):
    """The limit that is given; of an accelerator what its allocator has left; of a CPU the least of its bounds."""
    statistics = {"bytes_limit": 100, "bytes_in_use": 30}
    gpu = types.SimpleNamespace(platform="gpu", device_kind="X", memory_stats=lambda: statistics)
    assert memory.available(gpu) == 63
    assert memory.available(gpu, 2.5) == 2_500_000_000
    silent = types.SimpleNamespace(platform="gpu", device_kind="X", memory_stats=lambda: None)
    with pytest.raises(ConfigError, match=r"train\.memory_gb: missing; X does not say how much memory there is"):
        memory.available(silent)
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 900 kB\nMemAvailable:  100 kB\n")
    assert memory._free_here(info, tmp_path) == 102_400
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert memory._free_here(info, tmp_path) == 3000
    assert memory._free_here(tmp_path / "nothing", tmp_path) == 0


def test_a_task_without_a_batch_is_not_cut(root):
    """A number must be given where there is no [data]."""
    settings = configs.parse(Experiment, configs.read(root / "configs/td3_pendulum.toml", ["train.accumulate=0"]))
    with pytest.raises(ConfigError, match=r"train\.accumulate: 0 chooses how a batch of"):
        build(settings)
