"""From a term of the reward (`ppo.reward.terms`) to its scorer.

The `ppo` stage writes its terms to `terms.json`, with the statistics that scale their scores, and copies the files
of their functions to `functions/`, so that `eval` scores as PPO did.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data.schema import prompt_key
from pipeline.config.ppo import AggregateConfig
from pipeline.config.term_rules import TERMS
from pipeline.config.terms import ScoreConfig, TermConfig
from pipeline.engine.rounds import newest
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from pipeline.functions import FunctionName
from stages.criteria import of_criterion
from stages.models.bank import Bank
from stages.models.text import Codec
from stages.scoring import functions
from stages.scoring.functions import RewardFunction
from stages.scoring.llm_rating import RatingScorer
from stages.scoring.load import EVERY, Source, load_scorer, optimised_members
from stages.scoring.measures import LengthScorer, OverlongScorer, PatternScorer
from stages.scoring.scorer import BATCH, Scorer
from stages.scoring.slots import SlotScorer

FILE = "terms.json"
FUNCTIONS = "functions"


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What scorers of terms are loaded with.

    Attributes:
        inputs: `base`, `data` and the newest `reward`.
        replies: the folder with the replies of language models: the recipe's.
        held_out: `ppo.reward.held_out`.
        bank: as in `load_scorer`, for the run's own reward model.
        copies: the folder with copies of the functions' files; None: they are read where the recipe says.
        batch_size, say: as in `load_scorer`.
    """

    inputs: Mapping[str, Artifact]
    codec: Codec
    device: str
    replies: Path
    held_out: int = 0
    bank: Bank | None = None
    copies: Path | None = None
    batch_size: int = BATCH
    say: Callable[[str], None] = lambda text: None

    def scorer(self, term: TermConfig, where: str) -> Scorer:
        """The scorer of a term, under its name.

        Args:
            where: dotted path of the term in the recipe, for errors.

        Raises `StageError` when its model, function or endpoint cannot be used.
        """
        scorer = self._model(term, where) if term.model is not None else self._other(term, where)
        scorer.name = term.name
        return scorer

    def _model(self, term: TermConfig, where: str) -> Scorer:
        own = term.run_model
        members = optimised_members(self.held_out) if own else EVERY
        source: Source = str(term.model)
        if own:
            source = of_criterion(newest(self.inputs, "reward"), term.criterion, f"{where}.criterion")
        return load_scorer(
            source,
            self.inputs,
            self.codec,
            self.device,
            batch_size=self.batch_size,
            members=members,
            bank=self.bank if own else None,
            where=f"{where}.model",
            revision=term.revision,
            say=self.say,
        )

    def _other(self, term: TermConfig, where: str) -> Scorer:
        if term.function is not None:
            return self._function(term, term.function, f"{where}.function")
        if term.pattern is not None:
            return PatternScorer(term.pattern, self.codec, term.name)
        if term.lexicon is not None:
            return SlotScorer(term.lexicon, self.codec)
        if term.length is not None:
            return LengthScorer(term.length.target, term.length.scale or term.length.target, term.name)
        if term.overlong is not None:
            return OverlongScorer(term.overlong.max_completion_len, term.overlong.soft_punish_cache, term.name)
        assert term.llm_judge is not None
        return RatingScorer(term.llm_judge, self.replies, self.codec, term.name, f"{where}.llm_judge")

    def _function(self, term: TermConfig, source: str, where: str) -> Scorer:
        named = FunctionName.parse(source)
        assert named is not None
        copy = None if self.copies is None else self.copies / copied(term)
        file = named.file()
        if copy is not None and not named.is_file and (file is None or file.read_bytes() != copy.read_bytes()):
            raise StageError(
                f"{named.source} has changed since PPO was trained with it", where=where, hint="run ppo again"
            )
        return RewardFunction(
            functions.load(named, where, copy),
            self.codec,
            name=term.name,
            source=source,
            where=where,
            timeout=term.timeout,
            conversational=term.conversational,
            columns=metadata(self.inputs["data"]),
        )


def metadata(data: Artifact) -> dict[str, dict[str, Any]]:
    """The metadata of prompts by their keys, of those that have any."""
    return {
        prompt_key(row["prompt"]): row["metadata"] for row in data.jsonl("prompts.jsonl") if row.get("metadata")
    }


# --- What PPO writes for `eval` ---


@dataclass(frozen=True, kw_only=True)
class WrittenTerms:
    """The content of `terms.json`.

    Attributes:
        terms: as in the recipe.
        score: `ppo.score`.
        reward: `ppo.reward`, without its terms.
        statistics: `count`, `mean` and `square` of a term's scores, as of `ScoreNormalizer`, by its name.
    """

    terms: list[TermConfig]
    score: ScoreConfig
    reward: AggregateConfig
    statistics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, ppo: Artifact) -> WrittenTerms | None:
        """None for a policy that was trained without terms."""
        if not (ppo.path / FILE).exists():
            return None
        written: WrittenTerms = TypeAdapter(cls).validate_json(ppo.file(FILE).read_bytes())
        return written

    def write(self, out_dir: Path) -> None:
        content = asdict(self)
        for term in content["terms"]:
            if term["criterion"] is None:  # as it was written before there were criteria
                del term["criterion"]
        (out_dir / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def copy_functions(terms: Iterable[TermConfig], out_dir: Path) -> None:
    """Copies the files of the terms' functions, before they are loaded."""
    for term in terms:
        named = FunctionName.parse(term.function) if term.function is not None else None
        file = named.file() if named is not None else None
        if file is not None:
            (out_dir / FUNCTIONS).mkdir(exist_ok=True)
            shutil.copyfile(file, out_dir / FUNCTIONS / copied(term))


def copied(term: TermConfig) -> str:
    """The name of the copy of a function's file."""
    return f"{term.name}.py"


def paths(terms: Iterable[TermConfig]) -> list[str]:
    """The terms' dotted paths in the recipe."""
    return [f"{TERMS}[{i}]" for i, _ in enumerate(terms)]
