"""load_tests' figures, options and answers: what a load test makes of what it has seen; without a server."""

from __future__ import annotations

import argparse
import csv
import doctest
import io
import json
from base64 import b64encode
from typing import Any

import pytest

from load_tests import chart, figures
from load_tests.calls import TRANSPORTS, Failed, Refused
from load_tests.calls.answers import check_base64, check_files, error
from load_tests.calls.tensors import tensors
from load_tests.figures import Figures, Outcome, Record, Slo, Spread, percentile
from load_tests.options import API_KEY, add_options, read_settings, read_transports
from load_tests.report import Report
from tiny_sd_client._wire import DATATYPES
from tiny_sd_client.parameters import InvalidParameter, Parameters, parse

SLO = Slo(seconds=10.0, share=0.9)
JPEG, PNG, WEBP = (
    b"\xff\xd8\xff\xe0" + bytes(20),
    b"\x89PNG\r\n\x1a\n" + bytes(20),
    b"RIFF\x01\x02\x03\x04WEBP" + bytes(20),
)


def record(seconds: float = 1.0, outcome: Outcome = Outcome.ANSWERED, **fields: Any) -> Record:
    return Record(
        **{"transport": "grpc", "kind": "draft", "due": 0.0, "late": 0.0, **fields}, seconds=seconds, outcome=outcome
    )


def of(*records: Record, seconds: float = 20.0, slo: Slo = SLO) -> Figures:
    return figures.figures(records, slo, seconds)


def test_the_examples_in_docstrings_hold() -> None:
    assert [doctest.testmod(module).failed for module in (figures, chart)] == [0, 0]


def test_a_percentile_is_the_value_that_so_many_do_not_exceed() -> None:
    hundred = [float(number) for number in range(1, 101)]
    assert [percentile(hundred, share) for share in (0.5, 0.95, 0.99)] == [50, 95, 99]
    twenty = hundred[:20]
    assert [percentile(twenty, share) for share in (0.5, 0.95, 0.99)] == [10, 19, 20]
    assert percentile([3.0], 0.01) == 3.0
    assert Spread.of([]) == Spread(None, None, None)


def test_goodput_counts_what_was_answered_in_time_and_nothing_else() -> None:
    late, refused = record(10.1), record(0.1, Outcome.REFUSED)
    result = of(*[record(10.0)] * 8, late, refused, seconds=16.0)
    assert (result.total.requests, result.total.good, result.total.goodput) == (10, 8, 0.5)
    assert (result.total.answered, result.total.refused) == (9, 1)
    assert result.share == 0.8  # a refusal is no picture
    assert not result.kept
    # Refusals are quick; they must not make the answers look so.
    assert result.total.image == Spread(10.0, 10.1, 10.1)


def test_the_slo_is_kept_by_the_share_alone_unless_something_was_lost() -> None:
    nine = [record()] * 9
    assert of(*nine, record(11.0)).kept
    assert of(*nine, record(outcome=Outcome.FAILED)).kept
    assert not of(*nine, record(outcome=Outcome.LOST)).kept
    assert not of(*nine, record(11.0), record(11.0)).kept
    assert not of().kept


def test_a_generator_that_cannot_keep_its_plan_is_noticed() -> None:
    assert of(*[record(late=0.1)] * 200, record(late=5.0)).generator_kept_up  # one in two hundred
    overwhelmed = of(*[record(late=0.1)] * 90, *[record(late=0.2)] * 10)
    assert not overwhelmed.generator_kept_up
    assert overwhelmed.latest == 0.2
    assert "The generator was too slow" in Report(overwhelmed, [], {}).html()


def test_requests_are_grouped_by_transport_and_by_kind() -> None:
    result = of(record(1), record(2, transport="stream"), record(3, kind="long"))
    assert [(line.name, line.requests) for line in result.transports] == [("grpc", 2), ("stream", 1)]
    assert [(line.name, line.image.p50) for line in result.kinds] == [("draft", 1), ("long", 3)]


