"""Supervised fine-tuning of the model that inference runs. The only package that imports PaddleNLP, where it must."""
