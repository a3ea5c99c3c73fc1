"""The ops of ext/cuda, driven through ctypes, on a GPU or emulated. Nothing here imports Paddle or qvl."""
