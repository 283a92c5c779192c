import json
import random

import pytest

from data.tables.json_list import ListReader, NotAList


def pieces(text, size):
    return (text[i : i + size] for i in range(0, len(text), size))


def value(rng, depth=0):
    kind = rng.randrange(8 if depth < 3 else 6)
    match kind:
        case 0:
            return rng.choice([None, True, False])
        case 1:
            return rng.randrange(10**6)
        case 2:
            return rng.random() * 10.0 ** rng.randrange(-5, 5)
        case 3 | 4 | 5:
            return "".join(rng.choices('ab "\\\n]},[{ü\u2028', k=rng.randrange(20)))
        case 6:
            return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
        case _:
            return {f"k{i}": value(rng, depth + 1) for i in range(rng.randrange(4))}


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10**6])
@pytest.mark.parametrize("indent", [None, 2])
def test_values_match_the_standard_parser(size, indent):
    rng = random.Random(size)
    for _ in range(20):
        values = [value(rng) for _ in range(rng.randrange(12))]
        text = f" {json.dumps(values, indent=indent, ensure_ascii=rng.random() < 0.5)}\n"
        assert list(ListReader(pieces(text, size))) == values


def test_values_are_streamed():
    read = 0

    def endless():
        nonlocal read
        yield "["
        while True:
            read += 1
            yield '{"a": "' + "x" * 1000 + '"}, '

    values = iter(ListReader(endless()))
    for _ in range(100):
        assert next(values)["a"][:1] == "x"
    assert read < 110


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("", "not a list", 1),
        ('\n{"a": 1}', "not a list", 2),
        ('[{"a": 1}\n', "missing", 2),
        ('[\n\n{"a": }]', "not JSON", 3),
        ('[{"a": 1}\n{"a": 2}]', "missing", 2),
        ('[{"a": 1},\n]', "not JSON", 2),
        ("[] \n x", "follows the list", 2),
        ('[{"a": "x', "not JSON", 1),
        ("[" * 100_000, "not JSON", 1),
    ],
)
@pytest.mark.parametrize("size", [1, 100_000])
def test_malformed_lists_are_refused_with_the_line(text, message, line, size):
    if size == 1 and len(text) > 1000:
        pytest.skip("one character at a time takes long")
    with pytest.raises(NotAList, match=message) as caught:
        list(ListReader(pieces(text, size)))
    assert caught.value.line == line
