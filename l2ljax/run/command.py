"""The command `l2ljax`: what the scripts in experiments/ do, where the library is installed.

    l2ljax train cifar10 --method=rnn_adv
    l2ljax attack --attacker=advgan --victim=runs/digits_plain_digits_cnn_s0
    l2ljax evaluate --victim=runs/digits_plain_digits_cnn_s0 --attacks=standard
    l2ljax gail --env=CartPole-v1 --updater=adam

`l2ljax train` takes a data set by name, a .npz file, or module:function. Each command has a --help.
"""

import sys

from l2ljax.gail import experiment as gail
from l2ljax.run import adversary, experiment, judge
from l2ljax.runtime.flags import quiet_pipe
from l2ljax.runtime.monitor import one_line_errors
from l2ljax.types import L2LError

__all__ = ["main"]


def main() -> None:
    """Run the command line; an error of ours is one line on stderr and exit status 2."""
    commands = {"attack": adversary.main, "evaluate": judge.main, "gail": gail.main}
    with one_line_errors():
        match sys.argv[1:]:
            case ["train", "-h" | "--help"]:
                experiment.main(None, ["--help"])
            case ["train", dataset, *flags] if not dataset.startswith("-"):
                experiment.main(dataset, flags)
            case [name, *flags] if name in commands:
                commands[name](flags)
            case ["-h" | "--help"]:
                with quiet_pipe():
                    print(__doc__)
            case others:
                given = f"l2ljax {' '.join(others)}".strip()
                raise L2LError(f"{given}: give `l2ljax train DATASET`, attack, evaluate or gail, or --help")
