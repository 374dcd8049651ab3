"""The word tables of the grammar: classes of words whose meaning decides a rule, and tables of the tokeniser.

The lists of the rules are deliberately small: each makes a distinction that syntax does not show, with its common
members in captions. Nouns are singular, verbs are lemmas. The tokeniser has tables of multi-word expressions, of
alternative spellings, and of stand-ins for words that the parser mistags.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(key, value) for key, _, value in (pair.partition(": ") for pair in text.split(", "))]


def _table(text: str) -> dict[str, str]:
    return dict(_pairs(text))


# Nouns: actors, clothes, body parts, places.

PEOPLE = _words(
    "adult baby batter biker boy bride catcher chef child cook couple crowd cyclist dad daughter driver "
    "family farmer father female fireman gentleman girl groom group guy kid lady male man mom mother officer "
    "passenger pedestrian people person pitcher player policeman rider skateboarder skier snowboarder soldier "
    "someone son spectator student surfer team teen teenager toddler umpire woman worker youth"
)
MALE_NAMES = _words("boy brother dad father gentleman groom guy husband king lad male man son")
FEMALE_NAMES = _words("bride daughter female girl lady mom mother queen sister wife woman")
# Pronouns of one or some of those named before: "two men, one holding a dog".
SOME_OF = frozenset({"one", "another", "others"})
PRONOUNS = {"he": "man", "him": "man", "she": "woman", "they": "people", "them": "people"}
ANIMALS = _words(
    "bear bird bull calf cat cow deer dog donkey duck elephant giraffe goat goose horse kitten lamb lion "
    "monkey pigeon pony puppy seagull sheep tiger zebra"
)
# Plural-only names are in the plural.
CLOTHES = _words(
    "apron attire bathrobe beanie bikini blazer blouse boot cap cape cardigan cloak clothes clothing coat "
    "costume dress gear glasses glove goggle goggles gown hat headband helmet hoodie jacket jeans jersey "
    "khakis kilt kimono leggings outfit overalls pajama pajamas pants parka raincoat robe sandal sari scarf "
    "shirt shoe shorts skirt slacks sneaker sock stocking suit sunglasses suspenders sweater sweatpants "
    "sweats sweatshirt swimsuit t-shirt tank-top tee tie tights top trousers trunks turtleneck tuxedo "
    "uniform veil vest visor wetsuit"
)
BODY_PARTS = _words(
    "ankle arm back beak beard belly body cheek chest chin ear elbow eye face finger foot forehead fur hair "
    "hand head hip hoof horn knee lap leg lip mane mouth mustache neck nose paw shoulder snout stomach tail "
    "thumb toe tongue tooth trunk tusk waist wing wrist"
)
# Body parts with a left and a right one; "left" and "right" are then part of the name.
SIDED_PARTS = _words("arm ear eye foot hand knee leg paw shoulder thumb wing wrist")
# Places of the subject, not of the object: "a man flying a kite on a beach".
PLACES = _words(
    "air airport area background bathroom beach bedroom city competition court day "
    "distance evening field foreground forest game garden grass ground hill kitchen lake lot match morning "
    "mountain night ocean office park pasture rain ramp restaurant river road room sand sea shore sidewalk "
    "sky slope snow stadium station store street sun water yard zoo"
)
# Parts of the image, which never act.
SCENERY = _words("air background distance foreground front middle")

# Nouns that determine the meaning of a following "of".

CONTAINERS_IN = _words(
    "bag basket bin bottle bowl box bucket can carton case container crate cup dish glass jar mug package "
    "packet pan pitcher pot tank tub vase"
)
CONTAINERS_ON = _words("plate platter saucer slice tray")
DEPICTIONS = _words("drawing image painting photo photograph picture portrait poster scene")
# "of" after a dish names its contents; after other things, their owner.
DISHES = _words("bouquet breakfast dinner dish lunch meal omelet pizza salad sandwich sauce soup stew")
# Quantities: a piece of pizza is pizza.
PARTITIVES = _words(
    "all bit blade bunch chunk close-up closeup clump cluster couple crowd display each family flock game "
    "group half handful herd kind layer line loaf lot many most none number one pack pair patch piece pile "
    "plenty portion roll row series set several sheet slice some sort spread stack stretch strip type variety "
    "view"
)

# Words before a noun: attributes of the thing, or part of its name.

# Nouns used like adjectives: the material, the look, or the whole that a part belongs to.
ATTRIBUTE_NOUNS = _words(
    "adult aluminium aluminum baby bamboo bathroom bedroom beer beige bird black blue bottom boy brass brick "
    "bronze brown building camouflage car cardboard cat cement ceramic checker cheese child chocolate chrome "
    "clay color colored computer concrete copper cotton cow cream denim dirt dog double elephant end father "
    "female fur giant giraffe girl glass gold granite gravel gray green grey half horse iron kitchen lace "
    "lady leather male man marble maroon metal mid mini mother multi navy olive orange paper part peach pink "
    "plaid plastic porcelain purple red rubber sand section sheep silk silver steel stone straw stripe summer "
    "tan tile toddler top toy truck turquoise velvet white wicker wire woman wood wool yellow zebra"
)
# Those of them that name a whole, a place or another thing, which says nothing of the look.
WHOLES = _words(
    "bathroom bedroom beer bird bottom boy building car cat cheese child chocolate computer cow cream dog elephant end "
    "father girl giraffe half horse kitchen lady man mother multi part section sheep top truck woman zebra"
)
# Words before a noun that count or point, and describe nothing.
QUANTIFIERS = _words(
    "additional another certain different double enough few first last least less many more most much multiple next "
    "numerous only other own same second several similar single single-file such third various"
)
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
)
# Adjectives that form a fixed name with their noun.
NAMING_PAIRS = frozenset(
    _pairs(
        "american: football, french: fry, green: bean, green: onion, high: heel, hot: dog, hot: tub, pickup: truck, "
        "polar: bear, potted: plant, remote: control, teddy: bear"
    )
)
# -ing words that are part of a name: "dining table".
GERUND_MODIFIERS = _words(
    "baking bathing batting bowling changing chopping cutting dining drinking driving engineering fishing "
    "frying hiking landing living mixing parking racing retaining riding rocking rolling serving sewing "
    "shopping skating skiing sleeping swimming vending waiting warning washing wedding"
)
# -ing words that are nouns.
GERUND_NOUNS = _words(
    "anything awning bedding boxing building carpeting carving ceiling clearing clothing covering crossing "
    "drawing dressing duckling dumpling earring evening fencing filling flooring frosting greeting housing "
    "icing king landing lettering lighting lining marking molding morning moulding nothing opening painting "
    "paneling parking pudding railing ring roofing scaffolding seasoning shelving sibling siding something "
    "spring stocking string stuffing surfing thing topping wedding wing writing"
)
# -ed adjectives that state what a thing has.
HAVING_ADJECTIVES = _table(
    "haired: hair, sleeved: sleeve, framed: frame, legged: leg, eyed: eye, wheeled: wheel, tiled: tile, bearded: beard"
)
COLOURS = _words("beige black blue brown gold gray green grey orange pink purple red silver tan white yellow")
SHADES = frozenset({"bright", "dark", "light", "pale"})

# Verbs.

BE = _words("'m 're 's am are be been being is was were")
# Verbs that only people and animals can be the subject of.
ANIMATE_VERBS = _words(
    "assemble bite brush carry carve catch chase chew clean climb consume cook cut dance do drink drive eat enjoy feed "
    "gaze grab hike hit hold hug jump kick kiss laugh look paddle perform pet pick play point pose prepare pull push "
    "reach read ride row run serve shop sip skate skateboard ski slice smile smoke snowboard stare surf swim swing "
    "take talk throw toss type use wait walk wash watch wave wear work write"
)
# Verbs that clothes and hair can be the subject of.
PASSIVE_STATES = _words("blow cover dangle drape flow fly hang have match reach show tie")
# Postures, whose particle is dropped: "laying down on" means "laying on".
POSTURE_VERBS = _words("bend crouch kneel lay lean lie rest sit stand")
# Bare verbs that the parser mistakes for nouns after a noun: "a dog sleep on the bed".
POSTURES = _words("eat fly graze hang jump lay lean lie look play rest ride run sit ski sleep stand surf swim walk")
# Verbs after which a place belongs to the object, not to the subject.
HOLDING_VERBS = _words(
    "attach balance carry contain cover display drag drop hang have hold keep lay lean lift pass place pour "
    "pull put raise rest see separate set show stick stretch support surround touch watch wear"
)
# Verbs after whose participle "by" names a place, not the agent.
LOCATIVE_BY = _words("leave locate mount park place position post seat set sit situate stack stand stop wait")
# Verbs with a clause as object, whose subject counts as the object: "watching a man perform".
PERCEPTION = _words("film help let make see show watch")
# Verbs that need an object.
TRANSITIVE_VERBS = _words("carry cut eat have hit hold pull push ride throw use wear")
# Nouns for actions, which are not things.
EVENT_NOUNS = _words("flip handstand jump maneuver nothing something stunt trick wheelie")

# Nouns of captions that do not name a thing with a box: parts and kinds of images, times, activities, general words.
NON_THINGS = (
    SCENERY
    | EVENT_NOUNS
    | DEPICTIONS
    | _words(
        "action activity afternoon angle anything area atmosphere bit bottom bunch center centre close-up closeup "
        "color colour competition corner course dark darkness dawn day daylight daytime design direction dusk edge end "
        "evening event everything exterior game half height inside interior it kind left light lighting lot match "
        "midair morning motion movement nature night none number one other outdoors outside pair part photography "
        "piece place point pose position process race rain rear rest right row season selfie series set setting shot "
        "side sight sort spot stuff style summer sunlight sunset sunshine surroundings that them thing time top trip "
        "turn type variety vicinity view way weather winter work"
    )
)

# Prepositions.

STATIC_PREPOSITIONS = _words("against at behind beside by in inside near on over under")
# Prepositions whose preceding particle is part of the predicate: "leading up to".
PARTICLE_PREPOSITIONS = _words("against from into onto to")
# Prepositions that can end a caption: "the bench a man is sitting on".
STRANDED_PREPOSITIONS = _words("at by for from in inside of on to under with")

# Tables of the tokeniser.

# Nouns that count or measure when followed by "of": "a group of people" is people.
QUANTITIES = _words(
    "amount array assortment bit bunch bunches cluster clusters collection couple crowd dozens field flock "
    "flocks group groups herd herds hundreds kind line loads lot lots mass number pack pair pairs patch "
    "patches pile piles plenty row rows series set sheet sort stack stacks tons type variety"
)
# A quantity with "of" before one of these is dropped: "a close up of a pizza" is a pizza.
DETERMINERS = _words("a an four her his its many several some that the their these this those three two")
# After one of these, "can" is a noun, not an auxiliary.
CANS = _words("aluminum beer coke drink garbage metal paint pop soda spray steel tin trash water watering")

# expression: what the parser sees = what the rules read, if not the expression. Prepositions with the same meaning are
# merged.
_EXPRESSIONS = _table(
    "next to: beside, close to: near, side by side with: beside, in between: between = between, out of: from, off "
    "of: off = off, inside of: inside = inside, outside of: outside = outside, alongside of: along = alongside, "
    "along side of: along = alongside, along side: along = alongside, alongside: along, across from: across, away "
    "from: from, on to: onto = onto, in to: into = into, up against: against = against, ahead of: before, in back "
    "of: behind, all over: over = over, along with: with = with, together with: with = with, as well as: and = "
    "and, full of: with, each other: them, eachother: them = each other, side by side: together, toward: towards "
    "= towards, one another: them = each other, beneath: under = under, underneath: under = under, below: under = "
    "under, atop of: on = on top of, atop: on = on top of, on-top of: on = on top of"
)
_EXPRESSIONS |= {
    f"{verb} {bite} {of}": f"{read} = {read}"
    for verb, read in _pairs("take: bite, takes: bites, taking: biting, took: bit")
    for bite in ("a bite", "a big bite", "bites")
    for of in ("of", "from", "out of", "off of")
}
EXPRESSIONS = {
    text: (seen, read or text) for text, (seen, _, read) in ((k, v.partition(" = ")) for k, v in _EXPRESSIONS.items())
}

# Alternative spellings of a name, often as two words.
SPELLINGS = _table(
    "side walk: sidewalk, side walks: sidewalks, snow board: snowboard, snow boards: snowboards, skate board: "
    "skateboard, skate boards: skateboards, surf board: surfboard, surf boards: surfboards, snow boarder: "
    "snowboarder, snow boarding: snowboarding, skate boarding: skateboarding, skate boarder: skateboarder, wet "
    "suit: wetsuit, wet suits: wetsuits, tee shirt: t-shirt, tee shirts: t-shirts, t shirt: t-shirt, t shirts: "
    "t-shirts, tshirt: t-shirt, tshirts: t-shirts, back pack: backpack, back packs: backpacks, base ball: "
    "baseball, air plane: airplane, air planes: airplanes, sun glasses: sunglasses, lap top: laptop, lap tops: "
    "laptops, motor cycle: motorcycle, motor cycles: motorcycles, bath tub: bathtub, hand bag: handbag, suit "
    "case: suitcase, suit cases: suitcases, doughnut: donut, doughnuts: donuts, key board: keyboard, tea pot: "
    "teapot"
)

# Words that the parser, which was trained on news, mistags in captions, and the common word of the same form that it
# sees instead.
STAND_INS = _table(
    "train: car, trains: cars, bear: dog, bears: dogs, sink: table, sinks: tables, fork: knife, forks: knives, "
    "leaves: flowers, kites: balls, sidewalk: street, sidewalks: streets, towel: shirt, towels: shirts, bench: "
    "table, benches: tables, mirror: picture, mirrors: pictures, clock: picture, clocks: pictures, hydrant: "
    "machine, hydrants: machines, extinguisher: machine, extinguishers: machines, skateboard: bicycle, "
    "skateboards: bicycles, surfboard: boat, surfboards: boats, snowboard: boat, snowboards: boats, headboard: "
    "chair, building: house, buildings: houses, railing: fence, railings: fences, oven: machine, urinal: toilet, "
    "urinals: toilets, balcony: house, napkin: book, napkins: books, bookshelf: table, kitten: dog, kittens: "
    "dogs, puppy: dog, puppies: dogs, giraffe: dog, giraffes: dogs, zebra: dog, zebras: dogs, skateboarder: man, "
    "skateboarders: men, snowboarder: man, snowboarders: men, skier: man, skiers: men, surfer: man, surfers: men, "
    "skater: man, skaters: men, frisbee: ball, frisbees: balls, donut: cake, donuts: cakes, broccoli: rice, "
    "icing: sugar, frosting: sugar, scaffolding: metal, vest: shirt, vests: shirts, feeder: box, laying: sitting, "
    "lying: sitting, grazing: eating, graze: eat, racquet: racket, racquets: rackets, batter: man, batters: men, "
    "golfer: man, golfers: men, cyclist: man, cyclists: men, bicyclist: man, bicyclists: men, biker: man, bikers: "
    "men, motorcyclist: man, motorcyclists: men, umpire: man, umpires: men, toddler: child, toddlers: children"
)
