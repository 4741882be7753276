"""The arm: its contract, kinematics and limits. No torch, no lerobot: a streamer starts from here in under a second."""
