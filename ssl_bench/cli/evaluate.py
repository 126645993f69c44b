"""`ssl-bench evaluate`: run folders and baselines through protocols, on their data, others, or a suite of them."""

from ssl_bench.cli.commands import import_torch
from ssl_bench.config.suites import expanded
from ssl_bench.console import say


def main(argv: list[str]) -> int:
    from ssl_bench.evaluation.evaluate_config import parse_evaluate
    from ssl_bench.evaluation.recorded_results import answer_from_records

    commands = [parse_evaluate(each) for each in expanded(argv)]  # all of them, before the first begins
    folders = dict[str, None]()
    for parsed in commands:
        if len(commands) > 1:
            say(f"{parsed.data['name']}:")
        lines = answer_from_records(parsed)
        if lines is None:
            import_torch()
            from ssl_bench.evaluation.command import run_evaluate

            lines = run_evaluate(parsed)
        for line in lines:
            if line not in folders:  # a run has one folder for all data sets
                print(line, flush=True)
            folders[line] = None
    return 0
