"""Evidence for a score: metrics, baselines, negative controls, the benchmark and the audit."""
