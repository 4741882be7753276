"""The xArm 7: driver, streamer process, controller protocol and pre-flight. A second robot gets a folder beside it."""
