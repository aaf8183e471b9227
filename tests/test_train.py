"""The step and the loop: every method trains, devices share a batch without changing the result, stops are clean."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import defenses, models, threat, train
from l2ljax.train import AXIS, Interrupted, NonFiniteLoss, TrainState, due, init_state, loop, make_step
from l2ljax.types import Batch, L2LError, Players
from tests.tiny import small, tiny_classifier

BALL = threat.linf(0.1)
CASES = [(m, "joint") for m in defenses.METHODS] + [("grad_l2l", "alternating"), ("rnn_adv", "alternating")]


def toy_batch(n=32):
    """Ten classes, each a bright pixel at its own place."""
    y = jnp.arange(n) % 10
    x = 0.2 * jax.random.uniform(jax.random.key(0), (n, 4, 4, 1))
    return Batch(x.at[jnp.arange(n), y // 4, y % 4, 0].add(0.8).clip(0, 1), y)


def setup(method, schedule="joint", clf=None, **options):
    clf = clf or tiny_classifier()
    defense = defenses.create(method, clf, BALL, axis_name=AXIS, **{**small(method), **options})
    optimizers = Players(optax.adam(1e-2), defense.mover or optax.adam(1e-2))
    batch = toy_batch()
    state = init_state(jax.random.key(1), clf, defense, optimizers, batch.x)
    return state, make_step(defense, optimizers, schedule=schedule), batch


@pytest.mark.parametrize("method, schedule", CASES)
def test_every_method_trains(method, schedule):
    state, step, batch = setup(method, schedule)
    history = []
    for _ in range(40):
        state, metrics = step(state, batch)
        history.append(jax.device_get(metrics))
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert int(state.step) == 40
    moves = bool(jax.tree.leaves(state.params.attacker))
    assert moves == (defenses.METHODS[method].learns or method == "free_adv")
    assert all((m["attacker_gradient_norm"] > 0) == moves for m in history)


def test_same_key_same_training():
    (one, step, batch), (two, _, _) = setup("rnn_adv", steps=2), setup("rnn_adv", steps=2)
    for _ in range(3):
        one, _ = step(one, batch)
    for _ in range(3):
        two, _ = step(two, batch)
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)


def test_the_second_step_compiles_nothing(caplog):
    state, step, batch = setup("pgd_adv", steps=2)
    compiled = []
    for _ in range(3):
        caplog.clear()
        with jax.log_compiles():
            state, _ = step(state, batch)
        compiled.append(sum("Finished XLA compilation" in record.getMessage() for record in caplog.records))
    assert compiled[0] > 0 and compiled[1:] == [0, 0]


TWO_DEVICES = """
    import jax
    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp, numpy as np, optax
    from l2ljax import defenses, threat
    from l2ljax.train import AXIS, init_state, make_step
    from l2ljax.types import Batch, Players
    from tests.tiny import small, tiny_classifier

    drop = {drop!r}
    if drop:
        jax.lax.pmean = lambda tree, *args, **kwargs: tree
    for method, schedule, gamma in {cases!r}:
        clf = tiny_classifier(rate=0.3, dtype=jnp.float64)
        defense = defenses.create(method, clf, threat.linf(0.1), axis_name=AXIS, **small(method))
        if gamma:
            defense = defenses.perturbed(defense, gamma=gamma, axis_name=AXIS)
        optimizers = Players(optax.sgd(0.1, momentum=0.9), defense.mover or optax.sgd(0.1))
        x = jax.random.uniform(jax.random.key(0), (8, 4, 4, 1), jnp.float64)
        batch = Batch(x, jnp.arange(8))
        ends = []
        for n in (1, 2):
            state = init_state(jax.random.key(1), clf, defense, optimizers, x)
            as_double = lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a
            state = jax.tree.map(as_double, state)
            seen = []
            step = make_step(defense, optimizers, schedule=schedule, devices=jax.devices()[:n])
            for _ in range(3):
                state, metrics = step(state, batch)
            ends.append((state.params, state.stats, metrics))
        gap = max(float(jnp.abs(jax.device_get(a) - jax.device_get(b)).max())
                  for a, b in zip(*map(jax.tree.leaves, ends)))
        print(method, schedule, gap)
