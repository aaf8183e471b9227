"""The loop that unrolls an optimizer of the input: against NumPy loops, and its derivatives, in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.lax import stop_gradient

from l2ljax import losses, threat
from l2ljax.attacks import ascent, gradient, learned
from l2ljax.types import L2LError, example_keys
from tests.reference import ascent as reference

pytestmark = pytest.mark.usefixtures("float64")
RNG = np.random.RandomState(0)
W1, W2 = RNG.normal(0, 0.8, (8, 36)), RNG.normal(0, 1.5, (3, 8))
X0 = RNG.uniform(-0.2, 1.2, (4, 6, 6, 1)).clip(0, 1)
Y = np.array([0, 1, 2, 1])
EPS, STEPS = 0.15, 4
START = np.clip(X0 + RNG.uniform(-0.1, 0.1, X0.shape), 0, 1)


def logits(x, w1=W1, w2=W2):
    return jnp.tanh(x.reshape(len(x), -1) @ w1.T) @ jnp.asarray(w2).T


def loss_fn(x):
    return losses.cross_entropy(logits(x), Y), ()


def from_start(ball, key, x0):
    return jnp.asarray(START)


def run(rule, *, loss_fn=loss_fn, ball=None, key=None, steps=STEPS, **options):
    ball = ball or threat.linf(EPS)
    key = jax.random.key(7) if key is None else key
    return ascent.ascend(loss_fn, rule, ball, key, jnp.asarray(X0), steps=steps, **options)


# Against NumPy


def compare(result, runs):
    """The library's trace against the reference's, of one image each."""
    path = np.stack([run[0] for run in runs], axis=1).reshape(len(runs[0][0]), *X0.shape)
    chex.assert_trees_all_close(result.path, path, rtol=0, atol=1e-12)
    chex.assert_trees_all_close(result.losses, np.stack([run[1] for run in runs], axis=1), rtol=1e-10)
    chex.assert_trees_all_close(result.x, path[-1], rtol=0, atol=1e-12)
    assert result.x.dtype == jnp.float64


def each_image(function, project, eps, **options):
    value_and_gradient = functools.partial(reference.loss_and_gradient, W1, W2)
    return [
        function(value_and_gradient, lambda x, x0: project(x, x0, eps), x0=x0, y=y, start=start, **options)
        for x0, y, start in zip(X0.reshape(4, -1), Y, START.reshape(4, -1), strict=True)
    ]


def test_sign_sgd_is_pgd():
    result = run(optax.sign_sgd(0.04), start=from_start)
    compare(result, each_image(reference.pgd, reference.project_linf, EPS, step_size=0.04, steps=STEPS))
    assert (result.losses[-1] > result.losses[0]).all()


MOMENTA = {
    "linf": dict(eps=EPS, project=reference.project_linf, steepest=np.sign, step_size=0.04),
    "l2": dict(eps=0.5, project=reference.project_l2, steepest=lambda m: m / np.linalg.norm(m), step_size=0.2),
}


@pytest.mark.parametrize("name, decay", [("linf", 1.0), ("l2", 0.5)])
def test_momentum_is_mi_fgsm(name, decay):
    setting = dict(MOMENTA[name], steps=STEPS, decay=decay)
    runs = each_image(reference.momentum, setting.pop("project"), setting.pop("eps"), **setting)
    del setting["steepest"]
    attack = gradient.momentum(threat.BALLS[name](MOMENTA[name]["eps"]), start=from_start, **setting)
    x_adv = attack(logits, jax.random.key(0), jnp.asarray(X0), jnp.asarray(Y))
    expected = np.reshape([path[-1] for path, _ in runs], X0.shape)
    chex.assert_trees_all_close(x_adv, expected, rtol=0, atol=1e-12)


LINE_SEARCHES = {
    "linf": dict(eps=EPS, norm=lambda p: np.abs(p).max(), project=reference.project_linf, max_step=8 * EPS, c=0.1),
    "l2": dict(eps=0.5, norm=np.linalg.norm, project=reference.project_l2, max_step=8.0, c=0.3),
}


@pytest.mark.parametrize("name", LINE_SEARCHES)
def test_line_search_halves_each_step_as_often_as_it_must(name):
    setting = dict(LINE_SEARCHES[name])
    eps, norm, project = (setting.pop(k) for k in ("eps", "norm", "project"))
    rule = gradient.backtracking(rho=0.5, halvings=10, **setting)
    result = run(rule, ball=threat.BALLS[name](eps), start=from_start, steps=6)
    runs = each_image(reference.line_search, project, eps, norm=norm, rho=0.5, halvings=10, steps=6, **setting)
    compare(result, runs)
    halved = np.array([run[2] for run in runs])
    assert len(set(halved[:, 0])) > 1  # in one step, examples need different numbers of halvings
    assert {0, 10} < set(halved.ravel())  # some none, some all


def test_line_search_takes_its_largest_step_on_vanishing_gradients():
    def tiny(x):
        return 1e-30 * jnp.sum(x, axis=(1, 2, 3)), ()

    with jax.enable_x64(False):
        x = jnp.full((1, 6, 6, 1), 0.5)
        for name in ("linf", "l2"):
            ball = threat.BALLS[name](0.9)
            rule = gradient.backtracking(max_step=0.1)
            x_adv = ascent.ascend(tiny, rule, ball, jax.random.key(0), x, steps=1, start=ascent.clean).x
            chex.assert_trees_all_close(ball.norm(x_adv - x), np.array([0.1]), rtol=1e-4)


# What is returned, and when it was computed


def test_losses_and_aux_are_at_the_points_before_each_step_and_path_after():
    def with_aux(x):
        return loss_fn(x)[0], {"logits": logits(x), "x": x}

    result = run(optax.sign_sgd(0.04), loss_fn=with_aux, start=from_start)
    before = jnp.concatenate([START[None], result.path[:-1]])
    chex.assert_shape(result.path, (STEPS, *X0.shape))
    chex.assert_trees_all_equal(result.path[-1], result.x)
    chex.assert_trees_all_close(result.losses, jnp.stack([loss_fn(x)[0] for x in before]), rtol=1e-12)
    chex.assert_trees_all_close(result.aux["x"], before, rtol=0, atol=1e-15)
    chex.assert_trees_all_close(result.aux["logits"], jnp.stack([logits(x) for x in before]), rtol=1e-10)


@pytest.mark.parametrize("reduced", [jnp.mean, lambda values: values[:, None]], ids=["mean", "column"])
def test_a_loss_that_is_not_one_per_image_is_refused(reduced):
    """A mean would broadcast: each image would be credited with all of them."""
    with pytest.raises(L2LError, match=r"the loss returns \[.*\]: return one value for each of the 4 images"):
        run(optax.sign_sgd(0.04), loss_fn=lambda x: (reduced(loss_fn(x)[0]), ()))


def test_rules_get_the_gradient_of_minus_the_losses_and_the_extras():
    seen = []

    def update(grads, state, x, *, x0, losses, aux, loss_fn, ball):
        seen.append(ball)
        state = {"grads": grads, "x": x, "x0": x0, "losses": losses, "again": loss_fn(x)[0]}
        return -0.04 * jnp.sign(grads), state

    def init(x):
        return {"grads": x, "x": x, "x0": x, "losses": jnp.zeros(len(x)), "again": jnp.zeros(len(x))}

    ball = threat.linf(EPS)
    result = run(optax.GradientTransformationExtraArgs(init, update), ball=ball, start=from_start)
    state, last = result.state, result.path[-2]
    assert all(b is ball for b in seen)
    chex.assert_trees_all_close(state["x"], last, rtol=0, atol=1e-15)
    chex.assert_trees_all_equal(state["x0"], jnp.asarray(X0))
    chex.assert_trees_all_equal(state["losses"], result.losses[-1])
    chex.assert_trees_all_close(state["again"], result.losses[-1], rtol=1e-12)
    expected = jax.grad(lambda x: -loss_fn(x)[0].sum())(last)
    chex.assert_trees_all_close(state["grads"], expected, rtol=1e-9, atol=1e-12)


def test_optax_adam_attacks_as_it_stands():
    ball, optimizer = threat.linf(EPS), optax.adam(0.03)
    result = run(optimizer, start=ascent.clean)
    x, state = jnp.asarray(X0), optimizer.init(jnp.asarray(X0))
    for _ in range(STEPS):
        updates, state = optimizer.update(jax.grad(lambda x: -loss_fn(x)[0].sum())(x), state, x)
        x = ball.project(optax.apply_updates(x, updates), X0)
    chex.assert_trees_all_close(result.x, x, rtol=0, atol=1e-10)
    assert (loss_fn(result.x)[0] > loss_fn(X0)[0]).all()


@pytest.mark.parametrize("unroll", [3, True])
def test_unroll_does_not_change_results(unroll):
    kept = optax.chain(optax.trace(0.5), optax.scale(0.1))
    chex.assert_trees_all_close(run(kept, unroll=unroll), run(kept), rtol=0, atol=1e-13)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_steps_may_be_taken_in_several_calls(steps):
    rule, ball, x = optax.chain(optax.trace(0.5), optax.scale(0.1)), threat.linf(EPS), jnp.asarray(X0)
    whole = run(rule)
    carry = ascent.init(rule, ball, jax.random.key(7), x)
    first = ascent.advance(loss_fn, rule, ball, x, carry, steps)
    second = ascent.advance(loss_fn, rule, ball, x, (first.x, first.state), STEPS - steps)
    chex.assert_trees_all_close(jnp.concatenate([first.path, second.path]), whole.path, rtol=0, atol=1e-14)
    chex.assert_trees_all_close(jnp.concatenate([first.losses, second.losses]), whole.losses, rtol=1e-12)
    chex.assert_trees_all_close((second.x, second.state), (whole.x, whole.state), rtol=0, atol=1e-14)


# Starts


@pytest.mark.parametrize("start", [None, ascent.uniform, ascent.gaussian])
def test_one_key_is_one_key_per_example(start):
    keys = example_keys(jax.random.key(7), len(X0))
    still = functools.partial(run, optax.set_to_zero(), steps=1, start=start)
    whole, split, expected = jax.jit(
        lambda: (still().x, still(key=keys).x, (start or ascent.uniform)(threat.linf(EPS), keys, jnp.asarray(X0)))
    )()
    chex.assert_trees_all_close(split, whole, rtol=0, atol=1e-15)
    chex.assert_trees_all_close(whole, expected, rtol=0, atol=1e-15)


def test_starts():
    chex.assert_trees_all_equal(run(optax.set_to_zero(), start=ascent.clean).x, jnp.asarray(X0))
    x0, key, ball = jnp.full((50, 6, 6, 1), 0.5), jax.random.key(1), threat.linf(EPS)
    noise = np.asarray(jax.jit(functools.partial(ascent.gaussian, ball))(key, x0)) - 0.5
    assert abs(noise.std() / 0.001 - 1) < 0.05 and abs(noise.mean()) < 1e-4
    cut = jax.jit(functools.partial(ascent.gaussian, threat.linf(0.0005)))(key, 0 * x0)
    assert cut.min() == 0 and cut.max() == 0.0005  # at the pixels' bound and at the ball's


# Derivatives


def unrolled(loss_fn, rule, ball, x_0, x, steps, of_gradient):
    """Plain back-propagation: the classifier stays in the graph, `of_gradient` says what passes through g_t."""
    x_t, state, values, path = x_0, rule.init(x), [], []
    for _ in range(steps):
        value = loss_fn(x_t)[0]
        g = of_gradient(jax.grad(lambda x: loss_fn(x)[0].sum())(x_t))
        updates, state = rule.update(-g, state, x_t, x0=x, losses=value, loss_fn=loss_fn, ball=ball)
        x_t = ball.project(x_t + updates, x)
        values.append(value)
        path.append(x_t)
    return jnp.stack(values), jnp.stack(path)


def momentum_rule(phi):
    """A smooth rule with parameters: tanh of a leaky sum of gradients."""

    def update(grads, m, x, **_):
        m = jnp.tanh(phi["decay"]) * m + phi["slope"] * grads
        return phi["scale"] * jnp.tanh(m), m

    return optax.GradientTransformationExtraArgs(jnp.zeros_like, update)


def recurrent_rule(phi):
    return learned.recurrent(scale=0.5).rule(phi, {}, example_keys(jax.random.key(0), len(X0)), None)


def recurrent_parameters():
    phi, _ = learned.recurrent().init(jax.random.key(3), jnp.asarray(X0))
    return phi


MOMENTUM = {"decay": 0.6, "slope": -2.0, "scale": 0.06}
WEIGHTS = np.arange(1.0, STEPS + 1)[:, None]
CASES = {
    "momentum-linf": (momentum_rule, lambda: MOMENTUM, threat.linf(0.1)),
    "recurrent-l2": (recurrent_rule, recurrent_parameters, threat.l2(0.25)),
}


def meta_objective(values, path):
    """The weighted losses of the steps, the loss at the end, and something of every point between."""
    return jnp.sum(WEIGHTS * values) + loss_fn(path[-1])[0].sum() + jnp.sum(path**3)


@functools.cache
def by_ascend(case, second_order):
    """The meta-objective and its gradient."""
    rule, parameters, ball = CASES[case]

    @jax.jit
    @jax.value_and_grad
    def objective(phi):
        result = run(rule(phi), ball=ball, start=from_start, second_order=second_order)
        return meta_objective(result.losses, result.path)

    return objective(parameters())


def by_hand(case, second_order):
    """The same by plain back-propagation."""
    rule, parameters, ball = CASES[case]
    of_gradient = (lambda g: g) if second_order else stop_gradient

    @jax.jit
    @jax.value_and_grad
    def objective(phi):
        x, x_0 = jnp.asarray(X0), jnp.asarray(START)
        return meta_objective(*unrolled(loss_fn, rule(phi), ball, x_0, x, STEPS, of_gradient))

    return objective(parameters())


@pytest.mark.parametrize("second_order", [False, True], ids=["first_order", "second_order"])
@pytest.mark.parametrize("case", CASES)
def test_meta_gradient_equals_plain_back_propagation(case, second_order):
    got = by_ascend(case, second_order)
    chex.assert_trees_all_close(got, by_hand(case, second_order), rtol=1e-10, atol=1e-10)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(got[1]))  # there was something to compare


def test_first_order_differs_from_second():
    (value, first), (same, second) = by_ascend("momentum-linf", False), by_ascend("momentum-linf", True)
    chex.assert_trees_all_close(value, same, rtol=1e-12)
    assert abs(first["slope"] / second["slope"] - 1) > 1e-3


def everything(w1, *, second_order=False, constant=lambda w: w):
    """A sum of all that `ascend` returns, as a function of the classifier's first weights."""

    def loss_fn(x):
        z = logits(x, constant(w1))
        return losses.cross_entropy(z, Y), z

    result = run(momentum_rule(MOMENTUM), loss_fn=loss_fn, second_order=second_order, start=from_start)
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(result))


def test_what_the_loss_closes_over_receives_no_gradient():
    chex.assert_trees_all_equal(jax.jit(jax.grad(everything))(W1), jnp.zeros_like(W1))


def test_second_order_leaves_it_to_the_caller_to_hold_the_classifier_constant():
    free = functools.partial(everything, second_order=True)
    assert jnp.abs(jax.jit(jax.grad(free))(W1)).max() > 1e-3
    held = functools.partial(free, constant=stop_gradient)
    chex.assert_trees_all_equal(jax.jit(jax.grad(held))(W1), jnp.zeros_like(W1))


def test_differentiating_the_losses_does_not_run_the_classifier_again():
    calls = []

    @jax.custom_vjp
    def counted(x):
        return x

    def backward(_, g):
        calls.append("backward")
        return (g,)

    counted.defvjp(lambda x: (x, None), backward)

    def objective(phi):
        result = run(momentum_rule(phi), loss_fn=lambda x: loss_fn(counted(x)), start=from_start)
        return jnp.sum(result.losses)

    jax.grad(objective)(MOMENTUM)
    assert len(calls) == 1  # the gradient g_t itself, traced once in the scan