def test_first_progress_first_preview_and_final_image_are_figures_of_their_own() -> None:
    broken_off = record(9, Outcome.LOST, transport="stream", marks={"first progress": 3.0})
    whole = record(8, transport="stream", marks={"first progress": 1.0, "first preview": 2.0})
    found = {
        (each.transport, each.name): (each.count, each.seconds.p50)
        for each in of(broken_off, whole, record(5)).milestones
    }
    assert found == {
        ("grpc", "final image"): (1, 5),
        ("stream", "first progress"): (2, 1.0),
        ("stream", "first preview"): (1, 2.0),
        ("stream", "final image"): (1, 8),
    }


def test_a_record_survives_the_way_from_a_worker_to_the_master() -> None:
    sent = record(3.5, Outcome.FAILED, marks={"accepted": 0.5}, problem="HTTP 500: ", late=0.25)
    assert Record.of(json.loads(json.dumps(sent.row()))) == sent


def test_the_tables_hold_every_request_and_every_figure() -> None:
    records = [
        record(2.0, due=1.5, late=0.25, transport="stream", marks={"first progress": 0.5}),
        record(0.5, Outcome.REFUSED, due=0.5, problem="refused: busy"),
    ]
    report = Report(of(*records), records, {})
    slo = list(csv.DictReader(io.StringIO(report.slo_csv())))
    assert slo[0] == {
        "group": "all", "name": "all", "requests": "2", "good": "1", "goodput_per_s": "0.050000",
        "answered": "1", "refused": "1", "failed": "0", "lost": "0",
        "p50_s": "2.0000", "p95_s": "2.0000", "p99_s": "2.0000",
    }  # fmt: skip
    assert [(row["group"], row["name"]) for row in slo[1:]] == [
        ("transport", "grpc"),
        ("transport", "stream"),
        ("kind", "draft"),
        ("milestone", "stream: first progress"),
        ("milestone", "stream: final image"),
        ("generator", "late"),
    ]
    each = list(csv.DictReader(io.StringIO(report.requests_csv())))
    assert [row["outcome"] for row in each] == ["refused", "answered"]  # as they were due
    assert (each[1]["due_s"], each[1]["late_s"], each[1]["first_progress_s"]) == ("1.5000", "0.2500", "0.5000")
    assert (each[0]["problem"], each[0]["first_progress_s"]) == ("refused: busy", "")


def test_the_page_tells_the_verdict_the_problems_and_each_request() -> None:
    records = [record(), record(12.0), record(0.1, Outcome.FAILED, problem="HTTP 500: <b>")]
    page = Report(of(*records), records, {"command": "locust --mix 'draft'"}).html()
    assert "SLO missed: 33.3 % of 3 requests had their pictures within 10 s" in page
    assert "HTTP 500: &lt;b&gt;" in page
    assert page.count("<circle") == 3 + len(Outcome)  # and the legend's
    assert "locust --mix &#x27;draft&#x27;" in page


def test_the_page_of_a_test_without_requests_can_be_looked_at() -> None:
    assert "SLO missed: 0.0 % of 0 requests" in Report(of(), [], {}).html()


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("busy: 32 of 32 generations are in flight; come back in 3 s", Refused),
        ("in ensemble 'tiny_sd', busy: 4 of 4 generations are in flight; come back in 0.5 s", Refused),
        ("overdue: the timeout passed", Failed),
        ("seed: got -2; allowed: an integer from -1", Failed),
        ("not busy: at all", Failed),
    ],
)
def test_only_a_busy_server_counts_as_a_refusal(message: str, kind: type[Exception]) -> None:
    assert type(error(message)) is kind


def test_problems_that_differ_in_numbers_alone_are_one() -> None:
    assert str(error("step 17 of 20 failed")) == str(error("step 3 of 100 failed")) == "step # of # failed"


