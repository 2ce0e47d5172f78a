"""A comparison of methods: its trainings, the choice of a point, intervals and paired tests, a verdict, and its files.

    plan.py -> tuning.py -> comparison.py (front.py) -> verdict.py, charts.py -> output.py        fapm.py, wise.py

Knows nothing about Ray or how anything was measured; `actors/compare.py` drives it.
"""
