"""`ssl-bench evaluate`: run folders and baselines through protocols, on their data or others."""

from ssl_bench.cli.commands import import_torch


def main(argv: list[str]) -> int:
    from ssl_bench.evaluation.evaluate_config import parse_evaluate
    from ssl_bench.evaluation.recorded_results import answer_from_records

    parsed = parse_evaluate(argv)
    lines = answer_from_records(parsed)
    if lines is None:
        import_torch()
        from ssl_bench.evaluation.command import run_evaluate

        lines = run_evaluate(parsed)
    for line in lines:
        print(line, flush=True)
    return 0
