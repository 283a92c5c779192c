"""How the built-in task is worded, in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Phrases:
    """The wording of one language.

    Attributes:
        rubric: name of the lexicon that judges it.
        name, kind: the attributes that every prompt gives.
        place: what a venue is called whose kind is left out.
        openings: ways to begin, with the name and kind in braces.
        first: ways to state a fact after the opening, by attribute.
        second: ways to state a fact in the second sentence, by attribute.
        words: how values are worded, where other than in the prompt.
        before_first, between, last, stop, subject: what stands before each fact of the first sentence, between the
            facts of the second one, before its last one, at the end of a sentence, and before the second one.
    """

    rubric: str
    name: str
    kind: str
    place: str
    openings: tuple[str, ...]
    first: Mapping[str, tuple[str, ...]]
    second: Mapping[str, tuple[str, ...]]
    words: Mapping[str, Mapping[str, str]]
    before_first: str
    between: str
    last: str
    stop: str
    subject: str

    @property
    def always(self) -> tuple[str, str]:
        return self.name, self.kind


ENGLISH = Phrases(
    rubric="venues",
    name="name",
    kind="kind",
    place="place",
    openings=("{name} is a {kind}", "There is a {kind} called {name}", "The {name} is a {kind}"),
    first={
        "food": ("serving {food} food", "with {food} food"),
        "price": ("with {price} prices",),
        "area": ("in the {area}",),
        "rating": ("rated {rating}",),
        "near": ("near {near}", "close to {near}"),
    },
    second={
        "food": ("serves {food} food", "offers {food} food"),
        "price": ("has {price} prices",),
        "area": ("is in the {area}",),
        "rating": ("is rated {rating}", "has {rating}"),
        "family friendly": ("{family friendly}",),
        "near": ("is near {near}", "is close to {near}"),
    },
    words={
        "price": {"cheap": "low", "moderate": "average", "expensive": "high"},
        "rating": {"1 star": "one star", "3 stars": "three stars", "5 stars": "five stars"},
        "family friendly": {"yes": "welcomes children", "no": "is adults only"},
    },
    before_first=" ",
    between=", ",
    last=" and ",
    stop=".",
    subject=" It ",
)

CHINESE = Phrases(
    rubric="venues-zh",
    name="名称",
    kind="类型",
    place="店",
    openings=("{名称}是一家{类型}", "有一家{类型}叫{名称}", "这家{类型}名叫{名称}"),
    first={
        "菜系": ("主打{菜系}", "供应{菜系}"),
        "价位": ("价格{价位}",),
        "位置": ("位于{位置}",),
        "评分": ("评分为{评分}",),
        "附近": ("靠近{附近}", "就在{附近}旁边"),
    },
    second={
        "菜系": ("供应{菜系}", "提供{菜系}"),
        "价位": ("价格{价位}",),
        "位置": ("位于{位置}",),
        "评分": ("获得{评分}评价", "评分为{评分}"),
        "适合儿童": ("{适合儿童}",),
        "附近": ("离{附近}很近", "靠近{附近}"),
    },
    words={
        "价位": {"便宜": "实惠", "中等": "适中", "昂贵": "偏高"},
        "评分": {"1星": "一星", "3星": "三星", "5星": "五星"},
        "适合儿童": {"是": "欢迎儿童", "否": "仅限成人"},
    },
    before_first="，",
    between="，",
    last="，而且",
    stop="。",
    subject="这里",
)
