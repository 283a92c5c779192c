"""Compares ways to optimise a policy by the same independent judge: SFT, PPO, RLOO, GRPO, REINFORCE++, DPO,
best-of-n, and best-of-n distilled (RAFT).

    make compare-optimisers ARGS="--tasks quickstart --seeds 3"

There are two budgets:

- `kl`: every method aims for the task's KL from SFT. The KL coefficient is solved for it (`ppo.kl.kind: solved`).
  GRPO has its KL in the loss, so its coefficient adapts. DPO is trained with several betas, and the one whose
  measured KL is nearest is reported. Best-of-n and RAFT use the n whose bound is nearest.
- `minutes`: each method that trains gets as many minutes as PPO took in the first budget. Its episodes (PPO, RLOO,
  GRPO, REINFORCE++), epochs (DPO) or prompts (RAFT; its epochs, once all prompts are used) are scaled by the time
  that it took in the first budget. A method's minutes are those of its own stage, evaluation points included.

Stages up to `reward` run once per seed, because methods differ in later sections only. Each result is appended to
`--out` as one line of JSON, with the intervals over prompts and the peak memory of each stage. Results that are
there are not run again, and neither are stages that are up to date, so the script can be stopped at any time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_losses import interval

from pipeline.config.load import load_recipe
from pipeline.config.recipe import Recipe
from pipeline.engine.runner import Runner
from stages import registry as registry  # registers the stages
from stages.eval.artifact import Evaluation
from stages.eval.best_of_n import nearest
from stages.report.win_rates import against_reference

Row = dict[str, Any]

MOST = 64
"""The largest n of best-of-n and RAFT."""
BETAS = (0.03, 0.1, 0.3, 1.0)
"""Of DPO."""


@dataclass(frozen=True)
class Task:
    """A recipe, and the KL from SFT that all methods aim for, nats per response."""

    recipe: str
    kl: float

    @property
    def n(self) -> int:
        """The n of best-of-n whose bound is nearest the KL."""
        return nearest(self.kl, MOST)


TASKS = {"quickstart": Task("quickstart", 2.0), "e2e-human": Task("e2e-human", 1.5)}


@dataclass(frozen=True)
class Method:
    """A way to get a policy.

    Attributes:
        model: its row in eval.json.
        variants: recipe values, from the task and its recipe. Of several variants, the one whose KL is nearest the
            task's is reported.
        stage: the stage that trains it; None: nothing is trained for it.
    """

    model: str
    variants: Callable[[Task, Recipe], list[str]]
    stage: str | None = None


SOLVED = "ppo.kl.kind=solved ppo.kl.target={kl}"
ADAPTIVE = "ppo.kl.kind=adaptive ppo.kl.target={kl} ppo.kl.horizon=1000"


def _ppo(values: str = "", kl: str = SOLVED) -> Callable[[Task, Recipe], list[str]]:
    return lambda task, recipe: [f"{kl.format(kl=task.kl)} {values} eval.best_of_n=null"]


def _beside_ppo(task: Task, recipe: Recipe) -> list[str]:
    """The run of PPO, with best-of-n. Its n is the largest with which the bound is nearest PPO's KL."""
    return [f"{SOLVED.format(kl=task.kl)} eval.best_of_n={max(2, task.n)}"]


def _dpo(task: Task, recipe: Recipe) -> list[str]:
    (ppo,) = _ppo()(task, recipe)
    return [f"{ppo} dpo.enabled=true dpo.beta={beta}" for beta in BETAS]


def _raft(task: Task, recipe: Recipe) -> list[str]:
    """With PPO's lengths and the learning rate and batch size of SFT."""
    (ppo,) = _ppo()(task, recipe)
    values = {
        "enabled": "true",
        "best_of_n": max(2, task.n),
        "max_prompt_length": recipe.ppo.max_prompt_length,
        "response_length": recipe.ppo.response_length,
        "temperature": recipe.ppo.temperature,
    }
    trainer = recipe.sft.trainer if recipe.sft is not None else {}
    values |= {
        f"trainer.{name}": trainer[name]
        for name in ("learning_rate", "per_device_train_batch_size")
        if name in trainer
    }
    return [f"{ppo} " + " ".join(f"raft.{name}={value}" for name, value in values.items())]


