"""Trains the small vocabulary that comes with qvl: src/qvl/hub/small_merges.txt. Run by hand, once.

The merges are kept as a file, because what training gives may differ from one version of `tokenizers` to the next and
every golden file depends on it. Written with tokenizers 0.21.4: `python -m tests.golden.make_vocabulary`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from qvl.hub.small_vocabulary import MERGES_FILE, SPLIT_PATTERN

MERGES = 742  # with 256 bytes and 14 special tokens this makes 1012, which a table of 1024 rows holds

COLOURS = ["red", "green", "blue", "yellow", "orange", "purple", "black", "white", "grey", "brown", "pink"]
SHAPES = ["circle", "square", "triangle", "star", "rectangle", "line", "dot", "ring", "cross", "heart", "arrow"]
PLACES = ["on the left", "on the right", "at the top", "at the bottom", "in the middle", "in the corner", "behind it"]
ZH_COLOURS = ["红色", "绿色", "蓝色", "黄色", "黑色", "白色"]
ZH_SHAPES = ["圆形", "方形", "三角形", "星形", "直线"]
ZH_PLACES = ["左边", "右边", "上面", "下面", "中间"]
PLAIN = """
Describe this picture. Describe this image in one sentence. What is in the picture? What does the sign say?
How many people are there? Is there a dog in this picture? Where is the cat? Read the text. What colour is it?
The picture shows a table with two chairs and a window. A person is walking along the street with a small dog.
There is a tree in front of the house and a car behind it. The clip shows a ball that moves from left to right.
First the light is on, then it is off. The number is written above the line. I cannot see any text in this image.
Compare the two pictures. The first picture is larger than the second one. Both of them show the same thing.
The chart shows that the value goes up from the first year to the last. The answer is yes. The answer is no.
It's a photograph of the sea under a bright sky, and there's nothing else that I'd say about it. You're welcome.
They've taken it in the morning; we'll look at the details. Don't worry, he's not lost, I'm sure she'll find it.
Find the object and give its box. The total is shown at the bottom of the page, next to the date and the name.
for i in range(10): print(i) return value if value is not None else default import json as data
Water, bread, apple, bottle, street, train, station, hospital, school, kitchen, flower, horse, bird, boat, bridge.
Monday to Sunday, January to December; hour, minute, second, metre, litre, price, address, invoice, receipt, ticket.
Please answer with a single word or number. Explain your reasoning step by step and give the final result. Thank you.
What happens in the video? Which of these options is correct? Translate the text into English. List every item below.
Some words are longer: information, description, different, background, foreground, approximately, understanding.
Small, large, short, tall, wide, narrow, open, closed, full, empty, early, late, near, far, dark, light, new, old.
def function(self, name): return [item for item in self.items if item.name == name]
请描述这张图片。图片里有什么?这是什么颜色?图中有几个人?请读出图片中的文字。
这张图片中有一个人和一只小狗。左边是一张桌子,右边是一把椅子。我看不到任何文字。
视频里一个球从左边移动到右边。第一张图片比第二张大。两张图片是一样的。答案是:没有。
"""


def corpus() -> Iterator[str]:
    """Sentences about simple pictures, in English and a little Chinese; fixed, so training is repeatable."""
    for _ in range(4):
        yield from PLAIN.strip().splitlines()
    for colour, shape in itertools.product(COLOURS, SHAPES):
        place = PLACES[(len(colour) * 3 + len(shape)) % len(PLACES)]
        article = "an" if colour == "orange" else "a"
        yield f"There is {article} {colour} {shape} {place}."
        yield f"The {shape} {place} is {colour}, and the other {shape}{'es' if shape == 'cross' else 's'} are not."
    # Apart from each other: a sentence of Chinese is one "word" to the splitter, and would become one token.
    yield from (f"{word},{word}。" for word in ZH_COLOURS + ZH_SHAPES + ZH_PLACES)
    for number in range(60):
        yield json.dumps({"label": SHAPES[number % len(SHAPES)], "box": [number * 7, number * 11, 400, 999]})
        yield f"Picture {number}: the {SHAPES[number % len(SHAPES)]} is at ({number * 13},{number * 16}).\n\n"
        yield f"    if x > {number}:\n        y = {number}\n"


def main() -> None:
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=256 + MERGES, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(list(corpus()), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    if len(merges) != MERGES:
        raise SystemExit(f"{len(merges)} merges came out of training, {MERGES} were wanted: the corpus is too small")
    lines = [" ".join(pair) for pair in merges]
    Path(MERGES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{MERGES_FILE}: {len(lines)} merges")


if __name__ == "__main__":
    main()
