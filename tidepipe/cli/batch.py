"""`tidepipe batch`: answers an OpenAI batch file, durably."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidepipe.cli.client_options import client_options
from tidepipe.cli.cluster_options import cluster_options
from tidepipe.cli.connect import connected
from tidepipe.cli.exit_codes import SOME_FAILED, SUCCESS
from tidepipe.cli.options import AsJson, RunningRouter
from tidepipe.cli.run import run
from tidepipe.cli.trace import TraceFile, save_trace

if TYPE_CHECKING:
    from tidepipe.batch.progress_file import ProgressFile

CONCURRENCY = 512
REQUEST_TIMEOUT_S = 86_400.0
GIVE_UP_S = 300.0


@client_options
@cluster_options
def batch(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests, one JSON object per line.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.jsonl", help="Where answers go.")],
    endpoint: RunningRouter = None,
    as_json: AsJson = False,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, help="Requests in flight at most.")
    ] = CONCURRENCY,
    request_timeout: Annotated[
        float, typer.Option("--request-timeout", min=0.001, help="Seconds that one request may take.")
    ] = REQUEST_TIMEOUT_S,
    trace: TraceFile = None,
    *,
    cluster: dict[str, Any],
) -> None:
    """Answer a file of requests in OpenAI's batch format, on a local cluster or a running one.

    Interrupted or killed, the same command goes on where it was. Exit code 1: some requests failed, each
    with an error line in the output.

    Example: `tidepipe batch IN.jsonl -o OUT.jsonl --model smollm2-135m --stages 2`
    """
    # Late, so that `tidepipe --help` stays quick.
    from tidepipe.batch.places import check_places
    from tidepipe_common.regular_files import check_writable

    check_writable(trace)
    check_places(source, output)
    if output.is_symlink():
        output = output.resolve()  # what it leads to is written, and the link stays
        check_places(source, output)
    run(_batch(source, output, endpoint, cluster, as_json, concurrency, request_timeout, trace))


async def _batch(
    source: Path,
    output: Path,
    endpoint: str | None,
    settings: dict[str, Any],
    as_json: bool,
    concurrency: int,
    request_timeout: float,
    trace: Path | None,
) -> int:
    # Late, so that `tidepipe --help` stays quick.
    import json

    from tidepipe.batch.input_file import count_lines
    from tidepipe.batch.progress_file import ProgressFile
    from tidepipe.batch.runner import BatchRun
    from tidepipe.cli.batch_display import TerminalDisplay
    from tidepipe.cli.target import open_target, run_on
    from tidepipe.client.retry import RetryPolicy

    total = count_lines(source)
    progress = ProgressFile(output)
    try:
        async with open_target(endpoint, settings) as target:
            retry = RetryPolicy(give_up_s=GIVE_UP_S, longest_s=2.0)
            async with await connected(
                target.endpoint, retry=retry, credentials=target.credentials
            ) as client:
                with TerminalDisplay(total) as display:
                    job = BatchRun(
                        source,
                        progress,
                        client,
                        display,
                        concurrency=concurrency,
                        timeout_s=request_timeout,
                        model_sources=target.model_sources,
                    )
                    began = time.monotonic()
                    report = await run_on(target, job.run())
                if trace is not None:
                    await save_trace(client, trace, time.monotonic() - began)
    except BaseException:
        _say_how_to_resume(progress, total)
        raise
    finally:
        progress.close()
    _summarize(report, output)
    if as_json:
        print(json.dumps({**report, "output": str(output)}))
    return SOME_FAILED if report["failed"] else SUCCESS


def _say_how_to_resume(progress: ProgressFile, total: int) -> None:
    if progress.done:
        print(
            f"{progress.done} of {total} requests are done and kept in {progress.path}; "
            "run the same command again to go on",
            file=sys.stderr,
        )


def _summarize(report: dict[str, Any], output: Path) -> None:
    failed = f", {report['failed']} failed (see their lines in the output)" if report["failed"] else ""
    resumed = f", {report['resumed']} of them in an earlier run" if report["resumed"] else ""
    found = f" ({report['cached_tokens']} of {report['prompt_tokens']} prompt tokens were cached)"
    cached = found if report["cached_tokens"] else ""
    print(
        f"{report['requests']} requests{resumed}{failed}; {report['output_tokens']} output tokens{cached}; "
        f"{report['seconds']:.1f} s, {report['output_tokens_per_s']:.0f} output tokens/s -> {output}",
        file=sys.stderr,
    )
