"""Other libraries' networks as classifiers: linen and nnx modules and plain functions, trained, defended, attacked."""

import functools

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from l2ljax import defenses, losses, models, threat
from l2ljax.models.cnn import DigitsCNN
from l2ljax.train import AXIS, init_state, make_step
from l2ljax.types import Batch, L2LError, Players, example_keys
from tests.tiny import small

BALL = threat.linf(0.1)
KEY = jax.random.key(5)
X = jax.random.uniform(jax.random.key(0), (8, 6, 6, 1))
BATCH = Batch(X, jnp.arange(8))


class Linen(nn.Module):
    """The same network as `Nnx`, and the same names."""

    rate: float = 0.0

    def setup(self):
        self.conv, self.bn, self.out = nn.Conv(4, (3, 3)), nn.BatchNorm(momentum=0.8), nn.Dense(10)
        self.drop = nn.Dropout(self.rate)

    def embed(self, x, train=False):
        x = nn.relu(self.bn(self.conv(x), use_running_average=not train)).mean((1, 2))
        return self.drop(x, deterministic=not train)

    def __call__(self, x, train):
        return self.out(self.embed(x, train))


class Nnx(nnx.Module):
    def __init__(self, rate=0.0, seed=0):
        rngs = nnx.Rngs(seed)
        self.conv, self.bn = nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, momentum=0.8, rngs=rngs)
        self.drop, self.out = nnx.Dropout(rate, rngs=rngs), nnx.Linear(4, 10, rngs=rngs)

    def embed(self, x):
        return self.drop(nnx.relu(self.bn(self.conv(x))).mean((1, 2)))

    def __call__(self, x):
        return self.out(self.embed(x))


def from_linen(rate=0.0):
    module = Linen(rate)
    return models.from_linen(module, features=lambda variables, x: module.apply(variables, x, method="embed"))


MAKE = {"linen": from_linen, "nnx": lambda rate=0.0: models.from_nnx(Nnx(rate), features=Nnx.embed)}


@functools.cache
def variables():
    """Of both networks, with statistics that are not at their start."""
    first = MAKE["nnx"]().init(KEY, X)
    return jax.tree.map(lambda a: a + 0.1 * jax.random.uniform(KEY, a.shape), first)


def test_a_fingerprint_is_that_of_the_program():
    def other(rate=0.0, scale=1.0, act=nn.relu):
        class Linen(nn.Module):
            @nn.compact
            def __call__(self, x, train):
                x = act(nn.Conv(4, (3, 3))(x)).reshape(len(x), -1)
                return nn.Dense(10)(nn.Dropout(rate)(x, deterministic=not train)) * jnp.full(10, scale)

        return models.from_linen(Linen())

    found = [models.fingerprint(net, X) for net in (other(), other(0.5), other(scale=2.0), other(act=nn.tanh))]
    assert len(set(found)) == 4
    assert found[0] == models.fingerprint(other(), X)  # made again, with other functions in other places
    one, same, wider = (
        models.fingerprint(models.from_nnx(Nnx(seed=seed)), X[:size]) for seed, size in ((0, 8), (1, 8), (0, 4))
    )
    assert one == same != wider
    assert len({models.fingerprint(make(), X) for make in MAKE.values()}) == 2


# The contract


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_modes_statistics_and_features_are_the_networks_own(make):
    clf, v = make(), variables()
    chex.assert_trees_all_equal_shapes_and_dtypes(clf.init(KEY, X), v)
    y = nn.Conv(4, (3, 3)).apply({"params": v["params"]["conv"]}, X)
    mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
    stats = v["batch_stats"]["bn"]

    def rest(mean, var):
        scaled = (y - mean) / jnp.sqrt(var + 1e-5) * v["params"]["bn"]["scale"] + v["params"]["bn"]["bias"]
        features = jnp.maximum(scaled, 0).mean((1, 2))
        return features, features @ v["params"]["out"]["kernel"] + v["params"]["out"]["bias"]

    logits, moved = clf.train(v, X, KEY)
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-5)
    close((clf.features(v, X), clf.logits(v, X)), rest(stats["mean"], stats["var"]))
    close(logits, rest(mean, var)[1])
    close(moved["bn"], {"mean": 0.8 * stats["mean"] + 0.2 * mean, "var": 0.8 * stats["var"] + 0.2 * var})


def test_a_linen_network_starts_as_its_own_init_has_it():
    mine, theirs = models.from_linen(Linen()).init(KEY, X), Linen().init(KEY, X, train=False)
    chex.assert_trees_all_close(mine, theirs, rtol=1e-6)


