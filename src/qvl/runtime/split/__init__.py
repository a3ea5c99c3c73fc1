"""A model that several processes hold together, a part each, for one engine that holds none of it.

The engine's process reads media, draws tokens and talks to the user; each call of the model goes to all workers at
once, who exchange sums among themselves, and the first one's result comes back. So Ctrl-C, sampling, sessions and
batches work as with one process, and the death of a worker is a closed connection and no more.
"""
