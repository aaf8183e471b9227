"""Scripts keep compiled programs: the next process reads them, to the same bits, and never in tests' user's home."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from l2ljax.runtime import compilation

ROOT = Path(__file__).parent.parent
PROGRAM = """
    import hashlib
    import jax, optax
    import jax.numpy as jnp
    import numpy as np
    from l2ljax import defenses, models, threat
    from l2ljax.runtime import monitor
    from l2ljax.train import AXIS, init_state, make_step
    from l2ljax.types import Batch, Players

    missed = []
    jax.monitoring.register_event_listener(lambda name, **_: missed.append(name) if name.endswith("misses") else None)
    with monitor.script():
        classifier = models.create("digits_cnn")
        defense = defenses.create("rnn_adv", classifier, threat.linf(0.1), axis_name=AXIS, steps=2)
        optimizers = Players(optax.sgd(0.1), optax.adam(1e-3))
        batch = Batch(jax.random.uniform(jax.random.key(0), (4, 8, 8, 1)), jnp.arange(4))
        state = init_state(jax.random.key(0), classifier, defense, optimizers, batch.x)
        state, _ = make_step(defense, optimizers)(state, batch)
    bits = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.params))
    print(len(missed), hashlib.sha256(bits).hexdigest())
"""


def run(**changes):
    """(compiled programs that were not there, checksum of the parameters after a training step, stderr)."""
    ours = (compilation.DIRECTORY, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")  # of the suite
    env = {k: v for k, v in os.environ.items() if k not in ours}
    env |= {k: str(v) for k, v in changes.items()}
    code = re.sub(r"^    ", "", PROGRAM, flags=re.MULTILINE)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    missed, checksum = done.stdout.split()
    return int(missed), checksum, done.stderr


def test_the_second_process_compiles_nothing_and_finds_the_same_bits(tmp_path):
    first = run(XDG_CACHE_HOME=tmp_path)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "l2ljax").glob("*/*-cache")}
    second = run(XDG_CACHE_HOME=tmp_path)
    assert first[0] == len(kept) > 10
    assert second[0] == 0
    assert second[1:] == first[1:] == (first[1], "")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "l2ljax").glob("*/*-cache")} == kept
    elsewhere = run(XDG_CACHE_HOME=tmp_path / "empty", **{compilation.DIRECTORY: ""})
    assert elsewhere == (0, first[1], "")  # nothing was asked for, and nothing kept
    assert not (tmp_path / "empty").exists()


@pytest.fixture
def settings():
    """What is set now is set again after the test."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_what_is_set_stays(monkeypatch, tmp_path, settings):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for value, expected in {"/elsewhere": "/elsewhere", "": "", None: str(compilation.folder())}.items():
        jax.config.update("jax_compilation_cache_dir", value)
        compilation.keep_programs()
        assert jax.config.jax_compilation_cache_dir == expected
    assert compilation.folder().parent == tmp_path / "l2ljax" and compilation.folder().is_dir()


def test_a_folder_that_cannot_be_made_is_done_without(monkeypatch, tmp_path, settings):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize(
    "path",
    [
        *("l2ljax/run/experiment.py", "l2ljax/run/adversary.py", "l2ljax/run/judge.py", "l2ljax/gail/experiment.py"),
        *("experiments/ablation.py", "experiments/strength.py"),
    ],
)
def test_what_compiles_for_long_keeps_its_programs(path):
    """Not so throughput, autoattack and gail_speed, which time compilation."""
    assert re.search(r"with \(?\s*(monitor\.)?script\(", (ROOT / path).read_text())
