"""Turns video into embeddings, progress, step values and rewards: windows, encoder, store, references, score."""
