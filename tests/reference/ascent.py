"""Attacks in plain NumPy: one image, one step and one pixel at a time, on a two-layer tanh network."""

import numpy as np


def loss_and_gradient(w1, w2, x, y):
    """Cross-entropy of w2 tanh(w1 x) at one flat image, and its gradient."""
    hidden = np.tanh(w1 @ x)
    z = w2 @ hidden
    exponentials = np.exp(z - z.max())
    p = exponentials / exponentials.sum()
    loss = np.log(exponentials.sum()) + z.max() - z[y]
    p[y] -= 1
    return loss, w1.T @ ((1 - hidden**2) * (w2.T @ p))


def project_linf(x, x0, eps):
    out = np.empty_like(x)
    for i in range(len(x)):
        out[i] = min(max(x[i], x0[i] - eps, 0.0), x0[i] + eps, 1.0)
    return out


def project_l2(x, x0, eps):
    length = np.sqrt(sum((a - b) ** 2 for a, b in zip(x, x0, strict=True)))
    shrink = eps / length if length > eps else 1.0
    return np.array([min(max(b + shrink * (a - b), 0.0), 1.0) for a, b in zip(x, x0, strict=True)])


def project_l1(x, x0, eps):
    """By bisection of the amount that all changes shrink by, without any other use of their order."""
    u = x - x0
    room = np.where(u > 0, 1 - x0, x0)
    shrunk = lambda t: np.sign(u) * np.minimum(np.maximum(np.abs(u) - t, 0), room)
    low, high = -1e-12, np.abs(u).max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.abs(shrunk(middle)).sum() > eps else (low, middle)
    return x0 + shrunk(high)


def pgd(loss_and_gradient, project, x0, y, start, *, step_size, steps):
    """The path [T, D] and the losses [T] at x_0..x_{T-1} of sign steps from `start`, one image."""
    x, path, losses = start, [], []
    for _ in range(steps):
        loss, g = loss_and_gradient(x, y)
        x = project(x + step_size * np.sign(g), x0)
        path.append(x)
        losses.append(loss)
    return np.array(path), np.array(losses)


def momentum(loss_and_gradient, project, x0, y, start, *, steepest, step_size, steps, decay):
    """The same for MI-FGSM, Dong et al. (2018), eq. 6 and 7: `steepest` is the sign, or the direction for l2."""
    x, m, path, losses = start, np.zeros_like(start), [], []
    for _ in range(steps):
        loss, g = loss_and_gradient(x, y)
        m = decay * m + g / np.abs(g).sum()
        x = project(x + step_size * steepest(m), x0)
        path.append(x)
        losses.append(loss)
    return np.array(path), np.array(losses)


def line_search(loss_and_gradient, project, norm, x0, y, start, *, max_step, rho, c, halvings, steps):
    """The same with the largest sufficient step along the gradient, and how often each was halved [T]."""
    x, path, losses, halved = start, [], [], []
    for _ in range(steps):
        loss, p = loss_and_gradient(x, y)
        a, k = max_step / norm(p), 0
        while k < halvings and loss_and_gradient(project(x + a * p, x0), y)[0] < loss + c * a * (p @ p):
            a, k = rho * a, k + 1
        x = project(x + a * p, x0)
        path.append(x)
        losses.append(loss)
        halved.append(k)
    return np.array(path), np.array(losses), np.array(halved)
