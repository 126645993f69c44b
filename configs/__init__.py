"""YAML files that override the numbers in the signatures: recipes per method, benchmarks, studies."""
