"""The saddle-point objectives: who feels which term, in which BatchNorm mode, and that both players learn."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.lax import stop_gradient

from l2ljax import attacks, cost, data, defenses, losses, models, threat
from l2ljax.attacks import learned
from l2ljax.defenses import saddle
from l2ljax.types import Batch, Classifier, L2LError, Players, example_keys, fold_in
from tests.tiny import small, tiny_classifier

BALL = threat.linf(0.2)
RECORDS = {**defenses.METHODS, **defenses.ATTACKERS}
LEARNED = [m for m in defenses.METHODS if RECORDS[m].learns and m != "ait_l2l"]  # which ascends no loss of f


@functools.cache
def digits(n=64):
    train = data.load("digits").train
    return Batch(jnp.asarray(train.images[:n], jnp.float32) / 255, jnp.asarray(train.labels[:n]))


@functools.cache
def fitted_classifier():
    """A digits classifier after a few plain steps, so that its gradients mean something."""
    clf = models.create("digits_cnn")
    batch = digits()
    variables = clf.init(jax.random.key(0), batch.x)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: losses.cross_entropy(clf.logits({"params": p}, batch.x), batch.y).mean())(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    params, state = variables["params"], optimizer.init(variables["params"])
    for _ in range(40):
        params, state = step(params, state)
    return clf, Players(params, None), Players({}, None)


@pytest.mark.parametrize("method", RECORDS)
def test_records_say_what_a_method_is(method):
    record, clf = RECORDS[method], models.create("digits_cnn")
    defense = defenses.create(method, clf, BALL, **record.options)  # all its options, at their defaults
    phi, phi_stats = jax.eval_shape(defense.init, jax.random.key(1), digits().x)
    assert bool(jax.tree.leaves(phi)) == (record.learns or defense.mover is not None)
    assert (defense.attack(phi, phi_stats, steps=2, path=True) is not None) == record.learns


@pytest.mark.parametrize("method", ["plain", "stability", "pgd_adv", "ait"])
def test_schedule_attacker_leaves_the_classifiers_statistics(method):
    clf = tiny_classifier()
    batch = Batch(digits().x[:8], digits().y[:8])
    variables = clf.init(jax.random.key(0), batch.x)
    defense = defenses.create(method, clf, BALL, **small(method))
    phi, phi_stats = defense.init(jax.random.key(1), batch.x)
    params, stats = Players(variables["params"], phi), Players(variables["batch_stats"], phi_stats)
    _, (after, _) = jax.jit(defense.objective, static_argnums=4)(params, stats, jax.random.key(2), batch, "attacker")
    chex.assert_trees_all_equal(after.classifier, stats.classifier)


def build(method, **options):
    clf, params, stats = fitted_classifier()
    defense = defenses.create(method, clf, BALL, **{**(small(method) if method in LEARNED else {}), **options})
    phi, phi_stats = defense.init(jax.random.key(1), digits().x)
    return defense, params._replace(attacker=phi), stats._replace(attacker=phi_stats)


@pytest.mark.parametrize("method", [m for m in LEARNED if "grad_only" not in m])  # they only see less
def test_attacker_learns_on_a_frozen_classifier(method):
    defense, params, stats = build(method)
    batch, optimizer = digits(), optax.adam(1e-2)

    @jax.jit
    def step(params, stats, state, key):
        def objective(phi):
            return defense.objective(params._replace(attacker=phi), stats, key, batch, "attacker")

        (value, (stats, _)), grads = jax.value_and_grad(objective, has_aux=True)(params.attacker)
        updates, state = optimizer.update(jax.tree.map(jnp.negative, grads), state)
        params = params._replace(attacker=optax.apply_updates(params.attacker, updates))
        return params, stats, state, (value, optax.tree.norm(grads))

    state, key = optimizer.init(params.attacker), jax.random.key(2)
    values = []
    for _ in range(12):
        params, stats, state, (value, norm) = step(params, stats, state, key)
        values.append(float(value))
        assert norm > 0
    assert values[-1] > values[0] * 1.05


def test_theta_gradient_of_adversarial_training_is_that_at_fixed_images():
    defense, params, stats = build("rnn_adv")
    clf, batch, key = fitted_classifier()[0], digits(16), jax.random.key(3)
    joint = jax.grad(lambda t: defense.objective(params._replace(classifier=t), stats, key, batch, "joint")[0])
    logits_fn = functools.partial(clf.logits, {"params": params.classifier})

    x_adv = defense.attack(params.attacker, {})(logits_fn, fold_in(example_keys(key, 16), 0), batch.x, batch.y)
    fixed = jax.grad(lambda t: losses.cross_entropy(clf.logits({"params": t}, x_adv), batch.y).mean())
    for a, b in zip(*map(jax.tree.leaves, (joint(params.classifier), fixed(params.classifier))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_trades_objective_is_the_papers_formula():
    beta = 3.0
    defense, params, stats = build("trades", beta=beta, steps=2)
    clf, batch, key = fitted_classifier()[0], digits(16), jax.random.key(4)
    value, _ = defense.objective(params, stats, key, batch, "classifier")

    logits_fn = functools.partial(clf.logits, {"params": params.classifier})
    log_p = jax.nn.log_softmax(logits_fn(batch.x))
    p = jnp.exp(log_p)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), 0))(jnp.arange(16))
    x = attacks.gaussian(BALL, keys, batch.x)
    for _ in range(2):
        g = jax.grad(lambda x: jnp.sum(p * (log_p - jax.nn.log_softmax(logits_fn(x)))))(x)
        x = np.clip(np.clip(x + 0.05 * np.sign(g), batch.x - 0.2, batch.x + 0.2), 0, 1)
    kl = jnp.sum(p * (log_p - jax.nn.log_softmax(logits_fn(x))), axis=1)
    ce = -log_p[jnp.arange(16), batch.y]
    np.testing.assert_allclose(value, (ce + beta * kl).mean(), rtol=1e-5)


def test_mart_weighs_the_divergence_by_the_doubt_in_the_clean_image():
    defense, params, stats = build("mart", beta=3.0, steps=1, step_size=0.2, start="clean")
    batch, key = digits(16), jax.random.key(4)
    value = defense.objective(params, stats, key, batch, "joint")[0]
    logits_fn = functools.partial(fitted_classifier()[0].logits, {"params": params.classifier})
    x_adv = attacks.fgsm(BALL)(logits_fn, key, batch.x, batch.y)
    p, q = (np.exp(np.asarray(logits_fn(x), np.float64)) for x in (batch.x, x_adv))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    rows, y = np.arange(16), np.asarray(batch.y)
    wrong = np.where(np.eye(10, dtype=bool)[y], 0, q).max(axis=1)
    boosted = -np.log(q[rows, y]) - np.log(1 - wrong)
    expected = boosted + 3 * (p * np.log(p / q)).sum(axis=1) * (1 - p[rows, y])
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-4)


def test_the_mixture_weighs_clean_and_adversarial_losses():
    clf, batch, key = fitted_classifier()[0], digits(16), jax.random.key(4)
    values = {}
    for weight in (0.0, 0.25, 0.5):
        defense, params, stats = build("pgd_adv", clean_weight=weight, steps=2)
        values[weight] = float(defense.objective(params, stats, key, batch, "joint")[0])
    clean = float(losses.cross_entropy(clf.logits({"params": params.classifier}, batch.x), batch.y).mean())
    for weight in (0.25, 0.5):
        np.testing.assert_allclose(values[weight], weight * clean + (1 - weight) * values[0.0], rtol=1e-5)
    with pytest.raises(L2LError, match="clean_weight=1.0"):
        build("pgd_adv", clean_weight=1.0)


def test_stability_is_the_divergence_at_a_noisy_copy():
    clf, batch, key = fitted_classifier()[0], digits(16), jax.random.key(4)
    defense, params, stats = build("stability", alpha=2.0, sigma=0.3)
    value = defense.objective(params, stats, key, batch, "joint")[0]
    keys = fold_in(example_keys(key, 16), 0)
    noise = jax.vmap(lambda k: jax.random.normal(k, batch.x.shape[1:]))(keys)
    at_x, at_noise = (
        clf.logits({"params": params.classifier}, x) for x in (batch.x, (batch.x + 0.3 * noise).clip(0, 1))
    )
    log_p, log_q = jax.nn.log_softmax(at_x), jax.nn.log_softmax(at_noise)
    expected = -log_p[jnp.arange(16), batch.y] + 2.0 * (jnp.exp(log_p) * (log_p - log_q)).sum(1)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-4)


def test_the_noise_of_stability_is_not_the_draw_of_a_dropout_layer():
    clf, batch, key, seen = fitted_classifier()[0], digits(4), jax.random.key(4), []
    watched = clf._replace(train=lambda v, x, keys, axis=None: seen.append(keys) or clf.train(v, x, keys, axis))
    _, params, stats = build("stability")
    defenses.create("stability", watched, BALL).objective(params, stats, key, batch, "joint")
    noise = jax.random.key_data(fold_in(example_keys(key, 4), 0))
    for keys in seen:
        for stream in range(4):  # an adapter's layers take the first ones
            assert (jax.random.key_data(fold_in(keys, stream)) != noise).any(axis=1).all()


def test_cw_training_is_at_the_images_of_the_papers_cw():
    clf, batch, key = fitted_classifier()[0], digits(16), jax.random.key(4)
    defense, params, stats = build("cw_adv", steps=4, learning_rate=0.05)
    logits_fn = functools.partial(clf.logits, {"params": params.classifier})
    x_adv = attacks.l2l_da_cw(BALL, steps=4, learning_rate=0.05)(logits_fn, key, batch.x, batch.y)
    value = defense.objective(params, stats, key, batch, "joint")[0]
    np.testing.assert_allclose(value, losses.cross_entropy(logits_fn(x_adv), batch.y).mean(), rtol=1e-4)
    assert value > 1.5 * losses.cross_entropy(logits_fn(batch.x), batch.y).mean()


@pytest.mark.parametrize("method", ["rnn_adv", "rnn_trades"])
def test_phi_feels_the_papers_weighted_losses_along_its_path(method):
    """phi's gradient is that of sum_t t L(x_t), L the cross-entropy or TRADES's KL; theta's that of the end alone."""
    steps, scale = 4, {"rnn_adv": 1.0, "rnn_trades": 6.0}[method]
    defense, params, stats = build(method, steps=steps)
    clf, batch, key = fitted_classifier()[0], digits(16), jax.random.key(5)
    logits_fn = functools.partial(clf.logits, {"params": params.classifier})
    keys = fold_in(example_keys(key, 16), 0)
    clean = logits_fn(batch.x)

    def loss(logits):
        return losses.cross_entropy(logits, batch.y) if method == "rnn_adv" else losses.kl(clean, logits)

    player = learned.recurrent()

    def by_hand(phi):
        rule, x, total = player.rule(phi, {}, keys, batch.y), attacks.gaussian(BALL, keys, batch.x), 0.0
        state = rule.init(x)
        for t in range(1, steps + 1):
            g = stop_gradient(jax.grad(lambda x: loss(logits_fn(x)).sum())(x))
            updates, state = rule.update(-g, state, x, ball=BALL)
            x = BALL.project(x + updates, batch.x)
            total += t * loss(logits_fn(x)).mean()
        return total

    def ours(phi):
        return defense.objective(params._replace(attacker=phi), stats, key, batch, "joint")[0]

    expected, got = jax.jit(jax.grad(by_hand))(params.attacker), jax.jit(jax.grad(ours))(params.attacker)
    for a, b in zip(*map(jax.tree.leaves, (expected, got)), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-3, atol=2e-3 * float(jnp.abs(a).max()))

    final = build(method, steps=steps, weights="final")[0]
    theta = [
        jax.grad(lambda t, d=d: d.objective(params._replace(classifier=t), stats, key, batch, "joint")[0])(
            params.classifier
        )
        for d in (defense, final)
    ]
    for a, b in zip(*map(jax.tree.leaves, theta), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * scale)


