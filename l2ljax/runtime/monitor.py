"""A run's progress bar, signals and one-line errors.

with monitor.script():      # around what a script does
    main(flags.read(Flags, __doc__))
"""

import contextlib
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from l2ljax import devices
from l2ljax.runtime import compilation
from l2ljax.train import Interrupted
from l2ljax.types import L2LError

__all__ = ["duration", "one_line_errors", "script", "show", "stopping_on_signals"]


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[Callable[[], bool]]:
    """Make SIGTERM and Ctrl-C within the context only turn the yielded function true; in a thread nothing changes."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True

    of_ours = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT) if of_ours}
    try:
        yield lambda: asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


@contextlib.contextmanager
def script(most_devices: int | None = None) -> Iterator[None]:
    """Run a script with a device per CPU core (at most `most_devices`), a cache of programs, and one-line errors.

    Scripts that time compilation use `one_line_errors` instead.
    """
    devices.one_per_core(most_devices)
    devices.keep_freed_memory()
    compilation.keep_programs()
    with one_line_errors():
        yield


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Within the context, end on an L2LError with one line on stderr and status 2, on a stop with status 130."""
    try:
        yield
    except L2LError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"{str(stop) or 'stopped'}: run the same command again to resume", file=sys.stderr)
        sys.exit(130)


def show(bar: tqdm, rows: Sequence[Mapping[str, Any]], batch_size: int) -> None:
    """Move the bar by the rows' steps, and show the newest loss and accuracies on it."""
    shown = ("loss", "accuracy", "robust_accuracy", "val_robust_acc")
    bar.set_postfix({k: f"{rows[-1][k]:.3f}" for k in shown if k in rows[-1]}, refresh=False)
    bar.update(batch_size * len(rows))


def duration(seconds: float) -> str:
    """Format seconds: 45 s, 3 min 20 s, 2 h 05 min."""
    seconds = math.ceil(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
