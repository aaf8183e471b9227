"""Evaluation on the host.

`accuracy` makes rows of attacks x data, `standard` runs AutoAttack and others on the survivors, `views` computes the
numbers of figures, `masking` looks for masked gradients.

result = evaluate(logits_fn, dataset.test, {"pgd20": attacks.create("pgd20", ball)}, key=key)
result = run_standard_evaluation(logits_fn, x, y, ball=ball, key=key)
"""

from l2ljax.evaluate.accuracy import AttackRow, Evaluation, evaluate, losses_of_draws
from l2ljax.evaluate.loop import check_logits
from l2ljax.evaluate.standard import InTurn, run_in_turn, run_standard_evaluation

__all__ = [
    "AttackRow", "Evaluation", "InTurn", "check_logits", "evaluate", "losses_of_draws", "run_in_turn",
    "run_standard_evaluation",
]  # fmt: skip
__dir__ = lambda: __all__
