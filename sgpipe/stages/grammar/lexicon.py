"""The word lists of the grammar: closed classes, and the open classes whose meaning decides a rule."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Nouns that only say what a thing is made of or looks like, as adjectives do: "wood chair" is a chair.
ATTRIBUTE_NOUNS = _words(
    "wood metal glass plastic brick stone steel iron concrete cement paper cardboard leather straw wool cotton "
    "silk denim ceramic porcelain marble granite tile gold silver bronze brass copper chrome aluminum aluminium "
    "rubber wicker bamboo dirt gravel sand clay wire fur velvet lace "
    "orange blue red green white black brown yellow pink purple gray grey tan beige turquoise maroon olive peach "
    "cream navy plaid polka dot stripe checker camouflage color colored "
    "baby adult male female lady girl boy woman man child toddler mother father toy mini giant half top bottom "
    "bathroom kitchen bedroom computer building giraffe zebra elephant horse cow cat sheep dog bird car truck "
    "chocolate cheese beer summer double multi section part mid end"
)

# Adjectives and participles that make a name of their own with their noun.
NAMING_MODIFIERS = _words(
    "hot polar french remote teddy stuffed parking cutting dining living shopping frying baking serving landing "
    "swimming bathing bowling mixing chopping retaining warning sleeping rocking fishing sewing potted"
)
NAMING_PAIRS = frozenset(
    {
        ("hot", "dog"),
        ("hot", "tub"),
        ("polar", "bear"),
        ("french", "fry"),
        ("remote", "control"),
    }
)
GERUND_MODIFIERS = _words(
    "parking dining living cutting shopping frying baking serving landing swimming bathing bowling mixing chopping "
    "retaining warning sleeping rocking fishing sewing washing vending drinking rolling changing riding skating "
    "skiing wedding waiting hiking driving racing batting engineering"
)
GERUND_NOUNS = _words(
    "building ceiling railing clothing painting awning evening morning lighting string ring wing king spring earring "
    "icing topping covering siding drawing carving stuffing frosting marking bedding dressing dumpling pudding "
    "lining opening sibling stocking scaffolding molding moulding roofing paneling flooring writing lettering "
    "greeting something anything nothing thing duckling seasoning filling wedding carpeting fencing shelving "
    "clearing housing crossing landing parking boxing surfing"
)
SIDED_PARTS = _words("hand foot arm leg ear eye wing paw shoulder knee thumb wrist")

CLOTHES = _words(
    "shirt t-shirt tshirt jacket coat dress suit hat cap helmet short shorts pant pants jean jeans skirt sweater "
    "sweatshirt hoodie uniform vest shoe boot sandal sneaker glove sock tie scarf swimsuit bikini wetsuit top "
    "tuxedo robe gown apron outfit costume trouser trousers blouse jersey sunglasses glasses goggles goggle clothes "
    "clothing attire gear bathrobe overalls khakis khaki tank-top tee sari kimono hoody leggings tights slacks "
    "sweatpants sweats trunks turtleneck cardigan blazer parka raincoat wet-suit t-shirts pajamas pajama kilt "
    "headband visor beanie cloak cape veil stocking suspenders"
)
BODY_PARTS = _words(
    "head hand arm leg foot face ear eye mouth nose neck back hair finger thumb knee shoulder wrist lap chest tail "
    "trunk paw wing beak tongue body hoof horn lip chin waist hip ankle elbow tooth mane toe forehead cheek beard "
    "mustache belly stomach fur snout tusk"
)
PEOPLE = _words(
    "man woman person people boy girl child kid lady guy player surfer skier snowboarder skateboarder baby toddler "
    "batter catcher pitcher umpire crowd gentleman rider adult male female spectator worker officer policeman "
    "mother father mom dad son daughter bride groom couple chef cook fireman soldier farmer biker cyclist "
    "pedestrian passenger driver teenager teen student group family team someone"
)
PRONOUNS = {"he": "man", "him": "man", "she": "woman", "they": "people", "them": "people"}

CONTAINERS_IN = _words(
    "glass cup bowl bottle box basket bag vase can jar mug pot pan bucket container crate pitcher case tub carton "
    "package packet dish tank bin"
)
CONTAINERS_ON = _words("plate tray platter saucer slice")
PICTURES = _words("picture photo photograph painting image portrait scene drawing poster")
PARTITIVES = _words(
    "piece slice group bunch lot couple pair number kind type sort variety stack pile bit cluster herd flock "
    "crowd line row set series portion half one some all many several most each none loaf layer strip "
    "sheet roll chunk clump patch spread display view close-up closeup handful game stretch blade plenty family pack"
)
RELATIONAL_PARTS = _words("top front side back left right middle center background foreground distance")
LOCATIVE_BY = _words("park seat place sit stop locate position stand set mount stack post situate wait leave")
COVERING = _words("cover")
BE = _words("am is are was were be been being 's 're 'm")
PLACES = _words(
    "beach field street road court room kitchen bathroom bedroom park water ocean sea sky air yard grass snow slope "
    "hill mountain lake river sidewalk background day city zoo table bench bed couch court parking lot ground "
    "pasture forest store restaurant garden stadium ramp rain sun crowd office airport station shore sand court "
    "foreground distance area game match competition night background picture photo morning evening"
)
COLOURS = _words("red green blue white black yellow pink purple gray grey brown orange tan beige silver gold")
POSTURES = _words("sleep stand sit lie lay walk ride play graze eat fly run jump surf ski swim rest hang lean look")

# Nouns that, followed by "of", count or measure what follows: "a group of people" are people.
QUANTITIES = _words(
    "group groups bunch bunches lot lots couple pair pairs number variety set series row rows line crowd herd "
    "herds flock flocks cluster clusters pile piles stack stacks collection assortment plenty dozens hundreds loads "
    "tons bit amount patch patches array pack mass sheet field kind type sort"
)

# expression: (what the parser sees, what the rules read)
EXPRESSIONS: dict[str, tuple[str, str]] = {
    "next to": ("beside", "next to"),
    "close to": ("near", "close to"),
    "side by side with": ("beside", "side by side with"),
    "in between": ("between", "between"),
    "out of": ("from", "out of"),
    "off of": ("off", "off"),
    "inside of": ("inside", "inside"),
    "outside of": ("outside", "outside"),
    "alongside of": ("along", "alongside"),
    "along side of": ("along", "alongside"),
    "along side": ("along", "alongside"),
    "alongside": ("along", "alongside"),
    "across from": ("across", "across from"),
    "away from": ("from", "away from"),
    "on to": ("onto", "onto"),
    "in to": ("into", "into"),
    "up against": ("against", "against"),
    "ahead of": ("before", "ahead of"),
    "in back of": ("behind", "in back of"),
    "all over": ("over", "over"),
    "along with": ("with", "with"),
    "together with": ("with", "with"),
    "as well as": ("and", "and"),
    "full of": ("with", "full of"),
    "filled of": ("with", "full of"),
    "each other": ("them", "each other"),
    "eachother": ("them", "each other"),
    "side by side": ("together", "side by side"),
    "toward": ("towards", "towards"),
    "one another": ("them", "each other"),
    "beneath": ("under", "under"),
    "underneath": ("under", "under"),
    "below": ("under", "under"),
    "atop of": ("on", "on top of"),
    "atop": ("on", "on top of"),
    "a top": ("on", "on top of"),
    "on-top of": ("on", "on top of"),
    "nearby": ("near", "near"),
    "nearest": ("near", "near"),
    "besides": ("beside", "beside"),
    "can be seen": ("is seen", "is seen"),
}

# Names that are also written in two words, or in another way, as one.
SPELLINGS: dict[str, str] = {
    "side walk": "sidewalk",
    "side walks": "sidewalks",
    "snow board": "snowboard",
    "snow boards": "snowboards",
    "skate board": "skateboard",
    "skate boards": "skateboards",
    "surf board": "surfboard",
    "surf boards": "surfboards",
    "snow boarder": "snowboarder",
    "skate boarder": "skateboarder",
    "wet suit": "wetsuit",
    "wet suits": "wetsuits",
    "tee shirt": "t-shirt",
    "tee shirts": "t-shirts",
    "t shirt": "t-shirt",
    "t shirts": "t-shirts",
    "tshirt": "t-shirt",
    "tshirts": "t-shirts",
    "back pack": "backpack",
    "back packs": "backpacks",
    "base ball": "baseball",
    "air plane": "airplane",
    "air planes": "airplanes",
    "sun glasses": "sunglasses",
    "lap top": "laptop",
    "lap tops": "laptops",
    "motor cycle": "motorcycle",
    "motor cycles": "motorcycles",
    "bath tub": "bathtub",
    "hand bag": "handbag",
    "suit case": "suitcase",
    "suit cases": "suitcases",
    "doughnut": "donut",
    "doughnuts": "donuts",
    "key board": "keyboard",
    "tea pot": "teapot",
}

# Nouns that the parser, which learnt from news, takes for adverbs, adjectives or verbs.
STAND_INS: dict[str, str] = {
    "train": "car",
    "trains": "cars",
    "bear": "dog",
    "bears": "dogs",
    "sink": "table",
    "sinks": "tables",
    "fork": "knife",
    "forks": "knives",
    "leaves": "flowers",
    "kites": "balls",
    "sidewalk": "street",
    "sidewalks": "streets",
    "towel": "shirt",
    "towels": "shirts",
    "bench": "table",
    "benches": "tables",
    "mirror": "picture",
    "mirrors": "pictures",
    "clock": "picture",
    "clocks": "pictures",
    "hydrant": "machine",
    "hydrants": "machines",
    "skateboard": "bicycle",
    "skateboards": "bicycles",
    "surfboard": "boat",
    "surfboards": "boats",
    "snowboard": "boat",
    "snowboards": "boats",
    "headboard": "chair",
    "building": "house",
    "buildings": "houses",
    "railing": "fence",
    "railings": "fences",
    "oven": "machine",
    "urinal": "toilet",
    "urinals": "toilets",
    "balcony": "house",
    "napkin": "book",
    "napkins": "books",
    "bookshelf": "table",
    "kitten": "dog",
    "kittens": "dogs",
    "puppy": "dog",
    "puppies": "dogs",
    "giraffe": "dog",
    "giraffes": "dogs",
    "zebra": "dog",
    "zebras": "dogs",
    "skateboarder": "man",
    "skateboarders": "men",
    "snowboarder": "man",
    "snowboarders": "men",
    "skier": "man",
    "skiers": "men",
    "surfer": "man",
    "surfers": "men",
    "skater": "man",
    "skaters": "men",
    "frisbee": "ball",
    "frisbees": "balls",
    "donut": "cake",
    "donuts": "cakes",
    "broccoli": "rice",
    "icing": "sugar",
    "frosting": "sugar",
    "scaffolding": "metal",
    "vest": "shirt",
    "vests": "shirts",
    "feeder": "box",
    "laying": "sitting",
    "lying": "sitting",
    "grazing": "eating",
    "graze": "eat",
}

# Before "can", which is no auxiliary then.
CANS = _words("trash garbage soda beer tin paint spray water watering coke aluminum metal steel pop drink")

# What is done or performed, but is no thing.
EVENT_NOUNS = _words("trick stunt jump flip maneuver handstand wheelie something nothing")
# What they are done to is where the phrase after them says, not who does it.
HOLDING_VERBS = _words(
    "hold carry have wear put rest stick cover watch see lean place hang pull lift raise keep show stretch balance "
    "separate pour hit-with drag lay set drop surround attach touch contain display support pass"
)
PARTICLE_PREPOSITIONS = _words("to from into onto against")

# What clothes and hair can do by themselves.
PASSIVE_STATES = _words("hang flow blow cover match tie drape show have reach fly dangle")
# What only people and animals do.
ANIMATE_VERBS = _words(
    "hold wear ride play jump eat look smile talk walk run throw catch hit swing cut read watch ski surf skate "
    "skateboard snowboard perform do wait pose take kick drink chase climb wave carry"
)
ANIMALS = _words(
    "dog cat horse cow sheep elephant giraffe zebra bear bird goat lamb calf pony donkey bull kitten puppy monkey "
    "duck goose pigeon seagull lion tiger deer"
)
SCENERY = _words("background foreground distance front air middle")
# A thing seen or helped in what it does is an object too: "watching a man perform".
PERCEPTION = _words("watch see help show let make film")
# "laying down on" says no more than "laying on".
POSTURE_VERBS = _words("sit lay lie stand kneel bend lean crouch rest")
STATIC_PREPOSITIONS = _words("on in at by near against under beside behind inside over")
# -ed adjectives that say what a thing has.
HAVING_ADJECTIVES = {
    "haired": "hair",
    "sleeved": "sleeve",
    "framed": "frame",
    "legged": "leg",
    "eyed": "eye",
    "wheeled": "wheel",
    "tiled": "tile",
    "bearded": "beard",
}

# Verbs that lack something without an object.
TRANSITIVE_VERBS = _words("wear hold ride carry use push pull hit throw eat have cut")
STRANDED_PREPOSITIONS = _words("on in at with under of to from inside for by")