"""


def run_with_two_devices(code):
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


FEW = [("rnn_adv", "joint", 0.05), ("grad_l2l", "alternating", 0), ("free_adv", "joint", 0)]
OTHERS = [("l2l_da", "joint", 0), ("ait_l2l", "joint", 0), ("fgsm_sdi", "joint", 0), ("las_at", "alternating", 0)]


@pytest.mark.parametrize(
    "cases", [pytest.param(FEW, id="few"), pytest.param(OTHERS, id="others", marks=pytest.mark.slow)]
)
def test_two_devices_equal_one(cases):
    lines = run_with_two_devices(TWO_DEVICES.format(drop=False, cases=cases))
    assert len(lines) == len(cases)
    assert all(float(line.split()[-1]) < 1e-9 for line in lines), lines


def test_without_the_reduction_two_devices_differ():
    lines = run_with_two_devices(TWO_DEVICES.format(drop=True, cases=[("pgd_adv", "joint", 0)]))
    assert float(lines[0].split()[-1]) > 1e-6


IN_FLIGHT = """
    import itertools
    import jax
    import numpy as np, optax
    from l2ljax import data, defenses, models, threat
    from l2ljax.train import AXIS, init_state, make_step
    from l2ljax.types import Players

    clf = models.create("digits_cnn")
    defense = defenses.create("pgd_adv", clf, threat.linf(0.2), axis_name=AXIS, steps=2)
    optimizers = Players(optax.sgd(0.1), optax.identity())
    split = data.load("digits").train
    batches = data.stream(split, jax.random.key(0), batch_size=100)
    state = init_state(jax.random.key(1), clf, defense, optimizers, split.images[:2] / np.float32(255))
    step = make_step(defense, optimizers)
    history, most = [], 0
    for _, batch in itertools.islice(batches, {steps}):
        state, metrics = step(state, batch)
        history = [m for m in history if not m.is_ready()] + [metrics["loss"]]
        most = max(most, len(history))
    print(len(jax.devices()), most, int(state.step))
"""


def test_two_devices_have_few_steps_under_way():
    devices, most, steps = map(int, run_with_two_devices(IN_FLIGHT.format(steps=60))[-1].split())
    assert (devices, steps) == (2, 60)
    assert most <= train.IN_FLIGHT + 1


@pytest.mark.slow
def test_two_devices_take_thousands_of_steps():
    """Unbounded they stop within a few hundred: XLA's CPU client admits 32 launches, and nothing looks at results."""
    assert run_with_two_devices(IN_FLIGHT.format(steps=3000))[-1].split()[2] == "3000"


def test_each_of_two_devices_holds_half_of_the_batch():
    code = """
        import jax, jax.numpy as jnp, optax
        from l2ljax.train import TrainState, make_step
        from l2ljax.types import Batch, Defense, Players

        shapes = []
        def objective(params, stats, keys, batch, mode):
            shapes.append((batch.x.shape, keys.shape))
            return (params.classifier * batch.x.mean()).sum(), (stats, {"loss": batch.x.mean()})

        step = make_step(Defense(None, objective, None), Players(optax.sgd(1.0), optax.sgd(1.0)))
        empty = Players((), ())
        opt_state = Players(optax.sgd(1.0).init(1.0), optax.sgd(1.0).init(()))
        state = TrainState(jnp.int32(0), Players(jnp.ones(()), ()), empty, opt_state, jax.random.key(0))
        batch = Batch(jnp.ones((6, 2, 2, 1)), jnp.zeros(6, int))
        state, metrics = step(state, batch)
        print(shapes[0], state.params.classifier, len(state.params.classifier.sharding.device_set))
    """
    assert run_with_two_devices(code) == ["((3, 2, 2, 1), (3,)) 0.0 2"]


def test_bad_schedule_and_batches_that_do_not_split():
    state, step, batch = setup("plain")
    with pytest.raises(L2LError, match="unknown schedule 'both'"):
        setup("plain", "both")
    with pytest.raises(L2LError, match="a batch of 0 does not split over 1 devices"):
        step(state, Batch(batch.x[:0], batch.y[:0]))


class Recorder:
    """A caller of `loop` that validates every 5 steps and saves every 4, with all that it does kept."""

    def __init__(self, losses):
        self.losses, self.rows, self.saved, self.validated, self.last = losses, [], [], [], 0

    def train(self, steps, start=0, **options):
        def step(state, batch):
            done = state.step + 1
            return state._replace(step=done), {"loss": jnp.float32(self.losses[int(done) - 1])}

        first = TrainState(jnp.int32(start), None, None, None, None)
        batches = ((i, None) for i in range(start, 10**6))
        for state, rows in loop(first, step, batches, steps=steps, every=(4, 5), **options):
            self.rows += rows
            done = int(state.step)
            if due(rows[-1]["step"], 5, steps=steps):
                self.validated.append(done)
            if due(rows[-1]["step"], 4, steps=steps):
                self.saved.append(done)
            self.last = done
        return state


