"""Learning-to-learn adversarial training in JAX.

    from l2ljax import attacks, data, defenses, devices, evaluate, losses, models, threat, train

README.md says which file to read for each task; `types` defines the interfaces.
"""

from l2ljax import attacks, data, defenses, devices, evaluate, losses, models, threat, train, types

__version__ = "0.1.0"
__all__ = ["attacks", "data", "defenses", "devices", "evaluate", "losses", "models", "threat", "train", "types"]
__dir__ = lambda: __all__
