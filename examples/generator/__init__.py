"""Draws the pictures and clips of the demo model and asks about them: what it learns from and what it is judged by.

`python -m examples.generator --help` writes a training set. Everything follows from a split's name and a number, so any
sample can be made again alone, and the held-out ones are never seen in training.
"""
