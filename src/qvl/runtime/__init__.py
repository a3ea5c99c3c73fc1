"""From a `Prompt` to a stream of text: cache, sampling, the decode loop, and the `Engine` that holds them together."""
