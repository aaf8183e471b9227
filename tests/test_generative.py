"""L2L-DA: its generator, what it sees, the two draws, the diversity, who feels which loss, and what a step costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.lax import stop_gradient

from l2ljax import cost, defenses, losses, threat
from l2ljax.attacks import learned
from l2ljax.models.generators import ConditionalBatchNorm, EncoderDecoder, UNet
from l2ljax.types import Batch, L2LError, Players, example_keys, fold_in
from tests.tiny import count, tiny_classifier

BALL = threat.linf(0.2)
X = jax.random.uniform(jax.random.key(0), (6, 8, 8, 1))
BATCH = Batch(X, jnp.arange(6))
KEY = jax.random.key(7)
KEYS = (KEY, jax.random.key(8))


def build(method="l2l_da", clf=None, x=X, larger_weights=True, **options):
    clf = clf or tiny_classifier()
    defense = defenses.create(method, clf, BALL, **{"attacker_width": 4, "steps": 3, **options})
    variables = clf.init(jax.random.key(1), x)
    phi, phi_stats = defense.init(jax.random.key(2), x)
    params, stats = Players(variables["params"], phi), Players(variables["batch_stats"], phi_stats)
    return clf, defense, larger(params) if larger_weights else params, stats


def larger(params):
    """The generator's small initial weights (N(0, 0.02)) times 10, so that its outputs are not all about 0."""
    return params._replace(attacker=jax.tree.map(lambda w: 10 * w if w.ndim > 1 else w, params.attacker))


@pytest.mark.parametrize("size, channels, parameters", [(32, 3, 500_944), (28, 1, 495_184)])
def test_the_generator_has_the_released_codes_parameters(size, channels, parameters):
    attacker = learned.convolutional(UNet(), inputs=("clean", "gradient", "delta"), latent=8)
    params, stats = jax.eval_shape(attacker.init, KEY, jnp.zeros((2, size, size, channels)))
    assert count(params) == parameters
    assert count(stats) == 3 * 2 * 64  # means and variances of three BatchNorms


