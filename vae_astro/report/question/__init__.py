"""The question that started this project, answered from runs: `scripts/question.py` makes them."""
