"""Features of pictures and clips that were encoded already, by their content, within a limit of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import paddle

from qvl.processing.prompt import Vision


class FeatureCache:
    """The features used last, [tokens, hidden_size] each, on the model's device. One belongs to one model.

    What is asked for by content is found whatever file or conversation it came in. Whoever changes the weights of the
    model clears it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.hits = 0
        self.misses = 0
        self._features: OrderedDict[bytes, paddle.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """What the features that are kept take. Summed each time: a count of its own could go astray."""
        return sum(map(_bytes, self._features.values()))

    def __len__(self) -> int:
        return len(self._features)

    def get(self, vision: Vision, encode: Callable[[Vision], paddle.Tensor]) -> tuple[paddle.Tensor, bool]:
        """The features of a picture or clip, and whether they were found; otherwise `encode` makes them."""
        if not self.limit_bytes:  # nothing is kept, so nothing need be hashed
            self.misses += 1
            return encode(vision), False
        with self._lock:
            found = self._features.get(vision.digest)
            if found is not None:
                self.hits += 1
                self._features.move_to_end(vision.digest)
                return found, True
        self.misses += 1
        features = encode(vision)
        self._keep(vision.digest, features)
        return features, False

    def clear(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._features.clear()

    def _keep(self, digest: bytes, features: paddle.Tensor) -> None:
        size = _bytes(features)
        if size > self.limit_bytes:  # would push out everything else and not fit even then
            return
        with self._lock:
            if digest in self._features:  # another thread was asked about the same picture
                return
            while self._features and self.held_bytes + size > self.limit_bytes:
                self._features.popitem(last=False)
            self._features[digest] = features


def _bytes(features: paddle.Tensor) -> int:
    return int(features.size) * int(features.element_size())
