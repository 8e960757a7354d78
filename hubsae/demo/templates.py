"""What the atlas says about its entities, and in which sentences."""

from dataclasses import dataclass

# A fact: its name, then what it draws at random (variable = kind of entity, or numbers), a fact that has to come
# before, the attribute that is the subject from here on. A fact that needs no other can open a document.
# Its sentences: they name the subject or, after ">", lean on the sentence before.
# Slots are paths from the subject or from something drawn: {place.capital}; "@" looks a name up: {country.@season}.
# Words with a mark carry a class: speak/v (verb, present), spoke/d (verb, past), days/n (plural), they/p (pronoun).
_TABLE = """
== geography: country
capital
    The capital of {country} is/v {country.capital}.
    {country.capital} is/v the capital of {country}.
    > Its/p capital is/v {country.capital}.
    > The capital is/v {country.capital}.
language
    In {country} people/n speak/v {country.language}.
    The language of {country} is/v {country.language}.
    > People/n there speak/v {country.language}.
    > Its/p language is/v {country.language}.
currency
    The currency of {country} is/v the {country.currency}.
    People/n pay/v with the {country.currency} in {country}.
    > Its/p currency is/v the {country.currency}.
    > People/n there pay/v with the {country.currency}.
continent
    {country} is/v a country in {country.continent}.
    {country} lies/v in {country.continent}.
    > It/p lies/v in {country.continent}.
    > The country is/v in {country.continent}.
neighbour; moves to neighbour
    The neighbour of {country} is/v {country.neighbour}.
    {country} lies/v next to {country.neighbour}.
    > Its/p neighbour is/v {country.neighbour}.
    > It/p lies/v next to {country.neighbour}.
travellers; season = season
    Many people/n travelled/d to {country} last {season}.
    > Many people/n travelled/d there last {season}.

== animals: animal
colour
    {animal.plural} are/v {animal.colour}.
    The colour of the {animal} is/v {animal.colour}.
    > They/p are/v {animal.colour}.
    > Their/p colour is/v {animal.colour}.
habitat
    {animal.plural} live/v in the {animal.habitat}.
    The {animal.habitat} is/v the home of the {animal}.
    > They/p live/v in the {animal.habitat}.
    > Their/p home is/v the {animal.habitat}.
diet
    {animal.plural} eat/v {animal.diet}.
    {animal.a} {animal} eats/v {animal.diet}.
    > They/p eat/v {animal.diet}.
    > They/p like/v {animal.diet}.
move
    {animal.plural} can {animal.move.verb} well.
    {animal.a} {animal} can {animal.move.verb}.
    > They/p can {animal.move.verb}.
class
    {animal.a} {animal} is/v {animal.class.a} {animal.class}.
    {animal.plural} are/v {animal.class.plural}.
    > They/p are/v {animal.class.plural}.
sighting; witness = person; count = two three four five six
    {witness} saw/d {count} {animal.plural} in the {animal.habitat}.
    In the {animal.habitat} {witness} saw/d {count} {animal.plural}.
    > Yesterday {witness} saw/d {count} of them/p.
feeding; needs sighting
    {witness} gave/d the {animal.plural} some {animal.diet}.
    > {witness.she} gave/d them/p some {animal.diet}.
flight; needs sighting
    The {count} {animal.plural} {animal.move.past} away.
    > Then all {count} {animal.move.past} away.

== people: person
home
    {person} comes/v from {person.country}.
    {person} lives/v in {person.country}.
    > {person.she} comes/v from {person.country}.
    > {person.she} lives/v in {person.country}.
mother tongue
    {person} speaks/v {person.country.language}.
    {person} comes/v from {person.country}, so {person.she} speaks/v {person.country.language}.
    > {person.she} speaks/v {person.country.language}.
    > At home {person.she} speaks/v {person.country.language}.
job
    {person} is/v a {person.job}.
    {person} works/v as a {person.job}.
    > {person.she} is/v a {person.job}.
    > {person.she} works/v as a {person.job}.
workplace
    Every day {person} goes/v to the {person.job.place}.
    > Every day {person.she} goes/v to the {person.job.place}.
pet
    {person} has/v a {person.pet.colour} {person.pet}.
    {person} keeps/v a {person.pet.colour} {person.pet}.
    > {person.she} has/v a {person.pet.colour} {person.pet}.
pet food; needs pet
    {person} feeds/v {person.her} {person.pet} with {person.pet.diet}.
    > {person.her} {person.pet} eats/v {person.pet.diet}.
friend; moves to friend
    {person} has/v a friend called {person.friend}.
    > {person.her} best friend is/v {person.friend}.
trip; season = season; place = country
    Last {season} {person} travelled/d to {place}.
    {person} went/d to {place} last {season}.
    > Last {season} {person.she} travelled/d to {place}.
    > {person.she} went/d to {place} last {season}.
trip city; needs trip
    In {place} {person} saw/d {place.capital}.
    > There {person.she} saw/d {place.capital}.
trip weather; needs trip
    It/p was/d {place.@season} in {place}.
    > It/p was/d {place.@season} there.
trip money; needs trip
    {person} paid/d with the {place.currency}.
    > {person.she} paid/d with the {place.currency}.

== trade: person
stock; count = five six seven eight nine; goods = food
    {person} brings/v {count} {goods.plural} to the market.
    At the market {person} has/v {count} {goods.plural}.
sale; buyer = person; sold = two three; needs stock
    {buyer} buys/v {sold} {goods.plural} from {person}.
    > {person.she} sells/v {sold} {goods.plural} to {buyer}.
rest; needs sale
    Now {person} has/v {count.@sold} {goods.plural}.
    > Now {person.she} has/v {count.@sold} {goods.plural}.
price; needs stock
    One {goods} costs/v {goods.price} coins/n.
payment; needs sale
    {buyer} pays/v with the {buyer.country.currency}.
praise; needs sale
    {buyer} says/v that the {goods.plural} are/v {goods.taste}.

== trade: country
product
    {country} sells/v {country.product}.
    The {country.product} of {country} are/v famous.
    > It/p sells/v {country.product}.
deal; client = country; count = two three four five six
    {client} bought/d {count} {country.product} from {country}.
    {country} sold/d {count} {country.product} to {client}.
    > It/p sold/d {count} {country.product} to {client}.
deal money; needs deal
    {client} paid/d with the {client.currency}.

== weather: country
season; season = season
    It/p is/v {season} in {country}.
weather; needs season
    It/p is/v {country.@season} in {country}.
    > It/p is/v {country.@season} there.
    > The days/n are/v {country.@season}.
clothes; needs season
    People/n in {country} wear/v {country.@season.clothes}.
    > People/n wear/v {country.@season.clothes}.
walk; walker = person; needs season
    {walker} walks/v through {country.capital} and wears/v {country.@season.clothes}.
next season; needs season
    Soon it/p will be {season.next} in {country}.
    > Soon it/p will be {season.next}.
climate; part = season
    Every {part} it/p is/v {country.@part} in {country}.
    In {country} it/p is/v {country.@part} every {part}.

== food: food
food colour
    {food.plural} are/v {food.colour}.
    {food.a} {food} is/v {food.colour}.
    > They/p are/v {food.colour}.
taste
    {food.plural} taste/v {food.taste}.
    {food.a} {food} tastes/v {food.taste}.
    > They/p taste/v {food.taste}.
growth
    {food.plural} grow/v {food.in} {food.plant}.
    > They/p grow/v {food.in} {food.plant}.
meal; time = time; eater = person
    In the {time} {eater} ate/d {food.a} {food}.
    {eater} ate/d {food.a} {food} in the {time}.
    > {eater} ate/d some of them/p in the {time}.
verdict; needs meal
    {eater} liked/d the {food.taste} {food}.
    > {eater.she} liked/d the {food.taste} taste.

== food: country
dish
    In {country} people/n eat/v {country.dish.plural}.
    The food of {country} is/v the {country.dish}.
    > People/n there eat/v {country.dish.plural}.
drink
    In {country} people/n drink/v {country.drink}.
    The drink of {country} is/v {country.drink}.
    > People/n there drink/v {country.drink}.
dinner; cook = person
    {cook} cooked/d {country.dish.plural} in {country.capital}.
    > In {country.capital} {cook} cooked/d {country.dish.plural}.
"""