@pytest.mark.parametrize("flush_seconds", [0.0, 100.0])
def test_the_loop_yields_every_step_once_and_the_state_when_it_is_due(flush_seconds):
    run = Recorder(np.arange(12))
    state = run.train(12, flush_seconds=flush_seconds)
    assert int(state.step) == 12
    assert [row["step"] for row in run.rows] == list(range(1, 13))
    assert [row["loss"] for row in run.rows] == list(range(12))
    assert run.saved == [4, 8, 12] and run.validated == [5, 10, 12]


def test_the_loop_goes_on_from_a_later_step():
    run = Recorder(np.arange(12))
    run.train(12, start=7)
    assert [row["step"] for row in run.rows] == [8, 9, 10, 11, 12]


def test_the_loop_stops_at_a_loss_that_is_not_finite():
    run = Recorder([1, 2, 3, 4, 5, float("nan"), 7, 8, 9, 10, 11, 12])
    with pytest.raises(NonFiniteLoss, match="the loss is nan at step 6"):
        run.train(12, flush_seconds=100.0)
    assert run.saved == [4]
    assert [row["step"] for row in run.rows] == [1, 2, 3, 4, 5]


def test_the_loop_stops_at_a_gradient_that_is_not_finite():
    """The derivative of sqrt at 0 spoils the parameters while the loss is still finite."""
    clf = models.from_functions(
        lambda key, x: {"params": {"w": jnp.zeros((x[0].size, 10)), "zero": jnp.zeros(())}},
        lambda variables, x: x.reshape(len(x), -1) @ variables["params"]["w"] + jnp.sqrt(variables["params"]["zero"]),
    )
    state, step, batch = setup("plain", clf=clf)
    yielded = loop(state, step, iter([(0, batch)]), steps=1, every=(1,))
    with pytest.raises(NonFiniteLoss, match="the classifier gradient norm is (nan|inf) at step 1"):
        next(yielded)


@pytest.mark.parametrize(
    "method, schedule, per_step", [("plain", "joint", 1), ("pgd_adv", "joint", 1), ("two_step_l2l", "alternating", 3)]
)
def test_integer_statistics_stay_integers(method, schedule, per_step):
    """A count of passes, as some networks keep one beside the means.

    L2L's released code counts the two passes of the attack too.
    """
    clf = tiny_classifier()

    def init(key, x):
        variables = clf.init(key, x)
        return {**variables, "batch_stats": {"passes": jnp.int32(0), "rest": variables["batch_stats"]}}

    def train(variables, x, key, axis_name=None):
        stats = variables["batch_stats"]
        logits, rest = clf.train({**variables, "batch_stats": stats["rest"]}, x, key, axis_name)
        return logits, {"passes": stats["passes"] + 1, "rest": rest}

    def logits(variables, x):
        return clf.logits({**variables, "batch_stats": variables["batch_stats"]["rest"]}, x)

    state, step, batch = setup(method, schedule, clf=clf._replace(init=init, train=train, logits=logits))
    for _ in range(2):
        state, _ = step(state, batch)
    passes = state.stats.classifier["passes"]
    assert passes.dtype == jnp.int32 and passes == 2 * per_step


def test_the_loop_yields_its_state_when_asked_to_stop():
    run = Recorder(np.arange(12))
    with pytest.raises(Interrupted, match="stopped after step 6"):
        run.train(12, stopping=lambda: len(run.validated) > 0 and run.rows[-1]["step"] >= 5)
    # asked after step 5 was recorded: the step under way is finished, recorded and saved
    assert run.last == 6
    assert [row["step"] for row in run.rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("asks", [lambda run: run.last == 11, lambda run: run.last == 12, lambda run: bool(run.saved)])
def test_a_stop_at_the_last_step_stops_too(asks):
    """Asked during the last step, or while its state is validated and saved."""
    run = Recorder(np.arange(12))
    with pytest.raises(Interrupted, match="stopped after step (12|5)"):
        run.train(12, stopping=lambda: asks(run), flush_seconds=0.0)
    assert [row["step"] for row in run.rows] == list(range(1, run.last + 1))
