"""The terms of the report in one line each, and links to them from where a page first uses them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from markupsafe import Markup, escape

from pipeline.language import PPO, mark, policy, translate


@dataclass(frozen=True)
class Term:
    """A term and its explanation. `pattern` matches it in a text, in its forms. All three are translated where they
    are shown."""

    name: str
    meaning: str
    pattern: str = ""

    @property
    def id(self) -> str:
        return "term-" + re.sub(r"\W+", "-", self.name.lower()).strip("-")


TERMS = (
    Term("Annotator", "Who ranks answers: a person, or a simulated one.", r"[Aa]nnotators?"),
    Term("Best of n", "Sampling n answers of the model that PPO starts from, and keeping the one that the "
         "reward model scores highest.",
         r"[Bb]est[ -]of[ -](?:n|\d+)\b"),
    Term("Bradley-Terry", "A model of comparisons: each side has a strength, and their difference gives the odds.",
         r"Bradley-Terry"),
    Term("Calibration", "Whether pairs that are predicted with 80 % are ordered that way 80 % of the time. ECE and "
         "Brier score measure it; lower is better.", r"[Cc]alibration"),
    Term("DPO", "Direct preference optimisation: trains on ranked pairs, without a reward model.", r"DPO"),
    Term("Entropy", "How spread out the next token’s distribution is: near zero, answers hardly vary.",
         r"[Ee]ntropy"),
    Term("EOS, stop token", "The token that ends an answer. An answer without it was cut at the length limit.",
         r"stop token|EOS"),
    Term("Episode", "One sampled answer with its reward, as PPO learns from it.", r"[Ee]pisodes?"),
    Term("Gate", "The check of the reward model on held-out rankings. PPO starts only if it passes.", r"[Gg]ate"),
    Term("Held out", "Not used for training.", r"[Hh]eld[ -]out"),
    Term("Interval", "A 95 % bootstrap interval: prompts are drawn again and again with replacement, and the value "
         "lies in it for 95 % of the draws.", r"95\s%\s(?:bootstrap\s)?intervals?"),
    Term("Judge", "What compares or checks the answers and was not used in training: a fact checker, a model, or "
         "people.", r"[Jj]udges?\b"),
    Term("KL", "Kullback-Leibler divergence: how far a policy’s answers have moved from those of the model "
         "that it started from.", r"KL"),
    Term("Krippendorff’s alpha, Kendall’s τ", "Measures of agreement: 1 is perfect, 0 is chance.",
         r"Krippendorff’s alpha|Kendall’s τ"),
    Term("LoRA", "Training small added matrices instead of all weights of the model.", r"LoRA"),
    Term("Nats", "The unit of KL and loss, with natural logarithms: 1 nat is 1.44 bits.", r"nats?\b"),
    Term("Over-optimisation", "The reward model’s score keeps rising while the judge’s falls.",
         r"[Oo]ver-optimi[sz](?:ation|ed)"),
    Term("Perplexity", "The exponential of the loss per token; lower is better.", r"[Pp]erplexity"),
    Term("Policy", "The model that PPO trains.", r"[Pp]olic(?:y|ies)"),
    Term(PPO, "Proximal policy optimisation: samples answers, scores them with the reward model, and makes high "
         "scores more likely while a penalty on KL keeps the KL small.", PPO),
    Term("Proxy", "The reward model’s score, which PPO optimises. It rises in any case and is no evidence.",
         r"[Pp]roxy"),
    Term("Quantised", "Stored with fewer bits per weight: smaller files, small errors.", r"[Qq]uantis(?:ed|ation)"),
    Term("RAFT", "Reward-ranked fine-tuning: trains on the best of n sampled answers by the reward.", r"RAFT"),
    Term("Reward model", "A model that learned from the rankings to score an answer.", r"[Rr]eward models?\b"),
    Term("SFT", "Supervised fine-tuning on demonstrations, before PPO.", r"SFT"),
    Term("Update", "One step of PPO: sample a batch of answers, then train on it.", r"[Uu]pdates?\b"),
    Term("Value model", "Predicts the reward to come at each token; PPO compares rewards with it.",
         r"[Vv]alue model"),
    Term("Win rate", "The share of prompts on which one model’s answer is preferred; ties count half.",
         r"[Ww]in rates?\b"),
)  # fmt: skip

METHODS = {
    "RLOO": mark("REINFORCE leave-one-out: samples several answers to each prompt, and makes those more likely "
                 "whose reward is above the mean of the others, while a penalty on KL keeps the KL small."),
    "GRPO": mark("Group relative policy optimisation: samples several answers to each prompt, and makes those more "
                 "likely whose reward is above their mean, while a penalty on KL keeps the KL small."),
    "REINFORCE": mark("A policy gradient without a value model: samples answers, and makes those more likely whose "
                      "reward is above a baseline, while a penalty on KL keeps the KL small."),
}  # fmt: skip
"""What to explain instead of `PPO`, by the name of the policy."""


def terms() -> tuple[Term, ...]:
    """The terms of a page whose policy has the current name."""
    meaning = METHODS.get(policy())
    if meaning is None:
        return TERMS
    return tuple(replace(term, meaning=meaning) if term.name == PPO else term for term in TERMS)


@dataclass
class Glossary:
    """Links the first use of each term in a page. Texts are linked in the order in which they are rendered."""

    linked: set[str] = field(default_factory=set)

    def link(self, text: object) -> Markup:
        """Escapes a text, and links the terms that the page has not used before.

        Args:
            text: plain text, or markup without links of its own.
        """
        markup = str(escape(text))
        pending = [term for term in terms() if term.pattern and term.name not in self.linked]
        pattern = "|".join(f"(?P<t{at}>{translate(term.pattern)})" for at, term in enumerate(pending))
        if not pattern:
            return Markup(markup)

        def replace(match: re.Match[str]) -> str:
            if match.lastgroup is None:  # a tag
                return match[0]
            term = pending[int(match.lastgroup[1:])]
            if term.name in self.linked:
                return match[0]
            self.linked.add(term.name)
            meaning = escape(translate(term.meaning))
            return f'<a class="term" href="#{term.id}" title="{meaning}">{match[0]}</a>'

        # Tags and entities match first and stay as they are. "KL" is kept out of longer words, but may follow a
        # Chinese character.
        return Markup(re.sub(rf"<[^>]*>|&[#\w]+;|(?<![A-Za-z0-9_])(?:{pattern})", replace, markup))
