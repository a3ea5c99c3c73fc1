"""Where checkpoints come from and are kept."""
