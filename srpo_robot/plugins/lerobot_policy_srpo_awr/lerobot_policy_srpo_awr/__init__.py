"""AWR weights in stock lerobot-train.

Options: --sample_weighting.type=srpo_awr --sample_weighting.extra_params='{"path": FILE}'. Without a path the file is
DATASET/srpo/awr_weights.parquet. lerobot-train imports every installed distribution whose name begins with
lerobot_policy_ before it reads its options, so installing this one is all there is to do.
"""

from lerobot_policy_srpo_awr.weighter import AwrWeighter, read_weights, register

__all__ = ["AwrWeighter", "read_weights", "register"]

register()
