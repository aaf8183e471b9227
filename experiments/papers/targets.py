"""The papers' printed numbers: every table and figure, accuracies in percent; without numbers, the rows' names.

    TABLES["rnn_adv:table3"].rows["RNN-Adv"]["PGD-100"]   # 95.62

The texts: `L2L v1` is Learning to Defend by Learning to Attack as submitted to ICLR, `L2L v2` at AISTATS 2021;
`RNN-Adv` Improved Adversarial Training via Learned Optimizer (ECCV 2020); `L2L-DA` Adversarial Defense via Learning to
Generate Diverse Attacks (ICCV 2019).
"""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["ARCHITECTURES", "TABLES", "Table"]


class Table(NamedTuple):
    """One table or figure, or one data set's half of it."""

    title: str
    printed: tuple[str, ...]
    """Its place, like `L2L v1 Table 2`."""
    rows: Mapping[str, Mapping[str, float]]
    """Row -> column -> printed number; for a figure, rows without columns."""
    columns: tuple[str, ...] = ()
    dataset: str = ""
    arch: str = ""
    """The papers' classifier."""
    epochs: int = 0
    """Epochs of training in the paper, or in the code that it builds on if the paper is silent."""
    unit: str = "%"


def _table(title: str, printed: str, columns: str, text: str, **about: object) -> Table:
    """Parse lines `row | number | number ...`, with `-` if nothing is printed."""
    names = tuple(name.strip() for name in columns.split("|")) if columns else ()
    rows = {}
    for line in text.strip().splitlines():
        row, *cells = (cell.strip() for cell in line.split("|"))
        if len(cells) > len(names):
            raise ValueError(f"{title}: more cells than columns in {line!r}")
        rows[row] = {name: float(cell) for name, cell in zip(names, cells, strict=False) if cell != "-"}
    return Table(title, tuple(printed.split("; ")), rows, names, **about)  # type: ignore[arg-type]


_WRN = {"arch": "wrn_34_10", "epochs": 100}
_BLACK = "Plain FGSM | Plain PGM10 | FGSM FGSM | FGSM PGM10 | PGM FGSM | PGM PGM10"
_WHITE = "Natural | PGD-10 | PGD-100 | CW100 | L2LDA | RNN-Adv | Min"
_DA = "Natural | FGSM | PGD10 | PGD100 | CW100 | CW1000 | AdvGAN | GAP | L2L-DA | Min"
_ABLATION = "Natural | FGSM | PGD100 | CW1000 | Min"
_DA_MNIST = {"dataset": "mnist", "arch": "lenet5", "epochs": 167}

