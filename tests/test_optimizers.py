"""Optimizers and schedules by their formulas: algorithms in NumPy, groups, freezing, optax by name, bad settings."""

import dataclasses
import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import leaves, same

from functrain import config, tree
from functrain.config import ConfigError, configclass
from functrain.metrics import Mean
from functrain.optim import (
    KFAC,
    SGD,
    WSD,
    Adafactor,
    Adam,
    AdamW,
    AnyOptimizer,
    Constant,
    Cosine,
    InverseSqrt,
    Lamb,
    Learner,
    Linear,
    Lion,
    Muon,
    OneCycle,
    Optax,
    Plateau,
    RMSprop,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    Step,
)
from functrain.optim.chain import Chain
from functrain.train import hyper
from functrain.train.checkpoint import from_arrays, to_arrays

KINDS = [get_args(member)[0] for member in get_args(get_args(AnyOptimizer)[0])]
CHAINS = [kind for kind in KINDS if issubclass(kind, Chain) and kind is not KFAC]
EACH = [kind(name="adabelief") if kind is Optax else kind() for kind in CHAINS]
"""Those that go by gradients alone; the others have tests of their own."""


QUICK = {"xla_backend_optimization_level": 0}  # these programs take longer to compile than to run


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def start():
    """Two matrices, a vector and a number."""
    return {
        "layer0": {"kernel": jnp.asarray(draw(0, 3, 4)), "bias": jnp.asarray(draw(1, 4))},
        "head": {"kernel": jnp.asarray(draw(2, 4, 2)), "scale": jnp.asarray(0.7)},
    }


def given(i):
    """The gradient of update i, whatever the parameters."""
    return jax.tree.map(lambda p: jnp.asarray(draw(100 + i, *p.shape)), start())


def descend(optimizer, steps=8, params=None, gradient=given):
    """(the parameters after each update, the last state)."""
    chain = optimizer.build()
    params = start() if params is None else params
    state, trajectory = chain.init(params), []

    @functools.partial(jax.jit, compiler_options=QUICK)
    def update(g, state, params):
        return chain.update(g, state, params, value=jnp.asarray(1.0))

    for i in range(steps):
        updates, state = update(gradient(i), state, params)
        params = optax.apply_updates(params, updates)
        trajectory.append(params)
    return trajectory, state


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def agree(ours, theirs, tolerance=1e-13):
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-300)


# -- the chain ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_without_the_shared_settings_the_chain_is_the_plain_one(kind):
    """Clip, decay, preconditioner and rate: the very stages, bit for bit and state for state."""
    optimizer = kind(peak_lr=0.1, weight_decay=0.01, clip_norm=0.5, schedule=Cosine(warmup=2, steps=8))
    clip, decay = optax.clip_by_global_norm(0.5), optax.add_decayed_weights(0.01, optimizer.decays)
    rate = optax.scale_by_schedule(lambda count: -optimizer.rate(count))
    plain = {
        SGD: [clip, decay, rate],
        Adam: [clip, decay, optax.scale_by_adam(), rate],
        AdamW: [clip, optax.scale_by_adam(), decay, rate],
    }[kind]

    @dataclasses.dataclass
    class Plain:
        def build(self):
            return optax.chain(*plain)

    (ours, state), (theirs, plain_state) = descend(optimizer), descend(Plain())
    assert same(ours, theirs)
    assert same(state, plain_state)


