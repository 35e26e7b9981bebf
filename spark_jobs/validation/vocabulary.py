"""Words the validator knows: words that claim nothing, and words that follow from a fact.

The lists cover what descriptions of any catalogue say; they are not tuned to single texts. A missing word costs a
usable text, and a description built from facts replaces it. A needless word lets an unsupported claim pass. So the
lists have no words for countries, people, plots, materials, ingredients, colours, effects, fame or awards.
"""

import re
from dataclasses import dataclass

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_PLURAL_ES = re.compile(r"(?:ch|sh|ss|x|z)es$")
_ENDING = re.compile(r"(?<=[a-z]{3})(?:ing|ed|y|e)$")
# Words with the same meaning but different spelling, among them words for a person's sex.
_SAME = {
    **dict.fromkeys(["him", "his", "man", "men", "male", "boy"], "he"),
    **dict.fromkeys(["her", "hers", "woman", "women", "female", "girl"], "she"),
    **dict.fromkeys(["kid", "children"], "child"),
    **dict.fromkeys(["science", "scientific"], "sci"),
    **dict.fromkeys(["fiction", "fictional"], "fi"),
    **dict.fromkeys(["humor", "humour", "humorous"], "humour"),
    **dict.fromkeys(["colour", "coloured"], "color"),
    "creme": "cream",
    "facial": "face",
    "movy": "movie",
    "music": "musical",
}


def words_of(text: str) -> list[str]:
    return [word.lower().replace("’", "'") for word in WORD.findall(text)]


def singular(word: str) -> str:
    """Lower case, without a possessive or plural ending."""
    word = word.lower().replace("’", "'").split("'")[0]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if _PLURAL_ES.search(word):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def root(word: str) -> str:
    """The word without plural, -ing, -ed, -y or -e, so that `itchy` matches `itches`; synonyms share one root."""
    word = singular(word)
    return _ENDING.sub("", _SAME.get(word, word))


def stem(word: str) -> str:
    """The first five letters of the root, so that `comedies` matches `comedy` and `romantic` matches `romance`."""
    return root(word)[:5]


def _roots(text: str) -> frozenset[str]:
    return frozenset(root(word) for word in words_of(text))


FUNCTION_WORDS = frozenset(
    words_of("""
a about above across after again against all alone along alongside already also always am among an and another any
anything are around as at away back be because been before behind being below beside besides between beyond both but by
can cannot could did do does doing done down during each either else enough equally especially even ever every
everything except far few first for from further generally had has have having here how however if in instead into is
it its itself just largely last lately later latest least less likewise mainly many may maybe might more most mostly
much must naturally near nearly neither never next no none nor not nothing now of off often on once one only onto or
other others otherwise out outside over own particularly per perhaps primarily quite rather really recently same several
shall should simply since so some something sometimes somewhat soon still such than that the their theirs them
themselves then there these they this those though through throughout thus to together too toward towards under unless
until up upon usually very via was way ways well were what whatever when whenever where wherever whether which while who
whoever whom whose why will with within without would yet you your yourself""")
)

# Words that any description may use, whatever the facts: kinds of things and people, liking and choosing, offering
# and matching, measure and time, and judgements that nobody could check.
PLAIN = _roots("""
item kind sort type thing piece choice option pick selection match fit companion example range mix blend combination
addition part side element edge touch note sense style tone mood manner approach quality detail subject idea title name
genre category set pack package size line list pair balance profile habit pattern direction place space
story storyline tale film movie cinema book product goods
people person someone anyone everyone user customer buyer shopper consumer fan lover buff admirer enthusiast audience
viewer reader individual group friend adult taste interest preference liking leaning fondness inclination appetite
enjoyment pleasure entertainment experience moment occasion need desire wish evening night day week weekend year decade
home use used using useful usage routine
like love enjoy appreciate prefer value favour favor favourite favorite admire seek look find search choose chose chosen
pick want hope try tried consider explore discover care keep kept take took taken get give given go goes gone come came
bring make made add put let help offer recommend recommendation suggest suggestion propose present provide deliver
serve cater please satisfy reward appeal attract gravitate draw drawn tend lean turn include contain combine mix blend
balance pair match complement accompany join stand sit work play see seen feel felt seem appear belong mean
meant aim intend design describe know known call named say said watch view read buy bought sell sold
suit suitable fitting ideal perfect good great nice fine lovely pleasant solid strong simple plain clear easy bold
straightforward worth wonderful excellent interesting engaging attractive compelling captivating absorbing memorable
satisfying delightful practical handy convenient basic essential reliable versatile casual relaxed stylish elegant
everyday welcome sure certain likely right best better available similar varied variety wide broad general particular
special typical classic epic familiar different main whole complete short big small little large fresh keen open fond
happy glad ready regular frequent recent previous past age aged old new history
""")

