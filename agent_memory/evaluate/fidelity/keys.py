"""Words that facts are told about: lists of nouns by name, or a file of the user's.

Knows words only. A rule of selection should not be judged by the nouns it was chosen on, so there is more than one list.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from ...errors import ConfigError

_CITIES = (
    "Paris London Berlin Madrid Rome Vienna Prague Warsaw Athens Dublin Oslo Helsinki Stockholm Copenhagen Lisbon Brussels "
    "Amsterdam Zurich Budapest Bucharest Sofia Belgrade Zagreb Moscow Istanbul Cairo Nairobi Lagos Accra Dakar Tunis Casablanca "
    "Johannesburg Delhi Mumbai Bangkok Hanoi Manila Jakarta Singapore Seoul Tokyo Osaka Beijing Shanghai Taipei Sydney Melbourne "
    "Auckland Toronto Montreal Vancouver Chicago Boston Seattle Denver Houston Atlanta Miami Havana Lima Bogota Santiago Caracas"
)
_ANIMALS = (
    "lion tiger bear wolf fox rabbit horse donkey camel elephant giraffe zebra monkey gorilla kangaroo koala panda leopard cheetah "
    "hyena squirrel beaver otter badger hedgehog mouse hamster goat sheep cow pig deer moose buffalo eagle falcon owl parrot "
    "penguin pigeon sparrow swan duck goose turkey chicken whale dolphin shark salmon trout octopus lobster crab turtle crocodile "
    "lizard snake frog spider butterfly beetle ant bee"
)
_JOBS = (
    "baker butcher carpenter plumber painter tailor barber farmer miller fisherman hunter gardener blacksmith mason electrician "
    "mechanic driver pilot sailor captain soldier teacher professor student lawyer judge banker accountant merchant clerk "
    "secretary nurse doctor surgeon dentist pharmacist scientist chemist engineer architect designer writer poet journalist editor "
    "actor singer dancer musician composer sculptor photographer cook waiter butler porter janitor guard detective firefighter "
    "priest monk nun mayor"
)
_FOODS = (
    "apple pear peach plum cherry grape lemon orange banana mango melon strawberry raspberry coconut pineapple fig olive tomato "
    "potato carrot onion garlic pepper cabbage lettuce spinach pumpkin cucumber mushroom bean pea lentil rice wheat corn bread "
    "butter cheese milk cream yogurt honey sugar salt vinegar mustard coffee tea chocolate vanilla cinnamon ginger almond walnut "
    "peanut bacon sausage ham beef pork soup salad pasta pizza"
)
_ADJECTIVES = (
    "big small old young bright dark quiet loud warm cold soft hard quick slow sweet bitter brave shy round flat rich poor clean empty"
)
_NOUNS = "river mountain garden window bridge letter candle mirror engine basket ladder hammer pocket ticket shadow island forest harbor"
KEYS: dict[str, tuple[str, ...]] = {
    "animals": tuple(_ANIMALS.split()),
    "cities": tuple(_CITIES.split()),
    "foods": tuple(_FOODS.split()),
    "jobs": tuple(_JOBS.split()),
    "words": tuple("-".join(pair) for pair in product(_ADJECTIVES.split(), _NOUNS.split())),
}
"""Lists by name; ``words`` are adjective and noun, as RULER's keys are."""


def read_keys(named: str, least: int) -> tuple[str, ...]:
    """The list of that name, or the lines of a file.

    Args:
        named: a name of :data:`KEYS`, or a path.
        least: so many different ones are needed.

    Raises:
        ConfigError: neither a list nor a file that can be read, or too few keys.
    """
    keys = KEYS.get(named)
    if keys is None:
        try:
            lines = Path(named).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"keys={named!r} is neither a list ({', '.join(KEYS)}) nor a file that can be read: {error}") from None
        keys = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(keys) < least:
        raise ConfigError(f"keys={named!r} has {len(keys)} keys; {least} are needed")
    return keys
