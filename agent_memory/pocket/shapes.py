"""What the dialogues of the training are like: which share of them is crowded, noisy, or longer than the window.

Knows shapes of dialogues; does not know tokens or models.
"""

# ruff: noqa: S311  (generated text, not secrets)

import dataclasses
import random

from agent_memory.pocket import dialogues

CROWDED = 0.5
"""Share of dialogues that look as recall does at its worst: a window full of facts on one or two fields, under names that are alike."""


def _pinned(rng: random.Random, shape: dialogues.Shape) -> dialogues.Shape:
    """Now and then a crowd of versions, most of them as ``name==version``: that line does not even name its field."""
    if shape.alike < 1.0 or rng.random() >= 0.35:
        return shape
    return dataclasses.replace(shape, topics=("version",), layouts=("pin", "pin", "lines", "table", "json", "sentence"))


def window(length: int, rng: random.Random, late: float) -> dialogues.Shape:
    """A dialogue that about fills the length; `late` is the share of updates and unknown names."""
    if length >= 256 and rng.random() < CROWDED:
        crowd = dialogues.Shape(
            facts=length // 26, questions=length // 100, noise=0.0, similar=rng.choice((0.2, 0.5)), alike=1.0, calls=0.0, odd_fields=0.0
        )
        return _pinned(rng, crowd)
    facts = {64: 1, 128: 2, 256: 5, 512: 10}[length]
    facts = max(1, round(facts * rng.uniform(0.4, 1.2)))
    asks = {64: 1, 128: 2, 256: 5, 512: 12}[length]
    noise = rng.choice((0.0, 0.0, 0.1, 0.3))
    mentions = rng.choice((0.0, 0.0, 0.2, 0.5))
    return dialogues.Shape(
        facts=facts,
        questions=asks,
        noise=noise,
        similar=0.35,
        alike=0.5,
        mentions=mentions,
        calls=rng.choice((0.0, 0.25)),
        updates=late,
        unknown=late / 2,
    )


def history(rng: random.Random) -> dialogues.Shape:
    """A dialogue several windows long, of which recall shows one: many records that are hard to tell apart, like an inventory."""
    crowded = rng.random() < CROWDED
    shape = dialogues.Shape(
        facts=rng.randrange(16, 42),
        questions=rng.randrange(1, 4),
        noise=0.0 if crowded else 0.3,
        similar=rng.choice((0.1, 0.3, 0.5)),
        alike=1.0 if crowded else 0.3,
        mentions=0.0 if crowded else rng.choice((0.0, 0.2, 0.4)),
        calls=0.0,
        sizes=rng.choice(((1, 1, 2, 2, 3), (4, 6, 8))),
    )
    return _pinned(rng, shape)
