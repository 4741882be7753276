"""From progress to a policy: advantages, weights, losses and the fine-tuning loop."""
