import gc
import os
import shutil
import tempfile
import zlib

# Compiling is most of the suite's time: without most of XLA's optimizations, and with its older way of emitting fused
# loops, which has fewer passes, it takes a third. That way fuses a program and its pieces differently, so that tests of
# equal bits need code without fused multiply-adds, which round differently. Scripts that tests start inherit this.
# `JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= pytest tests/test_solver.py` compiles as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_max_isa=AVX"
)
# Programs are kept for the suite alone, in a folder of each worker (JAX writes them in place, so that another process
# could read half of one): tests that resume, repeat and compare runs compile most of them once.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="l2ljax-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["MALLOC_PERTURB_"] = "0"  # keep_freed_memory is of scripts: the tests' processes stay as they are

import jax
import pytest

gc.set_threshold(50_000, 20, 50)  # tracing makes many objects that live: looking for dead ones was a fifth of its time
jax.config.update("jax_num_cpu_devices", 1)  # scripts would make one for each core; tests say where they want two


def pytest_unconfigure():
    """Delete the kept programs."""
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.fixture
def float64():
    """Compute in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Free the programs that a module compiled: each maps memory, of which Linux allows a process 65,530 pieces."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def same_draws(request):
    """Let a test draw the same numbers from its module's RNG, whichever tests ran before it."""
    if hasattr(request.module, "RNG"):
        request.module.RNG.seed(zlib.crc32(request.node.name.encode()))


@pytest.fixture
def tables():
    """Leave the tables of names as they were."""
    from l2ljax import attacks, defenses

    before = [(table, dict(table)) for table in (attacks.FAMILIES, defenses.METHODS)]
    yield
    for table, rows in before:
        table.clear()
        table.update(rows)