# Words that follow from a word of the facts: a mood is not a claim if the genre implies it.
_FOLLOWS = {
    "action": "fast pace exciting excitement energy energetic thrill tension intense",
    "adventure": "exciting excitement thrill journey discovery imagination imaginative",
    "animation": "animated cartoon imagination imaginative",
    "child": "family young playful fun",
    "comedy": "comic comedic laugh laughter humour funny fun light hearted lighthearted cheerful amusing warm warmth",
    "crime": "criminal underworld case investigation dark shady gritty suspense tension tense",
    "documentary": "real true reality learn information informative factual",
    "drama": "dramatic serious emotion emotional moving feeling thoughtful deep intense character warmth",
    "fantasy": "imagination imaginative magic magical fantastic",
    "horror": "scary scare fear fright frighten frightened dark spooky chilling shock tension suspense",
    "musical": "song sing tune melody dance lively",
    "mystery": "mysterious puzzle case clue secret investigation dark suspense tension tense",
    "noir": "dark moody shadow shadowy mystery crime suspense tension",
    "romance": "romantic love tender feeling heart emotion emotional moving couple relationship warm warmth",
    "sci": "future futuristic technology speculative imagination imaginative",
    "thriller": "suspense suspenseful tension tense thrill exciting excitement gripping dark intense",
    "war": "conflict battle military serious",
    "western": "frontier",
    "acne": "skin",
    "body": "skin",
    "cleanser": "clean cleanse wash skin",
    "concealer": "conceal cover hide skin",
    "conditioner": "condition hair",
    "cosmetic": "makeup beauty",
    "curl": "curly hair",
    "dye": "color",
    "eye": "lash brow",
    "face": "skin complexion",
    "foundation": "face skin complexion",
    "fragrance": "perfume scent scented smell",
    "hair": "haircare",
    "lacquer": "polish nail paint color",
    "lip": "lipstick",
    "lotion": "moisture moisturize moisturizing skin",
    "makeup": "cosmetic beauty",
    "mascara": "lash eyelash eye",
    "moisturizer": "moisture moisturize dry skin",
    "nail": "manicure paint polish",
    "parfum": "perfume fragrance scent scented smell",
    "perfume": "fragrance scent scented smell",
    "polish": "lacquer paint",
    "razor": "shave",
    "shampoo": "clean wash hair",
    "skin": "skincare beauty face body",
    "soap": "clean wash skin",
    "spf": "sun sunlight protect protection",
    "sunscreen": "sun sunlight protect protection skin",
    "travel": "trip journey",
}
FOLLOWS = {stem(fact): _roots(words) for fact, words in _FOLLOWS.items()}


@dataclass(frozen=True)
class Kind:
    """A kind of item: roots of the words that claim it, and roots of the attribute names that show it."""

    words: frozenset[str]
    cues: frozenset[str]


KINDS = {
    "film": Kind(_roots("film movie cinema viewer watch"), _roots("genre director actor cast")),
    "book": Kind(_roots("book novel reader read"), _roots("author publisher page isbn")),
    "goods": Kind(_roots("product"), _roots("brand category manufacturer material ingredient color")),
}

_NUMBER_WORDS = "two three four five six seven eight nine ten eleven twelve"
NUMBERS = {word: str(number) for number, word in enumerate(words_of(_NUMBER_WORDS), start=2)}
_DECADE_WORDS = "twenties thirties forties fifties sixties seventies eighties nineties"
DECADES = {word: f"19{number}" for number, word in enumerate(words_of(_DECADE_WORDS), start=2)}
