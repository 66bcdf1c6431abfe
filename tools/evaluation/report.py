"""What an evaluation found, in Markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from benchmark.figures import Spread, ratios
from benchmark.report import Table, seconds, times
from evaluation.grading import Graded, Share
from evaluation.protocol import Forbidden, Series

if TYPE_CHECKING:
    from evaluation.comparison import Size  # brings torch

_READING_NOTE = (
    "Read from the pixels by image analysis that reads the drawings themselves without a fault. In brackets Wilson's "
    "intervals at 95 %. Size and place are graded also where the prompt is silent: medium, and in the center."
)


@dataclass(frozen=True, eq=False)
class Contender:
    """One of two checkpoints that are compared."""

    name: str
    size: Size
    seconds: Sequence[float]
    """For one picture, round by round."""
    series: Mapping[str, Series]
    """By kind of picture."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found; what was not asked for is empty."""

    following: Mapping[str, Sequence[Series]] = field(default_factory=dict)
    """By kind of picture, shapes or landscapes, one for each scheduler."""
    guidance: Sequence[Series] = ()
    """Without guidance, and with it."""
    forbidden: Sequence[Forbidden] = ()
    contenders: Sequence[Contender] = ()
    """The checkpoint that was compared with, and the one that was evaluated."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """CLIP score, FID."""


def markdown(findings: Findings, circumstances: Mapping[str, str]) -> str:
    """A document with one section for each question."""
    blocks = ["# How well the pictures follow their prompts"]
    if findings.following:
        blocks.append(_READING_NOTE)
    for title, table in _sections(findings):
        blocks += [f"## {title}", table.markdown()]
    blocks += ["Evaluated with:", "\n".join(f"- {name}: {value}" for name, value in circumstances.items())]
    return "\n\n".join(blocks) + "\n"


def to_json(findings: Findings, circumstances: Mapping[str, str]) -> dict[str, Any]:
    """Everything, down to the single pictures, as JSON values."""
    return {
        "circumstances": dict(circumstances),
        "following": {kind: [_series(series) for series in many] for kind, many in findings.following.items()},
        "guidance": [_series(series) for series in findings.guidance],
        "negative_prompts": [
            {"colour": f.colour, "without": _share(f.without), "with": _share(f.with_it)} for f in findings.forbidden
        ],
        "contenders": [
            {
                "name": contender.name,
                **asdict(contender.size),
                "seconds": list(contender.seconds),
                "series": {kind: _series(series) for kind, series in contender.series.items()},
            }
            for contender in findings.contenders
        ],
        "scores": dict(findings.scores),
    }


def _sections(findings: Findings) -> Iterator[tuple[str, Table]]:
    for kind, many in findings.following.items():
        yield f"{kind.capitalize()}, in combinations held out from training", _accuracies("scheduler", many)
    if findings.guidance:
        yield "Guidance", _accuracies("", findings.guidance)
    if findings.forbidden:
        rows = [[f.colour, str(f.without), str(f.with_it)] for f in findings.forbidden]
        columns = ["colour", "pictures that have it", "with the colour as negative prompt"]
        yield "Negative prompts, where the prompt leaves all colours open", Table(columns, rows)
    if findings.contenders:
        yield "Side by side", _comparison(*findings.contenders)
    if findings.scores:
        rows = [[name, f"{value:.4g}"] for name, value in findings.scores.items()]
        yield "Scores", Table(["score", "value"], rows)


def _accuracies(first: str, many: Sequence[Series]) -> Table:
    names = list(many[0].accuracy)
    rows = [[series.name, str(len(series.graded)), *(str(series.accuracy[name]) for name in names)] for series in many]
    return Table([first, "pictures", *names], rows)


def _comparison(one: Contender, other: Contender) -> Table:
    speed = Spread.of(ratios(one.seconds, other.seconds))
    rows = [
        _counted("U-Net parameters", one.size.unet_parameters, other.size.unet_parameters),
        _counted("parameters in all", one.size.parameters, other.size.parameters),
        _counted("operations of a U-Net call, MFLOP", one.size.unet_flops / 1e6, other.size.unet_flops / 1e6),
        [
            "seconds for a picture, median",
            *(seconds(Spread.of(contender.seconds).median) for contender in (one, other)),
            f"{times(speed.median)} as fast ({times(speed.least)} to {times(speed.most)})",
        ],
    ]
    for kind, series in one.series.items():
        theirs = other.series[kind].accuracy
        for name, share in series.accuracy.items():
            difference = (theirs[name].value - share.value) * 100
            rows.append([f"{kind}: {name}", str(share), str(theirs[name]), f"{difference:+.1f} points"])
    return Table(["", one.name, other.name, "difference"], rows)


def _counted(name: str, one: float, other: float) -> list[str]:
    return [name, f"{one:,.0f}", f"{other:,.0f}", f"{(other / one - 1) * 100:+.1f} %"]


def _series(series: Series) -> dict[str, Any]:
    return {
        "name": series.name,
        "accuracy": _shares(series.accuracy),
        "pictures": [_picture(picture) for picture in series.graded],
    }


def _picture(picture: Graded) -> dict[str, Any]:
    order = asdict(picture.order)
    return {**order, "reading": asdict(picture.reading), "wrong": _wrong(picture.right)}


def _wrong(right: Mapping[str, bool]) -> list[str]:
    return [name for name, is_right in right.items() if not is_right]


def _shares(shares: Mapping[str, Share]) -> dict[str, Any]:
    return {name: _share(share) for name, share in shares.items()}


def _share(share: Share) -> dict[str, Any]:
    return {**asdict(share), "share": share.value, "interval": share.interval}