GROUPED = "ppo.num_generations=4"
METHODS = {
    "sft": Method("sft", _beside_ppo),
    "ppo": Method("ppo", _beside_ppo, "ppo"),
    "rloo": Method("ppo", _ppo(f"ppo.advantage_estimator=rloo {GROUPED}"), "ppo"),
    "grpo": Method("ppo", _ppo(f"ppo.advantage_estimator=grpo {GROUPED}", ADAPTIVE), "ppo"),
    "reinforce++": Method("ppo", _ppo("ppo.advantage_estimator=reinforce ppo.baseline=batch"), "ppo"),
    "dpo": Method("dpo", _dpo, "dpo"),
    "best_of_n": Method("best_of_n", _beside_ppo),
    "raft": Method("raft", _raft, "raft"),
}
BUDGETS = ("kl", "minutes")


def scaled(stage: str, recipe: Recipe, scale: float, prompts: int = 0) -> str:
    """Recipe values with which a stage takes `scale` times as long.

    Args:
        prompts: of `raft`, the number that it used.
    """
    if stage == "ppo":
        updates = max(1, round(recipe.ppo.total_episodes / recipe.ppo.batch_size * scale))
        return f"ppo.total_episodes={updates * recipe.ppo.batch_size}"
    if stage == "raft" and scale <= 1:
        return f"raft.num_prompts={max(1, round(prompts * scale))}"
    epochs = getattr(recipe, stage).trainer.get("num_train_epochs", 1)
    return f"{stage}.trainer.num_train_epochs={epochs * scale:.3f}"


def find(rows: Sequence[Row], **key: Any) -> Row | None:
    return next((row for row in rows if key.items() <= row.items()), None)


def measure(
    task: Task, method: Method, sets: Sequence[str], values: str, runs: Path, scale: float, prompts: int
) -> Row:
    """Runs the stages that are not up to date, and reads the result of a method.

    Args:
        sets: recipe values of the task and seed.
        values: those of the method.
        scale: of the method's minutes; 1: the recipe's own size.
        prompts: as in `scaled`.
    """
    loaded = load_recipe(task.recipe, [*sets, values])
    if scale != 1 and method.stage is not None:
        loaded = load_recipe(task.recipe, [*sets, values, scaled(method.stage, loaded.recipe, scale, prompts)])
    runner = Runner(loaded, runs)
    runner.run("eval")
    stages = runner.planner.summary().stages
    evaluation = Evaluation.read(stages["eval"].artifact)
    result = evaluation.models[method.model]
    contest = against_reference(evaluation).get(method.model)
    trained = stages[method.stage].manifest if method.stage is not None else None
    return {
        "values": values,
        "judge": contest.judge if contest else evaluation.judge,
        "eval_prompts": evaluation.prompts,
        "errors": [result.slot_error_rate, result.slot_error_low, result.slot_error_high],
        "wins": [contest.value, contest.low, contest.high] if contest else [0.5, 0.5, 0.5],
        "kl": result.kl or 0.0,
        "kl_interval": [result.kl_low, result.kl_high],
        "score": result.score,
        "length": result.length,
        "seconds": trained.seconds if trained else 0.0,
        "prompts": trained.metrics.get("prompts") if trained else None,
        "samples": trained.metrics.get("answers", trained.metrics.get("episodes", 0)) if trained else 0,
        "peak": {name: run.manifest.peak_memory for name, run in stages.items()},
    }


def nearest_kl(found: Sequence[Row], kl: float) -> Row:
    """The row whose measured KL is nearest. The choice does not see the judge."""
    return min(found, key=lambda row: abs(row["kl"] - kl))


