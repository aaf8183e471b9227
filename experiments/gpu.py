r"""A first session on a GPU: `python experiments/gpu.py --data-dir=DIR` runs a list of jobs for nine minutes.

In order of importance: the verdicts of each kind of program against a CPU's on the same weights, in full float32 and in
TF32; PGD-10 and training throughput against torch; RNN-Adv and L2L against adversarial training on equally many images
of CIFAR-10; AutoAttack on the trained models; the other dtype's throughput, and torch.compile's. The JSON is complete
whenever it ends, also by SIGTERM or Ctrl-C; another command does the rest: --only=autoattack --minutes=4.

Prepare what needs no GPU beforehand: the CPU's verdicts with `--only=reference`, in runs/gpu_reference.npz, and, for a
machine that has python3.12, jax, numpy, scipy and torch but reaches no package registry, 54 MB of wheels:

    pip wheel --no-deps -w wheels . && pip download --no-deps --only-binary=:all: --python-version=3.12 -d wheels \
        absl-py chex contourpy cycler docstring-parser etils flax fonttools humanize kiwisolver markdown-it-py \
        matplotlib mdurl msgpack optax orbax-checkpoint packaging pillow protobuf pygments pyparsing python-dateutil \
        pyyaml rich simplejson six tensorstore toolz tqdm typeguard typing-extensions tyro
    pip install --no-index --no-deps wheels/*.whl                                            # there

flax follows jax: use flax==0.12.8 if jax is older than 0.11.1. DIR is CIFAR-10 in any form that `l2ljax.data.load`
reads, 170 MB unpacked; only the training needs it.
"""

from bench import gpu
from l2ljax.runtime.flags import launch

if __name__ == "__main__":
    launch(gpu.run, gpu.Flags, __doc__)
