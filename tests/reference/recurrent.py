"""RNN-Adv's optimizer in plain NumPy, one coordinate and one step at a time."""

import numpy as np


def run(parameters, gradients):
    """Gradients [T, N] -> delta [T, N]: h = tanh(U g + W h + b_2), delta = tanh(V h + b_1), h = 0 at first."""
    u, w, v = (np.asarray(parameters[name], np.float64) for name in "UWV")
    b_1 = float(parameters.get("b_1", 0.0))
    b_2 = np.ravel(parameters.get("b_2", np.zeros(len(u))))
    delta = np.empty(gradients.shape)
    for n in range(gradients.shape[1]):
        h = np.zeros(len(u))
        for t in range(len(gradients)):
            h = np.array([np.tanh(u[i] * gradients[t, n] + w[i] @ h + b_2[i]) for i in range(len(u))])
            delta[t, n] = np.tanh(v @ h + b_1)
    return delta
