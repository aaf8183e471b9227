"""Communication on paper: a simulated ring, and batches by hand."""

import numpy as np
import pytest

from bench.scaling import all_reduce_seconds, hiding_batch

RNG = np.random.RandomState(0)


def test_a_ring_sends_two_shares_of_all_but_one_part():
    # Simulated: n devices with n chunks each; n - 1 rounds add a neighbour's chunk, n - 1 rounds pass the sums on.
    for n in (2, 3, 8):
        held = RNG.uniform(size=(n, n, 5))
        total, sent, messages = held.sum(axis=0), 0, 0
        for turn in range(2 * (n - 1)):
            for device, chunk in [(d, (d - turn) % n) for d in range(n)]:
                arriving = held[device, chunk].copy()
                there = held[(device + 1) % n]
                there[chunk] = there[chunk] + arriving if turn < n - 1 else arriving
                sent += arriving.nbytes
            messages += 1
        np.testing.assert_allclose(held, np.broadcast_to(total, held.shape))
        nbytes, bandwidth = total.nbytes, 7.0
        assert all_reduce_seconds(nbytes, n, bandwidth=bandwidth) == pytest.approx(sent / n / bandwidth)
        slower = all_reduce_seconds(nbytes, n, bandwidth=bandwidth, latency=0.5)
        assert slower == pytest.approx(sent / n / bandwidth + messages * 0.5)
    assert all_reduce_seconds(10, 1, bandwidth=1.0, latency=1.0) == 0


def test_the_hiding_batch_is_the_smallest_that_computes_as_long():
    # 2 (4 - 1) / 4 of 1000 bytes at 100 bytes/s take 15 s; at 8 operations a second 7 each need 120 / 7 images.
    assert all_reduce_seconds(1000, 4, bandwidth=100) == 15
    assert hiding_batch(1000, 4, overlapped=7, flops=8, bandwidth=100) == 18
    assert hiding_batch(1000, 4, overlapped=8, flops=8, bandwidth=100) == 15
    assert hiding_batch(1000, 1, overlapped=8, flops=8, bandwidth=100) == 0