def test_a_linen_network_starts_at_weights_of_the_callers():
    trained = jax.tree.map(lambda a: a + 1, Linen().init(KEY, X, train=False))
    clf = models.from_linen(Linen(), variables=trained)
    chex.assert_trees_all_equal(clf.init(jax.random.key(9), X), trained)
    chex.assert_trees_all_equal(clf.logits(trained, X), Linen().apply(trained, X, train=False))
    smaller = jax.tree.map(lambda a: a[:1], trained)
    frozen = models.from_linen(Linen(), variables=flax.core.freeze(trained)).init(KEY, X)
    assert jax.tree.structure(frozen) == jax.tree.structure(Linen().init(KEY, X, train=False))
    for others in (smaller, {"params": trained["params"]}, trained | {"batch_stats": 0.0}):
        with pytest.raises(L2LError, match=r"the variables are not Linen's on images \[6, 6, 1\], see \['"):
            models.from_linen(Linen(), variables=others).init(KEY, X)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_dropout_draws_from_the_key_in_training_alone(make):
    clf, v = make(rate=0.5), variables()
    keys = jax.random.split(KEY, 8)
    one, again, other = (clf.train(v, X, key)[0] for key in (KEY, example_keys(KEY, 8), keys[::-1]))
    chex.assert_trees_all_equal(one, again)
    assert jnp.abs(one - other).max() > 1e-2
    chex.assert_trees_all_equal(clf.logits(v, X), MAKE["linen"]().logits(v, X))


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_an_examples_dropout_depends_on_its_key_alone(make):
    clf, v, keys = make(rate=0.5), variables(), jax.random.split(KEY, 8)
    x = X.at[:].set(X[0])  # so that batch statistics are the same for any part
    whole = clf.train(v, x, keys)[0]
    parts = jax.vmap(lambda x, keys: clf.train(v, x, keys, "axis")[0], axis_name="axis")
    chex.assert_trees_all_close(
        parts(x.reshape(2, 4, *x.shape[1:]), keys.reshape(2, 4)).reshape(8, 10), whole, atol=1e-5
    )
    assert len(np.unique(np.round(whole, 4), axis=0)) > 4  # of 2^4 masks
    chex.assert_trees_all_close(clf.train(v, x, keys[::-1])[0], whole[::-1], atol=1e-5)
    # The mask: dense @ features / (1 - rate) where kept.
    features = make().train(v, x, KEY)[0]
    many = jax.vmap(lambda k: clf.train(v, x, k)[0])(jax.random.split(KEY, 60))
    np.testing.assert_allclose(many.mean(axis=(0, 1)), features[0], atol=5 * float(many.std()) / 480**0.5)


