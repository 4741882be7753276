"""srpo-robot: score robot episodes by self-reference, fine-tune by advantage, run on an xArm 7."""

__version__ = "0.1.0"
