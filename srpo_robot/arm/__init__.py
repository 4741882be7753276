"""The arm's contract, kinematics and limits. No torch and no lerobot, so the streamer starts in under a second."""
