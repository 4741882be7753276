"""Evaluation of policies on an arm: episodes, trials, protocols and statistics."""
