"""Qwen2-VL as plain Paddle layers, its configuration and its weights. Knows nothing of conversations."""