def test_alternating_l2l_has_the_released_codes_batchnorm_modes():
    """theta's turn: each gradient pass and the loss pass in training mode move the statistics; phi's: not at all."""
    clf = tiny_classifier()
    x = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))
    batch = Batch(x, jnp.arange(4))
    variables = clf.init(jax.random.key(1), x)
    for method, steps, passes in (("naive_l2l", 1, 0), ("grad_l2l", 1, 1), ("two_step_l2l", 2, 2)):
        defense = defenses.create(method, clf, BALL, attacker_width=4)
        phi, phi_stats = defense.init(jax.random.key(2), x)
        params, stats = Players(variables["params"], phi), Players(variables["batch_stats"], phi_stats)
        turn = jax.jit(defense.objective, static_argnames="mode")
        _, (theirs, _) = turn(params, stats, jax.random.key(3), batch, mode="classifier")
        logits_of_train = functools.partial(lambda v, x: clf.train(v, x, jax.random.key(0))[0], variables)
        expected, point = variables["batch_stats"], x
        for t in range(1, steps + 1):  # each training-mode pass in a row, on the images it is made at
            if t <= passes:
                expected = clf.train({**variables, "batch_stats": expected}, point, jax.random.key(0))[1]
            point = defense.attack(phi, phi_stats, steps=t)(logits_of_train, jax.random.key(0), x, batch.y)
        expected = clf.train({**variables, "batch_stats": expected}, point, jax.random.key(0))[1]
        for a, b in zip(*map(jax.tree.leaves, (theirs.classifier, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
        _, (theirs, _) = turn(params, stats, jax.random.key(3), batch, mode="attacker")
        jax.tree.map(np.testing.assert_array_equal, theirs.classifier, stats.classifier)
        assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (theirs.attacker, phi_stats)), strict=True))