@dataclass(frozen=True)
class Fact:
    """Something to say about a subject: `named` sentences name it, `leaning` ones lean on the sentence before."""

    name: str
    named: tuple[str, ...]
    leaning: tuple[str, ...]
    draws: tuple[tuple[str, str], ...]  # (variable, kind or numbers)
    needs: str | None
    moves_to: str | None


def _parse(table: str) -> dict[str, dict[str, list[Fact]]]:
    topics: dict[str, dict[str, list[Fact]]] = {}
    for section in table.split("== ")[1:]:
        heading, *lines = section.strip().splitlines()
        topic, kind = heading.split(": ")
        facts = topics.setdefault(topic, {}).setdefault(kind, [])
        starts = [i for i, line in enumerate(lines) if not line.startswith(" ")]
        for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
            name, *options = lines[start].split("; ")
            sentences = [line.strip() for line in lines[start + 1 : stop]]
            facts.append(
                Fact(
                    name=name,
                    named=tuple(line for line in sentences if not line.startswith("> ")),
                    leaning=tuple(line[2:] for line in sentences if line.startswith("> ")),
                    draws=tuple((pair[0], pair[2]) for o in options if (pair := o.partition(" = "))[1]),
                    needs=next((option[6:] for option in options if option.startswith("needs ")), None),
                    moves_to=next((option[9:] for option in options if option.startswith("moves to ")), None),
                )
            )
    return topics


FACTS: dict[str, dict[str, list[Fact]]] = _parse(_TABLE)  # topic -> kind of subject -> facts
