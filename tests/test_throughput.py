"""The throughput benchmark: what its rows say, that it keeps them while it runs, that it ends in time."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from bench import benchmark, rivals, throughput
from l2ljax import threat
from l2ljax.attacks import gradient
from l2ljax.types import L2LError
from papers import tables

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def no_ceiling(monkeypatch):
    """Large products are slow without optimizations."""
    monkeypatch.setattr(benchmark, "matrix_ceiling", lambda dtype: 1e9)


def flags(tmp_path, **changes):
    chosen = {"model": "digits_cnn", "attacks": "pgd2", "batch_sizes": "4", "repeats": 1, **changes}
    return throughput.Flags(out=tmp_path / "speed.json", **chosen)


@pytest.mark.slow
def test_rows_say_what_was_measured(tmp_path):
    chosen = flags(tmp_path, attacks="pgd2,pgd6", dtypes="float32,bfloat16", train="rnn_adv", repeats=3)
    found = throughput.run(chosen)
    assert json.loads(chosen.out.read_text()) == json.loads(json.dumps(found))
    assert chosen.out.with_suffix(".png").exists() and found["not_run"] == []
    rows = {(row["what"], row["dtype"]): row for row in found["speed"]}
    assert len(rows) == len(found["speed"]) == 6
    for (what, _), row in rows.items():
        assert len(row["seconds"]) == 3 and row["program"] == "l2ljax" and row["batch_size"] == 4
        assert row["images_per_second"] == pytest.approx(4 / np.median(row["seconds"]))
        assert row["build_seconds"] > 0 and row["first_seconds"] > 0
        assert row["time_over_ours"] == {"median": 1, "least": 1, "most": 1}
        if what.startswith("pgd"):
            assert row["passes"] == pytest.approx(int(what[3:]))
            assert row["memory"]["temp"] > 0 and row["memory"]["output"] == 4 * 8 * 8 * 4  # the images
    assert rows["pgd6", "float32"]["flops"] == 3 * rows["pgd2", "float32"]["flops"] > 0
    assert rows["pgd6", "bfloat16"]["flops"] == rows["pgd6", "float32"]["flops"]
    assert rows["pgd6", "bfloat16"]["memory"] != rows["pgd6", "float32"]["memory"]
    text = tables.tell(found)
    assert len(re.findall(r"\| +l2ljax +\|", text)) == 6
    row = rows["pgd2", "float32"]
    reached = row["flops"] / np.median(row["seconds"])
    assert f"{100 * reached / 1e9:.1f} |" in text


def test_a_function_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n\ndef make():\n    return lambda x: x.reshape(len(x), -1) @ np.ones((18, 5), np.float32)\n"
    )
    monkeypatch.chdir(tmp_path)
    found = throughput.run(flags(tmp_path, model="mine:make", image_shape=(3, 3, 2)))
    assert found["speed"][0]["model"] == "mine:make" and found["speed"][0]["memory"]["output"] == 4 * 18 * 4
    for changes, message in [
        ({"model": "mine:take", "image_shape": (3, 3, 2)}, "mine:take: .* name an importable module"),
        ({"model": "mine:make", "image_shape": (3, 3, 2), "rivals": "torch"}, "leave them out"),
        ({"devices": 3}, "--devices=3: this machine has"),
    ]:
        with pytest.raises(L2LError, match=message):
            throughput.run(flags(tmp_path, **changes))


def test_rows_are_kept_after_every_round(tmp_path, monkeypatch):
    chosen, seen = flags(tmp_path, repeats=3, attacks="pgd1,pgd2"), []
    timed = benchmark._timed

    def watched(program):
        if chosen.out.exists():
            found = json.loads(chosen.out.read_text())
            seen.append(([len(row["seconds"]) for row in found["speed"]], found["not_run"]))
        return timed(program)

    monkeypatch.setattr(benchmark, "_timed", watched)
    throughput.run(chosen)
    left = ["pgd2, digits_cnn, float32, batch of 4"]
    assert seen == [([1], left), ([2], left), *[([3], left)] * 2, ([3, 1], []), ([3, 2], [])]


def test_nothing_is_begun_that_would_hardly_end_in_time(tmp_path, monkeypatch):
    now = [0.0]

    def slow(cell, flags, after_round):
        now[0] += 50.0
        after_round({"l2ljax": {"seconds": [1.0], "images_per_second": 4.0, "flops": 1.0, "passes": 1.0,
                                "build_seconds": 0.0, "first_seconds": 0.0, "memory": None,
                                "device_peak_bytes": None}})  # fmt: skip

    monkeypatch.setattr(throughput, "_measure", slow)
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
    found = throughput.run(flags(tmp_path, attacks="pgd1,pgd2,pgd3,pgd4", minutes=2.0))
    assert [row["what"] for row in found["speed"]] == ["pgd1", "pgd2"]  # a third would end after 150 of 120 seconds
    assert len(found["not_run"]) == 2
    assert "Not run for lack of time: pgd3, digits_cnn" in tables.tell(found)


@pytest.mark.slow
def test_the_gpu_preset_ends_on_a_small_machine_and_leaves_whole_json(tmp_path):
    """Far more than fits: the time is up while something compiles or runs."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "experiments" / "throughput.py"), "--preset=gpu", "--model=digits_cnn",
               "--batch-sizes=4", "--attacks=pgd2,pgd200000", f"--out={out}", "--minutes=0.35", "--train=",
               "--dtypes=float32", "--rivals="]  # fmt: skip
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 0.35 * 60 + 15
    found = json.loads(out.read_text())
    assert [row["what"] for row in found["speed"]] == ["pgd2"] and found["ceiling"]["float32"] > 1e8
    assert found["not_run"] == ["pgd200000, digits_cnn, float32, batch of 4"]
    assert "Not run for lack of time" in done.stdout and out.with_suffix(".png").exists()


