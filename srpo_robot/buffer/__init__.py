"""The LeRobot-format buffer: the only room that opens a LeRobotDataset."""