@pytest.mark.parametrize("optimizer", EACH, ids=lambda o: o.kind)
def test_every_optimizer_runs_traced_and_in_a_population(optimizer):
    """All floats live, under jit and vmap over the rate, float32 parameters under 64-bit types through the learner; a
    member of the population is the run with that rate, and its dtypes stay."""
    params = tree.cast(start()["head"], jnp.float32)
    rates = jnp.asarray([1.0, 0.5], jnp.float32) * optimizer.peak_lr

    def loss(params, state, batch, *, key):
        return Mean(sum(jnp.sum((p - 0.3) ** 2) for p in jax.tree.leaves(params)), jnp.ones(())), state, {}

    def run(numbers, rate):
        learner = Learner(optimizer=hyper.bind(optimizer, numbers | {"peak_lr": rate}))
        player = learner.init(params)

        def step(_, player):
            return learner.update(loss, player, {}, {}, key=jax.random.key(0))[0]

        player = jax.lax.fori_loop(0, 3, step, player)
        return player.params, player.optimizer, learner.weights(player)

    with jax.enable_x64(True):
        many = jax.jit(jax.vmap(run, (None, 0)), compiler_options=QUICK)(hyper.arrays(optimizer), rates)
    half = dataclasses.replace(optimizer, peak_lr=float(rates[1]))
    by_hand, chain = params, half.build()
    state = chain.init(params)
    for _ in range(3):
        gradients = jax.tree.map(lambda p: 2 * (p - 0.3), by_hand)
        updates, state = chain.update(gradients, state, by_hand, value=1.0)
        by_hand = optax.apply_updates(by_hand, updates)
    for member, one, before in zip(leaves(many[0]), leaves(by_hand), leaves(params), strict=True):
        assert member.dtype == np.float32
        np.testing.assert_allclose(member[1], one, rtol=2e-4, atol=2e-5)
        assert np.abs(member[0] - before).max() > 0
        assert np.abs(member[0] - member[1]).max() > 0
    assert {x.dtype for x in leaves(many[1])} <= {np.dtype("float32"), np.dtype("int32"), np.dtype("float64")}
    assert all(np.isfinite(x).all() for x in leaves(many))


def test_each_default_is_its_own():
    """A kind with decoupled decay keeps the rate of the kind it is made of; each has one key for an L2 penalty."""
    rates = {o.kind: o.peak_lr for o in EACH}
    assert rates["nadamw"] == rates["nadam"] == 2e-3
    assert rates["adamw"] == rates["adam"] == 1e-3
    for optimizer in EACH:
        assert hasattr(optimizer, "l2") == optimizer.decoupled


# -- shared settings ------------------------------------------------------------------------------


def one_update(optimizer, gradients, params):
    chain = optimizer.build()
    return jax.jit(lambda g, p: chain.update(g, chain.init(p), p)[0], compiler_options=QUICK)(gradients, params)


def test_penalties(float64):
    """l1 adds its sign and l2 its multiple to the gradient, of the parameters that decay alone, after the clip."""
    params, g = start(), given(0)
    updates = one_update(SGD(peak_lr=1.0, l1=0.1, clip_value=0.2), g, params)
    for path, update in tree.by_path(updates).items():
        penalty = 0.1 * np.sign(tree.by_path(params)[path]) if "kernel" in path else 0
        agree(-update, np.clip(tree.by_path(g)[path], -0.2, 0.2) + penalty)
    by_l2 = one_update(AdamW(l2=0.3, weight_decay=0.0, epsilon=1.0), g, params)
    by_weight_decay = one_update(Adam(weight_decay=0.3, epsilon=1.0), g, params)
    assert same(by_l2, by_weight_decay)
    lion = one_update(Lion(l2=5.0, weight_decay=0.0, decay=("kernel",)), g, params)
    assert np.array_equal(lion["head"]["kernel"], -1e-4 * np.sign(g["head"]["kernel"] + 5 * params["head"]["kernel"]))


def test_adaptive_clipping_is_equation_3(float64):
    """Unit by unit in NumPy, for one to four axes; optax's for matrices and images."""
    shapes = {"scale": (), "bias": (5,), "kernel": (3, 5), "conv1": (3, 2, 5), "conv2": (3, 3, 2, 5)}
    params = {name: jnp.asarray(0.1 * draw(i, *shape)) for i, (name, shape) in enumerate(shapes.items())}
    g = {name: jnp.asarray(0.05 * draw(9 + i, *shape)) for i, (name, shape) in enumerate(shapes.items())}
    params["kernel"] = params["kernel"].at[:, 0].set(0)  # a unit of zeros may still move, by 1e-3 of a norm
    ours = one_update(SGD(peak_lr=1.0, clip_adaptive=0.4), g, params)
    touched = 0
    for name, update in ours.items():
        p, wanted = np.atleast_1d(params[name]), np.array(np.atleast_1d(g[name]))
        units = [...] if p.ndim == 1 else [(..., i) for i in range(p.shape[-1])]
        for unit in units:
            most, size = 0.4 * max(np.linalg.norm(p[unit]), 1e-3), np.linalg.norm(wanted[unit])
            touched += size > most
            wanted[unit] = wanted[unit] * min(1, most / size)
        agree(-np.reshape(update, wanted.shape), wanted)
    assert 3 < touched < 16
    optaxs = optax.adaptive_grad_clip(0.4)
    for name in ("bias", "kernel", "conv2"):
        theirs, _ = optaxs.update(g[name], optaxs.init(g[name]), params[name])
        agree(-ours[name], theirs)


