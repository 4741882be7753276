"""Tests of a score: metrics, negative controls, baselines, the benchmark and the audit."""
