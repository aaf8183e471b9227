"""PyTorch checkpoints: the same logits from the same weights, under the names of three conventions."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import models
from l2ljax.models import resnet
from l2ljax.types import L2LError

NUMBERS = np.random.default_rng(0)
# Convention, a network of ours, its small form for the comparison of logits, whether the stem is ImageNet's.
NETWORKS = {
    "trades": ("wrn_28_10", {"stem": 4, "widths": (6, 8), "depths": (2, 1)}),
    "kuangliu": ("resnet18", {"stem": 4, "widths": (4, 8), "depths": (1, 1)}),
    "kuangliu_preact": ("preact_resnet18", {"stem": 4, "widths": (4, 8), "depths": (1, 1)}),
    "torchvision": ("resnet18_imagenet", {"stem": 4, "widths": (4, 8), "depths": (1, 1)}),
}


def torch_network(convention, module, num_classes):
    """A torch network built and named as in that convention, of the widths and depths of one of ours."""
    torch = pytest.importorskip("torch")
    nn, relu = torch.nn, torch.nn.functional.relu
    trades, preact = convention == "trades", convention in ("trades", "kuangliu_preact")

    class Block(nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            self.bn1, self.bn2 = nn.BatchNorm2d(channels if preact else width), nn.BatchNorm2d(width)
            self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.other = None
            if stride != 1 or channels != width:
                name = {"trades": "convShortcut", "torchvision": "downsample"}.get(convention, "shortcut")
                conv = nn.Conv2d(channels, width, 1, stride, bias=False)
                self.add_module(name, conv if trades else nn.Sequential(conv, *[nn.BatchNorm2d(width)][preact:]))
                self.other = name

        def forward(self, x):
            shortcut = getattr(self, self.other) if self.other else lambda x: x
            if preact:
                z = relu(self.bn1(x))
                return self.conv2(relu(self.bn2(self.conv1(z)))) + shortcut(z if self.other else x)
            return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))) + shortcut(x))

    class Group(nn.Module):
        def __init__(self, *blocks):
            super().__init__()
            self.layer = nn.Sequential(*blocks)

        def forward(self, x):
            return self.layer(x)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            large = convention == "torchvision"
            self.conv1 = nn.Conv2d(3, module.stem, *((7, 2, 3) if large else (3, 1, 1)), bias=False)
            self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
            channels, self.groups = module.stem, []
            for i, (width, depth) in enumerate(zip(module.widths, module.depths, strict=True)):
                blocks = [
                    Block(*([channels, width, 1 + (i > 0)] if j == 0 else [width, width, 1])) for j in range(depth)
                ]
                self.groups.append(f"block{i + 1}" if trades else f"layer{i + 1}")
                self.add_module(self.groups[-1], Group(*blocks) if trades else nn.Sequential(*blocks))
                channels = width
            if trades:
                self.sub_block1 = Group(Block(module.stem, module.widths[0], 1))  # never run
            if trades or not preact:
                self.bn1 = nn.BatchNorm2d(channels if trades else module.stem)
            self.add_module("linear" if "kuangliu" in convention else "fc", nn.Linear(channels, num_classes))

        def forward(self, x):
            x = self.conv1(x)
            x = self.pool(x if preact else relu(self.bn1(x)))
            for name in self.groups:
                x = getattr(self, name)(x)
            x = relu(self.bn1(x)) if trades else x
            return (self.linear if "kuangliu" in convention else self.fc)(x.mean((2, 3)))

    return Network().eval()


@pytest.mark.parametrize("convention", NETWORKS)
def test_logits_equal_torchs(convention, monkeypatch):
    arch, smaller = NETWORKS[convention]
    make = functools.partial(resnet.RESNETS[arch], **smaller)
    for table in (resnet.RESNETS, models.CLASSIFIERS):
        monkeypatch.setitem(table, "small", make)
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)  # some weights hardly see the image
    network = torch_network(convention, make(), num_classes=7)
    with torch.no_grad():
        for array in network.state_dict().values():  # statistics and scales away from 0 and 1
            if array.ndim == 1:
                array += torch.rand(array.shape)
    x = NUMBERS.uniform(size=(3, 32, 32, 3)).astype(np.float32)
    expected = network(torch.from_numpy(x.transpose(0, 3, 1, 2))).detach().numpy()
    assert np.abs(expected - expected[0]).max() > 1e-3

    classifier = models.create("small", num_classes=7)
    variables = models.from_torch_state("small", network.state_dict())
    made = jax.eval_shape(classifier.init, jax.random.key(0), x)
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, made)
    np.testing.assert_allclose(jax.jit(classifier.logits)(variables, x), expected, rtol=1e-4, atol=1e-4)

    parallel = {f"module.{name}": array.numpy() for name, array in network.state_dict().items()}
    chex.assert_trees_all_equal(models.from_torch_state("small", parallel), variables)


@pytest.mark.parametrize("convention", NETWORKS)
def test_every_array_of_the_large_networks_has_its_name(convention):
    torch = pytest.importorskip("torch")
    arch, _ = NETWORKS[convention]
    module = resnet.RESNETS[arch](num_classes=100)
    with torch.device("meta"):  # shapes alone
        state = torch_network(convention, module, num_classes=100).state_dict()
    zeros = {name: np.broadcast_to(np.float32(0), array.shape) for name, array in state.items()}
    made = jax.eval_shape(lambda: models.from_torch_state(arch, zeros))
    expected = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    chex.assert_trees_all_equal_shapes_and_dtypes(made, expected)


def normalization(name, width):
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": NUMBERS.normal(size=width) for leaf in leaves}


@pytest.fixture
def grey(monkeypatch):
    """A network of one block for grey images, and its state, without torch."""
    make = functools.partial(resnet.resnet18, stem=2, widths=(2,), depths=(1,))
    monkeypatch.setitem(resnet.RESNETS, "grey", make)
    state = {"conv1.weight": NUMBERS.normal(size=(2, 1, 3, 3)), **normalization("bn1", 2)}
    for i in (1, 2):
        state |= {f"layer1.0.conv{i}.weight": NUMBERS.normal(size=(2, 2, 3, 3)), **normalization(f"layer1.0.bn{i}", 2)}
    return {**state, "linear.weight": NUMBERS.normal(size=(5, 2)), "linear.bias": NUMBERS.normal(size=5)}


def test_arrays_are_placed_with_the_axes_in_our_order(grey):
    variables = models.from_torch_state("grey", grey)
    params, stats = variables["params"], variables["batch_stats"]
    for ours, theirs in [
        (params["Conv_0"]["kernel"], grey["conv1.weight"].transpose(2, 3, 1, 0)),
        (params["BasicBlock_0"]["Conv_1"]["kernel"], grey["layer1.0.conv2.weight"].transpose(2, 3, 1, 0)),
        (params["BasicBlock_0"]["BatchNorm_0"]["scale"], grey["layer1.0.bn1.weight"]),
        (stats["BasicBlock_0"]["BatchNorm_1"]["var"], grey["layer1.0.bn2.running_var"]),
        (params["Dense_0"]["kernel"], grey["linear.weight"].T),
    ]:
        np.testing.assert_array_equal(ours, theirs.astype(np.float32))


def test_other_weights_are_told_plainly(grey):
    for change, message in [
        ({"linear.bias": None, "bn1.bias": None}, "they lack bn1.bias, linear.bias$"),
        ({"mu": np.zeros(3), "sigma": np.ones(3)}, "they also have mu, sigma$"),
        (dict.fromkeys(grey), r"they lack .*, .*, .*, .* and 13 more and also have state_dict$"),
        ({"linear.weight": np.zeros((5, 3))}, r"linear.weight is \[3, 5\], and grey has \[2, 5\]"),
    ]:
        state = {name: array for name, array in {**grey, **change}.items() if array is not None}
        state = state or {"state_dict": grey}
        with pytest.raises(L2LError, match=message):
            models.from_torch_state("grey", state)
    for state, message in [
        ("resnet18.pt", "the weights are a str: give module.state_dict"),
        ({1: np.zeros(3)}, "the weights are a dict: give module.state_dict"),
        ({**grey, "linear.bias": 3.0}, "linear.bias is"),
        ({**grey, "linear.bias": "x"}, r"linear.bias is no array of floats \(.*\): give module.float"),
    ]:
        with pytest.raises(L2LError, match=message):
            models.from_torch_state("grey", state)
    with pytest.raises(L2LError, match="vgg16 has no map from torch's names: choose one of resnet20, resnet18"):
        models.from_torch_state("vgg16", grey)