def test_dropout_layers_of_one_network_draw_apart():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = jnp.ones((len(x), 40))
            one, two = (nn.Dropout(0.5)(x, deterministic=not train) for _ in range(2))
            odd = nn.Dropout(0.5, name="other")(jnp.ones((3, 40)), deterministic=not train)  # not [B, ...]
            return jnp.concatenate([one, two, jnp.tile(odd[:1], (len(x), 1))], axis=1)

    class TwiceNnx(nnx.Module):
        def __init__(self):
            self.one, self.two = (nnx.Dropout(0.5, rngs=nnx.Rngs(0)) for _ in range(2))

        def __call__(self, x):
            x = jnp.ones((len(x), 40))
            return jnp.concatenate(
                [self.one(x), self.two(x), self.one(jnp.ones((3, 40)))[:1].repeat(len(x), 0)], axis=1
            )

    for clf in (models.from_linen(Twice()), models.from_nnx(TwiceNnx())):
        one, two, odd = np.split(np.asarray(clf.train(clf.init(KEY, X), X, KEY)[0]), 3, axis=1)
        assert {*one.flat} == {*two.flat} == {*odd.flat} == {0.0, 2.0}
        assert (one != two).mean() > 0.3 and (one[0] != one[1]).mean() > 0.2


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_batchnorm_looks_across_devices(make):
    clf, v = make(), variables()
    apart = jax.vmap(lambda x: clf.train(v, x, KEY, "axis"), axis_name="axis")(X.reshape(2, 4, *X.shape[1:]))
    logits, stats = clf.train(v, X, KEY)
    chex.assert_trees_all_close(apart[0].reshape(8, 10), logits, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(apart[1], jax.tree.map(lambda a: jnp.stack([a, a]), stats), rtol=1e-4, atol=1e-6)


class Training(Linen):
    def __call__(self, x, training=True):
        return super().__call__(x, training)


class Deterministic(Linen):
    def __call__(self, x, *, deterministic):
        return super().__call__(x, not deterministic)


class UseRunningAverage(Linen):
    def __call__(self, x, use_running_average=None):
        return super().__call__(x, not use_running_average)


class Moded(Linen):
    def __call__(self, x, mode):
        return super().__call__(x, {"fit": True, "judge": False}[mode])


OWN_WORDS = {"train_kwargs": {"mode": "fit"}, "eval_kwargs": {"mode": "judge"}}


@pytest.mark.parametrize(
    "kind, how", [(Training, {}), (Deterministic, {}), (UseRunningAverage, {}), (Moded, OWN_WORDS)]
)
def test_a_linen_network_says_its_mode_in_its_own_words(kind, how):
    clf, same, v = models.from_linen(kind(), **how), MAKE["linen"](), variables()
    chex.assert_trees_all_equal_shapes(clf.init(KEY, X), v)
    chex.assert_trees_all_equal(clf.logits(v, X), same.logits(v, X))
    chex.assert_trees_all_equal(clf.train(v, X, KEY), same.train(v, X, KEY))


def digits_cnn_of_nnx(params):
    """The network of `models.create("digits_cnn")`, with its weights, in nnx."""

    class Network(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            conv = functools.partial(nnx.Conv, kernel_size=(3, 3), padding=1, rngs=rngs)
            self.Conv_0, self.Conv_1, self.Conv_2 = conv(1, 32), conv(32, 64, strides=2), conv(64, 64)
            self.Dense_0 = nnx.Linear(1024, 10, rngs=rngs)

        def features(self, x):
            for conv in (self.Conv_0, self.Conv_1, self.Conv_2):
                x = nnx.relu(conv(x))
            return x.reshape(len(x), -1)

        def __call__(self, x):
            return self.Dense_0(self.features(x))

    model = Network()
    nnx.update(model, nnx.State(params))
    return models.from_nnx(model, features=Network.features)


def test_digits_cnn_wrapped_is_digits_cnn():
    class Logits(DigitsCNN):
        def __call__(self, x):
            return super().__call__(x)[0]

    x, y = jax.random.uniform(KEY, (4, 8, 8, 1)), jnp.arange(4)
    built_in, net = models.create("digits_cnn"), DigitsCNN()
    v = built_in.init(KEY, x)
    features = lambda v, x: net.apply(v, x)[1]
    wrapped = {
        "linen": models.from_linen(Logits(), features=features),
        "nnx": digits_cnn_of_nnx(v["params"]),
        "functions": models.from_functions(net.init, lambda v, x: net.apply(v, x)[0], features=features),
    }

    def seen(clf):
        """All that defenses and attacks ask of a classifier, and the gradients of both players."""

        def loss(params, x):
            return losses.cross_entropy(clf.train({**v, "params": params}, x, KEY)[0], y).sum()

        return clf.init(KEY, x), clf.logits(v, x), clf.features(v, x), jax.grad(loss, (0, 1))(v["params"], x)

    expected = jax.jit(lambda: seen(built_in))()
    for clf in wrapped.values():
        chex.assert_trees_all_close(jax.jit(lambda clf=clf: seen(clf))(), expected, rtol=1e-3, atol=1e-5)


# Training


METHODS = {"pgd_adv": "joint", "trades": "joint", "rnn_adv": "joint", "grad_l2l": "classifier", "ait": "joint"}


@pytest.mark.parametrize("method, schedule", METHODS.items())
def test_every_kind_of_defense_trains_both_to_the_same(method, schedule):
    ends = []
    for make in MAKE.values():
        clf = make()._replace(init=MAKE["nnx"]().init)
        defense = defenses.create(method, clf, BALL, axis_name=AXIS, **small(method))
        optimizers = Players(optax.sgd(0.1), optax.sgd(0.1))
        state = init_state(KEY, clf, defense, optimizers, X)
        step = make_step(defense, optimizers, schedule=schedule)
        for _ in range(2):
            state, metrics = step(state, BATCH)
        ends.append((state.params, state.stats, metrics))
    chex.assert_trees_all_close(*ends, rtol=1e-3, atol=1e-5)
    assert jnp.abs(ends[0][0].classifier["conv"]["kernel"] - Nnx().conv.kernel).max() > 1e-3


def test_an_nnx_network_trains_as_in_its_own_loop_and_stays_as_it_was():
    model = Nnx()
    clf, before = models.from_nnx(model), nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizers = Players(optax.sgd(0.5), optax.sgd(0.5))
    defense = defenses.create("plain", clf, BALL, axis_name=AXIS)
    state = init_state(KEY, clf, defense, optimizers, X)
    step = make_step(defense, optimizers, schedule="classifier")
    for _ in range(3):
        state, _ = step(state, BATCH)
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(model, nnx.Param)), before)
    chex.assert_trees_all_equal(clf.init(KEY, X)["params"], before)

    model.train()
    optimizer = nnx.Optimizer(model, optax.sgd(0.5), wrt=nnx.Param)
    for _ in range(3):
        gradients = nnx.grad(lambda model: losses.cross_entropy(model(X), BATCH.y).mean())(model)
        optimizer.update(model, gradients)
    theirs = nnx.to_pure_dict(nnx.state(model, nnx.Param)), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    chex.assert_trees_all_close((state.params.classifier, state.stats.classifier), theirs, rtol=1e-4, atol=1e-5)