def compare(
    rows: list[Row],
    key: Row,
    task: Task,
    method: Method,
    sets: Sequence[str],
    runs: Path,
    run: Callable[..., Row] = measure,
) -> Row | None:
    """The row of a method under a budget; None for a budget that does not apply to it. Raises `LookupError` if the
    first budget, whose times the second needs, was not run."""
    seed_sets = [*sets, f"seed={key['seed']}"]
    if key["budget"] == "kl":
        recipe = load_recipe(task.recipe, seed_sets).recipe
        found = [run(task, method, seed_sets, values, runs, 1.0, 0) for values in method.variants(task, recipe)]
        return key | nearest_kl(found, task.kl)
    if method.stage is None:
        return None
    first = {"budget": "kl", "task": key["task"], "seed": key["seed"]}
    own, ppo = find(rows, **first, method=key["method"]), find(rows, **first, method="ppo")
    if own is None or ppo is None:
        raise LookupError(f"the minutes of {key['method']} and ppo at equal KL are not measured: run both first")
    scale = 1.0 if key["method"] == "ppo" else ppo["seconds"] / own["seconds"]
    return key | run(task, method, seed_sets, own["values"], runs, scale, own["prompts"] or 0)


def table(rows: Sequence[Row]) -> str:
    """One table per task and budget: means with 95 % intervals over seeds. Below it, each seed with its intervals
    over prompts."""
    lines = []
    for task, budget in dict.fromkeys((row["task"], row["budget"]) for row in rows):
        part = [row for row in rows if (row["task"], row["budget"]) == (task, budget)]
        judges = ", ".join(dict.fromkeys(str(row["judge"]) for row in part))
        lines += [f"{task}, equal {budget}; judge {judges}; +- over seeds", ""]
        head = f"{'method':12s} {'n':>2s} {'fact errors':>15s} {'wins over SFT':>15s} {'KL, nats':>14s} "
        lines.append(head + f"{'minutes':>8s} {'samples':>8s} {'peak, GB':>9s}")
        for name in dict.fromkeys(row["method"] for row in part):
            every = [row for row in part if row["method"] == name]
            errors = [row["errors"][0] for row in every if row["errors"][0] is not None]
            stage = METHODS[name].stage
            peaks = [row["peak"].get(stage) or 0 for row in every] if stage else [0]
            cells = [
                f"{interval(errors) if errors else '-':>15s}",
                f"{interval([row['wins'][0] for row in every]):>15s}",
                f"{interval([row['kl'] for row in every]):>14s}",
                f"{sum(row['seconds'] for row in every) / len(every) / 60:8.1f}",
                f"{sum(row['samples'] for row in every) / len(every):8.0f}",
                f"{max(peaks) / 1e9:9.2f}" if stage else f"{'-':>9s}",
            ]
            lines.append(f"{name:12s} {len(every):2d} " + " ".join(cells))
        lines += ["", "Each seed, with its interval over prompts:"]
        for row in part:
            errors, wins = (of_prompts(row[name]) for name in ("errors", "wins"))
            lines.append(
                f"{row['method']:12s} seed {row['seed']}: errors {errors}, wins {wins}, KL {row['kl']:.2f}"
            )
        lines.append("")
    return "\n".join(lines)


def of_prompts(values: Sequence[float | None]) -> str:
    value, low, high = values
    if value is None or low is None or high is None:
        return "-"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="override a recipe value for all methods")
    parser.add_argument("--kl", type=float, help="the KL target instead of the task's, nats per response")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("optimisers.jsonl"))
    arguments = parser.parse_args(argv)
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    for name in arguments.tasks:
        task = TASKS[name] if arguments.kl is None else Task(TASKS[name].recipe, arguments.kl)
        for seed in range(arguments.seeds):
            for budget in arguments.budgets:
                for method in arguments.methods:
                    key = {"task": name, "budget": budget, "method": method, "seed": seed}
                    if find(rows, **key):
                        continue
                    try:
                        row = compare(rows, key, task, METHODS[method], arguments.set, arguments.runs)
                    except LookupError as error:
                        parser.error(str(error))
                    if row is None:
                        continue
                    rows.append(row)
                    with arguments.out.open("a", encoding="utf-8") as out:
                        out.write(json.dumps(row) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
