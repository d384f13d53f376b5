"""A peer: one model's training process."""
