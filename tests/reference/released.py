"""A training step of each paper, written down from its algorithm or its released code, one line after the other.

Networks are given as functions: f(theta, statistics, x, train) -> (logits, statistics) is the classifier, and g(phi,
statistics, features, train, **given) -> (output in (-1, 1), statistics) the attacker. A step changes a `State`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient


class State(NamedTuple):
    theta: Any
    theta_bn: Any
    phi: Any
    phi_bn: Any
    theta_buffers: Any
    """The optimizer's: v of `sgd`, (t, m, v) of `adam`; all 0 at first."""
    phi_buffers: Any


def clamp(x, low, high):
    """torch.clamp, whose derivative is 1 at the bounds."""
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


def cross_entropy(logits, y):
    return -(logits - jax.nn.logsumexp(logits, axis=1, keepdims=True))[jnp.arange(len(y)), y]


def leaves(function, *trees):
    return jax.tree.map(function, *trees)


def sgd(params, grads, buffers, *, lr, decay=0.0, momentum=0.9):
    """torch.optim.SGD: v = m v + (g + decay p); p = p - lr v."""
    buffers = leaves(lambda v, g, p: momentum * v + g + decay * p, buffers, grads, params)
    return leaves(lambda p, v: p - lr * v, params, buffers), buffers


def adam(params, grads, buffers, *, lr, decay=0.0):
    """torch.optim.Adam with betas 0.9 and 0.999, weight decay in the gradient."""
    t, m, v = buffers
    t, grads = t + 1, leaves(lambda g, p: g + decay * p, grads, params)
    m = leaves(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
    v = leaves(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
    move = lambda p, m, v: p - lr * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return leaves(move, params, m, v), (t, m, v)


def clip_norm(grads, longest):
    """torch.nn.utils.clip_grad_norm_."""
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    return leaves(lambda g: g * jnp.minimum(1.0, longest / norm), grads)


def l2l(f, g, state, x, y, *, eps, steps, inputs, theta_step, phi_step):
    """L2L (2021), Algorithm 3, as released: theta first; gradient and perturbation again with the new theta for phi."""

    def attack(theta, theta_bn, phi, phi_bn, f_trains, g_trains):
        delta, x_t = jnp.zeros_like(x), x
        for _ in range(steps):

            def loss(at, bn=theta_bn):
                logits, bn = f(theta, bn, at, f_trains)
                return cross_entropy(logits, y).mean(), bn

            seen = {"image": x_t}
            if "gradient" in inputs:  # for naive L2L the code has no such pass
                u, theta_bn = jax.grad(loss, has_aux=True)(stop_gradient(x_t))
                seen["gradient"] = stop_gradient(u / jnp.abs(u).max())  # the largest of the batch
            out, phi_bn = g(phi, phi_bn, jnp.concatenate([seen[name] for name in inputs], axis=-1), g_trains)
            delta = clamp(delta + eps * out, -eps, eps)
            x_t = clamp(x + delta, 0, 1)
        return x_t, theta_bn, phi_bn

    x_adv, theta_bn, _ = attack(state.theta, state.theta_bn, state.phi, state.phi_bn, True, False)

    def of_theta(theta):
        logits, bn = f(theta, theta_bn, stop_gradient(x_adv), True)
        return cross_entropy(logits, y).mean(), bn

    grads, theta_bn = jax.grad(of_theta, has_aux=True)(state.theta)
    theta, theta_buffers = theta_step(state.theta, grads, state.theta_buffers)

    def of_phi(phi):
        x_adv, _, phi_bn = attack(theta, theta_bn, phi, state.phi_bn, False, True)
        return -cross_entropy(f(theta, theta_bn, x_adv, False)[0], y).mean(), phi_bn

    grads, phi_bn = jax.grad(of_phi, has_aux=True)(state.phi)
    phi, phi_buffers = phi_step(state.phi, grads, state.phi_buffers)
    return State(theta, theta_bn, phi, phi_bn, theta_buffers, phi_buffers)


def rnn_adv(f, state, x, y, *, eps, noise, steps, theta_step, phi_step):
    """RNN-Adv, Algorithm 1 with eq. 5-10: the raw gradient of the summed loss, tanh without a scale, w_t = t.

    Both players move from one attack. The paper does not give BatchNorm's modes: the attack sees running statistics,
    the pass at x'_T, which gives both players' last loss, the batch's.
    """

    def project(at):
        return clamp(clamp(at, x - eps, x + eps), 0, 1)

    def attack(phi):
        x_t, weighted = project(x + noise), 0.0
        h = jnp.zeros((*x.shape, len(phi["U"])))
        for t in range(1, steps + 1):
            loss = lambda at: cross_entropy(f(state.theta, state.theta_bn, at, False)[0], y).sum()
            gradient = stop_gradient(jax.grad(loss)(x_t))
            h = jnp.tanh(gradient[..., None] * phi["U"] + h @ phi["W"].T)
            x_t = project(x_t + jnp.tanh(h @ phi["V"]))
            logits, _ = f(state.theta, state.theta_bn, x_t, t == steps)
            weighted += t * cross_entropy(logits, y).mean()
        return weighted, x_t

    phi_grads, x_adv = jax.grad(lambda phi: (-attack(phi)[0], attack(phi)[1]), has_aux=True)(state.phi)

    def of_theta(theta):
        logits, bn = f(theta, state.theta_bn, stop_gradient(x_adv), True)
        return cross_entropy(logits, y).mean(), bn

    theta_grads, theta_bn = jax.grad(of_theta, has_aux=True)(state.theta)
    theta, theta_buffers = theta_step(state.theta, theta_grads, state.theta_buffers)
    phi, phi_buffers = phi_step(state.phi, phi_grads, state.phi_buffers)
    return State(theta, theta_bn, phi, state.phi_bn, theta_buffers, phi_buffers)


def l2l_da(f, g, state, x, y, *, eps, z, diversity, steps, theta_step, phi_step):
    """L2L-DA, Algorithm 1 as released: two latents [2 B, .], phi then theta on the same images, gradients clipped to 1.

    f has no BatchNorm and no dropout, so that the mode of its pass at x_T does not matter.
    """
    xx, yy, n = jnp.concatenate([x, x]), jnp.concatenate([y, y]), len(x)
    classify = lambda theta, at: f(theta, state.theta_bn, at, False)[0]

    def attack(phi):
        delta, x_t, bn, total = jnp.zeros_like(xx), xx, state.phi_bn, 0.0
        for _ in range(steps):
            u = jax.grad(lambda at: cross_entropy(classify(state.theta, at), yy).mean())(stop_gradient(x_t))
            u = stop_gradient(u / (jnp.sqrt(jnp.sum(u**2, axis=(1, 2), keepdims=True)) + 1e-15))
            out, bn = g(phi, bn, jnp.concatenate([xx, u, delta], axis=-1), True, y=yy, z=z)
            delta = clamp(delta + eps / 4 * out, -eps, eps)
            x_t = clamp(xx + delta, 0, 1)
            apart = jnp.abs(x_t[:n] - x_t[n:]).mean(axis=(1, 2, 3)) / (jnp.abs(z[:n] - z[n:]).mean(axis=1) + 1e-8)
            total += cross_entropy(classify(state.theta, x_t), yy).mean() + diversity * apart.mean()
        return -total, (x_t, bn)

    phi_grads, (x_adv, phi_bn) = jax.grad(attack, has_aux=True)(state.phi)

    def of_theta(theta):
        return cross_entropy(
            classify(theta, jnp.concatenate([x, stop_gradient(x_adv)])), jnp.concatenate([y, yy])
        ).mean()

    theta_grads = jax.grad(of_theta)(state.theta)
    phi, phi_buffers = phi_step(state.phi, clip_norm(phi_grads, 1.0), state.phi_buffers)
    theta, theta_buffers = theta_step(state.theta, clip_norm(theta_grads, 1.0), state.theta_buffers)
    return State(theta, state.theta_bn, phi, phi_bn, theta_buffers, phi_buffers)


def ait_l2l(f, features, g, state, x, y, *, eps, noise, label_eps, theta_step, phi_step):
    """AIT + L2L (2021), Algorithm 4 as released: phi, then theta, on one perturbation towards the reversed batch.

    The released code shows the attacker the gradient of the distance, here it is that of minus the distance: the
    objective that it ascends. Weights whose sign is as likely as its opposite make no difference between them.
    """
    start, k = x + noise, 10
    target = features(state.theta, state.theta_bn, x[::-1])

    def distance(at):
        a = features(state.theta, state.theta_bn, at)
        length = lambda v: jnp.sqrt(jnp.sum(v**2, axis=1))
        return 1 - jnp.sum(a * target, axis=1) / (length(a) * length(target))

    u = jax.grad(lambda at: -distance(at).mean())(start)

    def of_phi(phi):
        out, bn = g(phi, state.phi_bn, jnp.concatenate([start, u / jnp.abs(u).max()], axis=-1), True)
        moved = clamp(clamp(start + eps * out, x - eps, x + eps), 0, 1)
        return distance(moved).mean(), (moved, bn)

    phi_grads, (moved, phi_bn) = jax.grad(of_phi, has_aux=True)(state.phi)
    phi, phi_buffers = phi_step(state.phi, phi_grads, state.phi_buffers)
    one_hot = jax.nn.one_hot(y, k, dtype=x.dtype)
    labels = (1 - label_eps) * one_hot + label_eps * (1 - one_hot[::-1]) / (k - 1)

    def of_theta(theta):
        logits, bn = f(theta, state.theta_bn, stop_gradient(moved), True)
        return -(labels * jax.nn.log_softmax(logits)).sum(axis=1).mean(), bn

    grads, theta_bn = jax.grad(of_theta, has_aux=True)(state.theta)
    theta, theta_buffers = theta_step(state.theta, grads, state.theta_buffers)
    return State(theta, theta_bn, phi, phi_bn, theta_buffers, phi_buffers)
