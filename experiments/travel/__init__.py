"""The meta-trained attack: the classifiers that it learns on and is judged on (`victims`), its training (`training`),
and the comparison with PGD and APGD of more steps (`comparison`). `traveller.py` runs them in turn.
"""
