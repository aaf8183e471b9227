"""Two processes are one run: they equal one process with two devices, and where one is killed the other says so."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from l2ljax.data import pipeline
from l2ljax.data.readers import Split
from l2ljax.runtime import hosts
from l2ljax.types import L2LError

ROOT = Path(__file__).parent.parent

STEPS = """
    import sys
    import jax
    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp, numpy as np, optax
    from l2ljax import data, defenses, threat
    from l2ljax.runtime import hosts, monitor
    from l2ljax.data.readers import Split
    from l2ljax.train import AXIS, Interrupted, init_state, make_step
    from l2ljax.types import L2LError, Players
    from tests.tiny import small, tiny_classifier

    def train():
        images = np.random.RandomState(0).randint(0, 256, (24, 4, 4, 1)).astype(np.uint8)
        split = Split(images, np.arange(24, dtype=np.int32) % 10)
        clf = tiny_classifier(rate=0.3, dtype=jnp.float64)
        defense = defenses.create("rnn_adv", clf, threat.linf(0.1), axis_name=AXIS, **small("rnn_adv"))
        optimizers = Players(optax.sgd(0.1, momentum=0.9), optax.sgd(0.1))
        # Each process starts elsewhere: the first one's start is that of all.
        state = init_state(jax.random.key(7 + jax.process_index()), clf, defense, optimizers, jnp.zeros((2, 4, 4, 1)))
        as_double = lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a
        state = jax.tree.map(as_double, hosts.from_first(state))
        step = make_step(defense, optimizers)
        key = jax.random.key(3)
        for done, batch in data.stream(split, key, batch_size=8, augment="crop_flip", part=hosts.part()):
            if done == 4:  # of the second epoch
                return state, {k: float(v) for k, v in metrics.items()}
            state, metrics = step(state, batch._replace(x=batch.x.astype(jnp.float64)))

    def refuse():
        raise L2LError("only here")

    def together(path):
        state, metrics = train()
        leaves = jax.tree.leaves((state.params, state.stats, metrics))
        assert hosts.on_first(lambda: ("from", jax.process_index())) == ("from", 0)
        assert hosts.on_first(jax.process_index) == 0
        try:
            hosts.on_first(refuse)
        except L2LError as error:
            assert str(error) == "only here"
        else:
            raise AssertionError("nothing was raised")
        asked = hosts.agreed(lambda: jax.process_index() == jax.process_count() - 1)
        answers = [asked() for _ in range(hosts.AGREE_EVERY)]
        assert answers[-1] and (jax.process_count() == 1 or not any(answers[:-1]))
        np.savez(f"{path}_{jax.process_index()}.npz", *map(np.asarray, leaves))

    place = [f(a) for f, a in zip((str, int, int), sys.argv[2:])]
    with monitor.one_line_errors(), hosts.joined(*place, heartbeat_timeout=20):
        assert len(jax.devices()) == 2
        together(sys.argv[1])
        raise Interrupted(4)  # an orderly end
"""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(*command, devices=1):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *map(str, command)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_equal_one_with_two_devices(tmp_path):
    code, address = textwrap.dedent(STEPS), f"127.0.0.1:{free_port()}"
    processes = [start("-c", code, tmp_path / "two", address, 2, i) for i in range(2)]
    processes.append(start("-c", code, tmp_path / "one", devices=2))
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 130, err
        assert "stopped after step 4: run the same command" in err and "Run the same command" not in err
    one, first, second = (np.load(tmp_path / name) for name in ("one_0.npz", "two_0.npz", "two_1.npz"))
    for name in one:
        np.testing.assert_allclose(first[name], one[name], rtol=0, atol=1e-9)
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_other_and_the_run_goes_on(victim, tmp_path):
    """Process 0 also holds the others together: without it JAX aborts them, else the collective fails first."""
    flags = {"method": "rnn_adv", "epochs": 6, "train_size": 600, "val_size": 0, "eval_size": 20, "attacks": "fgsm"}
    flags |= {"steps": 2, "checkpoint_every": 4, "workdir": tmp_path, "heartbeat_timeout": 30, "num_processes": 2}

    def run():
        more = {**flags, "coordinator": f"127.0.0.1:{free_port()}"}
        given = [f"--{name.replace('_', '-')}={value}" for name, value in more.items()]
        script = ROOT / "experiments" / "digits.py"
        return [start(script, *given, f"--process-id={i}") for i in range(2)]

    processes = run()
    deadline = time.monotonic() + 120
    while not steps_saved(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    processes[victim].send_signal(signal.SIGKILL)
    _, err = processes[1 - victim].communicate(timeout=60)
    assert processes[1 - victim].returncode != 0
    message = rf"process {1 - victim} of 2 ends: .* Run the same command again .*"
    assert re.fullmatch(message, err.strip().splitlines()[-1])
    assert "Traceback" not in err
    processes[victim].communicate(timeout=60)
    saved = steps_saved(tmp_path)
    assert 0 < saved < 36

    processes = run()
    (out, err), (other_out, other_err) = (process.communicate(timeout=240) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], err + other_err
    assert f"going on from step {saved} of 36" in out and "| rnn_adv " in out and "rnn_adv" not in other_out
    assert "Run the same command" not in err + other_err
    rows = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(1, 37))
    assert json.loads((tmp_path / "report.json").read_text())["attacks"].keys() == {"fgsm"}


def steps_saved(workdir):
    return max((int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def test_flags_that_do_not_belong_together():
    for given in [("a:1", None, None), ("a:1", 2, None), (None, 2, 0)]:
        with (
            pytest.raises(L2LError, match="give --coordinator=HOST:PORT, --num-processes and --process-id"),
            hosts.joined(*given),
        ):
            pass
    with pytest.raises(L2LError, match="or --distributed alone"), hosts.joined("a:1", 2, 0, distributed=True):
        pass
    for bad in ("a", "a:", "localhost:0", "localhost:65536", "localhost:99999"):
        with pytest.raises(L2LError, match=f"--coordinator={bad}: give HOST:PORT"), hosts.joined(bad, 2, 0):
            pass
    with hosts.joined():
        assert hosts.is_first() and hosts.part() == (0, 1)


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_parts_of_a_batch_are_the_batch(augment, on_disk, monkeypatch):
    rng = np.random.RandomState(0)
    split = Split(rng.randint(0, 256, (10, 5, 5, 1)).astype(np.uint8), np.arange(10, dtype=np.int32))
    if on_disk:
        monkeypatch.setattr(pipeline, "Images", np.ndarray)

    def first_steps(part):
        stream = pipeline.stream(split, jax.random.key(0), batch_size=4, augment=augment, part=part)
        return [next(stream)[1] for _ in range(5)]

    whole, *parts = (first_steps(part) for part in ((0, 1), (0, 2), (1, 2)))
    for batch, one, two in zip(whole, *parts, strict=True):
        for a, b, c in zip(batch, one, two, strict=True):
            assert len(b) == len(c) == 2
            np.testing.assert_array_equal(a, np.concatenate([b, c]))
    with pytest.raises(L2LError, match="a batch of 4 does not split into 3 equal parts"):
        first_steps((0, 3))
