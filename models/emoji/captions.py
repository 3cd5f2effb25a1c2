"""Captions: random text about a picture, from its name, its keywords and what people call such things."""

import random
from typing import Any

# What a picture is, by emojibase's subgroup.
GROUPS = {
    "animal-mammal": "animal",
    "animal-bird": "bird",
    "animal-marine": "sea animal",
    "animal-bug": "insect",
    "animal-reptile": "reptile",
    "plant-flower": "flower",
    "plant-other": "plant",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-prepared": "food",
    "food-asian": "asian food",
    "food-sweet": "dessert",
    "drink": "drink",
    "transport-ground": "vehicle",
    "transport-air": "aircraft",
    "transport-water": "boat",
    "sky-weather": "weather",
    "sport": "sport",
    "musical-instrument": "musical instrument",
    "clothing": "clothing",
    "tool": "tool",
    "heart": "heart",
    "place-building": "building",
    "person-role": "person",
}

# Names that take no article.
UNCOUNTABLE = frozenset(
    {
        "bread",
        "cheese",
        "popcorn",
        "salt",
        "rice",
        "sushi",
        "bacon",
        "broccoli",
        "butter",
        "honey",
        "garlic",
        "fire",
        "tennis",
    }
)

# How people call these things when they do not know the emoji's name (the shorter word is asked for most).
SYNONYMS = {
    "monkey face": "monkey",
    "dog face": "dog,puppy",
    "cat face": "cat,kitten",
    "tiger face": "tiger",
    "horse face": "horse",
    "cow face": "cow",
    "pig face": "pig",
    "mouse face": "mouse",
    "rabbit face": "rabbit,bunny",
    "bear": "teddy,brown bear",
    "panda": "panda bear",
    "chicken": "hen",
    "hatching chick": "chick,baby bird",
    "parrot": "green bird",
    "T-Rex": "dinosaur,t rex",
    "spouting whale": "whale",
    "honeybee": "bee",
    "ladybug": "ladybird,beetle",
    "cherry blossom": "flower,pink flower,blossom",
    "rose": "red rose",
    "tulip": "pink tulip",
    "potted plant": "plant,house plant",
    "evergreen tree": "tree,pine tree,fir",
    "palm tree": "palm",
    "four leaf clover": "clover",
    "maple leaf": "leaf,autumn leaf",
    "mushroom": "toadstool",
    "tangerine": "orange,orange fruit",
    "red apple": "apple",
    "cherries": "cherry",
    "ear of corn": "corn",
    "hot pepper": "chili,pepper,chilli",
    "cheese wedge": "cheese",
    "hamburger": "burger,cheeseburger",
    "french fries": "fries,chips",
    "slice of pizza": "pizza,pizza slice,piece of pizza",
    "cooking": "fried egg,frying pan",
    "soft ice cream": "ice cream,ice cream cone",
    "doughnut": "donut",
    "birthday cake": "cake",
    "hot beverage": "coffee,cup of coffee,tea,cup of tea,hot coffee",
    "wine glass": "glass of wine,red wine,wine",
    "tropical drink": "cocktail,drink",
    "beer mug": "beer,glass of beer,mug of beer",
    "grinning face": "smiley,happy face,smile",
    "smiling face with heart-eyes": "heart eyes,face in love,love",
    "thinking face": "thinking",
    "smiling face with sunglasses": "cool face,sunglasses face,cool smiley",
    "crying face": "sad face,tears",
    "angry face": "angry,anger",
    "thumbs up": "thumb,like",
    "Santa Claus": "santa,father christmas",
    "astronaut": "spaceman",
    "police officer": "policeman,cop",
    "globe": "earth,world,planet earth",
    "volcano": "erupting volcano",
    "desert island": "island,beach",
    "house": "home",
    "locomotive": "train,steam train",
    "fire engine": "fire truck,firetruck",
    "police car": "police",
    "taxi": "cab,yellow taxi",
    "car": "red car,automobile",
    "racing car": "race car,formula one car",
    "bicycle": "bike",
    "sailboat": "boat,sailing boat,ship",
    "airplane": "plane,aeroplane,jet",
    "rocket": "space ship,spaceship,rocket ship",
    "flying saucer": "ufo",
    "alarm clock": "clock,red clock",
    "crescent moon": "moon",
    "ringed planet": "saturn,planet",
    "star": "yellow star",
    "cloud with rain": "rain,rain cloud,rainy day",
    "umbrella with rain drops": "umbrella",
    "lightning bolt": "lightning,thunder,flash",
    "fire": "flame,campfire",
    "droplet": "water,drop of water,water drop",
    "jack-o-lantern": "pumpkin,halloween pumpkin",
    "Christmas tree": "xmas tree",
    "balloon": "red balloon",
    "gift box": "gift,present,birthday present",
    "trophy": "cup,gold cup",
    "soccer ball": "football,ball",
    "bullseye": "target,dart board",
    "dice": "die",
    "teddy bear": "teddy",
    "artist palette": "palette,paint",
    "glasses": "eyeglasses",
    "t-shirt": "shirt,tee shirt",
    "jeans": "pants,trousers",
    "running shoe": "shoe,sneaker",
    "high-heeled shoe": "high heel,heels",
    "crown": "king,queen crown",
    "top hat": "hat,black hat",
    "ring": "wedding ring,diamond ring",
    "gem stone": "diamond,gem,jewel",
    "musical note": "music,note",
    "musical keyboard": "piano,keyboard",
    "mobile phone": "phone,smartphone,cell phone",
    "telephone": "red telephone",
    "laptop": "computer,notebook",
    "television": "tv",
    "camera": "photo camera",
    "magnifying glass": "magnifier,loupe",
    "light bulb": "bulb,lamp,light",
    "book": "red book",
    "money bag": "money,bag of money",
    "envelope": "mail,letter,e-mail",
    "package": "box,parcel",
    "locked": "lock,padlock",
    "bed": "bedroom",
}

