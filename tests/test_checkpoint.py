"""Checkpoints: a flipped bit anywhere is noticed, the last sound step is named and gone on from."""

import random
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import checkpoint
from l2ljax.checkpoint import Checkpoints
from l2ljax.train import TrainState
from l2ljax.types import L2LError, Players, is_key


def state_of(step):
    """A training state with arrays of several types, which differ between steps."""
    numbers = np.random.RandomState(step)
    params = Players({"kernel": jnp.asarray(numbers.normal(size=(40, 30)), jnp.float32)}, {})
    stats = Players({"mean": jnp.asarray(numbers.normal(size=9), jnp.bfloat16)}, {})
    return {"last": TrainState(jnp.int32(step), params, stats, Players((), ()), jax.random.key(step))}


def same(a, b):
    data = [jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree) for tree in (a, b)]
    jax.tree.map(np.testing.assert_array_equal, *data)
    return True


@pytest.fixture
def saved(tmp_path):
    """Steps 3 and 6 in a workdir."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (3, 6):
        checkpoints.save(step, state_of(step))
    return tmp_path


def files_of(saved, step):
    return sorted(p for p in (saved / "checkpoints" / str(step)).rglob("*") if p.is_file())


def flip(file, draw):
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def test_what_is_saved_is_restored_bit_by_bit(saved):
    checkpoints = Checkpoints(saved / "checkpoints")
    assert checkpoints.latest() == 6
    step, state = checkpoints.resume(like=state_of(0))
    assert step == 6 and same(state, state_of(6))
    assert state["last"].stats.classifier["mean"].dtype == jnp.bfloat16
    like = state_of(0)["last"]
    params, stats = checkpoint.restore_player(saved, "classifier", (like.params.classifier, like.stats.classifier))
    assert same((params, stats), (state_of(6)["last"].params.classifier, state_of(6)["last"].stats.classifier))
    assert Checkpoints(saved / "others").resume(like=like)[0] == 0


def test_an_empty_folder_of_a_step_hides_no_sound_one(saved, capsys):
    (saved / "checkpoints" / "9").mkdir()
    step, state = Checkpoints(saved / "checkpoints").resume(like=state_of(0))
    assert step == 6 and same(state, state_of(6))
    assert "the checkpoint of step 9" in capsys.readouterr().err
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["3", "6"]


def test_keys_of_another_kind_come_back(tmp_path):
    key = jax.random.key(3, impl="rbg")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"key": key})
    _, found = checkpoints.resume(like={"key": jax.random.key(0, impl="rbg")})
    assert found["key"] == key
    with pytest.raises(L2LError, match="is of another configuration"):
        checkpoints.resume(like={"key": jax.random.key(0)})


def test_arrays_without_entries_come_back(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"none": jnp.zeros((0, 3)), "a": jnp.arange(3)})
    _, found = checkpoints.resume(like={"none": jnp.ones((0, 3)), "a": jnp.zeros(3, int)})
    assert found["none"].shape == (0, 3) and (found["a"] == jnp.arange(3)).all()


def test_arrays_of_another_type_are_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": jnp.arange(3)})
    with pytest.raises(L2LError, match=r"is of another configuration \(1 arrays differ, \['a'\] first\)"):
        checkpoints.resume(like={"a": jnp.zeros(3)})


def test_a_flipped_bit_loads_as_no_other_number(saved):
    data = [file for file in files_of(saved, 6) if file.stat().st_size > 1000]
    noticed, contents = set(), {file: file.read_bytes() for file in files_of(saved, 6)}
    for seed in range(12):
        draw = random.Random(seed)
        flip(draw.choice(data), draw)
        like = state_of(0)["last"]
        try:
            got = checkpoint.restore_player(saved, "classifier", (like.params.classifier, like.stats.classifier))
            assert same(got, (state_of(6)["last"].params.classifier, state_of(6)["last"].stats.classifier))
        except L2LError as error:
            noticed.add(seed)
            assert "step 6" in str(error) and "that of step 3 is sound" in str(error) and "\n" not in str(error)
        for file, content in contents.items():
            file.write_bytes(content)
    assert len(noticed) > 6


def test_training_goes_on_from_the_last_sound_step(saved, capsys):
    for file in files_of(saved, 6):
        if file.stat().st_size > 1000:
            flip(file, random.Random(0))
    checkpoints = Checkpoints(saved / "checkpoints")
    step, state = checkpoints.resume(like=state_of(0))
    assert step == 3 and same(state, state_of(3))
    assert "step 6" in (told := capsys.readouterr().err) and "deleted, to go on from step 3" in told
    checkpoints.save(6, state_of(6))  # its place is free again
    assert same(checkpoints.resume(like=state_of(0))[1], state_of(6))
    for step in (3, 6):
        for file in files_of(saved, step):
            file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(L2LError, match="the checkpoint of step 6 .* and no earlier one is sound: delete them"):
        checkpoints.resume(like=state_of(0))
    assert len(list((saved / "checkpoints").glob("[36]"))) == 2


def test_late_results_of_a_failed_save_print_nothing(monkeypatch):
    """Of other errors that cannot be raised Python tells as before."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    checkpoint._drop_late_results.__wrapped__()
    for message in ("Event loop is closed", "another"):
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(message)))
    assert [str(each.exc_value) for each in told] == ["another"]


def test_checkpoints_without_a_checksum_load(tmp_path):
    older = Checkpoints(tmp_path)
    older._manager.save(1, args=older._args.StandardSave(checkpoint._to_flat(state_of(1))))
    step, state = older.resume(like=state_of(0))
    assert step == 1 and same(state, state_of(1))


def test_reading_makes_no_folder(tmp_path):
    with pytest.raises(L2LError, match="no checkpoint in .*: give the workdir"):
        checkpoint.restore_player(tmp_path / "nowhere", "classifier", ({}, {}))
    assert not list(tmp_path.iterdir())
