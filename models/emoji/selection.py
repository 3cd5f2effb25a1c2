"""Which emoji the model is trained on, by their names in emojibase, and what some of them are called instead."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.replace("\n", "").split("|"))


# Subgroups taken whole, but for DROPPED.
SUBGROUPS = _names("""\
animal-mammal|animal-bird|animal-amphibian|animal-reptile|animal-marine|animal-bug|plant-flower|plant-other|
food-fruit|food-vegetable|food-prepared|food-asian|food-sweet|drink|dishware|transport-ground|transport-water|
transport-air|sky-weather|sport|game|arts-crafts|musical-instrument|clothing|household|tool|science|medical|
light-video|place-building|place-other|place-geographic|event|award-medal|monkey-face|other-object|writing|
computer|music|money|phone|lock|hotel\
""")

# Near-duplicates, symbols and things hard to tell apart.
DROPPED = _names("""\
paw prints|roasted sweet potato skin|love hotel|Japanese post office|convenience store|wedding|Tokyo tower|
hotel|bank|office building|department store|derelict house|houses|building construction|foggy|cityscape at dusk|
sunrise over mountains|night with stars|bridge at night|sunset|landslide|national park|mount fuji|
snow-capped mountain|desert|new moon|waxing crescent moon|waxing gibbous moon|waning gibbous moon|
waning crescent moon|last quarter moon|last quarter moon face|new moon face|sun behind small cloud|
sun behind large cloud|first quarter moon face|fog|milky way|umbrella|umbrella on ground|snowman without snow|
water wave|wind face|sun behind rain cloud|tanabata tree|pine decoration|Japanese dolls|carp streamer|
moon viewing ceremony|reminder ribbon|admission tickets|military medal|2nd place medal|3rd place medal|
spade suit|heart suit|diamond suit|club suit|joker|mahjong red dragon|flower playing cards|oncoming bus|
oncoming police car|oncoming taxi|oncoming automobile|trolleybus|minibus|railway car|high-speed train|train|
station|light rail|tram car|mountain railway|monorail|bus stop|motorway|railway track|horizontal traffic light|
construction|stop sign|camera with flash|videocassette|magnifying glass tilted right|film frames|clutch bag|
handbag|briefs|shorts|one-piece swimsuit|woman’s clothes|sari|kimono|safety vest|man’s shoe|flat shoe|
woman’s sandal|thong sandal|hair pick|military helmet|prayer beads|low battery|trackball|computer disk|dvd|
optical disk|musical score|musical notes|level slider|control knobs|yen banknote|euro banknote|pound banknote|
chart increasing with yen|credit card|receipt|mobile phone with arrow|telephone receiver|pager|fax machine|
locked with pen|locked with key|old key|unlocked|hammer and pick|hammer and wrench|pick|clamp|white cane|
broken chain|chains|hook|link|cigarette|coffin|funeral urn|hamsa|placard|identification card|mouse trap|
roll of paper|elevator|window|safety pin|lotion bottle|plunger|soap|bubbles|drop of blood|x-ray|crutch|
water polo|curling stone|boxing glove|martial arts uniform|flag in hole|running shirt|pen|memo|black nib|
airplane departure|airplane arrival|seat|suspension railway|mountain cableway|aerial tramway|anchor|ring buoy|
ferry|passenger ship|motor boat|manual wheelchair|barber pole|hot springs|stadium|wood|rock|brick|hut|oden|
fish cake with swirl|dango|rice cracker|chopsticks|fork and knife|fork and knife with plate|jar|amphora|sake|
mate|ice|tumbler glass|pouring liquid|clinking glasses|oyster|leaf fluttering in wind|nest with eggs|empty nest|
microbe|worm|two-hump camel|ram|ewe|ox|water buffalo|guide dog|service dog|horse|cow|pig|dog|cat|rabbit|mouse|
tiger|pig nose|phoenix|black bird|baby chick|front-facing baby chick|dove|blowfish|tropical fish|wing|feather|
splatter|leafless tree|goose|shamrock|deciduous tree|ballet shoes|hyacinth|rosette|white flower|wilted flower|
lime|brown mushroom|pea pod|ginger|root vegetable|fingerprint|trombone|harp|treasure chest|shovel|
hairy creature|petri dish|dna|sewing needle|knot|framed picture|folding hand fan|dress|sports medal|
carousel horse|playground slide|tent|money with wings|bug\
""")

# Picked one by one from the large subgroups.
PICKED = _names("""\
grinning face|grinning face with big eyes|grinning squinting face|rolling on the floor laughing|
face with tears of joy|upside-down face|melting face|winking face|smiling face with halo|
smiling face with hearts|smiling face with heart-eyes|star-struck|face blowing a kiss|face savoring food|
face with tongue|zany face|money-mouth face|shushing face|thinking face|zipper-mouth face|neutral face|
face with rolling eyes|sleeping face|face with medical mask|face with thermometer|nauseated face|face vomiting|
hot face|cold face|exploding head|cowboy hat face|partying face|smiling face with sunglasses|nerd face|
face with monocle|astonished face|flushed face|pleading face|crying face|loudly crying face|
face screaming in fear|yawning face|enraged face|angry face|smiling face with horns|skull|pile of poo|
clown face|ogre|goblin|ghost|alien|alien monster|robot|grinning cat|smiling cat with heart-eyes|pouting cat|
heart with arrow|heart with ribbon|sparkling heart|two hearts|broken heart|heart on fire|red heart|orange heart|
yellow heart|green heart|blue heart|purple heart|black heart|love letter|kiss mark|collision|dizzy|
sweat droplets|speech balloon|thought balloon|flexed biceps|mechanical arm|ear|nose|brain|anatomical heart|
lungs|tooth|bone|eyes|eye|mouth|nail polish|thumbs up|clapping hands|waving hand|victory hand|oncoming fist|
folded hands|Santa Claus|mage|fairy|vampire|mermaid|elf|genie|zombie|troll|baby angel|superhero|baby|farmer|
cook|astronaut|firefighter|police officer|detective|ninja|construction worker|princess|prince|scientist|artist|
singer|judge|globe showing Europe-Africa|world map|compass|open book|closed book|books|scroll|newspaper|
bookmark|notebook|envelope|package|postbox|closed mailbox with raised flag|e-mail|briefcase|file folder|
calendar|clipboard|pushpin|paperclip|straight ruler|triangular ruler|scissors|wastebasket|chart increasing|
bar chart|megaphone|bell|postal horn|speaker high volume|loudspeaker|church|mosque|shinto shrine|hourglass done|
alarm clock|watch|mantelpiece clock|stopwatch|warning|radioactive|no entry|eagle|owl|dog face|cat face|
mouse face|rabbit face|tiger face|horse face|cow face|pig face\
""")

# Names that people would rather use.
RENAMED = {
    "automobile": "car",
    "soccer ball": "soccer ball",
    "pile of poo": "pile of poo",
    "globe showing Europe-Africa": "globe",
    "closed mailbox with raised flag": "mailbox",
    "magnifying glass tilted left": "magnifying glass",
    "closed book": "book",
    "hourglass done": "hourglass",
    "high voltage": "lightning bolt",
    "1st place medal": "gold medal",
    "pool 8 ball": "eight ball",
    "dollar banknote": "dollar bill",
    "spouting whale": "spouting whale",
    "lady beetle": "ladybug",
    "billed cap": "baseball cap",
    "pizza": "slice of pizza",
    "water pistol": "water gun",
    "game die": "dice",
    "horizontal traffic light": "traffic light",
    "vertical traffic light": "traffic light",
    "wrapped gift": "gift box",
    "couch and lamp": "couch and lamp",
    "articulated lorry": "truck",
    "horse racing": "horse racing",
    "shooting star": "shooting star",
    "speaker high volume": "speaker",
    "postal horn": "horn",
    "front-facing baby chick": "baby chick",
    "hatching chick": "hatching chick",
}