PHRASES = (
    "a picture of {}",
    "a drawing of {}",
    "an image of {}",
    "an icon of {}",
    "a photo of {}",
    "a cute {}",
    "draw {}",
    "the {}",
)
BACKGROUND_PHRASES = (" on a {} background", " on {}", ", {} background")
WHITE_PHRASES = (" on a white background", ", white background")


def article(name: str) -> str:
    """The name with its article, if it takes one."""
    first = name.split()[0]
    is_plural = name.endswith("s") and not name.endswith("ss")
    if name in UNCOUNTABLE or is_plural or first[0].isupper():
        return name
    return ("an " if first[0] in "aeiou" else "a ") + name


def caption(picture: dict[str, Any], colour: str, rng: random.Random) -> str:
    """One random caption, lower case, for a picture (its label, tags and subgroup) on a background colour."""
    name, draw = picture["label"], rng.random()
    if name in SYNONYMS and rng.random() < 0.4:
        name = rng.choice(SYNONYMS[name].split(","))
    tags = rng.sample(picture["tags"], min(len(picture["tags"]), rng.randint(1, 3))) if picture["tags"] else []
    text = _phrase(name, tags, picture["subgroup"], draw, rng)
    if colour != "white":
        text += rng.choice(BACKGROUND_PHRASES).format(colour)
    elif rng.random() < 0.06:
        text += rng.choice(WHITE_PHRASES)
    return text.lower()


def _phrase(name: str, tags: list[str], subgroup: str, draw: float, rng: random.Random) -> str:
    """The caption without its background; `draw` in [0, 1) chooses the kind."""
    if draw < 0.28:
        return name
    if draw < 0.50:
        return article(name)
    if draw < 0.62:
        return f"an emoji of {article(name)}"
    if draw < 0.76:
        phrase = rng.choice(PHRASES).format(name if rng.random() < 0.2 else article(name))
        return _without_double_article(phrase)
    if draw < 0.90 and tags:
        return ", ".join([name, *tags])
    if draw < 0.96 and tags:
        return rng.choice([", ".join(tags), article(tags[0])])
    if subgroup in GROUPS:
        group = GROUPS[subgroup]
        return f"{name}, {group}" if rng.random() < 0.7 else article(group)
    return f"{name} emoji"


def _without_double_article(phrase: str) -> str:
    for word in ("cute", "the"):
        phrase = phrase.replace(f"{word} a ", f"{word} ").replace(f"{word} an ", f"{word} ")
    return phrase
