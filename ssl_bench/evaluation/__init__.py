"""The contract of an evaluation, frozen features, and the solvers that protocols share."""
