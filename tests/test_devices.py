"""A device per core, and batches over devices: the same results, on all of them."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import devices
from l2ljax.models import convolution

JUDGE = """
    import json
    import jax, numpy as np
    from l2ljax import attacks, data, devices, models, threat
    from l2ljax.evaluate import evaluate, run_in_turn, run_standard_evaluation

    rng = np.random.default_rng(0)
    images, y = rng.integers(0, 256, (13, 8, 8, 1), np.uint8), rng.integers(0, 4, 13)
    w = jax.device_put(rng.normal(size=(64, 4)).astype("f") / 20)
    logits_fn = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, w)
    ball, key = threat.linf(0.02), jax.random.key(3)
    x = images / np.float32(255)
    own = jax.jit(devices.on_each(attacks.create("pgd5", ball)))
    shards = len(own(logits_fn, jax.random.split(key, 12), x[:12], y[:12]).sharding.device_set)
    short = dict(ball=ball, key=key, only=("apgd-ce", "fab-t"), batch_size=5)
    found = [
        evaluate(logits_fn, data.Split(images, y), dict(pgd5=attacks.create("pgd5", ball)), key=key, batch_size=5),
        run_in_turn(logits_fn, x, y, dict(pgd5=attacks.create("pgd5", ball)), key=key, batch_size=5),
        run_in_turn(logits_fn, x, y, dict(pieces=attacks.create("pgd25+first+restarts2", ball)), key=key, batch_size=8),
        run_standard_evaluation(logits_fn, x, y, **short),
    ]
    print(json.dumps([
        len(jax.devices()), shards, found[0].attacks["pgd5"].correct.tolist(),
        *([f.robust.tolist(), np.float64(f.x_adv).tolist()] for f in found[1:]),
    ]))
"""


def run(code, **environment):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_evaluations_are_the_same_on_two_devices_as_on_one():
    one, two = (json.loads(run(JUDGE, JAX_NUM_CPU_DEVICES=str(n))) for n in (1, 2))
    assert one[:2] == [1, 1]
    assert two[:2] == [2, 2]
    assert two[2] == one[2]
    for (robust, x_adv), (robust_one, x_adv_one) in zip(two[3:], one[3:], strict=True):
        assert robust == robust_one
        np.testing.assert_allclose(x_adv, x_adv_one, atol=1e-6)
        assert 0 < sum(robust) < len(robust)


def test_each_core_becomes_a_device_unless_jax_was_told_otherwise():
    count = "from l2ljax import devices; devices.one_per_core(); import jax; print(jax.local_device_count())"
    cores = min(devices.cores(), devices.MOST)
    assert run(count).strip() == str(cores)
    assert run(count, JAX_NUM_CPU_DEVICES="3").strip() == "3"
    assert run(count, XLA_FLAGS="--xla_force_host_platform_device_count=4").strip() == "4"
    late = "import jax; jax.devices(); from l2ljax import devices; devices.one_per_core(); print(len(jax.devices()))"
    assert run(late).strip() == "1"


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_kept_unless_glibc_was_told_otherwise(monkeypatch):
    monkeypatch.delenv("MALLOC_PERTURB_")
    code = """
        import resource
        from l2ljax import devices
        devices.keep_freed_memory()
        def faults():  # of writing 64 MB in pages of 4 kB, or in larger ones
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            len(b"1" * 2**26)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        faults()
        print(faults())
    """
    assert int(run(code)) < 100
    assert int(run(code, MALLOC_PERTURB_="0")) > 10_000


def test_what_does_not_split_is_told():
    code = """
        import numpy as np
        from l2ljax import devices
        print(devices.round_up(1), devices.round_up(4), devices.round_up(5))
        try:
            devices.shard((np.ones((3, 2)), np.ones(3)))
        except devices.L2LError as error:
            print(error)
        import jax
        from l2ljax.types import example_keys
        attack = jax.jit(devices.on_each(lambda logits_fn, key, x, y: x + y[:, None]))
        for key, n in ((jax.random.key(0), 4), (example_keys(jax.random.key(0), 3), 3)):
            try:
                attack(None, key, np.ones((n, 2)), np.ones(n))
            except devices.L2LError as error:
                print(error)
        keys, x, y = example_keys(jax.random.key(0), 4), np.ones((4, 2)), np.ones(4)
        print(attack(None, keys, x, y).sum())
        asking = devices.on_each(lambda logits_fn, key, x, y: logits_fn(x))
        for run in (asking, jax.jit(asking, static_argnums=0)):  # a plain function as the model
            assert (run(lambda x: 2 * x, keys, x, y) == 2 * x).all()
    """
    lines = run(code, JAX_NUM_CPU_DEVICES="2").splitlines()
    fix = "give arrays [B], keys by types.example_keys(key, B), with B a multiple of 2"
    told = f"the arguments do not split over 2 devices: {fix}"
    assert lines == ["2 4 6", "a batch of 3 does not split over 2 devices: give a multiple of 2", told, told, "16.0"]


@pytest.mark.parametrize("width", [7, 8])
def test_a_device_with_one_core_convolves_the_same(monkeypatch, width):
    rng = np.random.default_rng(width)
    x, kernel = rng.normal(size=(2, 5, width, 16)), rng.normal(size=(3, 3, 16, 16))
    programs, found = [], []

    def gradients(x, kernel):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(convolution.conv2d(x, kernel, padding=1)))

        return jax.value_and_grad(loss, (0, 1))(x, kernel)

    with jax.enable_x64(True):
        for own_core in (False, True):
            monkeypatch.setattr(devices, "own_core", lambda own_core=own_core: own_core)
            lowered = jax.jit(lambda x, kernel: gradients(x, kernel)).lower(x, kernel)
            programs.append(lowered.as_text())
            found.append(jax.tree.map(np.asarray, lowered.compile()(x, kernel)))
    assert programs[0] != programs[1]
    for blocks, plain in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(blocks, plain, rtol=1e-12, atol=1e-12)


def test_devices_attack_without_waiting_for_each_other():
    code = """
        import jax, numpy as np
        from l2ljax import attacks, devices, threat
        w = np.ones((64, 4), "f")
        logits_fn = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, w)
        attack, x, y = attacks.create("square5", threat.linf(0.1)), np.ones((4, 8, 8, 1), "f"), np.zeros(4, int)
        for found in (devices.on_each(attack), attack):
            args = (devices.replicate(logits_fn), *devices.shard((jax.random.split(jax.random.key(0), 4), x, y)))
            print("all-reduce" in jax.jit(found).lower(*args).compile().as_text())
    """
    assert run(code, JAX_NUM_CPU_DEVICES="2").split() == ["False", "True"]  # its loop ends when all examples are done