def test_presets_are_flags():
    for changes in throughput.presets().values():
        throughput.Flags(**changes)
    gpu = throughput.presets()["gpu"]
    assert gpu["minutes"] <= 9 and "bfloat16" in gpu["dtypes"] and "wrn_34_10" in gpu["model"]


def test_pyautoattack_has_no_pgd():
    task = rivals.Task("resnet20", None, None, "pgd", 0.1, 1, 0.1)
    assert rivals.programs("pyautoattack", task) == {}


@pytest.mark.parametrize(
    "arch", ["resnet20", "resnet18", "preact_resnet18", "wrn_28_10", "resnet18_imagenet", "small_cnn"]
)
def test_networks_in_torch_have_our_logits(arch, monkeypatch):
    pytest.importorskip("torch")
    _, variables, batch = benchmark.random_batch(arch, 2)
    leaves, tree = jax.tree.flatten(variables)
    moved = [a * (1 + 0.1 * i / len(leaves)) + 0.01 for i, a in enumerate(leaves)]  # no statistic is 0 or 1
    task = rivals.Task(arch, jax.tree.unflatten(tree, moved), batch, "pgd", 0.1, 1, 0.1)
    net, *_ = rivals.same_network(task)
    assert sum(p.numel() for p in net.parameters()) == sum(a.size for a in jax.tree.leaves(variables["params"]))
    networks = rivals.package("bench.torch_networks")
    build = networks.build
    monkeypatch.setattr(networks, "build", lambda *_: build(arch, variables))
    with pytest.raises(L2LError, match="torch's logits differ"):
        rivals.same_network(task)


def test_the_steps_of_an_attack_by_name_are_the_rivals():
    told = throughput.parameters("pgd10", threat.linf(8 / 255))
    assert told["attack"] == gradient.pgd.__name__ == "pgd"
    assert told["step_size"] == pytest.approx(2 / 255) and told["steps"] == 10
