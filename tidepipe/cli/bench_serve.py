"""`tidepipe bench serve`: what users of a live server see at a given rate, and the rate that it bears."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidepipe.cli.client_options import client_options
from tidepipe.cli.exit_codes import SOME_FAILED, SUCCESS
from tidepipe.cli.options import Arrivals, AsJson, Attainment, MaxTotal, WorkloadSource, refuse_given
from tidepipe.cli.run import run
from tidepipe_common.numerals import NumberRange

_RATES = NumberRange.within(False, 0.001, None)

if TYPE_CHECKING:
    from workloads.loadgen.figures import Figures
    from workloads.loadgen.targets import Target


@client_options
def serve(
    context: typer.Context,
    workload: WorkloadSource,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", metavar="HOST:PORT", help="A TidePipe router, over gRPC.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="Any OpenAI-compatible server, such as http://host:8000."),
    ] = None,
    model: Annotated[str, typer.Option("--model", help="With --url: the model; default: the first.")] = "",
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.001, help="Requests per second; where a search begins.")
    ] = None,
    rates: Annotated[str | None, typer.Option("--rates", metavar="A,B,..", help="Several rates.")] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--find-goodput",
            help="Search for the rate up to which attainment is enough, from --rate upwards.",
        ),
    ] = False,
    precision: Annotated[
        float, typer.Option("--precision", min=0.005, max=1.0, help="Of the search, as a share of the rate.")
    ] = 0.05,
    arrivals: Arrivals = "poisson",
    ttft_ms: Annotated[float, typer.Option("--ttft-ms", min=0.001, help="Target: first token.")] = 5000.0,
    tpot_ms: Annotated[
        float, typer.Option("--tpot-ms", min=0.001, help="Target: per further token, on average.")
    ] = 100.0,
    attainment: Attainment = 0.9,
    seconds: Annotated[float, typer.Option("--seconds", min=1.0, help="Length of each run.")] = 60.0,
    requests: Annotated[
        int | None, typer.Option("--requests", min=1, help="Requests of each run, instead of --seconds.")
    ] = None,
    max_prompt: Annotated[
        int | None, typer.Option("--max-prompt", min=1, help="Leave longer prompts out, tokens.")
    ] = None,
    max_total: MaxTotal = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds per request.")] = 600.0,
    send_targets: Annotated[
        bool, typer.Option("--send-targets", help="Tell the server the targets with each request.")
    ] = False,
    bearer: Annotated[
        str,
        typer.Option(
            "--bearer", metavar="KEY", envvar="OPENAI_API_KEY", help="With --url: the server's API key."
        ),
    ] = "",
    extra_body: Annotated[
        str, typer.Option("--extra-body", metavar="JSON", help="With --url: more fields of each body.")
    ] = "{}",
    vocab_size: Annotated[
        int | None, typer.Option("--vocab-size", min=2, help="Random prompts have token ids below it.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of arrivals, lengths and prompts.")] = 0,
    as_json: AsJson = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="DIR", help="Draw attainment and latencies.")
    ] = None,
) -> None:
    """Open-loop load: requests go out when they are due, and latencies count from then.

    Outputs have the lengths of the workload (temperature 0, end of sequence ignored). Prompts without a
    text in the workload are random tokens of their length.

    Example: `tidepipe bench serve --url http://127.0.0.1:8080 --workload sharegpt-like --rate 1 --seconds 30`
    """
    given = {name: value for name, value in locals().items() if name != "context"}
    if endpoint is not None:
        refuse_given(context, ("model", "bearer", "extra_body"), "is for --url: leave it out with --endpoint")
    if search:
        refuse_given(context, ("rates",), "and --find-goodput do not go together: a search begins at --rate")
    else:
        refuse_given(context, ("precision",), "is for --find-goodput: give both")
    if requests is not None:
        refuse_given(context, ("seconds",), "and --requests do not go together: each says how long a run is")
    run(_serve(given))


async def _serve(given: dict[str, Any]) -> int:
    # Late, so that `tidepipe --help` stays quick.
    from tidepipe.cli.waiting import Waiting
    from tidepipe_common.regular_files import check_writable
    from workloads.arrivals import parse_arrivals
    from workloads.loadgen.figures import figures_of
    from workloads.loadgen.requests import Load, read_load_workload
    from workloads.loadgen.run import find_goodput, send_watched

    check_writable(given["plot"], folder=True)
    points = _rates(given["rate"], given["rates"])
    kind = parse_arrivals(given["arrivals"])
    target = _target(given)
    ttft_s, tpot_s = given["ttft_ms"] / 1000, given["tpot_ms"] / 1000
    runs: list[Figures] = []
    try:
        await target.prepare()
        total = given["max_total"] or target.context_length
        source = read_load_workload(given["workload"], given["seed"], given["max_prompt"] or total, total)
        load = Load(source, kind, given["seed"], given["vocab_size"] or target.vocab_size)

        async def measure(rate: float) -> Figures:
            count = given["requests"] or max(1, round(rate * given["seconds"]))
            words = f"run {len(runs) + 1}, {rate:.3g} requests/s"
            with Waiting(words) as waiting:

                def progress(sent: int, ended: int) -> None:
                    waiting.say(f"{words}: {sent} of {count} sent, {ended} answered")

                requests = load.requests(rate, count)
                outcomes, late = await send_watched(target, requests, given["timeout"], progress)
            runs.append(figures_of(outcomes, rate, ttft_s, tpot_s, late))
            if runs[-1].starved:
                print(f"warning: {runs[-1].starved}", file=sys.stderr)
            if not given["as_json"]:
                _print_run(runs[-1])
            return runs[-1]

        goodput = None
        if given["search"]:
            goodput = await find_goodput(measure, given["attainment"], points[0], given["precision"])
        else:
            for rate in points:
                await measure(rate)
    finally:
        await target.close()
    _report(given, target, source.name, runs, goodput)
    return SOME_FAILED if any(one.failed for one in runs) else SUCCESS


def _rates(rate: float | None, rates: str | None) -> list[float]:
    from tidepipe_common.errors import ConfigError

    if rates is None:
        return [1.0 if rate is None else rate]
    points = [_RATES.parse(part.strip()) for part in rates.split(",")]
    good = [point for point in points if point is not None and point in _RATES]
    if rate is not None or len(good) < len(points):
        raise ConfigError(f"give --rate, or --rates with numbers from 0.001 on such as 1,2,4; got {rates!r}")
    return good


def _target(given: dict[str, Any]) -> Target:
    import json

    from tidepipe_common.errors import ConfigError
    from workloads.loadgen.targets import GrpcTarget, HttpTarget

    if (given["endpoint"] is None) == (given["url"] is None):
        raise ConfigError("give --endpoint HOST:PORT of a TidePipe router, or --url of an OpenAI server")
    if given["endpoint"] is not None:
        targets = (given["ttft_ms"], given["tpot_ms"]) if given["send_targets"] else None
        return GrpcTarget(given["endpoint"], targets)
    try:
        extra = json.loads(given["extra_body"])
    except ValueError as error:
        raise ConfigError(f"--extra-body is not JSON: {error}") from error
    if not isinstance(extra, dict):
        raise ConfigError("--extra-body must be a JSON object")
    headers = {"authorization": f"Bearer {given['bearer']}"} if given["bearer"] else {}
    if given["send_targets"]:
        headers |= {"x-slo-ttft-ms": str(given["ttft_ms"]), "x-slo-tpot-ms": str(given["tpot_ms"])}
    return HttpTarget(given["url"], given["model"], headers, extra)


def _print_run(one: Figures) -> None:
    def both(values: dict[str, float]) -> str:
        return f"{values['p50']:.0f}/{values['p90']:.0f} ms" if values else "-"

    refused = f", {one.rejected} refused" if one.rejected else ""
    failed = f", {one.failed} failed ({one.first_error})" if one.failed else ""
    print(
        f"{one.rate:.3g} req/s: {one.attainment:.1%} within both targets "
        f"({one.attainment_switch_wait:.1%} with phase-switch wait)\n"
        f"  TTFT p50/p90 {both(one.ttft_ms)}, TPOT {both(one.tpot_ms)}, ITL {both(one.itl_ms)}\n"
        f"  {one.output_tokens_per_s:.1f} output tokens/s; {one.completed}/{one.requests} answered"
        f"{refused}{failed}",
        flush=True,
    )


def _report(
    given: dict[str, Any], target: Target, workload: str, runs: list[Figures], goodput: float | None
) -> None:
    import json
    from dataclasses import asdict

    from workloads.loadgen.pictures import draw_rates

    if given["plot"] is not None:
        path = draw_rates(runs, given["ttft_ms"], given["tpot_ms"], given["attainment"], given["plot"])
        print(f"wrote {path}", file=sys.stderr)
    if given["as_json"]:
        report = {
            "target": given["endpoint"] or given["url"],
            "model": target.model,
            "workload": workload,
            "arrivals": given["arrivals"],
            "seed": given["seed"],
            "slo": {"ttft_ms": given["ttft_ms"], "tpot_ms": given["tpot_ms"]},
            "attainment": given["attainment"],
            "goodput_rps": goodput,
            "runs": [asdict(one) for one in runs],
        }
        print(json.dumps(report))
    elif goodput is not None:
        print(f"goodput: {goodput:.3g} requests/s with {given['attainment']:.0%} within both targets")