def test_rates_are_learning_rates_by_pattern(float64):
    """Each group is the run of its own with that rate; the first match wins; adaptive and decoupled kinds too."""
    rates = (("head/kernel", 3.0), ("kernel", 0.5), (".", 1.0))
    for optimizer in (SGD(peak_lr=0.1, momentum=0.9), AdamW(peak_lr=0.1, weight_decay=0.3)):
        mixed = descend(dataclasses.replace(optimizer, rates=rates))[0][-1]
        for path, factor in {"head/kernel": 3.0, "layer0/kernel": 0.5, "layer0/bias": 1.0, "head/scale": 1.0}.items():
            alone = descend(dataclasses.replace(optimizer, peak_lr=0.1 * factor))[0][-1]
            agree(tree.by_path(mixed)[path], tree.by_path(alone)[path])


@pytest.mark.parametrize("optimizer", EACH, ids=lambda o: o.kind)
def test_frozen_parameters_have_no_update_and_no_moments(optimizer):
    """Frozen leaves stay bit for bit, decay and penalties or not; the others go as if they were alone."""
    frozen = {"rates": (("layer0", 0.0), (".", 1.0))} if optimizer.decoupled else {"freeze": ("layer0",)}
    optimizer = dataclasses.replace(optimizer, weight_decay=0.1, l1=0.1, clip_norm=1.0, **frozen)
    optimizer.check(start())
    params, head = start(), {"head": start()["head"]}
    gradients = given(0)
    chain = optimizer.build()
    state = chain.init(params)
    updates, state = chain.update(gradients, state, params, value=1.0)
    assert not any(x.any() for x in leaves(updates["layer0"]))
    assert optimizer.trainable(params) == {
        "head": {"kernel": True, "scale": True},
        "layer0": {"kernel": False, "bias": False},
    }
    assert optimizer.decays(params)["layer0"] == {"kernel": False, "bias": False}
    only = dataclasses.replace(optimizer, freeze=(), rates=())
    assert only.trainable(params) is None
    alone = only.build()
    alone_updates, alone_state = alone.update({"head": gradients["head"]}, alone.init(head), head, value=1.0)
    assert same(updates["head"], alone_updates["head"])
    assert same(leaves(state), leaves(alone_state))  # nothing is kept for what is frozen
    assert int(optimizer.updates(state)) == 1
    assert float(optimizer.current_rate(state)) == pytest.approx(optimizer.peak_lr)
    weights = optimizer.weights(state, params)
    assert same(weights["layer0"], params["layer0"])
    np.testing.assert_allclose(weights["head"]["kernel"], only.weights(alone_state, head)["head"]["kernel"], rtol=1e-6)


def test_a_state_with_holes_survives_a_checkpoint():
    """Frozen leaves leave no array in the state: it is taken apart, put together and equal."""
    optimizer = AdamW(freeze=("layer0",), lookahead_every=2, schedule=Plateau())
    _, state = descend(optimizer, 3)
    arrays = to_arrays({"state": state})
    assert not any("layer0" in path for path in arrays)
    assert same(from_arrays(arrays, jax.eval_shape(lambda: {"state": state}))["state"], state)


