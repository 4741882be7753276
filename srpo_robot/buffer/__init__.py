"""The LeRobot-format buffer: the only subpackage that opens a LeRobotDataset."""
