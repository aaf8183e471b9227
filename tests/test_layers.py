"""The convolution against the stock rules and plain loops; the layers against torch's definitions."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from l2ljax.models import convolution, layers
from l2ljax.models.normalization import normalize
from l2ljax.types import example_keys

# height, width, in and out channels, kernel, stride, padding
CONVOLUTIONS = {
    "3x3 same": (8, 8, 4, 6, 3, 1, 1),
    "3x3 strided": (8, 8, 4, 6, 3, 2, 1),
    "3x3 strided odd": (7, 9, 3, 5, 3, 2, 1),
    "3x3 valid": (6, 5, 2, 3, 3, 1, 0),
    "1x1": (5, 5, 3, 4, 1, 1, 0),
    "1x1 strided": (8, 7, 3, 4, 1, 2, 0),
    "5x5 valid": (9, 9, 1, 6, 5, 1, 0),
    "5x5 same": (9, 8, 3, 2, 5, 1, 2),
    "5x5 valid to one channel": (9, 8, 24, 1, 5, 1, 0),
    "5x5 to a point": (5, 5, 3, 7, 5, 1, 0),
    "4x4 strided": (8, 8, 3, 8, 4, 2, 1),
    "7x7 strided": (11, 12, 3, 4, 7, 2, 3),
    "3x3 narrow": (6, 13, 16, 3, 3, 1, 1),
    "3x3 of one channel": (8, 8, 1, 16, 3, 1, 1),
    "3x3 of 32 channels": (5, 6, 32, 48, 3, 1, 1),
    "5x5 of 32 channels": (6, 7, 32, 32, 5, 1, 0),
    "3x3 valid of 20 channels": (7, 6, 20, 70, 3, 1, 0),
    "3x3 valid strided": (8, 7, 20, 70, 3, 2, 0),
    "uneven padding of one channel": (6, 7, 1, 5, 3, 1, ((0, 2), (1, 0))),
    "uneven padding": (6, 6, 2, 3, 3, 2, ((0, 1), (2, 1))),
}


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def example(case):
    """Images, kernel, a cotangent of the output, and the two convolutions: ours and the stock one."""
    height, width, c, o, k, s, padding = CONVOLUTIONS[case]
    pairs = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    x, kernel = normal(0, 3, height, width, c), normal(1, k, k, c, o)

    def ours(x, kernel):
        return convolution.conv2d(x, kernel, strides=(s, s), padding=padding)

    def stock(x, kernel):
        return lax.conv_general_dilated(x, kernel, (s, s), pairs, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return x, kernel, normal(2, *jax.eval_shape(stock, x, kernel).shape), ours, stock


def close(a, b):
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    chex.assert_trees_all_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_and_both_gradients_equal_the_stock_ones(case):
    x, kernel, cotangent, ours, stock = example(case)

    def all_three(convolution):
        y, pull_back = jax.vjp(convolution, x, kernel)
        return y, pull_back(cotangent)

    close(jax.jit(lambda: all_three(ours))(), jax.jit(lambda: all_three(stock))())


@pytest.mark.parametrize("case", ["3x3 same", "3x3 strided", "4x4 strided"])
def test_gradients_in_a_scan_equal_the_stock_ones(case):
    x, kernel, _, ours, stock = example(case)

    def unroll(convolution):
        def step(carry, _):
            loss = lambda x, kernel: jnp.sum(jnp.tanh(convolution(x, kernel)))
            gradients = jax.grad(loss, argnums=(0, 1))(*carry)
            return jax.tree.map(lambda a, g: a - 0.1 * g, carry, gradients), None

        return lax.scan(step, (x, kernel), length=3)[0]

    close(jax.jit(lambda: unroll(ours))(), jax.jit(lambda: unroll(stock))())


@pytest.mark.parametrize("case", ["3x3 same", "3x3 strided odd", "1x1 strided", "3x3 narrow"])
def test_gradient_of_gradient_equals_the_stock_one(case):
    x, kernel, _, ours, stock = example(case)
    v, w = normal(3, *x.shape), normal(4, *kernel.shape)

    def second(convolution):
        def slope(x, kernel):  # along (v, w); so its gradient holds every second derivative
            loss = lambda x, kernel: jnp.sum(jnp.tanh(0.1 * convolution(x, kernel)))
            gx, gk = jax.grad(loss, argnums=(0, 1))(x, kernel)
            return jnp.vdot(gx, v) + jnp.vdot(gk, w)

        return jax.grad(slope, argnums=(0, 1))(x, kernel)

    close(jax.jit(lambda: second(ours))(), jax.jit(lambda: second(stock))())


def test_vmapped_gradients_equal_the_stock_ones():
    x, kernel, cotangent, ours, stock = example("3x3 same")

    def per_example(convolution):
        loss = lambda kernel, x, y: jnp.sum(convolution(x[None], kernel) * y)
        return jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(kernel, x, cotangent)

    close(per_example(ours), per_example(stock))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere the stock rule is always used")
def test_forward_mode_is_refused_unless_stock():
    x, kernel, _, ours, stock = example("3x3 same")
    forward = lambda convolution: jax.jvp(lambda x: convolution(x, kernel), (x,), (x,))[1]
    with pytest.raises(TypeError, match="forward-mode"):
        forward(ours)
    with convolution.stock_convolution():
        close(forward(ours), forward(stock))
        transposed = lambda x: convolution.conv_transpose2d(x, normal(5, 4, 4, 2, 4), strides=(2, 2), padding=1)
        close(jax.jvp(transposed, (x,), (x,))[1], transposed(x))  # it is linear
    with pytest.raises(TypeError, match="forward-mode"):  # the switch is off again
        forward(ours)


@pytest.mark.parametrize("k, s, padding, size", [(4, 2, 1, (3, 4)), (3, 2, 1, (4, 3)), (3, 1, 0, (2, 2))])
def test_transposed_convolution_equals_torchs_definition(k, s, padding, size):
    height, width = size
    x, kernel = normal(0, 2, height, width, 3), normal(1, k, k, 5, 3)
    full = np.zeros((2, (height - 1) * s + k, (width - 1) * s + k, 5))
    for p in range(height):
        for q in range(width):
            for i in range(k):
                for j in range(k):
                    full[:, s * p + i, s * q + j] += np.asarray(x)[:, p, q] @ np.asarray(kernel)[i, j].T
    expected = full[:, padding : full.shape[1] - padding, padding : full.shape[2] - padding]

    transposed = lambda x, kernel: convolution.conv_transpose2d(x, kernel, strides=(s, s), padding=padding)
    close(transposed(x, kernel), jnp.asarray(expected, jnp.float32))
    with convolution.stock_convolution():
        y, pull_back = jax.vjp(transposed, x, kernel)
        close(y, transposed(x, kernel))
        gradients = pull_back(normal(2, *y.shape))
    close(jax.vjp(transposed, x, kernel)[1](normal(2, *y.shape)), gradients)


def test_transposed_convolution_doubles_the_size():
    x = normal(0, 2, 7, 5, 3)
    y, variables = layers.ConvTranspose(6).init_with_output(jax.random.key(0), x)
    assert y.shape == (2, 14, 10, 6)
    assert jnp.abs(variables["params"]["kernel"]).max() <= 1 / np.sqrt(4 * 4 * 6)


def test_convolution_starts_as_in_torch():
    module = layers.Conv(64, 3, padding=1)
    params = module.init(jax.random.key(0), jnp.ones((1, 4, 4, 16)))["params"]
    bound = 1 / np.sqrt(3 * 3 * 16)
    for param in params.values():
        assert bound * 0.9 < jnp.abs(param).max() <= bound
        assert jnp.std(param) == pytest.approx(bound / np.sqrt(3), rel=0.15)
    wide = layers.Conv(64, 3, use_bias=False, kernel_init=layers.kaiming_fan_out)
    kernel = wide.init(jax.random.key(0), jnp.ones((1, 4, 4, 16)))["params"]["kernel"]
    assert jnp.std(kernel) == pytest.approx(np.sqrt(2 / (3 * 3 * 64)), rel=0.05)


def test_batch_norm_statistics_are_torchs():
    x = 3 + 2 * normal(0, 4, 3, 3, 2)
    norm = layers.BatchNorm(use_running_average=False)
    variables = norm.init(jax.random.key(0), x)
    y, updated = norm.apply(variables, x, mutable=["batch_stats"])
    data = np.asarray(x, np.float64)
    mean, var = data.mean((0, 1, 2)), data.var((0, 1, 2))
    np.testing.assert_allclose(y, (data - mean) / np.sqrt(var + 1e-5), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * var, rtol=1e-4)


def test_prelu_has_one_slope():
    x = jnp.asarray([[-2.0, 0.0, 3.0]])
    y, variables = layers.PReLU().init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, [[-0.5, 0.0, 3.0]])
    assert variables["params"]["slope"].shape == ()


def test_max_pool_gives_the_gradient_to_the_first_of_equals():
    x = jnp.asarray([[1.0, 1, 5], [1, 1, 5], [7, 7, 7]])[None, :, :, None]  # odd: the rest is cut off
    y, pull_back = jax.vjp(layers.max_pool, x)
    assert y.shape == (1, 1, 1, 1) and y.item() == 1
    (g,) = pull_back(jnp.ones_like(y))
    np.testing.assert_array_equal(g[0, :, :, 0], [[1, 0, 0], [0, 0, 0], [0, 0, 0]])
    random = normal(0, 2, 6, 8, 3)
    np.testing.assert_array_equal(layers.max_pool(random), np.asarray(random).reshape(2, 3, 2, 4, 2, 3).max((2, 4)))


def test_dropout_depends_on_the_examples_key_alone():
    keys, x = example_keys(jax.random.key(0), 6), 1 + jnp.abs(normal(0, 6, 500))
    whole = layers.dropout(keys, x, 0.25)
    halves = [layers.dropout(keys[i : i + 3], x[i : i + 3], 0.25) for i in (0, 3)]
    np.testing.assert_array_equal(whole, jnp.concatenate(halves))
    kept = whole != 0
    np.testing.assert_allclose(whole[kept], x[kept] / 0.75, rtol=1e-6)
    assert kept.mean() == pytest.approx(0.75, abs=0.03)
    assert (kept[0] != kept[1]).any()


def flax_batch_norm(x, scale, bias):
    norm = nn.BatchNorm(use_running_average=False, epsilon=1e-5)
    stats = {"mean": jnp.zeros(x.shape[-1]), "var": jnp.ones(x.shape[-1])}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
    return norm.apply(variables, x, mutable=["batch_stats"])[0]


def test_batch_norms_derivatives_are_those_of_its_operations():
    """First and second ones, of a loss that the mean and the size of y do not decide alone."""
    with jax.enable_x64(True):
        x, target = (jnp.asarray(np.random.default_rng(seed).normal(2, 3, (4, 3, 5, 6))) for seed in (0, 1))
        scale, bias = jnp.linspace(-1.0, 2, 6), jnp.linspace(0.3, -1, 6)
        ours = lambda *args: normalize(*args, 1e-5, None)[0]
        loss = lambda f: lambda *args: jnp.sum((f(*args) - target) ** 3)
        twice = lambda f: lambda *args: sum(jnp.sum(jnp.sin(g)) for g in jax.grad(loss(f), argnums=(0, 1, 2))(*args))
        for order in (loss, twice):
            got, expected = (jax.grad(order(f), argnums=(0, 1, 2))(x, scale, bias) for f in (ours, flax_batch_norm))
            chex.assert_trees_all_close(got, expected, rtol=1e-9, atol=1e-9)


def test_batch_norm_over_devices_is_that_of_the_whole_batch():
    """Each shard's gradient is the whole loss's; scale and bias get the shares, whose sum is the gradient."""
    x, target = normal(0, 4, 3, 5, 6), normal(1, 4, 3, 5, 6)
    scale, bias = jnp.linspace(-1.0, 2, 6), jnp.linspace(0.3, -1, 6)

    def gradients(axis_name):
        loss = lambda x, scale, bias, target: jnp.sum((normalize(x, scale, bias, 1e-5, axis_name)[0] - target) ** 3)
        return jax.grad(loss, argnums=(0, 1, 2))

    whole = gradients(None)(x, scale, bias, target)
    shards = [a.reshape(2, 2, *a.shape[1:]) for a in (x, target)]
    dx, dscale, dbias = jax.vmap(gradients("b"), (0, None, None, 0), axis_name="b")(shards[0], scale, bias, shards[1])
    chex.assert_trees_all_close((dx.reshape(x.shape), dscale.sum(0), dbias.sum(0)), whole, rtol=2e-5, atol=2e-4)