MISTAKES = {
    "rates that leave one out": (
        {"rates": (("kernel", 0.5),)},
        r'optimizer.rates: no pattern matches head/scale; end the list with \[".", 1.0\]',
    ),
    "a rate for nothing": (
        {"rates": (("gamma", 0.5), (".", 1.0))},
        "optimizer.rates: pattern 'gamma' matches no param",
    ),
    "freezing nothing": ({"freeze": ("gamma",)}, "optimizer.freeze: pattern 'gamma' matches no parameter"),
    "freezing all": ({"freeze": (".",)}, "optimizer: every parameter is frozen; nothing is left to train"),
    "no pattern": ({"freeze": ("(",)}, r"optimizer.freeze: pattern '\(' is no regular expression"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_patterns(name):
    """One line that says where and what would be right."""
    settings, message = MISTAKES[name]
    with pytest.raises(ConfigError, match=message):
        SGD(**settings).check(start())


def test_lookahead_is_algorithm_1(float64):
    """In NumPy: five fast steps, then the slow weights move half the way and the fast ones start from them."""
    optimizer = SGD(peak_lr=0.1, momentum=0.9, lookahead_every=5, lookahead_share=0.3)
    trajectory, state = descend(optimizer, 12)
    fast = slow = {path: np.asarray(p) for path, p in tree.by_path(start()).items()}
    velocity = dict.fromkeys(fast, 0.0)
    for i, params in enumerate(trajectory):
        g = tree.by_path(given(i))
        velocity = {path: 0.9 * velocity[path] + np.asarray(g[path]) for path in fast}
        fast = {path: fast[path] - 0.1 * velocity[path] for path in fast}
        if i % 5 == 4:
            fast = slow = {path: slow[path] + 0.3 * (fast[path] - slow[path]) for path in slow}
        for path, p in tree.by_path(params).items():
            agree(p, fast[path])
    assert int(optimizer.updates(state)) == 12


# -- optimizers by their papers -------------------------------------------------------------------


def test_lion_is_algorithm_2(float64):
    """In NumPy, with decoupled decay."""
    trajectory, _ = descend(Lion(peak_lr=0.1, weight_decay=0.2, b1=0.8, b2=0.95, decay=(".",)))
    p, m = np.asarray(start()["layer0"]["kernel"]), 0.0
    for i, params in enumerate(trajectory):
        g = np.asarray(given(i)["layer0"]["kernel"])
        p = p - 0.1 * (np.sign(0.8 * m + 0.2 * g) + 0.2 * p)
        m = 0.95 * m + 0.05 * g
        agree(params["layer0"]["kernel"], p)


def test_lamb_is_algorithm_2(float64):
    """In NumPy: Adam's update with its decay, times |p| / |update|."""
    trajectory, _ = descend(Lamb(peak_lr=0.1, weight_decay=0.2, b1=0.8, b2=0.95, epsilon=0.01, decay=(".",)))
    for path in ("layer0/kernel", "layer0/bias", "head/scale"):
        p, m, v = np.asarray(tree.by_path(start())[path]), 0.0, 0.0
        for i, params in enumerate(trajectory):
            g = np.asarray(tree.by_path(given(i))[path])
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
            r = (m / (1 - 0.8 ** (i + 1))) / (np.sqrt(v / (1 - 0.95 ** (i + 1))) + 0.01) + 0.2 * p
            p = p - 0.1 * np.sqrt(np.sum(p**2)) / np.sqrt(np.sum(r**2)) * r
            agree(tree.by_path(params)[path], p)


@pytest.mark.parametrize("kind", [ScheduleFreeAdamW, ScheduleFreeSGD])
def test_schedule_free_is_algorithm_1(kind, float64):
    """In NumPy, through a warmup: the parameters are y, and `weights` gives x."""
    more = {"b2": 0.95, "epsilon": 0.01} if kind is ScheduleFreeAdamW else {}
    settings = {"peak_lr": 0.3, "weight_decay": 0.2, "b1": 0.8, "decay": (".",)}
    optimizer = kind(**settings, **more, schedule=Constant(warmup=4))

    def gradient(p, i):
        return 2 * p + 0.1 * draw(50 + i, 3, 4)

    y = x = z = draw(0, 3, 4)
    v = total = 0.0
    chain, params = optimizer.build(), {"w": jnp.asarray(y)}
    state = chain.init(params)
    for t in range(1, 13):
        g = gradient(y, t)
        updates, state = chain.update({"w": gradient(params["w"], t)}, state, params)
        params = optax.apply_updates(params, updates)
        rate = 0.3 * min(1, t / 4)
        if kind is ScheduleFreeAdamW:
            v = 0.95 * v + 0.05 * g**2
            g = g / (np.sqrt(v / (1 - 0.95**t)) + 0.01)
        z = z - rate * g - rate * 0.2 * y
        total += rate**2
        x = (1 - rate**2 / total) * x + rate**2 / total * z
        y = 0.2 * z + 0.8 * x
        agree(params["w"], y)
        agree(optimizer.weights(state, params)["w"], x)
    assert np.abs(x - y).max() > 1e-3  # the two differ


def test_schedule_free_refuses_what_does_not_go_with_it():
    """A plateau, and lookahead."""
    with pytest.raises(ValueError, match=r"schedule: found plateau; schedule_free_sgd"):
        ScheduleFreeSGD(schedule=Plateau())
    with pytest.raises(ConfigError, match=r"optimizer: lookahead_every: found 5; schedule_free_adamw averages already"):
        parse({"kind": "schedule_free_adamw", "lookahead_every": 5})


def test_muon_orthogonalises_matrices_and_no_more(float64):
    """The factor U V^T by SVD, as nearly as five iterations come; `matrices` chooses; the others are Adam's."""
    params, g = start(), given(0)
    updates = one_update(Muon(peak_lr=1.0, weight_decay=0.0), g, params)
    for path in ("layer0/kernel", "head/kernel"):
        u, _, v = np.linalg.svd(tree.by_path(g)[path], full_matrices=False)
        update = -np.asarray(tree.by_path(updates)[path])
        inputs, outputs = update.shape
        update = update / np.sqrt(max(1, outputs / inputs))
        assert np.linalg.svd(update, compute_uv=False).min() > 0.6
        assert np.abs(update - u @ v).max() < 0.35
    adam = one_update(Adam(peak_lr=1.0), g, params)
    agree(updates["layer0"]["bias"], adam["layer0"]["bias"])
    agree(updates["head"]["scale"], adam["head"]["scale"])
    chosen = one_update(Muon(peak_lr=1.0, weight_decay=0.0, matrices=("layer0/kernel",)), g, params)
    agree(chosen["head"]["kernel"], adam["head"]["kernel"])
    assert same(chosen["layer0"]["kernel"], updates["layer0"]["kernel"])
    with pytest.raises(ConfigError, match=r"optimizer.matrices: layer0/bias has 1 axes; expected patterns of matrices"):
        Muon(matrices=("layer0",)).check(params)
    with pytest.raises(ConfigError, match=r"optimizer.matrices: pattern 'gamma' matches no parameter"):
        Muon(matrices=("gamma",)).check(params)


def test_centered_rmsprop_stays_finite_on_a_constant_gradient():
    """The variance that rounding takes below zero gives no nan."""
    params = {"w": jnp.asarray(draw(0, 50), jnp.float32)}
    gradient = {"w": jnp.asarray(draw(1, 50), jnp.float32)}
    optimizer = RMSprop(centered=True, b2=0.5)
    trajectory, _ = descend(optimizer, 60, params, lambda i: gradient)
    assert np.isfinite(trajectory[-1]["w"]).all()


def test_adafactor_keeps_rows_and_columns():
    """A matrix costs rows + columns; vectors and numbers as many as they have."""
    state = jax.eval_shape(Adafactor().build().init, {"w": jnp.ones((30, 50)), "b": jnp.ones(50), "s": jnp.ones(())})
    assert tree.size(state) == 30 + 50 + 50 + 1 + 2  # and two counts


# -- optax by name --------------------------------------------------------------------------------


def test_an_optimizer_of_optax_by_name(float64):
    """It is that optimizer with our schedule, also where optax takes a number alone."""
    schedule = Linear(warmup=2, steps=10)
    ours, state = descend(Optax(name="adabelief", args={"b1": 0.8}, peak_lr=0.1, schedule=schedule))
    rate = SGD(peak_lr=0.1, schedule=schedule).rate

    @dataclasses.dataclass
    class Plain:
        def build(self):
            return optax.adabelief(rate, b1=0.8)

    agree(ours, descend(Plain())[0])
    optimizer = Optax(name="sm3", peak_lr=0.1, schedule=schedule)
    assert int(optimizer.updates(state)) == 8
    assert float(optimizer.current_rate(state)) == pytest.approx(float(rate(8)))
    first, second = optax.sm3(rate(0)), optax.sm3(rate(1))
    params, g = ({"w": tree["head"]["kernel"]} for tree in (start(), given(0)))
    updates, sm3 = first.update(g, first.init(params), params)
    params = optax.apply_updates(params, updates)
    updates, _ = second.update(g, sm3, params)
    agree(
        descend(optimizer, 2, {"w": start()["head"]["kernel"]}, lambda i: g)[0][-1],
        optax.apply_updates(params, updates),
    )


FOREIGN = {
    "a wrong name": (
        "adabelif",
        {},
        r'optimizer.name: found "adabelif"; did you mean "adabelief"\? legal: adabelief, adadelta',
    ),
    "a loss": ("l2_loss", {}, 'optimizer.name: found "l2_loss"; .*legal: '),
    "a schedule": ("cosine_decay_schedule", {}, 'optimizer.name: found "cosine_decay_schedule"; .*legal: '),
    "a stage": ("scale_by_adam", {}, 'optimizer.name: found "scale_by_adam"; .*legal: '),
    "not in a module of optax": ("contrib.os", {}, 'optimizer.name: found "contrib.os"; .*legal: '),
    "a private name": ("__init__", {}, 'optimizer.name: found "__init__"; .*legal: '),
    "an unknown argument": ("lars", {"mometum": 0.5}, r'optimizer.args.mometum: unknown; did you mean "momentum"\?'),
    "the rate": (
        "lars",
        {"learning_rate": 0.5},
        "optimizer.args.learning_rate: set by optimizer.peak_lr and optimizer.",
    ),
    "a missing argument": ("contrib.dpsgd", {}, "optimizer.args.l2_norm_clip: missing; optax.contrib.dpsgd needs it"),
    "text for a number": ("lars", {"momentum": "0.5"}, 'optimizer.args.momentum: found "0.5"; expected a number'),
    "a number for a truth": ("lars", {"nesterov": 1}, "optimizer.args.nesterov: found 1; expected true or false"),
    "a share for a count": ("contrib.muon", {"ns_steps": 0.5}, "optimizer.args.ns_steps: found 0.5; expected a whole"),
    "one that needs a function": ("contrib.sophia", {}, "optimizer: optax.contrib.sophia cannot take a step .*obj_fn"),
}


def test_one_with_a_line_search():
    """optax's L-BFGS asks for the loss at other parameters: it has it, and a quadratic's minimum in a few steps."""

    def loss(params, state, batch, *, key):
        return Mean((jnp.array([1.0, 30.0]) * (params - 1) ** 2).sum(), jnp.ones(())), state, {}

    optimizer = Optax(name="lbfgs", peak_lr=1.0)
    optimizer.check(jnp.zeros(2))
    learner = Learner(optimizer=optimizer)
    player = learner.init(jnp.zeros(2))
    for i in range(6):
        player, _, _ = learner.update(loss, player, {}, {"x": jnp.ones(1)}, key=jax.random.key(i))
    assert player.params == pytest.approx([1.0, 1.0], abs=1e-5)


@pytest.mark.parametrize("name", FOREIGN)
def test_mistakes_with_optax(name):
    """One line that names the key, and what is legal."""
    function, args, message = FOREIGN[name]
    with pytest.raises(ConfigError, match=message):
        Optax(name=function, args=args).check(start())


@pytest.mark.parametrize("name", ["adan", "yogi", "fromage", "contrib.prodigy", "contrib.dog", "contrib.galore"])
def test_others_of_optax_pass_the_check(name):
    """They can be traced with a live rate, keep the shapes of their state, and move the parameters."""
    optimizer, params = Optax(name=name, peak_lr=0.1), start()
    optimizer.check(params)
    chain = optimizer.build()
    before = chain.init(params)
    updates, after = chain.update(params, before, params, value=jnp.float32(1.0))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, before)
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))
    assert any((u != 0).any() for u in jax.tree.leaves(updates))


