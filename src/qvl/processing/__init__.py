"""From messages to a `Prompt`: pictures, clips, text and positions. NumPy only, no Paddle."""
