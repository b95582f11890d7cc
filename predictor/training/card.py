"""The model card: what a model is, what it was trained on, how good it is, what it is not for."""

from __future__ import annotations

from collections.abc import Sequence

from predictor.evaluation.figures import Figures
from predictor.evaluation.floor import Knowable
from predictor.training.pictures import important_columns
from tidepipe_common.lengths.request import Observation
from tidepipe_common.lengths.trained import TrainedLengths


def model_card(
    model: TrainedLengths,
    observations: Sequence[Observation],
    rows: dict[str, Figures],
    pictures: Sequence[str],
    prompts: int,
    known: Knowable | None,
) -> str:
    """Markdown. rows: figures by name, on answers that the model had not seen.

    prompts: to which its answers are. known: of those with several answers.
    """
    lengths = sorted(one.output_tokens for one in observations)
    cut = sum(one.censored for one in observations) / len(lengths)
    names = list(next(iter(rows.values())).coverage)
    lines = [
        "# Length model",
        "",
        f"Predicts how many tokens answers will have: `{model.version}`, trained on {model.answers} answers "
        f"to {prompts} prompts "
        f"(median {lengths[len(lengths) // 2]} tokens, longest {lengths[-1]}, {cut:.1%} cut by a limit or "
        "cancelled).",
        "",
        "A discrete-time hazard model (LightGBM): "
        f"{len(model.hazard.base)} bins of lengths, {model.hazard.booster.num_trees()} trees, and a ridge "
        "regression on hashed words; conformal calibration on answers held out in cross-validation.",
        "",
        "## Quality on answers that it had not seen (cross-validation)",
        "",
        f"| | pinball | MAE, tokens | {' | '.join(f'coverage {name}' for name in names)} |",
        f"|{'---|' * (len(names) + 3)}",
    ]
    for name, figures in rows.items():
        coverage = " | ".join(f"{value:.3f}" for value in figures.coverage.values())
        lines.append(f"| {name} | {figures.pinball:.2f} | {figures.mae_tokens:.1f} | {coverage} |")
    columns, gains = important_columns(model, 8)
    seen = ", ".join(f"`{name}` {gain:.0%}" for name, gain in zip(columns, gains, strict=True))
    lines += [
        "",
        "Lengths count up to max_tokens, as callers see them; coverage can only exceed its level where many "
        "answers end at their limit or at one and the same length.",
        "",
        *_what_prompts_tell(known),
        f"What the trees look at most: {seen}.",
        "",
        *(f"![{name}]({name}.png)" for name in pictures),
        "",
        "## Limits",
        "",
        "It knows one served model and the prompts it was trained on; others need their own answers. Single "
        "predictions are rough, sums over many requests are not. It holds hashes and counts, no prompt text, "
        "and nothing of answers that are not to be learned from (`tidepipe keys add --learning off`).",
        "",
    ]
    return "\n".join(lines)


def _what_prompts_tell(known: Knowable | None) -> list[str]:
    if known is None:
        return []
    return [
        f"{known.prompts} prompts have several answers, {known.answers} in all; "
        f"{known.share_between:.0%} of the variance of their lengths lies between prompts, the rest nobody "
        f"can foretell. Mean absolute error on them: {known.plain:.1f} tokens by the median of all answers, "
        f"{known.model:.1f} by this model, about {known.floor:.1f} ({known.least:.1f} to {known.most:.1f}) "
        f"by the best predictor there can be: the model has gone {known.share:.0%} of the way.",
        "",
    ]
