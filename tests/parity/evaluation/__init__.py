"""Compare the evaluators with official figures: `python -m tests.parity.evaluation FOLDER`."""
