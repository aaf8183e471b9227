"""Every classifier against the `Classifier` contract, and each network's own facts."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import models
from l2ljax.models import resnet
from l2ljax.types import L2LError

# Parameters for ten classes, image shape, penultimate width.
NETWORKS = {
    "digits_cnn": (65_994, (8, 8, 1), 1024),
    "small_cnn": (312_202, (28, 28, 1), 200),
    "lenet5": (61_706, (28, 28, 1), 84),
    "vgg16": (14_728_266, (32, 32, 3), 512),
    "resnet20": (269_722, (32, 32, 3), 64),
    "resnet18": (11_173_962, (32, 32, 3), 512),
    "resnet18_imagenet": (11_181_642, (224, 224, 3), 512),
    "preact_resnet18": (11_171_146, (32, 32, 3), 512),
    "wrn_28_10": (36_479_194, (32, 32, 3), 640),
    "wrn_34_10": (46_160_474, (32, 32, 3), 640),
}
SMALL = ["digits_cnn", "small_cnn", "lenet5", "resnet20"]  # quick enough to run; the others are traced


def images(name, n=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(n, *NETWORKS[name][1])), jnp.float32)


@pytest.fixture(scope="module")
def built():
    """name -> (jitted classifier, variables), made once, with statistics and last layer not at their start."""
    made = {}

    def build(name):
        if name not in made:
            classifier = models.Classifier(*map(jax.jit, models.create(name)))
            variables = classifier.init(jax.random.key(0), images(name))
            rng = np.random.default_rng(0)
            moved = lambda leaf: leaf + np.float32(0.05) * np.abs(rng.normal(size=leaf.shape)).astype("f")
            made[name] = classifier, jax.tree.map(moved, variables)
        return made[name]

    return build


def test_table_covers_every_classifier():
    assert NETWORKS.keys() == models.CLASSIFIERS.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_and_parameter_counts(name):
    count, shape, width = NETWORKS[name]
    classifier = models.create(name)
    x = jax.ShapeDtypeStruct((5, *shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(classifier.init, key, x)
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == count
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    logits, batch_stats = jax.eval_shape(classifier.train, variables, x, key)
    chex.assert_shape([jax.eval_shape(classifier.logits, variables, x), logits], (5, 10))
    chex.assert_shape(jax.eval_shape(classifier.features, variables, x), (5, width))
    chex.assert_trees_all_equal_shapes_and_dtypes(batch_stats, variables["batch_stats"])


@pytest.mark.parametrize(
    ("name", "num_classes", "count"),
    [("wrn_34_10", 100, 46_218_164), ("resnet18_imagenet", 9, 11_181_129), ("resnet18_imagenet", 1000, 11_689_512)],
)  # the last is torchvision's
def test_number_of_classes(name, num_classes, count):
    classifier = models.create(name, num_classes=num_classes)
    x = jnp.ones((1, *NETWORKS[name][1]))
    variables = jax.eval_shape(classifier.init, jax.random.key(0), x)
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == count
    assert jax.eval_shape(classifier.logits, variables, x).shape == (1, num_classes)


@pytest.mark.parametrize("name", SMALL)
def test_evaluation_does_not_see_neighbours(name, built):
    classifier, variables = built(name)
    x = images(name)
    logits = classifier.logits(variables, x)
    others = classifier.logits(variables, jnp.concatenate([x[:1], images(name, n=3, seed=1)]))
    np.testing.assert_allclose(others[0], logits[0], rtol=1e-4, atol=1e-5)
    assert (others[1:] != logits[1:]).any(axis=1).all()


@pytest.mark.parametrize("name", SMALL)
def test_does_not_recompile(name, built):
    classifier, variables = built(name)
    sizes = []
    for seed in range(2):
        _, batch_stats = classifier.train(variables, images(name, seed=seed), jax.random.key(seed))
        variables = {**variables, "batch_stats": batch_stats}
        classifier.logits(variables, images(name, seed=seed))
        sizes.append((classifier.train._cache_size(), classifier.logits._cache_size()))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", SMALL)
def test_half_precision_logits_are_close(name, built):
    classifier, variables = built(name)
    half = models.create(name, dtype=jnp.bfloat16)
    x = images(name)
    exact, rough = classifier.logits(variables, x), jax.jit(half.logits)(variables, x)
    assert rough.dtype == jnp.float32
    assert jax.eval_shape(half.train, variables, x, jax.random.key(0))[0].dtype == jnp.float32
    assert 0 < jnp.abs(rough - exact).max() < 0.03 * jnp.abs(exact).max()
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(half.init, jax.random.key(0), x), variables)


def test_training_mode_uses_and_updates_batch_statistics(built):
    classifier, variables = built("resnet20")
    x = images("resnet20")
    logits, batch_stats = classifier.train(variables, x, jax.random.key(0))
    assert jnp.abs(logits - classifier.logits(variables, x)).max() > 1e-2
    mean, std = np.asarray((0.485, 0.456, 0.406)), np.asarray((0.229, 0.224, 0.225))
    stem = jax.lax.conv(  # NCHW, OIHW
        jnp.asarray(((np.asarray(x) - mean) / std).transpose(0, 3, 1, 2), jnp.float32),
        variables["params"]["Conv_0"]["kernel"].transpose(3, 2, 0, 1),
        (1, 1),
        "SAME",
    )
    before, after = variables["batch_stats"]["BatchNorm_0"], batch_stats["BatchNorm_0"]
    np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * stem.mean((0, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * stem.var((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_only_small_cnn_is_stochastic_and_per_example(built):
    keys = jax.random.split(jax.random.key(0), 4)
    for name in SMALL:
        classifier, variables = built(name)
        x = images(name)
        one, _ = classifier.train(variables, x, keys)
        other, _ = classifier.train(variables, x, jax.random.key(9))
        assert (one != other).any() == (name == "small_cnn")
    classifier, variables = built("small_cnn")
    x = images("small_cnn")
    whole, _ = classifier.train(variables, x, keys)
    half, _ = classifier.train(variables, x[2:], keys[2:])
    np.testing.assert_allclose(whole[2:], half, rtol=1e-4, atol=1e-5)


def test_small_cnn_starts_with_zero_logits():
    classifier = models.create("small_cnn")
    variables = classifier.init(jax.random.key(0), images("small_cnn"))
    assert variables["batch_stats"] == {}
    assert not jax.jit(classifier.logits)(variables, images("small_cnn")).any()
    assert jnp.std(variables["params"]["Conv_1"]["kernel"]) == pytest.approx(np.sqrt(2 / 288), rel=0.05)


def test_features_feed_the_last_layer(built):
    for name in SMALL:
        classifier, variables = built(name)
        last = max(k for k in variables["params"] if k.startswith("Dense"))
        dense = variables["params"][last]
        logits = classifier.features(variables, images(name)) @ dense["kernel"] + dense["bias"]
        np.testing.assert_allclose(logits, classifier.logits(variables, images(name)), rtol=1e-3, atol=1e-3)


def test_resnet20_shortcuts_pad_with_zeros(built):
    def zeros(features, kernel_size, strides=1, padding=0):  # a convolution whose kernel is zero
        return lambda x: jnp.zeros((len(x), x.shape[1] // strides, x.shape[2] // strides, features))

    block = resnet.BasicBlock(32, 2, zeros, lambda: lambda x: x, zero_pad=True)
    x = jnp.arange(2 * 8 * 8 * 16.0).reshape(2, 8, 8, 16)
    y = block.apply({}, x)
    np.testing.assert_array_equal(y[..., 8:24], x[:, ::2, ::2])
    assert not y[..., :8].any() and not y[..., 24:].any()
    _, variables = built("resnet20")
    assert variables["params"]["BasicBlock_3"].keys() == {"Conv_0", "Conv_1", "BatchNorm_0", "BatchNorm_1"}


@pytest.mark.parametrize("norm", [True, False])
def test_imagenets_stem_is_convolution_norm_and_padded_pooling(norm):
    """The stem alone, with no groups, against NumPy; below zero, without ReLU, the pooling's padding must not win."""
    module = resnet.resnet18_imagenet(stem=4, stem_norm=norm, widths=(), depths=(), num_classes=4)
    x = np.random.default_rng(0).uniform(size=(2, 17, 20, 3))
    variables = module.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    kernel = np.asarray(variables["params"]["Conv_0"]["kernel"])
    assert kernel.shape == (7, 7, 3, 4)
    kernel = kernel if norm else -np.abs(kernel)
    params = {**variables["params"], "Conv_0": {"kernel": kernel}}
    stats = {}
    if norm:
        params["BatchNorm_0"] = {"scale": -jnp.ones(4), "bias": jnp.full(4, 0.1)}
        stats["BatchNorm_0"] = {"mean": jnp.full(4, 0.3), "var": jnp.ones(4)}
    _, features = module.apply({"params": params, "batch_stats": stats}, jnp.asarray(x, jnp.float32))
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (1, 2))[:, ::2, ::2]
    y = np.einsum("bpqcij,ijco->bpqo", windows, kernel)
    y = np.maximum(0.1 - (y - 0.3) / np.sqrt(1 + 1e-5), 0) if norm else y
    padded = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    pooled = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2].max((-2, -1))
    assert pooled.shape == (2, 5, 5, 4)
    np.testing.assert_allclose(features, pooled.mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_resnets_take_grey_images_of_other_sizes():
    for name in ("resnet20", "preact_resnet18"):
        classifier = models.create(name)
        x = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
        variables = jax.eval_shape(lambda x, c=classifier: c.init(jax.random.key(0), x), x)
        assert jax.eval_shape(classifier.logits, variables, x).shape == (2, 10)


def test_bad_input_is_told_plainly(built):
    with pytest.raises(L2LError, match=r"unknown classifier 'resnet21'.*resnet20"):
        models.create("resnet21")
    with pytest.raises(L2LError, match=r"small_cnn takes images \[B, 28, 28, 1\], got \[2, 32, 32, 3\]"):
        models.create("small_cnn").init(jax.random.key(0), jnp.ones((2, 32, 32, 3)))
    classifier, variables = built("resnet20")
    for call in (classifier.logits, classifier.features, jax.jit(classifier.logits)):
        with pytest.raises(L2LError, match=r"resnet20 takes images \[B, H, W, C\], got \[32, 32, 3\]"):
            call(variables, jnp.ones((32, 32, 3)))
    for channels in (2, 4):
        with pytest.raises(L2LError, match=f"resnet20 normalizes 3 channels, and images have {channels}: use resnet18"):
            models.create("resnet20").init(jax.random.key(0), jnp.ones((2, 8, 8, channels)))
    with pytest.raises(L2LError, match=r"vgg16 takes images \[B, 32, 32, C\]"):
        jax.eval_shape(models.create("vgg16").init, jax.random.key(0), jnp.ones((1, 28, 28, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("block", [functools.partial(resnet.BasicBlock, zero_pad=True), resnet.PreActBlock])
def test_rematerialized_blocks_keep_less_and_have_the_same_gradients(block, monkeypatch):
    small = functools.partial(resnet.ResNet, widths=(4, 8), depths=(1, 1), block=block, stem=4)
    monkeypatch.setitem(models.CLASSIFIERS, "small", small)
    x, key = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3)), jax.random.key(1)
    variables = models.create("small").init(key, x)
    gradients, kept = [], []
    for remat in (False, True):
        clf = models.create("small", remat=remat)
        chex.assert_trees_all_equal(clf.init(key, x), variables)

        def loss(params, x, clf=clf):
            return (clf.train({**variables, "params": params}, x, key)[0] ** 2).sum()

        gradients.append(jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], x))
        backward = jax.eval_shape(lambda p, x, loss=loss: jax.vjp(loss, p, x)[1], variables["params"], x)
        kept.append(sum(leaf.size for leaf in jax.tree.leaves(backward)))
    chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-5)
    assert kept[1] < 0.6 * kept[0]


def test_rematerialization_of_resnet20_keeps_a_fraction_of_its_activations():
    """What the backward pass is handed, by JAX's own account; nothing runs."""
    x, kept = jnp.zeros((8, 32, 32, 3)), []
    for remat in (False, True):
        clf = models.create("resnet20", remat=remat)
        variables = jax.eval_shape(clf.init, jax.random.key(0), x)
        backward = jax.eval_shape(lambda v, x, clf=clf: jax.vjp(clf.train, v, x, jax.random.key(0))[1], variables, x)
        weights = sum(leaf.size for leaf in jax.tree.leaves(variables))
        kept.append(sum(leaf.size for leaf in jax.tree.leaves(backward)) - weights)
    assert kept[1] < kept[0] / 3, kept


def test_networks_without_blocks_cannot_be_rematerialized():
    with pytest.raises(L2LError, match="lenet5 has no residual blocks: leave out --remat"):
        models.create("lenet5", remat=True)
