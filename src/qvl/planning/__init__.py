"""What a run would take of devices that are not at hand: memory, exchanges, and the least time of a step."""
