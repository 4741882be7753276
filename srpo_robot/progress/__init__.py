"""From frames to progress: windows, embeddings, references, distances, progress and trajectory reward."""
