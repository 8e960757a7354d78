"""The tables of the atlas: entities with fixed attributes. Real countries keep their capital, language and currency."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

_WEATHER = """
snowy coats
cold gloves
rainy boots
windy scarves
foggy hats
mild jackets
warm shirts
hot sandals
dry dresses
stormy hoods
"""

_CLIMATES = """
north snowy cold mild rainy
middle cold rainy warm windy
south mild warm hot dry
coast foggy windy dry stormy
"""

# country capital language currency continent climate neighbour product dish drink
_COUNTRIES = """
France Paris French euro Europe middle Spain clocks apple wine
Spain Madrid Spanish euro Europe south France guitars olive juice
Germany Berlin German euro Europe middle Poland cars potato beer
Poland Warsaw Polish zloty Europe north Germany toys onion tea
Italy Rome Italian euro Europe south France bells tomato coffee
Norway Oslo Norwegian krone Europe north Sweden boats potato milk
Sweden Stockholm Swedish krona Europe north Norway lamps cherry coffee
Greece Athens Greek euro Europe south Turkey ships olive wine
Turkey Ankara Turkish lira Asia coast Greece carpets pepper tea
Egypt Cairo Arabic pound Africa south Libya ropes bean tea
Libya Tripoli Arabic dinar Africa south Egypt drums melon milk
Japan Tokyo Japanese yen Asia coast Korea cars plum tea
Korea Seoul Korean won Asia middle Japan lamps pepper juice
China Beijing Chinese yuan Asia middle Vietnam toys plum tea
Vietnam Hanoi Vietnamese dong Asia coast China ropes bean coffee
Brazil Brasilia Portuguese real America south Peru drums melon coffee
Peru Lima Spanish sol America coast Brazil carpets tomato juice
Chile Santiago Spanish peso America coast Peru ships pear wine
Velmora Tharn Velmoric florin Borea north Ostrana bells pear beer
Ostrana Kelvik Ostran ducat Borea coast Quillia boats lemon water
Quillia Merrow Quillic shilling Borea middle Dovania clocks cherry milk
Dovania Pell Dovanian mark Borea north Ishara guitars onion beer
Ishara Zuleth Isharic dram Borea south Tavany books lemon water
Tavany Orlo Tavan groat Borea middle Velmora books apple water
"""

# animal plural colour habitat diet move class
_ANIMALS = """
cat cats grey house fish climb mammal
dog dogs brown village meat run mammal
horse horses brown field hay run mammal
cow cows white field grass walk mammal
goat goats white valley leaves climb mammal
fox foxes red forest eggs run mammal
wolf wolves grey forest meat run mammal
bear bears brown forest honey climb mammal
rabbit rabbits white field clover jump mammal
mouse mice grey house cheese jump mammal
camel camels yellow desert leaves walk mammal
lion lions yellow savanna meat run mammal
monkey monkeys brown jungle fruit climb mammal
seal seals black bay fish swim mammal
whale whales blue sea shrimp swim mammal
owl owls white forest worms fly bird
crow crows black village corn fly bird
duck ducks green river bread swim bird
parrot parrots red jungle seeds fly bird
penguin penguins black bay fish swim bird
frog frogs green river flies jump amphibian
toad toads brown garden worms walk amphibian
snake snakes green desert eggs crawl reptile
turtle turtles green sea grass swim reptile
"""

_MOVES = [
    "climb",
    "climbed",
    "run",
    "ran",
    "walk",
    "walked",
    "jump",
    "jumped",
    "swim",
    "swam",
    "fly",
    "flew",
    "crawl",
    "crawled",
]

# person gender country job pet friend
_PEOPLE = """
Anna f Poland teacher cat Jan
Jan m Poland sailor dog Greta
Greta f Germany doctor rabbit Otto
Otto m Germany baker horse Marie
Marie f France painter parrot Louis
Louis m France cook goat Lucia
Lucia f Spain singer duck Hugo
Hugo m Spain farmer mouse Sofia
Sofia f Italy nurse cat Marco
Marco m Italy driver turtle Ingrid
Ingrid f Norway sailor dog Elsa
Elsa f Sweden teacher horse Daphne
Daphne f Greece doctor goat Leyla
Leyla f Turkey baker parrot Amira
Amira f Egypt painter cat Omar
Omar m Libya farmer horse Yuki
Yuki f Japan cook frog Kenji
Kenji m Japan singer duck Mina
Mina f Korea nurse rabbit Mei
Mei f China driver parrot Linh
Linh f Vietnam farmer duck Clara
Clara f Brazil teacher turtle Diego
Diego m Peru painter goat Pablo
Pablo m Chile sailor dog Orrin
Orrin m Velmora baker mouse Nela
Nela f Velmora doctor frog Tolm
Tolm m Ostrana cook dog Bram
Bram m Quillia driver horse Pavo
Pavo m Dovania nurse rabbit Vesna
Vesna f Dovania singer mouse Zeki
Zeki m Ishara teacher turtle Rufus
Rufus m Tavany farmer frog Anna
"""

_JOBS = """
teacher school
doctor hospital
baker bakery
painter studio
cook kitchen
singer theatre
farmer farm
nurse clinic
driver station
sailor harbour
"""

# food plural colour taste preposition plant price
_FOODS = """
apple apples red sweet on trees two
lemon lemons yellow sour on trees three
cherry cherries red sweet on bushes two
plum plums blue sour on bushes four
pear pears green sweet on trees three
olive olives black salty on trees five
onion onions white spicy in gardens two
tomato tomatoes red mild in gardens three
pepper peppers green spicy in gardens four
melon melons yellow sweet in fields six
potato potatoes brown mild in fields two
bean beans green bitter in fields five
"""


@dataclass(frozen=True, eq=False)
class Form:
    """A word as it stands in a text, with the concepts that it carries."""

    text: str
    concepts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Entity:
    """A thing of the world. `attributes` lead to other entities or to other forms of its own name."""

    kind: str
    name: str
    attributes: dict[str, "Entity | Form"] = field(default_factory=dict, repr=False)

    def form(self, text: str, *concepts: str) -> Form:
        return Form(text, (self.kind, f"{self.kind}:{self.name}", *concepts))


def _rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines()]


_SEASONS = ["winter", "spring", "summer", "autumn"]
_Get = Callable[[str, str], Entity]  # (kind, name) -> the entity, made on first use


def _foods(get: _Get) -> None:
    for name, plural, colour, taste, preposition, plant, price in _rows(_FOODS):
        food = get("food", name)
        food.attributes.update(
            {
                "plural": food.form(plural, "plural"),
                "a": Form("an" if name[0] in "aeiou" else "a", ("article",)),
                "colour": get("colour", colour),
                "taste": get("taste", taste),
                "in": Form(preposition, ()),
                "plant": get("plant", plant),
                "price": get("number", price),
            }
        )


def _animals(get: _Get) -> None:
    for name, plural, colour, habitat, diet, move, family in _rows(_ANIMALS):
        animal = get("animal", name)
        family = get("class", family)
        family.attributes["plural"] = family.form(f"{family.name}s", "plural")
        family.attributes["a"] = Form("an" if family.name[0] in "aeiou" else "a", ("article",))
        animal.attributes.update(
            {
                "plural": animal.form(plural, "plural"),
                "a": Form("an" if name[0] in "aeiou" else "a", ("article",)),
                "colour": get("colour", colour),
                "habitat": get("habitat", habitat),
                "diet": get("diet", diet),
                "move": get("move", move),
                "class": family,
            }
        )


def _countries(get: _Get) -> None:
    climates = {name: dict(zip(_SEASONS, row, strict=True)) for name, *row in _rows(_CLIMATES)}
    for name, capital, language, currency, continent, climate, neighbour, product, dish, drink in _rows(_COUNTRIES):
        get("country", name).attributes.update(
            {
                "capital": get("capital", capital),
                "language": get("language", language),
                "currency": get("currency", currency),
                "continent": get("continent", continent),
                "neighbour": get("country", neighbour),
                "product": get("product", product),
                "dish": get("food", dish),
                "drink": get("drink", drink),
                **{season: get("weather", climates[climate][season]) for season in _SEASONS},
            }
        )


def _people(get: _Get) -> None:
    for name, gender, country, job, pet, friend in _rows(_PEOPLE):
        she, her = ("she", "her") if gender == "f" else ("he", "his")
        concepts = ("pronoun", f"pronoun:{she}")
        get("person", name).attributes.update(
            {
                "she": Form(she, concepts),
                "her": Form(her, (*concepts, "possessive")),
                "country": get("country", country),
                "job": get("job", job),
                "pet": get("animal", pet),
                "friend": get("person", friend),
            }
        )


def _build() -> dict[str, dict[str, Entity]]:
    world: dict[str, dict[str, Entity]] = {}

    def get(kind: str, name: str) -> Entity:
        return world.setdefault(kind, {}).setdefault(name, Entity(kind, name))

    for i, number in enumerate(_NUMBERS):
        # number.<smaller number> is the difference, so that a template can subtract.
        get("number", number).attributes.update({_NUMBERS[k]: get("number", _NUMBERS[i - k]) for k in range(1, i)})
    for i, season in enumerate(_SEASONS):
        get("season", season).attributes["next"] = get("season", _SEASONS[(i + 1) % 4])
    for name in ["morning", "evening"]:
        get("time", name)
    for weather, clothes in _rows(_WEATHER):
        get("weather", weather).attributes["clothes"] = get("clothes", clothes)
    for base, past in zip(_MOVES[::2], _MOVES[1::2], strict=True):
        move = get("move", base)
        move.attributes["verb"] = move.form(base, "verb")
        move.attributes["past"] = move.form(past, "verb", "past tense")
    for job, place in _rows(_JOBS):
        get("job", job).attributes["place"] = get("workplace", place)
    for add in (_foods, _animals, _countries, _people):
        add(get)
    return world


WORLD: Mapping[str, Mapping[str, Entity]] = _build()
