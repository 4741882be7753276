"""What stands on the table of each task: MJCF, and the little that happens to it beside rigid-body physics."""