@pytest.mark.parametrize(
    "method, attack_passes, train_passes",
    [
        ("plain", 0, 1),
        ("naive_l2l", 0, 1),
        ("grad_l2l", 1, 1),
        ("two_step_l2l", 2, 1),
        ("fgsm_sdi", 2, 1),
        ("las_at", 14, 1),
        ("rnn_adv", 10, 1),
        ("pgd_adv", 10, 1),
    ],
)
def test_a_joint_step_costs_the_attacks_gradients_and_one_training_pass(method, attack_passes, train_passes):
    clf = models.create("digits_cnn")
    marked = clf._replace(logits=cost.mark(clf.logits), train=cost.mark(clf.train))
    x, y, key = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2, int), jax.random.key(0)
    variables = clf.init(key, x)
    defense = defenses.create(method, marked, BALL, **({"attacker_width": 4} if "l2l" in method else {}))
    phi, phi_stats = defense.init(key, x)
    stats = Players(variables["batch_stats"], phi_stats)

    def step(params):
        return jax.grad(defense.objective, has_aux=True)(params, stats, key, Batch(x, y), "joint")[0]

    def attack_pass(x):
        return jax.grad(lambda x: marked.logits(variables, x).sum())(x)

    def training_pass(theta, x):
        def loss(theta, x):
            return marked.train({**variables, "params": theta}, x, key)[0].sum()

        return jax.grad(loss, argnums=(0, 1) if attack_passes or "l2l" in method else 0)(theta, x)

    counted = cost.multiplications(step, Players(variables["params"], phi))
    one = cost.multiplications(attack_pass, x)
    expected = attack_passes * one + train_passes * cost.multiplications(training_pass, variables["params"], x)
    assert counted == pytest.approx(expected, rel=0.02)


