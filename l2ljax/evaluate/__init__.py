"""Evaluation on the host: attacks x data -> rows (`accuracy`), and AutoAttack and others on the survivors (`standard`).

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