def plain_functions():
    """A linear network of one's own, without BatchNorm, dropout or features."""

    def init(key, x):
        return {"params": np.zeros((x[0].size, 10), np.float32)}

    return models.from_functions(init, lambda variables, x: x.reshape(len(x), -1) @ variables["params"])


def test_plain_functions_train():
    clf = plain_functions()
    defense = defenses.create("pgd_adv", clf, BALL, steps=2, start="clean", axis_name=AXIS)
    optimizers = Players(optax.sgd(0.1), optax.sgd(0.1))
    state, step = init_state(KEY, clf, defense, optimizers, X), make_step(defense, optimizers)
    first, _ = step(state, BATCH)
    expected = -0.1 * X.reshape(8, -1).T @ (0.1 - jax.nn.one_hot(BATCH.y, 10)) / 8  # the loss is flat: no attack
    chex.assert_trees_all_close(first.params.classifier, expected, rtol=1e-5, atol=1e-6)
    for _ in range(40):
        first, metrics = step(first, BATCH)
    assert metrics["loss"] < 0.9 * jnp.log(10)


def test_bad_networks_are_told_plainly():
    class Silent(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False)(x).mean((1, 2))

    class Caching(nn.Module):
        @nn.compact
        def __call__(self, x):
            return self.variable("cache", "seen", jnp.zeros, (2, 10)).value

    with pytest.raises(L2LError, match="Silent has batch statistics, but its __call__ has none of train, training"):
        models.from_linen(Silent()).init(KEY, X)
    with pytest.raises(L2LError, match="Caching has the collections cache: use from_functions"):
        models.from_linen(Caching()).init(KEY, X)

    class Foreign(nn.Module):
        @nn.compact
        def __call__(self, x, phase):
            return nn.Dense(10)(x.reshape(len(x), -1))

    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x.mean((1, 2)) + jax.random.normal(self.make_rng("noise"))

    with pytest.raises(L2LError, match="Foreign.__call__ needs phase: give train_kwargs and eval_kwargs"):
        models.from_linen(Foreign())
    noisy = models.from_linen(Noisy())
    with pytest.raises(L2LError, match=r"Noisy draws from a stream that it lacks \(.*\): name it in from_linen\(rngs"):
        noisy.train(noisy.init(KEY, X), X, KEY)
    for params, told in [
        ({"w": 1.0}, "a dict without params"),
        ({"params": {"n": 3}}, r"\['n'\] is no array of floats"),
    ]:
        with pytest.raises(L2LError, match=told):
            models.from_functions(lambda key, x, params=params: params, lambda v, x: x).init(KEY, X)
    alone = models.from_functions(lambda key, x: {"params": {}}, lambda v, x: x, lambda v, x, key, axis_name: x)
    with pytest.raises(L2LError, match="train returned no pair"):
        alone.train({"params": {}, "batch_stats": {}}, X[:, 0, 0], KEY)
    for answer, told in [((X, X), "a tuple"), (X, r"\[8, 6, 6, 1\]")]:
        with pytest.raises(L2LError, match=f"the network returns {told}: wrap it"):
            models.from_functions(lambda key, x: {}, lambda v, x, answer=answer: answer).logits({}, X)
    clf = plain_functions()
    ait = defenses.create("ait", clf, BALL)
    params, stats = Players(clf.init(KEY, X)["params"], {}), Players({}, {})
    with pytest.raises(L2LError, match="no features for ait and ait_l2l to compare: make it with features="):
        ait.objective(params, stats, KEY, BATCH, "joint")