def test_fgsm_with_predicted_labels_does_not_see_the_true_ones():
    batch, key = digits(16), jax.random.key(6)
    wrong = batch._replace(y=(batch.y + 1) % 10)
    robust = {}
    for labels in ("true", "predicted"):
        defense, params, stats = build("fgsm_adv", labels=labels)
        robust[labels] = [
            float(defense.objective(params, stats, key, b, "classifier")[1][1]["loss"]) for b in (batch, wrong)
        ]
    clf, params, _ = fitted_classifier()
    assert (clf.logits({"params": params.classifier}, batch.x).argmax(1) == batch.y).all()
    np.testing.assert_allclose(robust["true"][0], robust["predicted"][0], rtol=1e-6)  # right predictions: the same
    assert robust["true"][1] != pytest.approx(robust["predicted"][1], rel=1e-3)


def two_norms(momenta=(0.99, 0.5)):
    """A classifier whose two BatchNorms forget at different speeds, neither of them torch's."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            for momentum in momenta:
                x = nn.BatchNorm(use_running_average=not train, momentum=momentum)(nn.Conv(4, (3, 3))(x))
            return nn.Dense(10)(nn.relu(x).mean((1, 2)))

    def train(variables, x, key, axis_name=None):
        logits, new = net.apply(variables, x, train=True, mutable=["batch_stats"])
        return logits, new["batch_stats"]

    net = Network()
    return Classifier(net.init, net.apply, train, None)


def test_running_statistics_are_those_of_all_passes_one_after_the_other():
    clf, batch, steps = two_norms(), digits(8), 3
    rule = learned.fixed(optax.sign_sgd(0.05))
    defense = saddle.unrolled(clf, rule, BALL, saddle.adversarial(), steps=steps, start=attacks.clean, query="train")
    variables = clf.init(jax.random.key(0), batch.x)
    params, stats = Players(variables["params"], {}), Players(variables["batch_stats"], {})
    made = jax.jit(lambda: defense.objective(params, stats, jax.random.key(1), batch, "classifier")[1][0].classifier)()

    x = batch.x
    for _ in range(steps):
        gradient = jax.grad(lambda x: losses.cross_entropy(clf.train(variables, x, None)[0], batch.y).sum())(x)
        variables["batch_stats"] = clf.train(variables, x, None)[1]
        x = BALL.project(x + 0.05 * jnp.sign(gradient), batch.x)
    chex.assert_trees_all_close(made, clf.train(variables, x, None)[1], rtol=1e-5, atol=1e-6)


def test_options_and_unknown_names():
    assert defenses.options("rnn_trades")["beta"] == 6.0
    assert set(defenses.options("rnn_adv")) < set(defenses.options("rnn_trades"))
    assert "inputs" not in defenses.options("grad_l2l")
    clf = models.create("digits_cnn")
    with pytest.raises(L2LError, match="unknown method 'pgd': choose one of plain"):
        defenses.create("pgd", clf, BALL)
    with pytest.raises(L2LError, match="no option 'beta'"):
        defenses.create("pgd_adv", clf, BALL, beta=1.0)
    for method, option in [
        ("fgsm_adv", {"labels": "leaked"}),
        ("rnn_adv", {"weights": "last"}),
        ("trades", {"start": "zero"}),
        ("grad_l2l", {"attacker": "huge"}),
        ("grad_l2l", {"attacker_width": 0}),
    ]:
        with pytest.raises(L2LError, match="choose|give"):
            defenses.create(method, clf, BALL, **option)


@pytest.mark.parametrize("method", ["trades", "pgd_adv"])
def test_clean_and_adversarial_passes_draw_their_own_dropout_masks(method):
    """In a ball of radius 0 both images are the same, and so are the logits of equal masks."""
    clf, batch = tiny_classifier(rate=0.5), Batch(jax.random.uniform(jax.random.key(0), (8, 8, 8, 1)), jnp.arange(8))
    variables = clf.init(jax.random.key(1), batch.x)
    params, stats = Players(variables["params"], {}), Players(variables["batch_stats"], {})

    def loss(**weight):
        defense = defenses.create(method, clf, threat.linf(0.0), steps=1, **weight)
        return float(defense.objective(params, stats, jax.random.key(2), batch, "joint")[0])

    name, weights = {"trades": ("beta", (1.0, 9.0)), "pgd_adv": ("clean_weight", (0.1, 0.9))}[method]
    assert abs(loss(**{name: weights[0]}) - loss(**{name: weights[1]})) > 1e-3


def test_l2l_with_the_loss_of_trades():
    """CE(f(x)) + beta KL(f(x) || f(x_T)), whose second term the attacker ascends, seeing that of the cross-entropy."""
    defense, params, stats = build("grad_l2l", loss="trades", beta=3.0)
    clf, batch, key = fitted_classifier()[0], digits(16), jax.random.key(5)
    logits_fn = functools.partial(clf.logits, {"params": params.classifier})
    images = build("grad_l2l")[0].attack(params.attacker, stats.attacker)(logits_fn, key, batch.x, batch.y)
    value = defense.objective(params, stats, key, batch, "classifier")[0]
    clean, adversarial = logits_fn(batch.x), logits_fn(images)
    expected = losses.cross_entropy(clean, batch.y) + 3 * losses.kl(clean, adversarial)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-4)

    def ascent(beta):
        objective = build("grad_l2l", loss="trades", beta=beta)[0].objective
        return jax.grad(lambda p: objective(p, stats, key, batch, "attacker")[0])(params).attacker

    one, three = (optax.tree_utils.tree_norm(ascent(beta)) for beta in (1.0, 3.0))
    np.testing.assert_allclose(three / one, 3.0, rtol=1e-4)
