"""Keys of observations and info dicts that environments write and agents read."""

ACTION_MASK_KEY = "action_mask"
"""In a Dict observation: marks the allowed actions."""
STATISTICS_KEY = "episode_statistics"
"""In the info dict: returns and lengths of the episodes that ended. Not Gymnasium's "episode",
which an environment may use itself."""
TEACHER_KEY = "teacher_logits"
"""In the info dict of every step and reset: an environment's teacher's logits [B, n]."""
TRAINING_REWARD_KEY = "training_reward"
"""In the info dict: another reward to learn from."""
