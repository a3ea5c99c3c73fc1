"""The memory of encoded pictures: what it keeps, what it lets go, and what it takes for the same picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest

from qvl.errors import UsageError
from qvl.messages import Image, Message
from qvl.processing.prompt import Vision
from qvl.profile import Profile, load_profile
from qvl.runtime.engine import Engine
from qvl.runtime.features import FeatureCache
from qvl.runtime.records import Request, Sampling


def vision(value: int, grid: tuple[int, int, int] = (1, 2, 2)) -> Vision:
    return Vision("image", np.full((4, 6), value, np.float32), grid, (28, 28))


def encode(vision: Vision) -> paddle.Tensor:  # 100 bytes each
    return paddle.full([1, 25], float(vision.patches[0, 0]))


def found(cache: FeatureCache, *values: int) -> list[bool]:
    hits = []
    for value in values:
        features, hit = cache.get(vision(value), encode)
        assert features.numpy()[0, 0] == value
        hits.append(hit)
        assert cache.held_bytes == 100 * len(cache) <= cache.limit_bytes
    return hits


def test_what_was_used_last_is_kept_within_the_limit() -> None:
    cache = FeatureCache(250)
    assert found(cache, 1, 2, 1) == [False, False, True]
    assert found(cache, 3) == [False], "pushes out 2, the one not used for longest"
    assert found(cache, 1, 3, 2) == [True, True, False]
    assert found(cache, 1) == [False]
    assert (cache.hits, cache.misses) == (3, 5)
    cache.clear()
    assert len(cache) == cache.held_bytes == 0 and found(cache, 3) == [False]


def test_features_over_the_limit_push_nothing_out() -> None:
    cache = FeatureCache(150)
    assert found(cache, 1) == [False]
    wide = vision(9)
    assert cache.get(wide, lambda _: paddle.zeros([2, 25]))[1] is False
    assert cache.get(wide, lambda _: paddle.zeros([2, 25]))[1] is False
    assert found(cache, 1) == [True]


def test_without_a_limit_nothing_is_kept() -> None:
    cache = FeatureCache(0)
    assert [cache.get(vision(1), encode)[1] for _ in range(3)] == [False] * 3 and len(cache) == 0


def test_only_the_content_tells_pictures_apart() -> None:
    assert vision(1).digest == vision(1).digest != vision(2).digest
    assert vision(1).digest != vision(1, (1, 4, 1)).digest, "the same patches in another shape are another picture"
    clip = Vision("video", vision(1).patches, (1, 2, 2), (1, 1))
    assert clip.digest == vision(1).digest, "features depend on patches and grid alone"


def test_a_profile_says_how_much_is_kept(tiny_checkpoint: Path) -> None:
    assert load_profile("2b").feature_cache_mib == 256
    with pytest.raises(UsageError, match="feature_cache_mib"):
        load_profile("2b", ["feature_cache_mib=-1"])
    picture = Image(np.full((84, 84, 3), 7, np.uint8))
    for mib, reused in ((0, 0), (16, 1)):
        engine = Engine.load(Profile(model=str(tiny_checkpoint), device="cpu", feature_cache_mib=mib))
        answers = [engine.generate([Message.of("user", picture, "?")], Sampling(max_new_tokens=2)) for _ in range(2)]
        assert answers[0].token_ids == answers[1].token_ids
        assert answers[1].stats.reused_visions == reused and answers[0].stats.encoded_visions == 1


def test_a_batch_encodes_a_picture_that_all_ask_about_once(tiny_checkpoint: Path) -> None:
    engine = Engine.load(Profile(model=str(tiny_checkpoint), device="cpu"))
    picture = Image(np.full((84, 84, 3), 7, np.uint8))
    asked = [Request(n, [Message.of("user", picture, f"Question {n}?")], Sampling(max_new_tokens=2)) for n in range(5)]
    answers = [finished.answer for finished in engine.serve(asked, batch_size=2)]
    assert sum(answer.stats.encoded_visions for answer in answers if answer) == 1
    assert sum(answer.stats.reused_visions for answer in answers if answer) == 4


def test_a_picture_that_two_threads_ask_for_at_once_is_kept_once() -> None:
    cache = FeatureCache(250)

    def encode_after_another(asked: Vision) -> paddle.Tensor:
        cache.get(asked, encode)
        return encode(asked)

    for value in range(6):
        cache.get(vision(value), encode_after_another)
        assert cache.held_bytes == 100 * len(cache) <= cache.limit_bytes
