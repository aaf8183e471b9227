import jax

from bench import benchmark
from papers import speeds


def clocked(monkeypatch, durations):
    """Programs that take the given seconds, call after call, on a clock of their own."""
    now = [0.0]
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])
    left = {name: iter(seconds) for name, seconds in durations.items()}
    order = []

    def program(name):
        def run():
            order.append(name)
            now[0] += next(left[name])

        return run

    return {name: program(name) for name in durations}, order


def test_programs_take_turns_and_the_first_call_is_apart(monkeypatch):
    programs, order = clocked(monkeypatch, {"a": [9, 1, 2, 4], "b": [5, 2, 2, 2]})
    rows = benchmark.alternate(programs, images=100, repeats=3)
    assert order == ["a", "b"] * 4
    assert rows["a"] == {"first_seconds": 9, "seconds": [1, 2, 4], "images_per_second": 50}


def test_a_slow_program_is_called_once_at_least(monkeypatch):
    programs, _ = clocked(monkeypatch, {"fast": [1] * 6, "slow": [50, 50], "middling": [15] * 6})
    rows = benchmark.alternate(programs, images=1, repeats=5, patience=40)
    assert [len(rows[name]["seconds"]) for name in ("fast", "slow", "middling")] == [5, 1, 2]


def test_ratios_compare_within_a_round(monkeypatch):
    # Both programs slow down tenfold in the second round: the ratio stays 2 in both.
    programs, _ = clocked(monkeypatch, {"ours": [0, 1, 10], "theirs": [0, 2, 20]})
    found = {
        "machine": "M", "date": "D", "command": "C", "batch_size": 8, "versions": {"jax": "1"},
        "results": {"PGD": benchmark.alternate(programs, images=8, repeats=2)},
    }  # fmt: skip
    text = speeds.throughput(found)
    assert "time / ours" in text
    row = next(line for line in text.splitlines() if "theirs" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "theirs", "11 (2-20)", "2", "1", "2.00 (2.00-2.00)",
    ]  # fmt: skip


def test_the_compile_clock_counts_what_compiles_and_nothing_else():
    compiled = benchmark.compile_clock()
    double = jax.jit(lambda x: 2 * x + 1)
    double(1.0)
    after = compiled()
    assert after > 0
    for _ in range(3):
        double(2.0)
    assert compiled() == after