# -- schedules ------------------------------------------------------------------------------------


def shares(schedule, counts):
    return [float(schedule.share(i)) for i in counts]


def test_inverse_root_is_equation_3():
    """d^-0.5 min(n^-0.5, n warmup^-1.5), n from 1, over its value at the end of the warmup."""
    n = np.arange(1, 50)
    wanted = np.minimum(n**-0.5, n * 8**-1.5) / 8**-0.5
    np.testing.assert_allclose(shares(InverseSqrt(warmup=8), range(49)), wanted, rtol=1e-6)
    np.testing.assert_allclose(shares(InverseSqrt(), range(3)), [1, 2**-0.5, 3**-0.5], rtol=1e-6)


def test_warmup_stable_decay():
    """The peak until the last quarter; then each shape, to `final`; nothing decays at 0."""
    settings = {"warmup": 2, "steps": 16, "decay": 0.25}
    assert shares(WSD(**settings), range(12)) == pytest.approx([0.5] + [1.0] * 11)
    assert shares(WSD(**settings), range(12, 18)) == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0], abs=1e-6)
    assert shares(WSD(**settings, shape="sqrt"), (13, 14)) == pytest.approx([0.5, 1 - 0.5**0.5])
    assert shares(WSD(**settings, shape="cosine"), (13, 14)) == pytest.approx([(1 + 0.5**0.5) / 2, 0.5])
    assert shares(WSD(**settings, final=0.1), (14, 16)) == pytest.approx([0.55, 0.1])
    assert shares(WSD(steps=16, decay=0.0), (0, 15, 20)) == [1, 1, 1]


