"""`ssl-bench benchmark`."""


def main(argv: list[str]) -> int:
    from ssl_bench.benchmark.runner import parse_benchmark, run_benchmark

    return run_benchmark(parse_benchmark(argv))
