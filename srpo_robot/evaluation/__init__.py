"""Evaluation runs: a policy, an arm, trials and their statistics."""
