"""A simulated lab: an xArm 7 with gripper, cameras and objects in MuJoCo."""
