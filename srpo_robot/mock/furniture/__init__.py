"""The furniture on each task's table: its MJCF, and the few effects that rigid-body physics does not model."""