def parameters(**values: object) -> Parameters:
    return parse({"prompt": "a", **values})


@pytest.mark.parametrize(("image_format", "file"), [("jpeg", JPEG), ("png", PNG), ("webp", WEBP)])
def test_pictures_must_be_as_many_and_of_the_format_as_were_asked_for(image_format: str, file: bytes) -> None:
    two = parameters(samples=2, image_format=image_format)
    assert check_files([file, file], two) == 2 * len(file)
    text = b64encode(file).decode()
    assert check_base64([text, text], two) == 2 * len(text)
    other = JPEG if image_format == "png" else PNG
    for wrong in ([file], [file, b""], [file, other], [file, file, file]):
        with pytest.raises(Failed):
            check_files(wrong, two)
        with pytest.raises(Failed):
            check_base64([b64encode(each).decode() for each in wrong], two)


def test_tensors_have_the_datatypes_that_the_server_declares() -> None:
    sent = {name: (datatype, value) for name, datatype, value in tensors(parameters(), base64=False, preview_every=5)}
    assert {name: datatype for name, (datatype, _) in sent.items()} == {name: DATATYPES[name] for name in sent}
    assert set(sent) == {*Parameters.model_fields, "preview_every"}
    assert sent["base64"] == ("BOOL", False)


class Parser(argparse.ArgumentParser):
    """Takes what Locust's parser takes, and notes the environment variables."""

    def add_argument(self, *names: str, **arguments: Any) -> Any:
        self.variables = getattr(self, "variables", [])
        self.variables.append(arguments.pop("env_var", None))
        arguments.pop("include_in_web_ui", None)
        return super().add_argument(*names, **arguments)


def options(*arguments: str) -> argparse.Namespace:
    parser = Parser()
    add_options(parser)
    return parser.parse_args(arguments)


def test_every_option_has_a_variable_of_its_own() -> None:
    parser = Parser()
    add_options(parser)
    variables = [variable for variable in parser.variables if variable]
    assert len(set(variables)) == len(variables) == len(vars(parser.parse_args([])))
    assert all(variable.startswith("TINY_SD_LOAD_") for variable in variables)


def test_the_defaults_need_nothing_but_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY, raising=False)
    assert read_transports(options()) == ["grpc", "stream", "generate", "infer"]
    settings = read_settings(options())
    assert (settings.source_rate, settings.slo) == (0.0, Slo(30.0, 0.95))


def test_the_gateway_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY, raising=False)
    with pytest.raises(ValueError, match=API_KEY):
        read_transports(options("--transport=grpc,rest"))
    monkeypatch.setenv(API_KEY, "tsd_key")
    assert read_transports(options("--transport", ",".join(TRANSPORTS))) == list(TRANSPORTS)


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--rate=-1", "rate: got -1.0; allowed: a number of at least 0"),
        ("--rate=nan", "rate: got nan"),
        ("--timeout=0", "timeout: got 0.0; allowed: a number above 0"),
        ("--think-seconds=inf", "think-seconds: got inf"),
        ("--slo-seconds=0", "slo-seconds: got 0.0"),
        ("--slo-share=1.1", "slo-share: got 1.1; allowed: above 0, to 1"),
        ("--grpc-url=localhost:8001", "grpc-url: got 'localhost:8001'; allowed: grpc://host:port or grpcs://host:port"),
        ("--http-url=grpc://localhost:8001", "http-url: got"),
        ("--gateway-url=http://", "gateway-url: got"),
        ("--mix=huge", "mix: got 'huge'"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(argument: str, named: str) -> None:
    with pytest.raises(ValueError, match="allowed: ") as refused:
        read_settings(options(argument))
    assert not isinstance(refused.value, InvalidParameter)
    assert str(refused.value).startswith(named)


def test_an_unknown_transport_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="transport: got 'carrier pigeon'; allowed: grpc"):
        read_transports(options("--transport=grpc,carrier pigeon"))
