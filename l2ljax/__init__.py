"""Learning-to-learn adversarial training in JAX.

    from l2ljax import attacks, data, defenses, devices, evaluate, losses, models, threat, train

`fit` trains; `load` and `save` keep what was trained. README.md says which file to open for what; `types` holds the
contracts.
"""

from l2ljax import attacks, data, defenses, devices, evaluate, losses, models, threat, train, types
from l2ljax.run.fit import Result, fit, save
from l2ljax.run.trained import load, load_attacker, load_classifier

__version__ = "0.1.0"
__all__ = [
    "Result", "attacks", "data", "defenses", "devices", "evaluate", "fit", "load", "load_attacker", "load_classifier",
    "losses", "models", "save", "threat", "train", "types",
]  # fmt: skip