def test_class_conditional_normalization_equals_numpy():
    x, y = np.random.RandomState(0).normal(2, 3, (5, 3, 4, 2)).astype(np.float32), np.array([1, 0, 2, 1, 0])
    norm = ConditionalBatchNorm(num_classes=3)
    variables = norm.init(KEY, x, y, True)
    params = jax.tree.map(lambda p: p + jax.random.normal(KEY, p.shape), variables["params"])
    out, stats = norm.apply({**variables, "params": params}, x, y, True, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    gamma = (params["scale"] + params["class_scale"][y])[:, None, None]
    beta = (params["shift"] + params["class_shift"][y])[:, None, None]
    np.testing.assert_allclose(out, (x - mean) / np.sqrt(var) * gamma + beta, rtol=2e-4, atol=1e-4)
    moved = stats["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(moved["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * var, rtol=1e-5)


@pytest.mark.parametrize("network", [UNet(width=2), EncoderDecoder(width=2, blocks=1)])
def test_images_that_do_not_halve_twice_are_refused(network):
    with pytest.raises(L2LError, match="multiples of 4"):
        attacker = learned.convolutional(network, inputs=("clean",), latent=8)
        attacker.init(KEY, jnp.zeros((1, 10, 8, 1)))


def attack_twice(clf, defense, params, stats, keys=KEYS, steps=3):
    logits_fn = functools.partial(clf.logits, {"params": params.classifier, "batch_stats": stats.classifier})
    attack = jax.jit(defense.attack(params.attacker, stats.attacker, steps=steps), static_argnums=0)
    return [np.asarray(attack(logits_fn, key, X, BATCH.y)) for key in keys]


def test_other_latents_make_other_perturbations_inside_the_ball():
    one, two = attack_twice(*build())
    assert np.abs(one - two).mean() > 1e-3
    for x in (one, two):
        assert np.abs(x - X).max() <= 0.2 + 1e-6 and x.min() >= 0 and x.max() <= 1
    same, again = attack_twice(*build(), keys=(KEY, KEY))
    np.testing.assert_array_equal(same, again)
    one, two = attack_twice(*build("l2l_star", steps=1))  # which has no latent
    np.testing.assert_array_equal(one, two)


def test_a_step_is_a_quarter_of_eps_and_their_sum_is_cut():
    clf, defense, params, stats = build()
    two, three = (attack_twice(clf, defense, params, stats, keys=(KEY,), steps=t)[0] for t in (2, 3))
    assert 0.04 < np.abs(three - two).max() <= 0.05 + 1e-6
    many = attack_twice(clf, defense, params, stats, keys=(KEY,), steps=20)[0]
    assert 0.19 < np.abs(many - X).max() <= 0.2 + 1e-6
    clf, defense, params, stats = build("l2l_star", steps=1)
    assert np.abs(attack_twice(clf, defense, params, stats, keys=(KEY,), steps=1)[0] - X).max() > 0.06


@pytest.mark.parametrize("label", [True, False])
def test_the_generator_sees_the_label_only_where_asked_to(label):
    attacker = learned.convolutional(UNet(4, 0, 10 if label else 0), inputs=("clean",))
    params, stats = attacker.init(KEY, X)

    def first_move(y):
        rule = attacker.rule(params, stats, example_keys(KEY, 6), y)
        return rule.update(X, rule.init(X), X, x0=X, ball=BALL)[0]

    assert bool((first_move(BATCH.y) != first_move(BATCH.y + 1)).any()) == label


def test_the_generator_sees_the_perturbation_only_where_asked_to():
    with_it, without = (build(delta=delta)[2].attacker["Conv_0"]["kernel"].shape[2] for delta in (True, False))
    assert (with_it, without) == (3 + 8, 2 + 8)  # image, gradient, delta and the latent's code


def test_without_normalization_the_gradient_is_orders_below_the_image():
    """Why the paper finds a point of accuracy in it: beside image and delta, raw gradients are as good as absent."""
    clf = tiny_classifier()
    variables = clf.init(jax.random.key(1), X)
    g = jax.grad(lambda x: losses.cross_entropy(clf.logits(variables, x), BATCH.y).sum())(X)
    raw, seen = (float(jnp.abs(learned.normalize_gradient(g, how)).mean()) for how in ("none", "channel"))
    image = float(X.mean())
    assert raw < 0.02 * image
    assert seen > 0.1 * image
    norms = jnp.sqrt((learned.normalize_gradient(g, "channel") ** 2).sum((1, 2)))
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    tiny = learned.normalize_gradient(1e-30 * g, "channel")  # whose squares are 0 in float32
    np.testing.assert_allclose(jnp.sqrt((tiny**2).sum((1, 2))), 1, rtol=1e-3)


def explicit(clf, params, stats, mode):
    """Three steps of both draws, unrolled by hand with the gradient constant: paths [T, 2, B, ...] and latents."""
    theta = {"params": stop_gradient(params.classifier), "batch_stats": stats.classifier}
    attack_keys = fold_in(example_keys(KEY, 6), 0)
    keys = jnp.concatenate([fold_in(attack_keys, i) for i in range(2)])
    z = jax.vmap(lambda k: jax.random.normal(k, (8,)))(fold_in(keys, 0))
    x0, y = jnp.concatenate([X, X]), jnp.concatenate([BATCH.y, BATCH.y])
    x, delta, batch_stats, path = x0, jnp.zeros_like(x0), stats.attacker, []
    for _ in range(3):
        g = jax.grad(lambda x: losses.cross_entropy(clf.logits(theta, x), y).sum())(x)
        g = stop_gradient(g / jnp.sqrt((g**2).sum((1, 2), keepdims=True)))
        features = jnp.concatenate([x0, g, delta], axis=-1)
        out, new = UNet(4, 8, 10).apply(
            {"params": params.attacker, "batch_stats": batch_stats},
            features, channels=1, train=mode != "classifier", y=y, z=z, mutable=["batch_stats"],
        )  # fmt: skip
        batch_stats = new["batch_stats"]
        delta = threat.clip(delta + 0.05 * out, -0.2, 0.2)
        x = threat.clip(x0 + delta, 0, 1)
        path.append(x)
    return jnp.stack(path).reshape(3, 2, *X.shape), z.reshape(2, 6, 8), batch_stats


def test_the_generators_gradient_is_that_of_the_papers_objective():
    """sum_t [mean CE(x_t) + lambda div_t], back-propagated through delta, the input gradient constant."""
    clf, defense, params, stats = build(diversity=0.7)
    theta = {"params": params.classifier, "batch_stats": stats.classifier}

    def by_hand(phi):
        path, z, _ = explicit(clf, params._replace(attacker=phi), stats, "attacker")
        y = jnp.tile(BATCH.y, 6)
        ce = losses.cross_entropy(clf.logits(theta, path.reshape(-1, *X.shape[1:])), y).reshape(3, 12).mean(1).sum()
        apart = jnp.abs(path[:, 0] - path[:, 1]).mean((2, 3, 4)) / (jnp.abs(z[0] - z[1]).mean(1) + 1e-8)
        return ce + 0.7 * apart.mean(1).sum()

    def ours(phi):
        return defense.objective(params._replace(attacker=phi), stats, KEY, BATCH, "attacker")[0]

    expected, got = jax.jit(jax.grad(by_hand))(params.attacker), jax.jit(jax.grad(ours))(params.attacker)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for a, b in zip(*map(jax.tree.leaves, (expected, got)), strict=True):
        np.testing.assert_allclose(b, a, atol=2e-4 * scale)


def test_the_classifier_learns_from_clean_and_both_draws_in_one_training_pass():
    clf, defense, params, stats = build()
    path, _, phi_stats = explicit(clf, params, stats, "joint")
    x = jnp.concatenate([X, path[-1, 0], path[-1, 1]])
    y = jnp.tile(BATCH.y, 3)

    def by_hand(theta):
        logits, moved = clf.train({"params": theta, "batch_stats": stats.classifier}, x, KEY)
        return losses.cross_entropy(logits, y).mean(), moved

    def ours(theta):
        return defense.objective(params._replace(classifier=theta), stats, KEY, BATCH, "joint")

    expected, moved = jax.grad(by_hand, has_aux=True)(params.classifier)
    got, (theirs, _) = jax.jit(jax.grad(ours, has_aux=True))(params.classifier)
    for a, b in zip(*map(jax.tree.leaves, ((expected, moved, phi_stats), (got, *theirs))), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)


def test_more_weight_on_diversity_makes_perturbations_more_diverse():
    apart = {}
    for weight in (0.0, 20.0):
        clf, defense, params, stats = build(diversity=weight, larger_weights=False)
        optimizer = optax.adam(1e-2)

        @jax.jit
        def step(phi, state, key, defense=defense, params=params, stats=stats, optimizer=optimizer):
            def loss(phi):
                return -defense.objective(params._replace(attacker=phi), stats, key, BATCH, "attacker")[0]

            updates, state = optimizer.update(jax.grad(loss)(phi), state)
            return optax.apply_updates(phi, updates), state

        phi, state = params.attacker, optimizer.init(params.attacker)
        for i in range(15):
            phi, state = step(phi, state, jax.random.key(i))
        one, two = attack_twice(clf, defense, params._replace(attacker=phi), stats)
        apart[weight] = np.abs(one - two).mean()
    assert apart[20.0] > 2 * apart[0.0]


def test_a_network_of_more_classes_than_the_generator_knows_is_refused():
    """Indexing would clamp the labels silently. The network has ten classes."""
    for method, options in (("l2l_da", {"num_classes": 10}), ("l2l_da", {"num_classes": 9, "label": False})):
        _, defense, params, stats = build(method, **options)
        jax.eval_shape(functools.partial(defense.objective, mode="joint"), params, stats, KEY, BATCH)
    _, defense, params, stats = build(num_classes=9)
    with pytest.raises(L2LError, match="num_classes=9 and the network has 10: give num_classes=10"):
        jax.eval_shape(functools.partial(defense.objective, mode="joint"), params, stats, KEY, BATCH)


def test_diversity_needs_a_latent():
    with pytest.raises(L2LError, match="latent=8, or diversity=0"):
        build(latent=0)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_step_costs_two_t_plus_three_passes(steps):
    clf = tiny_classifier()
    marked = clf._replace(logits=cost.mark(clf.logits), train=cost.mark(clf.train))
    _, defense, params, stats = build(clf=marked, steps=steps)
    variables = {"params": params.classifier, "batch_stats": stats.classifier}

    def step(params):
        return jax.grad(defense.objective, has_aux=True)(params, stats, KEY, BATCH, "joint")[0]

    def attack_pass(x):
        return jax.grad(lambda x: marked.logits(variables, x).sum())(x)

    def training_pass(theta, x):
        return jax.grad(lambda theta, x: marked.train({**variables, "params": theta}, x, KEY)[0].sum(), (0, 1))(
            theta, x
        )

    attack, training = cost.multiplications(attack_pass, X), cost.multiplications(training_pass, params.classifier, X)
    # `ascend` sees 2 B images a step: 2 T attack passes over B, and 3 training passes over B.
    assert cost.multiplications(step, params) == pytest.approx(2 * steps * attack + 3 * training, rel=0.02)


@pytest.mark.slow
def test_no_activation_of_the_classifier_waits_for_the_generators_backward_pass():
    """What a further step adds to the step's memory does not depend on the classifier's width."""

    def added(width):
        clf = wide_classifier(width)
        sizes = []
        for steps in (4, 12):
            _, defense, params, stats = build(clf=clf, steps=steps)

            def step(params, defense=defense, stats=stats):
                return jax.grad(defense.objective, has_aux=True)(params, stats, KEY, BATCH, "joint")[0]

            sizes.append(jax.jit(step).lower(params).compile().memory_analysis().temp_size_in_bytes)
        return (sizes[1] - sizes[0]) / 8

    activations = 12 * 8 * 8 * (64 - 4) * 4  # of one layer of the wider classifier, for both draws, in bytes
    assert abs(added(64) - added(4)) < 0.1 * activations


def wide_classifier(width):
    import flax.linen as nn

    from l2ljax.models.layers import Conv
    from l2ljax.types import Classifier

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = jnp.tanh(Conv(width, padding=1)(x))
            return nn.Dense(10)(x.mean((1, 2)))

    net = Net()
    return Classifier(
        lambda key, x: {"batch_stats": {}, **net.init(key, x)},
        lambda v, x: net.apply({"params": v["params"]}, x),
        lambda v, x, key, axis_name=None: (net.apply({"params": v["params"]}, x), {}),
        lambda v, x: x,
    )
