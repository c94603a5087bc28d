"""What the world contains: nouns and their pictures, colours, prompt templates.

One row a noun: `noun | emoji labels | 3-D models | weight`; a comma at a line's end continues it.
Emoji labels are emojibase's; models are `library:file` of Debian's sweethome3d-furniture.
`more_nouns.py` has more rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from . import more_nouns
from .names import NAMES

LIBRARIES = {
    "zero": "BlendSwap-CC-0",
    "by": "BlendSwap-CC-BY",
    "kl": "KatorLegaz",
    "re": "Reallusion",
    "sc": "Scopia",
}

# The course's concepts, and three more things by which the model is judged (`held_out.py`). The model must never
# have seen them, nor pictures that are nearly the same (the teddy-bear and carousel-horse emoji), so no row below
# may name them.
HELD_OUT_MODELS = (
    "zero:woodToy",
    "zero:caballito",
    "zero:teddyBear",
    "zero:kitchenaid",
    "by:espressokettle",
    "sc:squeezer",
)
HELD_OUT_EMOJI = ("teddy bear", "carousel horse")

_NOUNS = """
cat | cat, black cat, cat face | sc:cat, by:siameseCat | 2
dog | dog, guide dog, poodle, dog face | sc:dog, by:bulldog | 2
horse | horse, horse face | by:horse, zero:horse2 | 4
bear | bear, polar bear, panda, koala | | 4
lion | lion | |
tiger | tiger, tiger face | |
elephant | elephant | |
giraffe | giraffe | |
zebra | zebra | |
monkey | monkey, monkey face | |
cow | cow, cow face | |
pig | pig, pig face | |
sheep | ewe, ram | |
goat | goat | |
deer | deer | zero:deer |
camel | camel, two-hump camel | |
rabbit | rabbit, rabbit face | sc:rabbit |
mouse | mouse, mouse face | |
hamster | hamster | |
fox | fox | |
wolf | wolf | |
raccoon | raccoon | |
squirrel | chipmunk | |
hedgehog | hedgehog | |
kangaroo | kangaroo | |
hippo | hippopotamus | |
rhino | rhinoceros | |
unicorn | unicorn | |
chicken | chicken, rooster | zero:chicken |
chick | baby chick, front-facing baby chick | |
bird | bird, black bird | |
duck | duck | | 2
swan | swan | |
owl | owl | |
parrot | parrot | |
penguin | penguin | |
flamingo | flamingo | |
peacock | peacock | |
eagle | eagle | |
frog | frog | |
turtle | turtle | |
snake | snake | |
crocodile | crocodile | |
dragon | dragon, dragon face | |
dinosaur | sauropod, T-Rex | |
whale | whale, spouting whale | |
dolphin | dolphin | |
shark | shark | |
fish | fish, tropical fish, blowfish | | 2
octopus | octopus | |
crab | crab | |
lobster | lobster | |
snail | snail | |
butterfly | butterfly | |
bee | honeybee | |
ladybug | lady beetle | |
spider | spider | |
toy | nesting dolls, yo-yo, piñata, Japanese dolls | by:carrito-de-madera, by:toyTrain, sc:doll,
by:rubix2, zero:cartoon_biplane, by:xylophone, sc:tricycle, by:bonecoDeNeve | 14
doll | nesting dolls, Japanese dolls | sc:doll | 4
robot | robot | | 4
figure | | | 4
statue | moai, Statue of Liberty | | 4
snowman | snowman without snow, snowman | by:bonecoDeNeve |
ghost | ghost | |
alien | alien, alien monster | |
clown | clown face | |
skull | skull | |
man | man standing, Santa Claus | kl:male-01-suit, re:male01, re:male02, re:male03 | 2
woman | woman standing, woman dancing | kl:female-01-casual-clothing, re:female01, re:female02,
re:female03 | 2
boy | boy | re:boyStanding, re:boySitting |
girl | girl | re:girlStanding, re:girlSittingTable |
ball | soccer ball, basketball, volleyball, baseball, tennis | zero:basketball, by:ballonFoot | 2
balloon | balloon | |
kite | kite | |
dice | game die | |
gift | wrapped gift | by:gift |
trophy | trophy | |
guitar | guitar | zero:electricGuitar |
piano | musical keyboard | zero:pianoAQueue, by:piano |
violin | violin | |
drum | drum, long drum | |
trumpet | trumpet | |
microphone | microphone | |
headphones | headphone | zero:headphones |
apple | red apple, green apple | | 2
banana | banana | |
orange | tangerine | |
lemon | lemon | |
pear | pear | |
peach | peach | |
cherry | cherries | |
strawberry | strawberry | |
grapes | grapes | |
pineapple | pineapple | |
watermelon | watermelon | |
coconut | coconut | |
tomato | tomato | |
carrot | carrot | |
corn | ear of corn | |
pepper | bell pepper | |
broccoli | broccoli | |
potato | potato | |
mushroom | mushroom | |
bread | bread, baguette bread | zero:bread |
cheese | cheese wedge | |
egg | egg | |
hamburger | hamburger | by:hamburger |
pizza | pizza | |
hotdog | hot dog | zero:hotDog |
fries | french fries | sc:frenchFries |
sandwich | sandwich | |
cake | birthday cake, shortcake | sc:birthday_cake |
cupcake | cupcake | zero:cupcake |
doughnut | doughnut | |
cookie | cookie | |
ice cream | soft ice cream, ice cream | |
chocolate | chocolate bar | |
lollipop | lollipop | |
candy | candy | |
cup | teacup without handle, hot beverage | zero:caffe_final, by:coffee_cup, sc:cup | 2
mug | beer mug | kl:coffee-mug |
glass | glass of milk, wine glass, cocktail glass | by:glass, kl:12-oz-glass |
bottle | bottle with popping cork, baby bottle | sc:wine_bottle, by:beer_bottle, zero:yogurtBottle,
kl:red-wine-bottle-01 | 2
teapot | teapot | sc:teapot |
bowl | bowl with spoon, steaming bowl | sc:bowl, kl:bowl, sc:bowlWithFruits |
plate | | kl:dinner-plate, kl:bread-plate |
vase | amphora | sc:vase1, sc:vase2, sc:vase3, sc:jar, sc:vase5, sc:pottery | 2
spoon | spoon | by:spoon |
fork | | by:fork |
knife | kitchen knife | by:knife, by:kitchenKnife |
car | automobile, oncoming automobile, sport utility vehicle, taxi | sc:seat_leon, sc:smart-car,
sc:chevrolet, kl:VW-new-beetle, by:fordFocus, kl:concept-sedan-02-sport, sc:suv | 3
bus | bus, oncoming bus | sc:bus, sc:cityBus |
truck | delivery truck, articulated lorry, pickup truck | zero:peterbilt, by:dafTruck, sc:truck | 2
van | minibus | sc:van |
tractor | tractor | |
train | locomotive, railway car, high-speed train, tram | by:toyTrain | 2
bicycle | bicycle | by:bike, sc:bicycle |
motorcycle | motorcycle | zero:motorbike, sc:yamaha-yzr-r6 |
scooter | motor scooter, kick scooter | kl:scooter, sc:scooter2 |
airplane | airplane, small airplane, airplane departure | zero:cartoon_biplane | 2
helicopter | helicopter | |
rocket | rocket | |
boat | sailboat, speedboat, canoe | by:rowboat |
ship | ship, passenger ship | |
ufo | flying saucer | |
wheel | wheel | |
house | house, house with garden | sc:doll-house, zero:childHut, sc:garden-hut | 2
castle | castle, Japanese castle | |
tower | Tokyo tower | | 2
church | church | |
tent | tent, circus tent | sc:campingTent |
fountain | fountain | by:fountain |
volcano | volcano | |
mountain | mount fuji, mountain, snow-capped mountain | |
tree | deciduous tree | sc:acacia, sc:sycamoreMaple, sc:japaneseMaple, sc:copperBeech | 2
pine | evergreen tree | sc:pine, sc:bluePineSnow |
christmas tree | Christmas tree | sc:christmas_tree, by:arbolito |
palm | palm tree | sc:coconutTree, sc:palm |
cactus | cactus | zero:cactus |
flower | white flower, hibiscus, blossom, cherry blossom | by:white_lily | 2
rose | rose | |
tulip | tulip | by:tulip |
sunflower | sunflower | |
bouquet | bouquet | |
leaf | maple leaf, fallen leaf | |
plant | potted plant | zero:augalas, zero:decorativePlant, zero:littlePlant, by:mediumIndoorPlant,
by:spider_plant, by:yuccaPlant |
pumpkin | jack-o-lantern | |
chair | chair | zero:oakChair, zero:plasticChair, zero:antiqueChair, zero:chair,
by:cafe_set_tonon_chair, sc:chair3, kl:dining-chair, by:kitchenChair | 2
armchair | | zero:armchair, zero:armchair2, by:armchair1, zero:winchesterArmchair |
stool | | zero:stool, zero:silla2, by:green_stool |
sofa | | zero:winchesterSofa, zero:couch, zero:sofa2, by:sofa2, sc:leather_sofa |
bed | | zero:bed1, zero:bed2, zero:bed3, by:lettoCloud, sc:iron_bed |
table | | zero:oakTable, zero:table, by:table, sc:table3, by:cafe_set_mota_table |
desk | | zero:desk, by:simpleDesk |
bench | | zero:bench, kl:painted-bench |
bookcase | | zero:bookcase, by:bookcase, kl:full-bookcase |
wardrobe | | by:wardrobe, by:wardrobe2 |
lamp | | zero:desklamp, by:lamp, sc:little_lamp1, zero:lamp2, sc:desk_lamp1, kl:pedestal-vase-lamp |
lantern | red paper lantern | zero:lantern, zero:stoneLantern, by:campingLamp |
candle | candle | sc:candle |
clock | alarm clock, mantelpiece clock | by:clock, zero:cuckooClock |
watch | watch | |
camera | camera, camera with flash | sc:reflex_camera, sc:basic_camera |
television | television | zero:led_tv |
computer | desktop computer | kl:apple-imac-1998, sc:apple_pc |
laptop | laptop | by:laptop, kl:apple-ibook-2001 |
phone | telephone, mobile phone | sc:phone, zero:iphone |
radio | radio | by:radio |
fan | | zero:tableFan |
toaster | | sc:toaster |
barrel | oil drum | zero:barrel |
box | package | zero:box, sc:cardboard-box, sc:open-cardboard-box | 2
crate | | zero:crate |
chest | | by:chest |
basket | basket | sc:shopping-basket |
bucket | bucket | |
backpack | backpack | by:backpack |
handbag | handbag | zero:handbag |
suitcase | luggage | by:suitcase |
umbrella | umbrella, closed umbrella | zero:umbrella |
hat | woman’s hat | sc:chapeau |
cap | billed cap | sc:casquette |
crown | crown | |
shoe | man’s shoe, running shoe | sc:sneakers, sc:mocassin |
boot | woman’s boot, hiking boot | zero:bootie |
dress | dress | sc:robe |
shirt | t-shirt | |
sunglasses | sunglasses | by:sunglasses |
ring | ring | |
key | key, old key | |
lock | locked | zero:numberLock |
hammer | hammer | sc:marteau |
axe | axe | |
wrench | wrench | |
scissors | scissors | zero:cissors_swap |
pencil | pencil | sc:pencil1 |
book | closed book, green book, blue book, orange book, books | by:book |
bell | bell | |
magnet | magnet | |
globe | globe showing Europe-Africa, globe showing Americas | |
star | star, glowing star | |
heart | red heart, blue heart, green heart, yellow heart, purple heart | | 2
moon | full moon, crescent moon | |
sun | sun, sun with face | |
cloud | cloud | |
rainbow | rainbow | |
fire | fire | |
sign | stop sign | |
cone | | sc:cone |
hydrant | | kl:fire-hydrant |
mailbox | postbox, closed mailbox with raised flag | zero:mofx_mailbox |
toilet | toilet | by:modernToilet |
bathtub | bathtub | by:bath_jay_hardy, sc:islandBath |
skateboard | skateboard | sc:skateboard |
telescope | telescope | |
wheelbarrow | | zero:wheelbarrow |
rock | rock | zero:rock1, zero:rock2 |
"""

# Models that are also rendered in one plain material: people and animals in marble or bronze are what `statue`
# looks like, and in plastic or clay what `figure` looks like.
MANNEQUINS = [
    "kl:male-01-suit",
    "re:male01",
    "re:male03",
    "re:female01",
    "re:female03",
    "re:boyStanding",
    "re:girlStanding",
    "re:sitMale01",
    "re:sitFemale02",
    "sc:mannequinMale",
    "sc:mannequinBrunette",
    "by:horse",
    "zero:deer",
    "by:bulldog",
    "sc:rabbit",
]
STATUE_MATERIALS = {
    "marble": (0.92, 0.90, 0.86),
    "bronze": (0.50, 0.34, 0.16),
    "stone": (0.52, 0.52, 0.50),
}
FIGURE_MATERIALS = {
    "plastic": (0.85, 0.16, 0.14),
    "clay": (0.78, 0.46, 0.30),
    "wood": (0.72, 0.52, 0.30),
    "sky": (0.22, 0.48, 0.86),
}

COLOURS = {  # name: hue in degrees, saturation and value factors; None keeps the cut-out's own
    "red": (0, 1.0, 0.95),
    "orange": (28, 1.0, 1.0),
    "yellow": (52, 1.0, 1.05),
    "green": (125, 0.9, 0.85),
    "blue": (218, 1.0, 0.95),
    "purple": (278, 0.85, 0.9),
    "pink": (335, 0.6, 1.1),
    "brown": (24, 0.75, 0.6),
    "white": (40, 0.04, 1.25),
    "black": (230, 0.12, 0.32),
    "grey": (220, 0.04, 0.75),
    "golden": (43, 0.85, 1.0),
}

# The 27 object templates of Textual Inversion; `a` is dropped before plurals by the composer.
TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)
PLAIN_TEMPLATES = ("a {}", "{}", "the {}", "a picture of a {}", "an image of a {}")
MANY_TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "a rendering of {}",
    "a good photo of {}",
)
COUNTS = {2: "two", 3: "three"}
# The words that matter most here: what concepts are initialised from, and what first prompts ask for.
# The last half of the denoiser's training dwells on them.
_CORE = """
toy doll robot figure statue bear horse cat dog duck fish bird rabbit elephant penguin snowman man woman
car truck bus train airplane boat rocket house tower castle tree flower chair table lamp apple banana cake
cup bottle teapot vase ball balloon guitar star heart hat
"""
CORE = frozenset(_CORE.split())
IRREGULAR = {
    "mouse": "mice",
    "sheep": "sheep",
    "fish": "fish",
    "deer": "deer",
    "man": "men",
    "woman": "women",
    "knife": "knives",
    "leaf": "leaves",
    "cherry": "cherries",
    "strawberry": "strawberries",
    "butterfly": "butterflies",
    "candy": "candies",
    "dice": "dice",
    "wolf": "wolves",
    "trophy": "trophies",
    "snowman": "snowmen",
    "octopus": "octopuses",
    "cactus": "cacti",
}
SINGLE = more_nouns.SINGLE | {
    "headphones",
    "grapes",
    "fries",
    "scissors",
    "sunglasses",
    "rainbow",
    "fire",
    "moon",
    "sun",
    "broccoli",
    "corn",
    "chocolate",
    "ice cream",
}  # never two or three of them


@dataclass(frozen=True)
class Noun:
    """A word and where its pictures come from."""

    word: str
    emoji: tuple[str, ...]
    models: tuple[str, ...]
    weight: float

    @property
    def plural(self) -> str:
        if self.word in NAMES:  # as prompts say `two <wood-toy>`
            return self.word
        *before, last = self.word.split(" ")
        return " ".join([*before, _many(last)])


def _many(word: str) -> str:
    if irregular := (IRREGULAR | more_nouns.IRREGULAR).get(word):
        return irregular
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "sh", "ch", "tomato", "potato")) else "s")


def _split(cell: str, mark: str = ",") -> tuple[str, ...]:
    return _once(part.strip() for part in cell.replace("\n", " ").split(mark) if part.strip())


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _rows(text: str) -> list[Noun]:
    rows = []
    for line in text.strip().replace(",\n", ", ").splitlines():
        word, emoji, models, *weight = (cell.strip() for cell in line.split("|"))
        rows.append(Noun(word, _split(emoji), _split(models), float(*filter(None, weight)) or 1))
    return rows


def nouns() -> list[Noun]:
    """Every noun, those of this file's table first."""
    rows = _rows(_NOUNS)
    rows += [Noun(word, (word,), (), 1.0) for word in _split(more_nouns.SAME, ";")]
    rows += _rows(more_nouns.RENAMED)
    merged: dict[str, Noun] = {}
    for row in rows:
        first = merged.setdefault(row.word, Noun(row.word, (), (), row.weight))
        emoji, models = (*first.emoji, *row.emoji), (*first.models, *row.models)
        merged[row.word] = Noun(row.word, _once(emoji), _once(models), first.weight)
    named = {thing for row in merged.values() for thing in row.models + row.emoji}
    clash = named & set(HELD_OUT_MODELS + HELD_OUT_EMOJI)
    if clash:
        raise ValueError(f"held-out things in the training world: {sorted(clash)}")
    return list(merged.values())


def names() -> list[Noun]:
    """The toys' names: words like nouns, but each of one thing."""
    return [Noun(name, (), (), 1.0) for name in NAMES]
