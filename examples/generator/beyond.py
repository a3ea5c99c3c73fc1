"""Questions the demo model cannot answer, and that it says so; greetings."""

from __future__ import annotations

import numpy as np

from examples.generator.turns import Turn, pick, worded

CANNOT = "I am a small demo model: I only know simple shapes, numbers and words in pictures, so I cannot tell."
GREETING = "Hello! I am a small demo model. Show me a picture with simple shapes, a number or a word."

_SUBJECTS = """
the weather, France, my mother, the moon, football, the war, a dog, quantum physics, the president, music, London,
a computer, love, the economy, this person, Shakespeare, the photographer, a cake, the sea, history, my homework,
a good film, the stock market, dinner, chess, the internet, a train ticket, Germany, medicine, the law, the brand,
the artist, the year, the price, this building, the owner, python, a novel, the meaning of life, the driver
"""
_THINGS = tuple(subject.strip() for subject in _SUBJECTS.split(","))
_BEYOND = (
    "Who wrote {thing}?",
    "Who is {thing}?",
    "What do you think about {thing}?",
    "Tell me a story about {thing}.",
    "Write a poem about {thing}.",
    "Explain {thing} to me.",
    "Why is {thing} important?",
    "When was {thing} invented?",
    "How old is {thing}?",
    "How much does {thing} cost?",
    "What is the capital of {thing}?",
    "Translate {thing} into Chinese.",
    "What is the history of {thing}?",
    "Is {thing} dangerous?",
    "Where can I buy {thing}?",
    "Give me advice about {thing}.",
    "How do I learn about {thing}?",
    "Write code for {thing}.",
    "Solve this equation about {thing}.",
    "What is the name of {thing}?",
    "Who made {thing}?",
    "What brand is {thing}?",
    "Recommend {thing}.",
    "What will {thing} be like tomorrow?",
    "Summarize {thing}.",
)
_GREETINGS = ("Hello!", "Hi", "Hello, who are you?", "Good morning!", "Who are you?", "What can you do?", "Help", "Hey")


def beyond(rng: np.random.Generator) -> Turn:
    """Something it was never taught."""
    return Turn("beyond", worded(rng, _BEYOND, thing=pick(rng, _THINGS)), CANNOT)


def greeting(rng: np.random.Generator) -> Turn:
    """Who it is."""
    return Turn("beyond", worded(rng, _GREETINGS), GREETING)
