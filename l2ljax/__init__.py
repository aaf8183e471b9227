"""Learning-to-learn adversarial training in JAX.

    from l2ljax import attacks, data, defenses, devices, evaluate, losses, models, threat, train

`fit` trains; `load` and `save` keep the result. README.md says which file to read for each task; `types` defines the
interfaces.
"""

from l2ljax import attacks, data, defenses, devices, evaluate, losses, models, threat, train, types
from l2ljax.run.fit import Result, fit, save
from l2ljax.run.trained import load, load_attacker, load_classifier

__version__ = "0.1.0"
__all__ = [
    "Result", "attacks", "data", "defenses", "devices", "evaluate", "fit", "load", "load_attacker", "load_classifier",
    "losses", "models", "save", "threat", "train", "types",
]  # fmt: skip
__dir__ = lambda: __all__