def test_schedules_are_sized_to_the_run():
    """The horizon is the run's length, unless the config gives one; shares of it are updates."""
    assert shares(Step(milestones=(0.3, 0.5)).sized(10), (2, 3, 4, 5)) == pytest.approx([1, 0.1, 0.1, 0.01])
    assert shares(Step(milestones=(3, 5)).sized(10), (2, 3, 4, 5)) == pytest.approx([1, 0.1, 0.1, 0.01])
    assert shares(Step(milestones=()).sized(10), (0, 9)) == [1, 1]
    assert shares(Step(milestones=(4,), warmup=2).sized(10), range(5)) == pytest.approx([0.5, 1, 1, 1, 0.1])
    assert AdamW(schedule=OneCycle()).sized(50).schedule.steps == 50
    assert AdamW(schedule=OneCycle(steps=20)).sized(50).schedule.steps == 20
    assert shares(OneCycle(rise=0.5).sized(20), (0, 9, 19)) == pytest.approx([0.04, 1, 4e-6], rel=1e-4)


@configclass
class Root:
    """[optimizer] alone."""

    optimizer: AnyOptimizer  # pyright: ignore[reportInvalidTypeForm]


def parse(optimizer):
    return config.parse(Root, {"optimizer": optimizer}).optimizer


SETTINGS = {
    "milestones that fall": ({"kind": "step", "milestones": [20, 10]}, "expected numbers that rise"),
    "milestones that stay": ({"kind": "step", "milestones": [0.5, 0.5]}, "expected numbers that rise"),
    "shares and updates": ({"kind": "step", "milestones": [0.5, 10]}, "expected shares of the run below 1, or whole"),
    "half an update": ({"kind": "step", "milestones": [1.5, 10]}, "expected shares of the run below 1, or whole"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_mistakes_in_schedules(name):
    """They are the config's."""
    schedule, message = SETTINGS[name]
    with pytest.raises(ConfigError, match=f"optimizer.schedule: milestones: found .*{message}"):
        parse({"kind": "sgd", "schedule": schedule})


@pytest.mark.parametrize("optimizer", EACH, ids=lambda o: o.kind)
def test_every_optimizer_is_read_and_written(optimizer):
    """From TOML and back, with every shared setting."""
    settings = {"rates": (("kernel", 0.5), (".", 1.0)), "freeze": ("bias",), "l1": 0.1, "schedule": WSD(shape="sqrt")}
    optimizer = dataclasses.replace(optimizer, **settings)
    assert parse(config.to_data(optimizer)) == optimizer


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in CHAINS], ids=lambda kind: kind.__name__)
def test_every_other_is_read_and_written(kind):
    """From TOML and back, with its frozen parameters."""
    optimizer = kind(freeze=("bias",))
    assert parse(config.to_data(optimizer)) == optimizer


def test_a_plateau_is_in_the_rate_that_is_told():
    """`current_rate` is what the next update applies: the schedule's, times the factor in the state."""
    optimizer = SGD(peak_lr=0.5, schedule=Plateau(window=2, patience=1, factor=0.5, warmup=2))
    chain, one = optimizer.build(), jnp.ones(1)
    state = chain.init(one)
    told, applied = [], []
    for _ in range(9):
        told.append(float(optimizer.current_rate(state)))
        update, state = chain.update(one, state, one, value=jnp.asarray(1.0))
        applied.append(-float(update[0]))
    assert told == applied == [0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
