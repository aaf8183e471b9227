r"""A first session on a GPU: `python experiments/gpu.py --data-dir=DIR` works through a list for nine minutes.

In order of worth: the verdicts of each kind of program beside a CPU's on the same weights, in full float32 and in TF32;
PGD-10 and training throughput beside torch; RNN-Adv and L2L beside adversarial training on equally many images of
CIFAR-10; AutoAttack on what was trained; the other dtype's throughput, and torch.compile's. The JSON is whole whenever
it ends, by SIGTERM or Ctrl-C too, and another command does what is left: --only=autoattack --minutes=4.

Make what can be made without the GPU beforehand: the CPU's verdicts with `--only=reference`, in runs/gpu_reference.npz,
and, where a machine has python3.12, jax, numpy, scipy and torch and reaches no package registry, 54 MB of wheels:

    pip wheel --no-deps -w wheels . && pip download --no-deps --only-binary=:all: --python-version=3.12 -d wheels \
        absl-py chex contourpy cycler docstring-parser etils flax fonttools humanize kiwisolver markdown-it-py \
        matplotlib mdurl msgpack optax orbax-checkpoint packaging pillow protobuf pygments pyparsing python-dateutil \
        pyyaml rich simplejson six tensorstore toolz tqdm typeguard typing-extensions tyro
    pip install --no-index --no-deps wheels/*.whl                                            # there

flax follows jax: name flax==0.12.8 where jax is older than 0.11.1. DIR is CIFAR-10 in any form that `l2ljax.data.load`
reads, 170 MB unpacked; only the training needs it.
"""

import tyro

from bench import gpu
from l2ljax.runtime.monitor import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        gpu.run(tyro.cli(gpu.Flags, description=__doc__))
