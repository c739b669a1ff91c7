"""Word lists of the gate: general English, none of it taken from the pairs that the gate is measured on."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ANTONYMS",
    "CONTRACTIONS",
    "FRAMING",
    "NEGATIVE_PREFIXES",
    "NEGATORS",
    "NUMBER_WORDS",
    "SYNONYMS",
    "WHY",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# How something is asked, rather than what: function words, politeness, and the vocabulary of questions and instructions.
FRAMING: Final = _words(
    """
    a able about all also amount appear appears available am an and any anyone anything are as ask asking at be been being best by can command come comes
    consist could define describe detail details did do does doing done draft each easiest easy else every exactly explain
    find for found from function get gets getting given gone gotten give gives go goes going good got had happen happened happens has have having
    hello help her hey hi his how i idea if in instruction instructions into involve involved is it its itself just know let like list located look
    made make makes making many may me mean meaning means meant method might mine most much must my name necessary need needed
    needs number occur occurs of offer offers on one ones or our please possible procedure process proper provide provides reason regarding require required right said say see
    shall should show simple simply so some someone something step steps such suggest suggestion sure take taken takes taking
    tell than thank thanks that the their them then there these they thing things this those to told too took try understand up us
    use used using usually want was way ways we were what whats when where whether which while who whom whose why will
    wish with work working works would write written you your yours yourself
    """
)

# Words that ask for a reason, as "why" does.
WHY: Final = _words("why cause causes caused reason reasons")

NEGATORS: Final = _words(
    "not no never none nobody nothing nowhere neither nor without cannot hardly except non"
)

NEGATIVE_PREFIXES: Final = ("un", "in", "im", "il", "ir", "dis", "non", "de", "anti", "mis")

CONTRACTIONS: Final = {
    "can't": "can not",
    "cannot": "can not",
    "won't": "will not",
    "shan't": "shall not",
    "n't": " not",
    "what's": "what is",
    "how's": "how is",
    "where's": "where is",
    "who's": "who is",
    "it's": "it is",
    "that's": "that is",
    "there's": "there is",
    "i'm": "i am",
    "'re": " are",
    "'ve": " have",
    "'ll": " will",
    "'d": " would",
    "what makes": "why",
}

NUMBER_WORDS: Final = {
    word: value
    for value, words in {
        2: "two second twice double",
        3: "three third triple",
        4: "four fourth",
        5: "five fifth",
        6: "six sixth",
        7: "seven seventh",
        8: "eight eighth",
        9: "nine ninth",
        10: "ten tenth",
        11: "eleven eleventh",
        12: "twelve twelfth dozen",
        13: "thirteen",
        14: "fourteen",
        15: "fifteen",
        16: "sixteen",
        17: "seventeen",
        18: "eighteen",
        19: "nineteen",
        20: "twenty",
        30: "thirty",
        40: "forty",
        50: "fifty",
        60: "sixty",
        70: "seventy",
        80: "eighty",
        90: "ninety",
        100: "hundred",
        1000: "thousand",
        1_000_000: "million",
        1_000_000_000: "billion",
    }.items()
    for word in words.split()
}

# Each line: one side / the other; any word of one side contradicts any of the other.
ANTONYMS: Final = tuple(
    (_words(one), _words(other))
    for one, _, other in (
        line.partition("/")
        for line in """
        enable activate on allow permit accept / disable deactivate off forbid deny block reject refuse
        increase raise grow gain maximize maximise expand zoom / decrease reduce lower lose shrink minimize minimise cut
        high higher highest maximum max most upper top / low lower lowest minimum min least bottom
        large larger largest big bigger biggest huge / small smaller smallest little tiny
        long longer longest / short shorter shortest brief
        fast faster fastest quick quickly / slow slower slowest slowly
        open opens opened opening / close closes closed closing shut
        start begin beginning first launch / stop end ending last finish quit
        add insert include create install attach append / remove delete exclude drop uninstall detach destroy
        upload import send push incoming input deposit / download export receive pull outgoing output withdraw
        buy purchase / sell
        rent borrow / lend
        encrypt encode compress / decrypt decode decompress extract
        lock / unlock
        connect join subscribe follow / disconnect leave unsubscribe unfollow
        ascending up above over / descending down below under
        before earlier earliest previous past / after later latest next future
        advantage advantages benefit benefits pros strength strengths / disadvantage disadvantages drawback drawbacks cons weakness weaknesses risk risks
        positive good better best optimistic / negative bad worse worst pessimistic
        cheap cheaper cheapest / expensive costly
        rich richer richest / poor poorer poorest
        old older oldest / new newer newest young younger youngest
        hot hotter hottest warm / cold colder coldest cool
        more / less fewer
        always / never
        left / right
        north northern / south southern
        east eastern / west western
        public / private
        inside indoor internal / outside outdoor external
        male man men boy / female woman women girl
        true / false
        success succeed pass win won / failure fail lose lost
        hard difficult / easy
        heavy heavier heaviest / light lighter lightest
        safe / dangerous unsafe
        day / night
        import imports / export exports
        with / without
        singular / plural
        horizontal / vertical
        online / offline
        even / odd
        breakfast / dinner lunch
        parent / child
        question / answer
        show display / hide conceal
        cause causes / treatment treat cure
        mute / unmute
        love like / hate dislike
        trust / distrust
        """.strip().splitlines()
    )
)

# Words of one line may stand for each other; so may those of one side above.
SYNONYMS: Final = tuple(side for sides in ANTONYMS for side in sides) + tuple(
    _words(line)
    for line in """
    big large huge biggest largest
    small little tiny
    fast quick quickly rapid
    begin start
    buy purchase
    cancel end terminate
    change update modify edit switch alter
    cheap inexpensive
    combine merge join
    contact reach
    contain include have
    cost price fee charge
    delete remove erase
    difference differ distinguish
    enable activate turn
    error bug problem issue fault
    execute run launch
    fix repair solve resolve correct
    improve better enhance
    invite add
    location located located place
    make create build produce compose generate
    mail email
    money cash
    author writer wrote
    movie film
    number amount count quantity
    open launch
    phone telephone mobile
    picture image photo
    quit exit leave
    reset recover restore
    restart reboot
    say translate
    send transmit
    shut close
    sick ill
    summary summarize summarise
    teach learn
    world earth worldwide global
    writer author
    year years annual
    child kid children
    colleague coworker
    """.strip().splitlines()
)
