"""AWR weights in stock lerobot-train.

Options: --sample_weighting.type=srpo_awr --sample_weighting.extra_params='{"path": FILE}'. Without a path the file is
DATASET/srpo/awr_weights.parquet. It is enough to install this distribution: lerobot-train imports every installed
distribution whose name begins with lerobot_policy_ before it reads its options.
"""

from lerobot_policy_srpo_awr.weighter import AwrWeighter, read_weights, register

__all__ = ["AwrWeighter", "read_weights", "register"]

register()
