import csv
from collections import defaultdict

import pytest

from data.venues.slots import SlotLexicon, parse_mr, slot_error_rate


@pytest.fixture(scope="module")
def lexicon() -> SlotLexicon:
    return SlotLexicon.load("e2e")


def check(lexicon, mr, text):
    return lexicon.check(parse_mr(mr), text)


FULL = (
    "name[The Vaults], eatType[pub], food[Italian], priceRange[less than £20], customer rating[5 out of 5], "
    "area[riverside], familyFriendly[no], near[Raja Indian Cuisine]"
)


@pytest.mark.parametrize(
    "text",
    [
        "The Vaults is an Italian pub for under £20. Rated 5 out of 5, it is by the river near Raja Indian "
        "Cuisine. It is not family-friendly.",
        "Close to Raja Indian Cuisine in riverside, The Vaults is a cheap, highly rated adults only pub with "
        "pasta.",
        "the vaults is a pub with Italian food, price range less than 20 pounds, five stars, on the "
        "riverside. Kids are not welcome. near raja indian cuisine .",
    ],
)
def test_faithful_texts_have_no_errors(lexicon, text):
    result = check(lexicon, FULL, text)
    assert (result.missing, result.wrong, result.invented) == ([], [], [])


def test_each_omitted_attribute_is_reported(lexicon):
    facts = {
        "name": "The Vaults",
        "eatType": "pub",
        "food": "Italian food",
        "priceRange": "less than £20",
        "customer rating": "5 out of 5",
        "area": "on the riverside",
        "familyFriendly": "not child friendly",
        "near": "near Raja Indian Cuisine",
    }
    assert check(lexicon, FULL, "; ".join(facts.values())).errors == 0
    for name in facts:
        result = check(lexicon, FULL, "; ".join(text for other, text in facts.items() if other != name))
        assert (result.missing, result.wrong, result.invented) == ([name], [], []), name


def test_each_invented_attribute_is_reported(lexicon):
    facts = {
        "eatType": "a coffee shop",
        "food": "Chinese food",
        "priceRange": "a moderate price range",
        "customer rating": "a low customer rating",
        "area": "in the city centre",
        "familyFriendly": "kids friendly",
        "near": "near Burger King",
    }
    for name, text in facts.items():
        result = check(lexicon, "name[Giraffe]", f"Giraffe, {text}.")
        assert (result.missing, result.wrong, result.invented) == ([], [], [name]), name


@pytest.mark.parametrize(
    ("mr", "text", "right"),
    [
        ("priceRange[cheap]", "an inexpensive place", True),
        ("priceRange[cheap]", "an expensive place", False),
        ("priceRange[high]", "not expensive", False),
        ("priceRange[moderate]", "moderately priced", True),
        ("priceRange[£20-25]", "between 20 and 25 pounds", True),
        ("priceRange[£20-25]", "more than £30", False),
        ("priceRange[more than £30]", "over 30 euros", True),
        ("priceRange[high]", "with an average customer rating and high prices", True),
        ("customer rating[low]", "poorly rated", True),
        ("customer rating[low]", "highly rated", False),
        ("customer rating[high]", "it has a high price range", None),
        ("customer rating[average]", "the customer rating is average", True),
        ("customer rating[3 out of 5]", "a three - star rating", True),
        ("customer rating[1 out of 5]", "a customer rating of 1 out of 5", True),
        ("customer rating[5 out of 5]", "a customer rating of 1 out of 5", False),
        ("customer rating[high]", "a customer rating of 5 out of 5", False),
        ("customer rating[5 out of 5]", "a high customer rating", True),
        ("familyFriendly[no]", "it isn't child-friendly", True),
        ("familyFriendly[no]", "a non family-friendly place", True),
        ("familyFriendly[no]", "no kids allowed", True),
        ("familyFriendly[no]", "children are not welcome", True),
        ("familyFriendly[no]", "an adults only pub", True),
        ("familyFriendly[no]", "a family restaurant", False),
        ("familyFriendly[yes]", "it is not expensive and is family friendly", True),
        ("familyFriendly[yes]", "children are welcome", True),
        ("familyFriendly[yes]", "not suitable for families with children", False),
        ("area[city centre]", "in the centre of the city", True),
        ("area[city centre]", "beside the river", False),
        ("area[riverside]", "in the riverside area of the city", True),
        ("food[Italian]", "near Raja Indian Cuisine", None),
        ("eatType[coffee shop]", "near Café Rouge", None),
        ("eatType[coffee shop]", "a lovely café", True),
        ("eatType[pub]", "a restaurant", None),
        ("near[Café Rouge]", "close to Cafe Rouge", True),
        ("name[The Wrestlers]", "Wrestlers is nice", True),
        ("name[The Wrestlers]", "The Vaults is nice", False),
    ],
)
def test_wordings_of_attributes(lexicon, mr, text, right):
    """True: stated; False: another value is stated; None: the attribute is not mentioned."""
    [(name, _)] = parse_mr(mr).items()
    result = check(lexicon, mr, text)
    expected = {True: [], False: ["wrong"], None: ["missing"]}[right]
    assert [
        kind for kind in ("missing", "wrong", "invented") for n in getattr(result, kind) if n == name
    ] == expected


def test_human_references_are_mostly_faithful(lexicon, shared):
    """The writers omitted facts (mostly rating, family friendliness and food) but invented few."""
    for name in ("devset.csv", "testset_w_refs.csv"):
        with (shared / "e2e_dataset" / name).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))[::4]
        checks = [check(lexicon, row["mr"], row["ref"]) for row in rows]
        facts = sum(c.given for c in checks)
        assert slot_error_rate(checks) < 0.1
        assert sum(len(c.invented) for c in checks) / facts < 0.005
        assert sum(len(c.wrong) for c in checks) / facts < 0.02
        assert sum("name" in c.missing for c in checks) / len(checks) < 0.01


def test_the_lexicon_agrees_with_human_checks(lexicon, shared):
    """Compared with the majority of at least three workers, whose pairwise agreement is 64 % of texts."""
    votes = defaultdict(list)
    with (shared / "e2e_rankings" / "quality.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for i in range(1, 6):
                votes[row["mr"], row[f"ref{i}"]].append(row[f"check{i}"] != "ok")
    pairs = [
        (check(lexicon, mr, text).errors > 0, sum(voted) * 2 > len(voted))
        for (mr, text), voted in votes.items()
        if len(voted) >= 3
    ]
    both = sum(judge and people for judge, people in pairs)
    assert len(pairs) == 3729
    assert both / sum(judge for judge, _ in pairs) > 0.73  # precision
    assert both / sum(people for _, people in pairs) > 0.68  # recall