TABLES = {
    "rnn_adv:table1": _table(
        "MNIST, the inner solution's quality", "RNN-Adv Table 1", "Natural | PGD | PGD+BLS",
        """
        AdvTrain     | 96.43 | 87.33 | 86.09
        AdvTrain+BLS | 96.70 | 88.71 | 88.00
        """,
        dataset="mnist", arch="small_cnn", epochs=100,
    ),
    "rnn_adv:table2": _table(
        "cost of learned attackers", "RNN-Adv Table 2", "parameters | seconds per epoch",
        """
        RNN-Adv    | 120    | 268.50
        RNN-TRADES | 120    | 443.52
        L2LDA      | 500944 | 1972.41
        """,
        dataset="cifar10", arch="vgg16", unit="",
    ),
    "rnn_adv:table3": _table(
        "MNIST, 4-layer CNN, eps 0.3", "RNN-Adv Table 3", _WHITE,
        """
        Plain      | 99.46 |  1.04 |  0.42 | 83.63 |  5.94 |  0.79 |  0.42
        AdvTrain   | 99.17 | 94.89 | 94.28 | 98.38 | 95.83 | 94.39 | 94.28
        TRADES     | 99.52 | 95.77 | 95.50 | 98.72 | 96.03 | 95.50 | 95.50
        L2LDA      | 98.76 | 94.73 | 93.22 | 97.69 | 95.28 | 93.16 | 93.16
        RNN-Adv    | 99.20 | 95.80 | 95.62 | 98.75 | 96.05 | 95.51 | 95.51
        RNN-TRADES | 99.46 | 96.09 | 95.83 | 98.85 | 96.56 | 95.80 | 95.80
        """,
        dataset="mnist", arch="small_cnn", epochs=100,
    ),
    "rnn_adv:table4": _table(
        "CIFAR-10, VGG-16, eps 8/255", "RNN-Adv Table 4", _WHITE,
        """
        Plain      | 93.66 |  0.74 |  0.09 |  0.08 |  0.89 |  0.43 |  0.08
        AdvTrain   | 81.11 | 42.32 | 40.75 | 42.26 | 43.55 | 41.07 | 40.75
        TRADES     | 78.08 | 48.83 | 48.30 | 45.94 | 49.94 | 48.38 | 45.95
        L2LDA      | 77.47 | 35.49 | 34.27 | 35.31 | 36.27 | 34.54 | 34.27
        RNN-Adv    | 81.22 | 44.98 | 42.89 | 43.67 | 46.20 | 43.21 | 42.89
        RNN-TRADES | 80.76 | 50.23 | 49.42 | 47.23 | 51.29 | 49.49 | 47.23
        """,
        dataset="cifar10", arch="vgg16", epochs=200,
    ),
    "rnn_adv:table5": _table(
        "CIFAR-10, Wide ResNet, eps 8/255", "RNN-Adv Table 5", _WHITE,
        """
        Plain      | 95.14 |  0.01 |  0.00 |  0.00 |  0.02 |  0.00 |  0.00
        AdvTrain   | 86.28 | 46.64 | 45.13 | 46.64 | 48.46 | 45.41 | 45.13
        TRADES     | 85.89 | 54.28 | 52.68 | 53.68 | 56.49 | 53.00 | 52.68
        L2LDA      | 85.30 | 45.47 | 44.35 | 44.19 | 47.16 | 44.54 | 44.19
        RNN-Adv    | 85.92 | 47.62 | 45.98 | 47.26 | 49.40 | 46.23 | 45.98
        RNN-TRADES | 84.21 | 56.35 | 55.68 | 54.11 | 58.86 | 55.80 | 54.11
        """,
        dataset="cifar10", arch="wrn_34_10", epochs=76,
    ),
    "rnn_adv:table6": _table(
        "the RNN attacker with more steps than it was trained with (VGG-16)", "RNN-Adv Table 6",
        "10 steps | 40 steps",
        """
        Plain      |  0.43 |  0.03
        AdvTrain   | 41.07 | 40.70
        TRADES     | 48.38 | 48.27
        L2LDA      | 34.54 | 34.19
        RNN-Adv    | 43.21 | 42.89
        RNN-TRADES | 49.49 | 49.28
        """,
        dataset="cifar10", arch="vgg16", epochs=200,
    ),
    "rnn_adv:table7": _table(
        "black box on CIFAR-10, VGG-16", "RNN-Adv Table 7", "Plain-Net | PGD-Net",
        """
        AdvTrain   | 79.94 | 62.57
        TRADES     | 77.01 | 65.41
        L2LDA      | 76.37 | 60.32
        RNN-Adv    | 80.58 | 63.17
        RNN-TRADES | 79.54 | 67.09
        """,
        dataset="cifar10", arch="vgg16", epochs=200,
    ),
    "rnn_adv:figure2": _table(
        "the loss along attacks", "RNN-Adv Figure 2", "",
        "AdvTrain\nTRADES\nRNN-Adv\nRNN-TRADES",
        dataset="cifar10", arch="vgg16", epochs=200, unit="loss",
    ),
    "rnn_adv:figure3": _table(
        "the loss landscape", "RNN-Adv Figure 3", "largest loss",
        """
        Plain
        AdvTrain   | 7.61
        TRADES
        L2LDA
        RNN-Adv    | 3.66
        RNN-TRADES
        """,
        dataset="cifar10", arch="vgg16", epochs=200, unit="loss",
    ),
    "l2l:table2": _table(
        "CIFAR-10, eps 0.031", "L2L v1 Table 2; L2L v2 Table 2",
        "Natural | PGM-20 | PGM-100 | CW | Random | own attacker",
        """
        Plain            | -     | -     | -     | -    | -     | -
        Stability        | 94.64 |  0.15
        Kurakin          | 85.25 | 45.89
        PGM Net          | 87.30 | 47.04
        Naive L2L        | 94.53 |  0.01
        Grad-only L2L    | 86.28 | 49.94
        2-Step Grad-only | 85.8  | 53.85
        Grad L2L         | 85.84 | 51.17 | 47.72 | 53.5  | 82.67 | 49.68
        2-Step L2L       | 85.35 | 54.32 | 52.12 | 57.07 | 83.10 | 52.71
        """,
        dataset="cifar10", **_WRN,
    ),
    "l2l:table2-cifar100": _table(
        "CIFAR-100, eps 0.031", "L2L v1 Table 2; L2L v2 Table 2", "Natural | PGM-20 | PGM-100 | CW",
        """
        PGM Net          | 62.68 | 23.75 | 22.06 | 25.95
        Grad-only L2L    | 62.4  | 27.64
        2-Step Grad-only | 60.25 | 31.24
        Grad L2L         | 62.18 | 28.67 | 26.69 | 29.65
        2-Step L2L       | 60.95 | 31.03 | 29.75 | 32.28
        """,
        dataset="cifar100", **_WRN,
    ),
    "l2l:table3": _table(
        "seconds per epoch", "L2L v1 Table 3; L2L v2 Table 3", "CIFAR-10 | CIFAR-100",
        """
        Plain      |  106.5 |  106.9
        PGM Net    | 1310.8 | 1354.8
        Naive L2L  |  293.7 |  310.0
        Grad L2L   |  617.5 |  623.1
        2-Step L2L |  805.1 |  824.7
        """,
        dataset="cifar10", unit="s", **_WRN,
    ),
    "l2l:table4-v2": _table(
        "Adversarial Interpolation Training on CIFAR-10", "L2L v2 Table 4",
        "Natural | PGM-20 | PGM-100 | CW-20 | CW-100",
        """
        AIT          | 90.43 | 75.33 | 67.84 | 64.79 | 61.69
        AIT+Grad L2L | 91.65 | 80.87 | 79.20 | 74.88 | 73.46
        """,
        dataset="cifar10", arch="wrn_34_10", epochs=200,
    ),
    "l2l:table4": _table(
        "black box on CIFAR-10: the surrogate's training, the attack on it (slim attackers)", "L2L v1 Table 4", _BLACK,
        """
        Plain Net  | 40.03 |  5.60 | 74.42 | 75.25 | 67.37 | 65.92
        FGSM Net   | 79.20 | 85.02 | 89.90 | 80.40 | 64.28 | 63.89
        PGM Net    | 83.80 | 84.73 | 84.33 | 85.29 | 67.05 | 65.54
        Naive L2L  | 45.52 | 25.95 | 83.99 | 77.94 | 68.14 | 67.13
        Grad L2L   | 86.10 | 86.87 | 87.93 | 88.01 | 71.15 | 69.95
        2-Step L2L | 85.83 | 87.10 | 86.51 | 87.60 | 70.58 | 69.38
        """,
        dataset="cifar10", **_WRN,
    ),
    "l2l:table5": _table(
        "black box on CIFAR-100 (slim attackers)", "L2L v1 Table 5", _BLACK,
        """
        Plain Net  | 21.04 |  9.04 | 50.57 | 54.06 | 40.06 | 41.30
        FGSM Net   | 42.87 | 50.73 | 61.68 | 44.70 | 39.34 | 40.08
        PGM Net    | 56.63 | 58.34 | 56.99 | 57.97 | 40.19 | 39.87
        Naive L2L  | 20.97 | 10.47 | 50.36 | 54.07 | 38.63 | 39.91
        Grad L2L   | 57.63 | 59.62 | 59.18 | 61.26 | 41.71 | 41.15
        2-Step L2L | 58.66 | 59.31 | 58.92 | 59.46 | 45.80 | 45.31
        """,
        dataset="cifar100", **_WRN,
    ),
    "l2l:table6": _table(
        "black box on SVHN (wide attackers)", "L2L v1 Table 6", _BLACK,
        """
        Plain Net  | 21.72 |  6.94 | 41.81 | 33.13 | 56.77 | 49.41
        FGSM Net   | 57.36 | 51.54 | 56.25 | 38.11 | 55.99 | 48.96
        PGM Net    | 81.04 | 81.52 | 78.66 | 80.42 | 54.85 | 49.21
        Naive L2L  | 73.02 | 42.14 | 78.11 | 59.79 | 85.31 | 61.08
        Grad L2L   | 71.74 | 74.31 | 77.19 | 80.70 | 71.99 | 58.71
        2-Step L2L | 65.78 | 74.07 | 76.13 | 82.80 | 61.69 | 54.13
        """,
        dataset="svhn", **_WRN,
    ),
    "l2l:table8": _table(
        "slim attackers on CIFAR-10", "L2L v1 Table 8", "Natural | FGSM | PGM-20 | CW",
        """
        Naive L2L  | 94.41 | 28.44 |  0.01 |  0.00
        Grad L2L   | 85.31 | 57.44 | 53.02 | 42.72
        2-Step L2L | 75.36 | 60.19 | 46.12 | 40.82
        """,
        dataset="cifar10", **_WRN,
    ),
    "l2l:table8-cifar100": _table(
        "slim attackers on CIFAR-100", "L2L v1 Table 8", "Natural | FGSM | PGM-20 | CW",
        """
        Naive L2L  | 75.27 |  8.47 |  0.05 |  0.00
        Grad L2L   | 60.60 | 26.58 | 27.37 | 23.14
        2-Step L2L | 60.23 | 25.92 | 20.23 | 22.70
        """,
        dataset="cifar100", **_WRN,
    ),
    "l2l:figure4": _table(
        "accuracy against the attack's radius and steps", "L2L v1 Figure 4; L2L v2 Figure 3", "",
        "PGM Net\nGrad L2L\n2-Step L2L", dataset="cifar100", **_WRN,
    ),
    "l2l:figure5": _table(
        "perturbations", "L2L v1 Figure 5; L2L v2 Figure 4; L2L v2 Figure 5", "",
        "PGM Net\n2-Step L2L", dataset="cifar10", **_WRN,
    ),
    "l2l:figure6": _table(
        "GAIL with a learned discriminator updater", "L2L v1 Figure 6", "",
        "GAIL, CartPole\nL2L, CartPole\nGAIL, MountainCar\nL2L, MountainCar", unit="return",
    ),
    "l2l:figure8": _table(
        "the limiting cycle", "L2L v1 Figure 1; L2L v1 Figure 8", "distance", "gradient steps | 1", unit="",
    ),
    "l2l:figure9": _table(
        "accuracy against radii up to 1", "L2L v1 Figure 9", "", "PGM Net\nGrad L2L\n2-Step L2L",
        dataset="cifar100", **_WRN,
    ),
    "l2l_da:table1a": _table(
        "ablation on MNIST: recursion R, diversity D", "L2L-DA Table 1", _ABLATION,
        """
        L2L*     | 98.95 | 36.59 |  0.02 |  2.46 |  0.02
        R-, D-   | 98.81 | 97.02 | 87.86 | 86.12 | 86.12
        R-, D+   | 98.94 | 97.46 | 91.40 | 90.45 | 90.45
        R+, D-   | 98.51 | 96.91 | 93.97 | 94.68 | 93.97
        R+, D+   | 98.47 | 97.87 | 95.15 | 95.26 | 95.15
        """,
        **_DA_MNIST,
    ),
    "l2l_da:table1b": _table(
        "ablation on MNIST: the generator's inputs", "L2L-DA Table 1", _ABLATION,
        """
        delta+, y+ | 98.47 | 97.87 | 95.15 | 95.26 | 95.15
        delta+, y- | 98.51 | 96.75 | 93.44 | 94.02 | 93.44
        delta-, y+ | 98.50 | 95.73 | 92.46 | 93.59 | 92.46
        delta-, y- | 98.40 | 95.58 | 92.36 | 93.24 | 92.36
        """,
        **_DA_MNIST,
    ),
    "l2l_da:table2-mnist": _table(
        "MNIST, LeNet-5, eps 0.3", "L2L-DA Table 2", _DA,
        """
        Plain   | 99.14 |  0.90 |  0.00 |  0.00 | 63.14 |  0.85 |  0.47 |  3.94 |  0.00 |  0.00
        PGD10   | 98.52 | 96.14 | 92.21 | 90.22 | 96.66 | 88.92 | 98.30 | 96.56 | 89.49 | 88.92
        PGD100  | 98.29 | 94.07 | 90.15 | 88.93 | 96.48 | 89.76 | 95.00 | 96.79 | 89.95 | 88.93
        C&W100  | 99.09 | 17.54 |  0.25 |  0.25 | 69.99 |  0.05 |  4.90 |  3.74 | 34.51 |  0.05
        L2L*    | 98.95 | 36.59 |  0.18 |  0.02 | 81.63 |  2.46 | 10.87 |  2.01 |  3.89 |  0.02
        L2L-DA  | 98.47 | 97.87 | 95.70 | 95.15 | 97.26 | 95.26 | 95.72 | 96.92 | 94.61 | 94.61
        """,
        **_DA_MNIST,
    ),
    "l2l_da:table2-cifar10": _table(
        "CIFAR-10, ResNet-20, eps 8/255", "L2L-DA Table 2", _DA,
        """
        Plain   | 91.73 | 17.63 |  0    |  0    |  0    |  0    | 24.13 | 17.42 |  0.04 |  0
        PGD10   | 87.43 | 72.00 | 41.77 | 37.37 | 35.12 | 34.81 | 69.96 | 67.38 |  0.32 |  0.32
        PGD100  | 81.11 | 44.96 | 37.60 | 35.80 | 36.25 | 35.85 | 77.79 | 77.97 | 36.95 | 35.80
        C&W100  | 88.36 | 25.76 |  9.44 |  6.82 |  8.27 |  6.97 | 83.11 | 72.94 |  8.88 |  6.82
        L2L*    | 88.96 | 59.48 |  0    |  0    |  0    |  0    | 30.13 | 19.36 |  0    |  0
        L2L-DA  | 78.91 | 45.77 | 39.69 | 38.39 | 37.75 | 37.40 | 75.31 | 76.35 | 39.20 | 37.40
        """,
        dataset="cifar10", arch="resnet20", epochs=200,
    ),
    "l2l_da:table3": _table(
        "black box on MNIST: the attack, the surrogate (A plain, B FGSM, C PGD10)", "L2L-DA Table 3",
        "L2L-DA A | L2L-DA B | L2L-DA C | PGD10 A | PGD10 B | PGD10 C | PGD100 A | PGD100 B | PGD100 C | Min",
        """
        Plain  |  0.00 | 42.70 | 90.36 |  0.01 | 44.46 | 86.04 |  0.00 | 42.36 | 84.54 |  0.00
        PGD10  | 94.13 | 94.61 | 96.52 | 94.90 | 95.45 | 95.85 | 94.89 | 95.52 | 95.49 | 94.13
        PGD100 | 94.23 | 94.91 | 96.32 | 94.91 | 95.52 | 95.29 | 95.05 | 95.59 | 94.91 | 94.23
        C&W100 | 15.15 | 41.76 | 93.49 | 23.55 | 41.72 | 89.30 | 21.47 | 39.10 | 88.63 | 15.15
        L2L*   | 59.29 | 70.62 | 94.79 | 69.36 | 75.01 | 93.43 | 66.83 | 72.91 | 93.13 | 59.29
        L2L-DA | 95.08 | 95.40 | 96.65 | 95.72 | 96.00 | 96.31 | 95.63 | 96.09 | 96.03 | 95.08
        """,
        **_DA_MNIST,
    ),
    "l2l_da:figure2": _table(
        "largest loss of 10 steps of the L2L-DA attack", "L2L-DA Figure 2", "L2L-DA",
        """
        PGD classifier    | 1.90
        L2L-DA classifier | 1.64
        """,
        dataset="cifar10", arch="resnet20", epochs=200, unit="loss",
    ),
    "ours:attackers": _table(
        "learned attackers of a fixed classifier and PGD, 10 steps each", "ours", "PGD | untrained | trained",
        "RNN on AdvTrain\nL2L-DA on PGD10", dataset="mnist",
    ),
    "rnn_adv:open": _table(
        "what RNN-Adv leaves open, on digits", "ours", "",
        "scale, gradient, learning rate of phi, w_t, biases\nphi frozen at its start", dataset="digits",
    ),
    "l2l:open": _table(
        "L2L's slim attacker with and without the skip, on digits", "ours", "", "slim, slim without the skip",
        dataset="digits",
    ),
}  # fmt: skip
"""The tables to compare, by name."""

ARCHITECTURES = (
    "L2L v1 Table 1", "L2L v1 Table 7", "L2L v1 Figure 2", "L2L v1 Figure 3", "L2L v1 Figure 7", "L2L v2 Table 1",
    "L2L v2 Figure 1", "L2L v2 Figure 2", "RNN-Adv Figure 1", "L2L-DA Figure 1",
)  # fmt: skip
"""Tables and figures that show a network, not a result: `models.attackers` and `models.generators`."""
