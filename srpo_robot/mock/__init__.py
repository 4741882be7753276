"""A stand-in for the lab: an xArm 7, its gripper, cameras and objects in MuJoCo."""
