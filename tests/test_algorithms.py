"""Three steps of each paper's recipe, in float64, against its algorithm written out in `reference.released`."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import attacks, defenses, threat
from l2ljax.models import attackers, generators
from l2ljax.run import recipes
from l2ljax.run.settings import optimizers
from l2ljax.train import AXIS, TrainState, init_state, make_step
from l2ljax.types import Batch, Classifier, example_keys, fold_in
from tests.reference import released
from tests.tiny import Tiny

pytestmark = pytest.mark.usefixtures("float64")
EPS, N, STEPS = 0.1, 6, 3
BALL = threat.linf(EPS)


class Plain(nn.Module):
    """Without BatchNorm and dropout, like LeNet-5."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, dtype=x.dtype)(x)).reshape(len(x), -1)
        return nn.Dense(10, dtype=x.dtype)(x)


def double_precision(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def network(normalized):
    """A classifier with BatchNorm or without, and it as the function f of `released`."""
    if normalized:
        net = Tiny(dtype=jnp.float64)

        def f(theta, bn, x, train):
            if train:
                logits, new = net.apply({"params": theta, "batch_stats": bn}, x, train=True, mutable=["batch_stats"])
                return logits, new["batch_stats"]
            return net.apply({"params": theta, "batch_stats": bn}, x), bn
    else:
        net = Plain()

        def f(theta, bn, x, train):
            return net.apply({"params": theta}, x), bn

    def train(variables, x, key, axis_name=None):
        return f(variables["params"], variables["batch_stats"], x, True)

    def logits(variables, x):
        return f(variables["params"], variables["batch_stats"], x, False)[0]

    init = lambda key, x: {"batch_stats": {}, **net.init(key, x)}
    return Classifier(init, logits, train, logits), f


def compare(recipe, method, options, f_network, reference):
    """Take three steps of the recipe and of the reference from the same state; all that they change is equal."""
    classifier, f = network(f_network)
    settings = recipe._replace(milestones=())
    defense = defenses.create(method, classifier, BALL, axis_name=AXIS, **{**settings.options, **options})
    movers = optimizers(settings, 100)
    batch = Batch(jax.random.uniform(jax.random.key(5), (N, 8, 8, 1)), jnp.arange(N) % 10)
    state = double_precision(init_state(jax.random.key(1), classifier, defense, movers, batch.x))
    if "attacker_width" in options:  # the initial weights of the generator's N(0, 0.02) hardly move an image
        moved = jax.tree.map(lambda w: 3 * w if w.ndim > 1 else w, state.params.attacker)
        state = state._replace(params=state.params._replace(attacker=moved))
    theta, phi = state.params
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    buffers = (
        (jnp.zeros((), jnp.int32), zeros(phi), zeros(phi)) if settings.attacker_optimizer == "adam" else zeros(phi)
    )
    mine = released.State(theta, state.stats.classifier, phi, state.stats.attacker, zeros(theta), buffers)
    reference = jax.jit(functools.partial(reference, f))
    step = make_step(defense, movers, schedule=settings.schedule, devices=jax.devices()[:1])
    key, state, mine = jax.tree.map(jnp.copy, (state.key, state, mine))  # the step takes its buffers
    for i in range(STEPS):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, i), jnp.arange(N))
        state, _ = step(state, batch)
        mine = reference(mine, batch, keys)
        pairs = [
            (state.params.classifier, mine.theta),
            (state.stats.classifier, mine.theta_bn),
            (state.params.attacker, mine.phi),
            (state.stats.attacker, mine.phi_bn),
        ]
        for ours, theirs in pairs:
            for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    assert isinstance(state, TrainState)


def attacker_function(net, channels=1):
    def g(phi, bn, features, train, y=None, z=None):
        variables = {"params": phi, "batch_stats": bn}
        given = {"y": y, "z": z}
        out, new = net.apply(variables, features, channels=channels, train=train, mutable=["batch_stats"], **given)
        return out, new.get("batch_stats", {})

    return g


@pytest.mark.parametrize(
    "method, steps, inputs",
    [
        pytest.param("grad_l2l", 1, ("image", "gradient"), marks=pytest.mark.slow),
        ("two_step_l2l", 2, ("image", "gradient")),
        ("naive_l2l", 1, ("image",)),
    ],
)
def test_l2l(method, steps, inputs):
    g = attacker_function(attackers.create("wide", width=4))

    def reference(f, state, batch, keys):
        return released.l2l(
            f, g, state, *batch, eps=EPS, steps=steps, inputs=inputs,
            theta_step=functools.partial(released.sgd, lr=0.1, decay=2e-4),
            phi_step=functools.partial(released.adam, lr=1e-3, decay=2e-4),
        )  # fmt: skip

    compare(recipes.find("cifar10", method, "l2l"), method, {"attacker_width": 4}, True, reference)


def test_rnn_adv():
    def reference(f, state, batch, keys):
        noise = attacks.gaussian(BALL._replace(project=lambda x, x0: x), fold_in(keys, 0), batch.x) - batch.x
        return released.rnn_adv(
            f, state, *batch, eps=EPS, noise=noise, steps=STEPS,
            theta_step=functools.partial(released.sgd, lr=0.01, decay=5e-4),
            phi_step=functools.partial(released.adam, lr=1e-2),
        )  # fmt: skip

    recipe = recipes.find("cifar10", "rnn_adv", "rnn_adv")
    scale = {"scale": 1 / EPS, "steps": STEPS}  # the recipe's is 1 / eps for its own eps
    assert recipe.options["scale"] == pytest.approx(255 / 8)
    compare(recipe, "rnn_adv", scale, True, reference)


def test_l2l_da():
    g = attacker_function(generators.UNet(4, 8, 10))

    def reference(f, state, batch, keys):
        twice = jnp.concatenate([fold_in(fold_in(keys, 0), i) for i in range(2)])
        z = jax.vmap(lambda key: jax.random.normal(key, (8,), batch.x.dtype))(fold_in(twice, 0))
        return released.l2l_da(
            f, g, state, *batch, eps=EPS, z=z, diversity=0.02, steps=STEPS,
            theta_step=functools.partial(released.sgd, lr=0.01, decay=1e-5),
            phi_step=functools.partial(released.sgd, lr=0.01, decay=1e-5),
        )  # fmt: skip

    compare(
        recipes.find("mnist", "l2l_da", "l2l_da"), "l2l_da", {"attacker_width": 4, "steps": STEPS}, False, reference
    )


def test_ait_l2l():
    g = attacker_function(attackers.create("wide", width=4))

    def reference(f, state, batch, keys):
        noise = jax.vmap(lambda key: jax.random.uniform(key, batch.x.shape[1:], batch.x.dtype, -EPS, EPS))(
            fold_in(example_keys(keys, N), 1)
        )
        return released.ait_l2l(
            f, lambda theta, bn, x: f(theta, bn, x, False)[0], g, state, *batch, eps=EPS, noise=noise, label_eps=0.5,
            theta_step=functools.partial(released.sgd, lr=0.1, decay=2e-4),
            phi_step=functools.partial(released.adam, lr=1e-3, decay=2e-4),
        )  # fmt: skip

    compare(recipes.find("cifar10", "ait_l2l", "l2l_v2"), "ait_l2l", {"attacker_width": 4}, True, reference)
