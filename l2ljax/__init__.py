"""Learning-to-learn adversarial training in JAX.

    from l2ljax import attacks, defenses, devices, losses, models, threat, train

README.md tells which file to open for what; `types` holds the contracts.
"""

from l2ljax import attacks, defenses, devices, losses, models, threat, train, types

__version__ = "0.1.0"
__all__ = ["attacks", "defenses", "devices", "losses", "models", "threat", "train", "types"]
