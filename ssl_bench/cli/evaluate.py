"""`ssl-bench evaluate`: run folders and baselines through protocols, on their data or others."""

from ssl_bench.cli.commands import import_torch


def main(argv: list[str]) -> int:
    from ssl_bench.evaluation.evaluate_config import parse_evaluate

    parsed = parse_evaluate(argv)
    import_torch()
    from ssl_bench.evaluation.command import run_evaluate

    for line in run_evaluate(parsed):
        print(line, flush=True)
    return 0
